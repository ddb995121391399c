rule prepare:
    input:
        receivers=prepared_receivers(),
        files=data_files(),
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
    threads: 1
    params:
        settings=settings("prepare"),
        code=code("prepare"),
    message:
        "Preparing the questions"
    shell:
        "exec python -m latentwire prepare --config {LAYOUT.config:q}"
