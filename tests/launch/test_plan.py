"""`launch.plan` with the real TPU compiler, for slices that this machine does not have."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from launch import plan_table
from tests.launch.test_plan_table import COMPILATION_SETTINGS, assert_same_plan

ROOT = pathlib.Path(__file__).parents[2]


def plan(*words: str) -> subprocess.CompletedProcess:
    """Runs `launch.plan` as a user does, without the settings of compilation in tests/conftest.py."""
    environment = {name: value for name, value in os.environ.items() if name not in COMPILATION_SETTINGS}
    command = [sys.executable, "-m", "launch.plan", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def compiler():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler is not installed: pip install -e '.[tpu]'")


@pytest.fixture(scope="module")
def debug_plan(compiler, tmp_path_factory) -> tuple[str, dict]:
    """Returns what `launch.plan debug --topology v5e-8 --train-only` prints, and the plan it writes."""
    output = tmp_path_factory.mktemp("plan") / "plan.json"
    done = plan("debug", "--topology", "v5e-8", "--train-only", "--output", str(output))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(output.read_text())["plan"]


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_debug_on_a_slice(debug_plan):
    stdout, made = debug_plan
    for line in ("debug on 1 x v5e-8 (8 chips, 2 hosts)", "train step", "PROJECTED"):
        assert line in stdout
    assert made["fits"] and made["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    train = made["programs"][0]
    # With replicated weights, chips exchange only the gradients of what is trained, and counts.
    assert {one["kind"] for one in train["collectives"]} == {"all-reduce"}
    assert sum(one["bytes"] * one["times"] for one in train["collectives"]) < 1.1 * train["trained"]
    assert 0 < train["needed"] < made["hbm"]


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_gradients_are_summed_in_float32(compiler, tmp_path):
    """Activations are bfloat16, and the chips exchange four bytes for each trained parameter."""
    output = tmp_path / "plan.json"
    dtypes = ("activation_dtype=bfloat16", "frozen_dtype=bfloat16")
    done = plan("debug", *dtypes, "--topology", "v5e-8", "--train-only", "--output", str(output))
    assert done.returncode == 0, done.stderr
    train = json.loads(output.read_text())["plan"]["programs"][0]
    sent = sum(one["bytes"] * one["times"] for one in train["collectives"])
    assert 0.99 * train["trained"] < sent < 1.01 * train["trained"]


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_the_committed_debug_plan_is_what_the_code_gives(debug_plan):
    """`test_plan_table` compiles the programs of decoding too."""
    (entry,) = [e for e in json.loads(plan_table.PLANS_FILE.read_text()) if e["command"][0] == "debug"]
    assert entry["command"] == ["debug", "--topology", "v5e-8"]
    train = entry["plan"]["programs"][:1]
    assert_same_plan(debug_plan[1], entry["plan"] | {"programs": train})


@pytest.mark.slow
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
