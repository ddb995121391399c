rule receiver:
    input:
        receiver_files,
    output:
        LAYOUT.receiver("{receiver}") / "receiver.json",
    log:
        LAYOUT.log("receiver-{receiver}"),
    benchmark:
        LAYOUT.benchmark("receiver-{receiver}")
    conda:
        "../../environment.yml"
    threads: EXPERIMENT.threads
    resources:
        gpu=NUM_GPUS,
    params:
        config=CONFIG,
        settings=receiver_settings,
        code=receiver_code,
    message:
        "Preparing the receiver {wildcards.receiver}"
    shell:
        "exec python -m latentwire receiver --config {params.config:q}"
        " --name {wildcards.receiver:q}"


rule pretrain_receivers:
    input:
        pretrained_receivers,
