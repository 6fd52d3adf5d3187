"""The committed plans: docs/plans.md shows them, and the code still gives them."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import pytest

from launch import plan_table

ENTRIES = json.loads(plan_table.PLANS_FILE.read_text())
TABLES = (pathlib.Path(__file__).parents[2] / "docs" / "plans.md").read_text()


def test_every_command_has_its_plan():
    assert all(entry["plan"] for entry in ENTRIES)


def test_the_documentation_shows_the_tables():
    for table in (plan_table.memory_table, plan_table.evaluation_table, plan_table.scaling_table):
        assert len(table(ENTRIES)) > 2
        for line in table(ENTRIES):
            assert line in TABLES.splitlines()


def test_the_released_models_fit():
    """13B fits on v5p-128, 7B on v5e-16 and v6e-64; `fits` keeps a tenth of a chip free."""
    fitting = {(e["plan"]["config"]["name"], e["plan"]["topology"]["name"]) for e in ENTRIES if e["plan"]["fits"]}
    for name, topology in (("13b", "v5p-128"), ("7b", "v5e-16"), ("7b", "v6e-64")):
        assert (f"salmonn_{name}_stage2", topology) in fitting


def test_the_13b_is_evaluated_on_small_slices():
    """With tensor parallelism, a step sums activations and gathers logits, but no weights."""
    plans = {e["plan"]["topology"]["name"]: e["plan"] for e in ENTRIES if "--decoding-only" in e["command"]}
    assert set(plans) == {"v5e-16", "v5p-8"}
    for plan in plans.values():
        prefill, step = plan["programs"]
        assert plan["fits"] and prefill["rows"] == step["rows"] >= 4 * plan["mesh"]["data"]
        sent = dict.fromkeys(("all-reduce", "all-gather"), 0)
        for one in step["collectives"]:
            sent[one["kind"]] += one["bytes"] * one["times"]
        assert sum(sent.values()) < 0.01 * step["frozen"]
        if plan["mesh"]["tensor"] == 1:
            assert not step["collectives"]


def test_frozen_weights_that_are_replicated_send_nothing():
    """The collectives of such a step sum the gradients of what is trained, each once, and a few metrics."""
    for plan in (entry["plan"] for entry in ENTRIES):
        train = plan["programs"][0]
        if train["name"] == "train step" and plan["mesh"]["fsdp"] == plan["mesh"]["tensor"] == 1:
            assert {one["kind"] for one in train["collectives"]} == {"all-reduce"}
            sent = sum(one["bytes"] * one["times"] for one in train["collectives"])
            # Plans from before gradients were summed in float32 send half as many bytes.
            assert 0.4 * train["trained"] < sent < 1.1 * train["trained"]


# Settings of tests/conftest.py that a user of `launch.plan` does not have.
COMPILATION_SETTINGS = ("JAX_DEFAULT_MATMUL_PRECISION", "JAX_DISABLE_MOST_OPTIMIZATIONS")


def assert_same_plan(new: dict, old: dict) -> None:
    """Asserts that two plans of one command agree; sizes may differ where their compilers do."""
    for key in ("config", "mesh", "fits", "flops"):
        assert new[key] == old[key], key
    # Another version of the compiler may lay arrays out in another way.
    within = 0.0 if new["compiler"] == old["compiler"] else 0.2
    for ours, theirs in zip(new["programs"], old["programs"], strict=True):
        for kind in ("frozen", "trained", "optimizer", "batch"):
            assert ours[kind] == theirs[kind]
        assert ours["needed"] == pytest.approx(theirs["needed"], rel=within)
        if within == 0:
            assert ours["collectives"] == theirs["collectives"]


@pytest.mark.slow
@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
    "entry", [e for e in ENTRIES if e["command"][0] == "debug"], ids=lambda e: " ".join(e["command"])
)
def test_a_plan_made_anew(entry, monkeypatch):
    """Compiles the plan of the small slice with the function behind `make plan`, which makes all plans."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler is not installed: pip install -e '.[tpu]'")
    for name in COMPILATION_SETTINGS:
        monkeypatch.delenv(name)
    made = plan_table.run_plan(entry["command"])
    assert [program["name"] for program in made["programs"]] == ["train step", "prefill", "decode step"]
    assert_same_plan(made, entry["plan"])
