rule evaluate_text:
    input:
        receiver=LAYOUT.receiver("{receiver}") / "receiver.json",
        test=LAYOUT.split("test"),
    output:
        text_predictions("{receiver}"),
    log:
        LAYOUT.log("evaluate_text-{receiver}"),
    benchmark:
        LAYOUT.benchmark("evaluate_text-{receiver}")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT.threads
    resources:
        gpu=NUM_GPUS,
    params:
        config=CONFIG,
        settings=lambda wildcards: text_settings("evaluate_text", wildcards),
        code=code("evaluate_text"),
    message:
        "Asking {wildcards.receiver} with text and without"
    shell:
        "exec python -m latentwire evaluate-text --config {params.config:q}"
        " --receiver {wildcards.receiver:q}"


if EXPERIMENT.evaluation.wire_methods:

    rule evaluate_wire:
        input:
            receivers=receivers_of_wire,
            test=LAYOUT.split("test"),
            weights=LAYOUT.wire("{wire}", "{seed}") / "model.safetensors",
            config=LAYOUT.wire("{wire}", "{seed}") / "config.json",
        output:
            wire_predictions(EXPERIMENT.wire.name, "{wire}", "{seed}"),
        log:
            LAYOUT.log("evaluate_wire-{wire}-seed{seed}"),
        benchmark:
            LAYOUT.benchmark("evaluate_wire-{wire}-seed{seed}")
        wildcard_constraints:
            wire=any_of([EXPERIMENT.wire.name]),
        conda:
            "../../environment.yml"
        threads: EXPERIMENT.threads
        resources:
            gpu=NUM_GPUS,
        params:
            config=CONFIG,
            settings=lambda wildcards: wire_settings("evaluate_wire", wildcards.wire),
            code=code("evaluate_wire"),
        message:
            "Asking every receiver through the wire {wildcards.wire}, seed {wildcards.seed}"
        shell:
            "exec python -m latentwire evaluate-wire --config {params.config:q}"
            " --wire {wildcards.wire:q} --seed {wildcards.seed:q}"


rule evaluate_variant:
    input:
        receivers=receivers_of_wire,
        test=LAYOUT.split("test"),
        weights=LAYOUT.wire("{wire}", "{seed}") / "model.safetensors",
        config=LAYOUT.wire("{wire}", "{seed}") / "config.json",
    output:
        LAYOUT.predictions("{method}", "{receiver}", "{wire}", "{seed}"),
    log:
        LAYOUT.log("evaluate_variant-{method}-{receiver}-{wire}-seed{seed}"),
    benchmark:
        LAYOUT.benchmark("evaluate_variant-{method}-{receiver}-{wire}-seed{seed}")
    wildcard_constraints:
        wire=any_of(variant.name for variant in EXPERIMENT.variants),
    conda:
        "../../environment.yml"
    threads: EXPERIMENT.threads
    resources:
        gpu=NUM_GPUS,
    params:
        config=CONFIG,
        settings=lambda wildcards: wire_settings("evaluate_wire", wildcards.wire),
        code=code("evaluate_wire"),
    message:
        "Asking {wildcards.receiver} through the wire {wildcards.wire}, seed {wildcards.seed}"
    shell:
        "exec python -m latentwire evaluate-variant --config {params.config:q}"
        " --method {wildcards.method:q} --receiver {wildcards.receiver:q}"
        " --wire {wildcards.wire:q} --seed {wildcards.seed:q}"
