rule metrics:
    input:
        all_predictions(),
        all_probes(),
    output:
        LAYOUT.metrics,
    log:
        LAYOUT.log("metrics"),
    benchmark:
        LAYOUT.benchmark("metrics")
    conda:
        "../../environment.yml"
    threads: 1
    params:
        config=CONFIG,
        settings=settings("metrics"),
        code=code("metrics"),
    message:
        "Computing metrics and their intervals"
    shell:
        "exec python -m latentwire metrics --config {params.config:q}"


rule statistics:
    input:
        all_predictions(),
    output:
        LAYOUT.statistics,
        LAYOUT.statistical_report,
    log:
        LAYOUT.log("statistics"),
    benchmark:
        LAYOUT.benchmark("statistics")
    conda:
        "../../environment.yml"
    threads: 1
    params:
        config=CONFIG,
        settings=settings("statistics"),
        code=code("statistics"),
    message:
        "Comparing methods"
    shell:
        "exec python -m latentwire statistics --config {params.config:q}"
