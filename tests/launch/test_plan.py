"""`launch.plan` with the real TPU compiler, for a slice nobody here owns."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def plan(*words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-m", "launch.plan", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def compiler():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler is not installed: pip install -e '.[tpu]'")


@pytest.mark.tpu_compiler
def test_debug_on_a_slice(compiler, tmp_path):
    done = plan("debug", "--topology", "v5e-8", "--output", str(tmp_path / "plan.json"))
    assert done.returncode == 0, done.stderr
    for line in ("debug on 1 x v5e-8 (8 chips, 2 hosts)", "train step", "prefill", "decode step", "PROJECTED"):
        assert line in done.stdout
    made = json.loads((tmp_path / "plan.json").read_text())["plan"]
    assert made["fits"] and made["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    train = made["programs"][0]
    # Replicated weights: nothing goes between chips but what is trained, and counts.
    assert {one["kind"] for one in train["collectives"]} == {"all-reduce"}
    assert sum(one["bytes"] * one["times"] for one in train["collectives"]) < 1.1 * train["trained"]
    assert 0 < train["needed"] < made["hbm"]


@pytest.mark.tpu_compiler
def test_several_slices_are_joined_by_data(compiler):
    done = plan("debug", "--topology", "v5e-4", "--slices", "2", "--placement", "fsdp", "--train-only")
    assert done.returncode == 0, done.stderr
    assert "mesh {'data': 2, 'fsdp': 4, 'tensor': 1}" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("debug", "--topology", "v9-1"), "unknown topology 'v9-1'; choose one of v4-8"),
        (("debgu", "--topology", "v5e-8"), "did you mean 'debug'"),
    ],
)
def test_bad_input_is_one_line(words, says):
    done = plan(*words)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
