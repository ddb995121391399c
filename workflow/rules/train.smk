# The state of a training that was interrupted is in results/<experiment>/.state/ and is not
# declared: Snakemake removes the outputs of a job that failed or was killed.
rule train_wire:
    input:
        receivers=receivers_of_wire,
        parent=parent_of_wire,
        train=LAYOUT.split("train"),
        dev=LAYOUT.split("dev"),
    output:
        **trained_files("{wire}", "{seed}"),
    log:
        LAYOUT.log("train_wire-{wire}-seed{seed}"),
    benchmark:
        LAYOUT.benchmark("train_wire-{wire}-seed{seed}")
    wildcard_constraints:
        wire=any_of(wire for wire in WIRES if not is_adapted(wire)),
    priority: training_length
    conda:
        "../../environment.yml"
    threads: EXPERIMENT.threads
    resources:
        gpu=NUM_GPUS,
    params:
        config=CONFIG,
        settings=lambda wildcards: wire_settings("train_wire", wildcards.wire),
        code=code("train_wire"),
    message:
        "Training the wire {wildcards.wire}, seed {wildcards.seed}"
    shell:
        "exec python -m latentwire train-wire --config {params.config:q}"
        " --wire {wildcards.wire:q} --seed {wildcards.seed:q}"


rule adapt:
    input:
        receivers=receivers_of_wire,
        parent=parent_of_wire,
        train=LAYOUT.split("train"),
        dev=LAYOUT.split("dev"),
    output:
        **trained_files("{wire}", "{seed}"),
    log:
        LAYOUT.log("adapt-{wire}-seed{seed}"),
    benchmark:
        LAYOUT.benchmark("adapt-{wire}-seed{seed}")
    wildcard_constraints:
        wire=any_of(wire for wire in WIRES if is_adapted(wire)),
    priority: training_length
    conda:
        "../../environment.yml"
    threads: EXPERIMENT.threads
    resources:
        gpu=NUM_GPUS,
    params:
        config=CONFIG,
        settings=lambda wildcards: wire_settings("train_wire", wildcards.wire),
        code=code("train_wire"),
    message:
        "Adding receivers to a wire: {wildcards.wire}, seed {wildcards.seed}"
    shell:
        "exec python -m latentwire adapt --config {params.config:q}"
        " --wire {wildcards.wire:q} --seed {wildcards.seed:q}"
