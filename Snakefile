# The DAG of one experiment. `snakemake --cores 2` runs config/config.yaml, the pocket experiment;
# `--configfile config/squad.yaml` runs another. Every configuration is complete: Snakemake would
# merge it over a default, so the default is loaded only where no other came in.
from snakemake.utils import min_version

min_version("9.0")

if "experiment" not in config:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


localrules:
    all,
    results,
    report,
    pretrain_receivers,
    smoke,
    ablations,


rule all:
    input:
        result_files(),
        LAYOUT.report,


rule results:
    input:
        result_files(),


rule smoke:
    handover: True
    message:
        "Running the smoke experiment: every stage, small"
    shell:
        "exec python -m snakemake --cores {threads} --configfile config/smoke.yaml"


rule ablations:
    handover: True
    message:
        "Running the ablations, two trainings at once, into docs/ablations.md"
    shell:
        # For each job that has ended Snakemake looks once more, every timespan, at all that wait:
        # with its default of a second that comes to half a core, taken from the trainings.
        "python -m snakemake results --cores {threads} --configfile config/ablations.yaml"
        " --max-jobs-per-timespan 100/10s"
        " && exec python -m latentwire ablations --config config/ablations.yaml"
        " --output docs/ablations.md"


include: "workflow/rules/receivers.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/baselines.smk"
include: "workflow/rules/statistics.smk"
include: "workflow/rules/report.smk"


onstart:
    write_resolved_config()
