rule headline:
    input:
        LAYOUT.metrics,
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
        table=report(
            LAYOUT.table("provenance"),
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
        training=[run / "metrics.jsonl" for run in wire_runs()],
        probes=all_probes(),
    output:
        headline=report(
            LAYOUT.table("headline"),
            caption="../report/headline.rst",
            category="Overview",
            labels={"what": "Headline"},
        ),
        quality=report(
            LAYOUT.figure("quality"),
            caption="../report/quality.rst",
            category="Quality",
            labels={"what": "F1 of every method", "form": "figure"},
        ),
        tasks=report(
            LAYOUT.figure("tasks"),
            caption="../report/tasks.rst",
            category="Quality",
            labels={"what": "F1 by task", "form": "figure"},
        ),
        metrics=report(
            LAYOUT.table("metrics"),
            caption="../report/metrics.rst",
            category="Quality",
            labels={"what": "All metrics", "form": "table"},
        ),
        ratio=report(
            LAYOUT.figure("ratio"),
            caption="../report/ratio.rst",
            category="Compression",
            labels={"what": "F1 against compression ratio"},
        ),
        controls=report(
            LAYOUT.figure("controls"),
            caption="../report/controls.rst",
            category="Controls",
            labels={"what": "Is the message read?"},
        ),
        statistics=report(
            LAYOUT.table("statistics"),
            caption="../report/statistics.rst",
            category="Statistics",
            labels={"what": "Declared comparisons"},
        ),
        training=report(
            LAYOUT.figure("training"),
            caption="../report/training.rst",
            category="Training",
            labels={"what": "Training curves"},
        ),
        cost=report(
            LAYOUT.figure("cost"),
            caption="../report/cost.rst",
            category="Cost",
            labels={"what": "Bytes and seconds per question"},
        ),
        probe=[
            report(
                LAYOUT.figure(figure),
                caption="../report/probe.rst",
                category="Probe",
                labels={"what": "Is the answer in the sender's states?"},
            )
            for figure in FIGURES
            if figure == "probe"
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
        "Drawing figures and tables"
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
