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
        settings=text_settings,
        code=code("evaluate_text"),
    message:
        "Asking {wildcards.receiver} with text and without"
    shell:
        "exec python -m latentwire evaluate-text --config {params.config:q}"
        " --receiver {wildcards.receiver:q}"


for WIRE, OWN in WIRES.items():
    if OWN.evaluation.wire_methods:

        rule:
            name:
                f"evaluate_wire_{WIRE}"
            input:
                receivers=prepared_receivers(receiver.name for receiver in OWN.readers),
                test=LAYOUT.split("test"),
                weights=LAYOUT.wire(WIRE, "{seed}") / "model.safetensors",
                config=LAYOUT.wire(WIRE, "{seed}") / "config.json",
            output:
                wire_predictions(WIRE, "{seed}"),
            log:
                LAYOUT.log(f"evaluate_wire-{WIRE}-seed{{seed}}"),
            benchmark:
                LAYOUT.benchmark(f"evaluate_wire-{WIRE}-seed{{seed}}")
            conda:
                "../../environment.yml"
            threads: EXPERIMENT.threads
            resources:
                gpu=NUM_GPUS,
            params:
                config=CONFIG,
                wire=WIRE,
                settings=wire_settings("evaluate_wire", WIRE),
                code=code("evaluate_wire"),
            message:
                "Asking receivers through the wire {params.wire}, seed {wildcards.seed}"
            shell:
                "exec python -m latentwire evaluate-wire --config {params.config:q}"
                " --wire {params.wire:q} --seed {wildcards.seed:q}"
