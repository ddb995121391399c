rule headline:
    input:
        LAYOUT.metrics,
        LAYOUT.statistics,
    output:
        LAYOUT.headline,
    log:
        LAYOUT.log("headline"),
    benchmark:
        LAYOUT.benchmark("headline")
    conda:
        "../../environment.yml"
    threads: 1
    params:
        config=CONFIG,
        settings=settings("headline"),
        code=code("headline"),
    message:
        "Writing the headline"
    shell:
        "exec python -m latentwire headline --config {params.config:q}"


rule provenance:
    input:
        LAYOUT.metrics,
    output:
        LAYOUT.provenance,
        page=report(
            LAYOUT.page("provenance"),
            caption="../report/provenance.rst",
            category="Provenance",
            labels={"what": "Commit, versions, hardware, configuration"},
        ),
    log:
        LAYOUT.log("provenance"),
    benchmark:
        LAYOUT.benchmark("provenance")
    conda:
        "../../environment.yml"
    threads: 1
    params:
        config=CONFIG,
        settings=settings("provenance"),
        code=code("provenance"),
    message:
        "Noting commit, versions and hardware"
    shell:
        "exec python -m latentwire provenance --config {params.config:q}"


rule figures:
    input:
        metrics=LAYOUT.metrics,
        statistics=LAYOUT.statistics,
        headline=LAYOUT.headline,
        test=LAYOUT.split("test"),
        predictions=all_predictions(),
        training=[run / "metrics.jsonl" for run in wire_runs()],
        probes=all_probes(),
    output:
        drawn_files(),
        pages=[
            report(
                LAYOUT.page(page),
                caption=f"../report/{page}.rst",
                category=category,
                labels={"what": label},
            )
            for page, (category, label) in PAGES.items()
        ],
    log:
        LAYOUT.log("figures"),
    benchmark:
        LAYOUT.benchmark("figures")
    conda:
        "../../environment.yml"
    threads: 1
    params:
        config=CONFIG,
        settings=settings("figures"),
        code=code("figures"),
    message:
        "Drawing figures and writing pages"
    shell:
        "exec python -m latentwire figures --config {params.config:q}"


# Another Snakemake makes the report, of `results` and not of `all`, which this rule is part of.
rule report:
    input:
        result_files(),
        captions=sorted(map(str, Path("workflow/report").glob("*.rst"))),
    output:
        LAYOUT.report,
    log:
        LAYOUT.log("report"),
    benchmark:
        LAYOUT.benchmark("report")
    conda:
        "../../environment.yml"
    threads: 1
    params:
        config=CONFIG,
    message:
        "Writing the report"
    shell:
        "exec python -m snakemake results --nolock --cores 1 --configfile {params.config:q}"
        " --report {output:q} > {log:q} 2>&1"
