"""The profile for SLURM: what it asks for, and which faults of one are found."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.cli import get_argument_parser
from snakemake.iocontainers import ResourceList
from snakemake.resources import Resource
from snakemake_executor_plugin_slurm import ExecutorSettings
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra
from snakemake_executor_plugin_slurm_jobstep import get_cpu_setting

from latentwire.cluster.profile import read_profile, signal_lead_seconds, slurm_faults
from latentwire.errors import UserError

REPOSITORY = Path(__file__).parents[2]
PROFILE = read_profile(REPOSITORY / "profiles/slurm")
RULES = "\n".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))


def test_the_profile_has_no_fault_and_the_partition_and_account_of_its_users():
    assert slurm_faults(PROFILE) == []
    defaults = PROFILE["default-resources"]
    assert (defaults["slurm_partition"], defaults["slurm_account"]) == (
        "preempt",
        "marlowe-m000066",
    )
    assert defaults["nodes"] == 1
    assert signal_lead_seconds(PROFILE) == 120
    assert signal_lead_seconds({"default-resources": {"slurm_partition": "gpu"}}) is None
    text = (REPOSITORY / "profiles/slurm/config.yaml").read_text()
    assert text.count("preempt\n") == text.count("marlowe-m000066") == 1


def test_every_stage_with_a_gpu_has_its_resources_and_no_other_has():
    rules = re.split(r"^ *rule (\w+):$", RULES, flags=re.MULTILINE)
    with_gpu = [name for name, body in zip(rules[1::2], rules[2::2], strict=True) if "gpu=" in body]
    assert sorted(PROFILE["set-resources"]) == sorted(with_gpu)
    for rule, resources in PROFILE["set-resources"].items():
        gpus = 4 if rule in ("train_wire", "adapt") else 1
        assert resources == {"gpu": gpus, "mem_mb": 256_000, "runtime": 12 * 60}


def test_a_job_has_the_threads_of_a_process_for_each_of_its_gpus():
    cpus = Resource.from_cli_expression(
        "cpus_per_gpu", PROFILE["default-resources"]["cpus_per_gpu"]
    ).evaluate(None, input=None, attempt=1, threads=8, rulename="", async_run=None)
    job = SimpleNamespace(threads=8, resources=ResourceList(fromdict={"cpus_per_gpu": cpus.value}))
    assert get_cpu_setting(job, gpu=True) == "--cpus-per-gpu=8"
    assert get_cpu_setting(job, gpu=False) == "--cpus-per-task=8"


def test_snakemake_and_its_executor_know_every_key():
    own = {key: value for key, value in PROFILE.items() if key.startswith("slurm-")}
    settings = {key.removeprefix("slurm-").replace("-", "_"): own[key] for key in own}
    assert ExecutorSettings(**settings).requeue
    options = {word for action in get_argument_parser()._actions for word in action.option_strings}
    assert {f"--{key}" for key in PROFILE.keys() - own.keys()} <= options
    extra = PROFILE["default-resources"]["slurm_extra"].strip("'")
    validate_slurm_extra(SimpleNamespace(resources=SimpleNamespace(slurm_extra=extra)))


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("default-resources.slurm_account", "marlowe", "set 'marlowe-m000066'"),
        ("default-resources.slurm_partition", "gpu", "set 'preempt'"),
        ("set-resources.probe.slurm_partition", "'gpu'", "set-resources.probe.slurm_partition"),
        ("default-resources.slurm_account", None, "slurm_account: missing"),
        ("default-resources.slurm_extra", "--signal=TERM@120", "quotes within quotes"),
        ("default-resources.slurm_extra", "'--signal=B:TERM@9 --open-mode=append'", "without `B:`"),
        ("default-resources.slurm_extra", "'--signal=TERM@120'", "lacks --open-mode=append"),
        ("slurm-status-command", "sacct", "set 'squeue'"),
        ("slurm-requeue", None, "set True"),
        ("retries", 0, "retries: none"),
    ],
)
def test_faults_are_told_by_key_and_with_their_fix(key, value, fault):
    profile = json.loads(json.dumps(PROFILE))
    *path, last = key.split(".")
    section = profile
    for part in path:
        section = section[part]
    section[last] = value
    (found,) = slurm_faults(profile)
    assert found.startswith(key)
    assert fault in found


def test_a_profile_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read the profile"):
        read_profile(tmp_path)
    (tmp_path / "config.yaml").write_text("executor")
    with pytest.raises(UserError, match="`key: value`"):
        read_profile(tmp_path)
