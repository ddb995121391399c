if TRAINS_COMPRESSOR:

    rule train_compressor:
        input:
            train=LAYOUT.split("train"),
            dev=LAYOUT.split("dev"),
        output:
            weights=LAYOUT.compressor / "model.safetensors",
            config=LAYOUT.compressor / "config.json",
            tokenizer=LAYOUT.compressor / "tokenizer.json",
            metrics=LAYOUT.compressor / "metrics.jsonl",
        log:
            LAYOUT.log("train_compressor"),
        benchmark:
            LAYOUT.benchmark("train_compressor")
        conda:
            "../../environment.yml"
        threads: EXPERIMENT.threads
        resources:
            gpu=NUM_GPUS,
        params:
            config=CONFIG,
            settings=settings("train_compressor"),
            code=code("train_compressor"),
        message:
            "Training the classifier of LLMLingua-2"
        shell:
            "exec python -m latentwire train-compressor --config {params.config:q}"


if EXPERIMENT.evaluation.compressor_methods:

    rule evaluate_compressed:
        input:
            receiver=LAYOUT.receiver("{receiver}") / "receiver.json",
            compressors=compressors(),
            test=LAYOUT.split("test"),
        output:
            compressed_predictions("{receiver}"),
        log:
            LAYOUT.log("evaluate_compressed-{receiver}"),
        benchmark:
            LAYOUT.benchmark("evaluate_compressed-{receiver}")
        conda:
            "../../environment.yml"
        threads: EXPERIMENT.threads
        resources:
            gpu=NUM_GPUS,
        params:
            config=CONFIG,
            settings=lambda wildcards: text_settings("evaluate_compressed", wildcards),
            code=code("evaluate_compressed"),
        message:
            "Asking {wildcards.receiver} with shortened text"
        shell:
            "exec python -m latentwire evaluate-compressed --config {params.config:q}"
            " --receiver {wildcards.receiver:q}"


if EXPERIMENT.senders:

    rule evaluate_relay:
        input:
            receivers=prepared_receivers(),
            test=LAYOUT.split("test"),
        output:
            relay_predictions("{receiver}"),
        log:
            LAYOUT.log("evaluate_relay-{receiver}"),
        benchmark:
            LAYOUT.benchmark("evaluate_relay-{receiver}")
        conda:
            "../../environment.yml"
        threads: EXPERIMENT.threads
        resources:
            gpu=NUM_GPUS,
        params:
            config=CONFIG,
            settings=settings("evaluate_relay", senders=EXPERIMENT.senders),
            code=code("evaluate_relay"),
        message:
            "Asking {wildcards.receiver} with what senders write"
        shell:
            "exec python -m latentwire evaluate-relay --config {params.config:q}"
            " --receiver {wildcards.receiver:q}"


if EXPERIMENT.probe:

    rule probe:
        input:
            receiver=LAYOUT.receiver("{receiver}") / "receiver.json",
            splits=[LAYOUT.split(split) for split in ("train", "dev", "test")],
        output:
            probe_files("{receiver}"),
        log:
            LAYOUT.log("probe-{receiver}"),
        benchmark:
            LAYOUT.benchmark("probe-{receiver}")
        conda:
            "../../environment.yml"
        threads: EXPERIMENT.threads
        resources:
            gpu=NUM_GPUS,
        params:
            config=CONFIG,
            settings=lambda wildcards: text_settings("probe", wildcards),
            code=code("probe"),
        message:
            "Probing the states of {wildcards.receiver}"
        shell:
            "exec python -m latentwire probe --config {params.config:q}"
            " --receiver {wildcards.receiver:q}"
