rule prepare:
    input:
        receivers=prepared_receivers(),
        files=data_files,
    output:
        train=LAYOUT.split("train"),
        dev=LAYOUT.split("dev"),
        test=LAYOUT.split("test"),
        card=LAYOUT.data_card,
        readable_card=LAYOUT.data_card.with_suffix(".md"),
    log:
        LAYOUT.log("prepare"),
    benchmark:
        LAYOUT.benchmark("prepare")
    conda:
        "../../environment.yml"
    threads: 1
    params:
        config=CONFIG,
        settings=settings("prepare"),
        code=code("prepare"),
    message:
        "Preparing the questions"
    shell:
        "exec python -m latentwire prepare --config {params.config:q}"
