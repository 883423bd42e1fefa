"""Profiles change what a job is given, never what it does: the same rules, on every kind of machine."""

from __future__ import annotations

import kubernetes_validate
import pytest
import yaml
from workflow_project import ROOT

PROFILES = {path.parent.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("profiles/*/config.yaml")}
GPU_RULES = {"baseline", "prune", "finetune", "evaluate"}
RULES = GPU_RULES | {"fetch", "collect", "audit", "full_size", "table", "figure"}


def resources(profile, rule):
    """Return what a profile gives a rule: its own values over the defaults."""
    defaults = profile["default-resources"]
    if isinstance(defaults, list):
        defaults = dict(item.split("=", 1) for item in defaults)
    return {**defaults, **profile.get("set-resources", {}).get(rule, {})}


def test_every_kind_of_machine_has_its_profile():
    assert set(PROFILES) == {"default", "gpu", "slurm", "kubernetes", "container", "ci"}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_names_only_rules_that_exist(name):
    profile = PROFILES[name]
    named = {rule for key in ("set-resources", "set-threads", "groups") for rule in profile.get(key, {})}
    assert named <= RULES


@pytest.mark.parametrize("name", PROFILES)
def test_what_decides_about_running_again_is_the_same_everywhere(name):
    profile = PROFILES[name]
    assert profile["rerun-triggers"] == ["mtime", "params", "input"]
    assert profile["rerun-incomplete"] is True
    # The bytes of a result depend on how many threads compute it.
    assert all(profile.get("set-threads", {}).get(rule, 1) == 1 for rule in GPU_RULES)


@pytest.mark.parametrize("name", PROFILES)
def test_each_job_says_how_many_gpus_it_has(name):
    """The commands of the rules read it, and Snakemake clamps it where there are none."""
    for rule in GPU_RULES:
        assert int(resources(PROFILES[name], rule)["gpu"]) == (0 if name == "ci" else 1)
    assert int(resources(PROFILES[name], "fetch")["gpu"]) == 0


def test_a_slurm_job_gets_more_with_every_attempt():
    profile = PROFILES["slurm"]
    assert profile["retries"] == 2
    for rule in RULES:
        given = resources(profile, rule)
        for key in ("mem_mb", "runtime"):
            first, third = (eval(given[key], {"attempt": attempt}) for attempt in (1, 3))
            assert third == 3 * first


def kubernetes_job():
    return yaml.safe_load((ROOT / "profiles" / "kubernetes" / "job.yaml").read_text())


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_the_kubernetes_job_follows_the_schema_of_kubernetes(version):
    assert version.startswith(kubernetes_validate.validate(kubernetes_job(), version, strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"imagee": "ifap"}, "'imagee' was unexpected"),
        ({"args": "snakemake"}, "'snakemake' is not of type 'array'"),
        ({"name": None}, "None is not of type 'string'"),
    ],
)
def test_that_schema_finds_what_is_wrong_in_a_container(change, said):
    job = kubernetes_job()
    job["spec"]["template"]["spec"]["containers"][0].update(change)
    with pytest.raises(kubernetes_validate.ValidationError, match=said):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_the_kubernetes_job_leases_as_many_gpus_as_its_pod_has():
    pod = kubernetes_job()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert f"--resources gpu={container['resources']['limits']['nvidia.com/gpu']} " in container["args"][-1]
    # What a pod mounts, its volumes have; the image's checkout and the run have one volume.
    mounts = [mount["name"] for part in (*pod["initContainers"], container) for mount in part["volumeMounts"]]
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
