"""Merging methods on arrays: against mergekit's stored results, and what holds for every method."""

from __future__ import annotations

import numpy as np
import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.forgetting.merging import differences
from salmonn_jax.forgetting.merging.arrays import merge_arrays
from salmonn_jax.forgetting.merging.methods import METHODS
from tests.forgetting import mergekit_cases

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(6, 5)).astype(np.float32)
MODELS = {name: BASE + RNG.normal(0, 0.1, BASE.shape).astype(np.float32) for name in "abc"}


def parameters_of(method: str, **changes) -> dict:
    """Returns the parameters that a method needs."""
    known = {*METHODS[method].model_parameters, *METHODS[method].parameters}
    values = {"weight": {"a": 0.5, "b": 0.3, "c": 0.2}, "t": 0.4, "alpha": 0.6} | changes
    return {name: value for name, value in values.items() if name in known}


def merge(method: str, models=MODELS, base=BASE, *, compat="mergekit", seed=0, **changes) -> np.ndarray:
    """Merges as many models as the method takes."""
    most = METHODS[method].num_models[1]
    names = list(models)[: int(min(len(models), most))]
    arrays = {"base": base} | {name: models[name] for name in names}
    if method == "slerp":
        arrays.pop("base")
    parameters = parameters_of(method, **changes)
    base_name = None if method in ("linear", "slerp") else "base"
    if method == "linear":
        arrays.pop("base")
    return merge_arrays(method, arrays, base_name, parameters, compat=compat, seed=seed)


def test_results_are_those_of_mergekit():
    cases = list(mergekit_cases.stored())
    assert len(cases) > 1000 and {case[0] for case in cases} >= set(METHODS) - {"wise_ft"}
    for method, tensors, base, parameters, expected in cases:
        merged = merge_arrays(method, tensors, base, parameters)
        np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-6, err_msg=f"{method} {parameters}")


def test_mergekit_itself_where_it_is_installed():
    pytest.importorskip("mergekit", reason="mergekit pins older packages: see tests/forgetting/mergekit_cases.py")
    for method, tensors, base, parameters in mergekit_cases.cases():
        expected = mergekit_cases.by_mergekit(method, tensors, base, parameters)
        if np.isfinite(expected).all():
            merged = merge_arrays(method, tensors, base, parameters)
            np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-6, err_msg=f"{method} {parameters}")


@pytest.mark.parametrize("method", METHODS)
def test_equal_models_give_that_model(method):
    same = dict.fromkeys("abc", MODELS["a"])
    merged = merge(method, same, alpha=1.0, weight=dict.fromkeys("abc", 1 / 3) if method != "nuslerp" else 0.5)
    np.testing.assert_allclose(merged, MODELS["a"], atol=1e-6)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"slerp", "nuslerp", "wise_ft"}))
def test_the_order_of_models_changes_nothing(method):
    # Below a density of 1, the random numbers of DARE and DELLA belong to positions.
    changes = {"density": 1.0 if "dare" in method or "della" in method else 0.6}
    backwards = dict(reversed(MODELS.items()))
    np.testing.assert_allclose(merge(method, **changes), merge(method, backwards, **changes), atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_scaled_differences_give_a_scaled_result(method):
    wide = {name: BASE + 3 * (value - BASE) for name, value in MODELS.items()}
    changes = {"normalize": True, "density": 0.5}
    narrow, scaled = merge(method, **changes), merge(method, wide, **changes)
    np.testing.assert_allclose(scaled - BASE, 3 * (narrow - BASE), atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "wise_ft"])
def test_end_points_are_bit_exact(method):
    one = {"a": MODELS["a"]}
    np.testing.assert_array_equal(merge(method, one, weight=1.0, alpha=1.0), MODELS["a"])
    if method != "linear":
        np.testing.assert_array_equal(merge(method, one, weight=0.0, alpha=0.0), BASE)


@pytest.mark.parametrize(("t", "end"), [(0.0, "a"), (1.0, "b")])
def test_end_points_of_slerp_are_bit_exact(t, end):
    np.testing.assert_array_equal(merge("slerp", t=t), MODELS[end])


def test_slerp_keeps_the_norm_of_vectors_of_one_length_and_handles_parallel_ones():
    x, y = (value / np.linalg.norm(value) for value in RNG.normal(size=(2, 7)).astype(np.float32))
    middle = merge_arrays("slerp", {"x": x, "y": y}, None, {"t": 0.3})
    assert np.linalg.norm(middle) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(merge_arrays("slerp", {"x": x, "y": 2 * x}, None, {"t": 0.5}), 1.5 * x, atol=1e-6)
    opposite = merge_arrays("slerp", {"x": x, "y": -x}, None, {"t": 0.25})
    np.testing.assert_allclose(opposite, 0.5 * x, atol=1e-6)
    np.testing.assert_array_equal(merge_arrays("slerp", {"x": 0 * x, "y": y}, None, {"t": 1.0}), y)


def test_ties_keeps_the_greatest_share_and_cancels_opposite_differences():
    delta = np.arange(1, 11, dtype=np.float32)
    for density, kept in ((0.5, 5), (0.19, 1), (0.01, 1), (1.0, 10)):
        merged = merge("ties", {"a": delta}, np.zeros(10, np.float32), weight=1.0, density=density)
        assert np.count_nonzero(merged) == kept and (merged[-kept:] == delta[-kept:]).all()
    merged = merge("ties", {"a": delta, "b": -delta}, np.zeros(10, np.float32), weight=1.0)
    np.testing.assert_array_equal(merged, delta)  # a sum of zero counts as positive


def test_breadcrumbs_without_outliers_is_a_trim_of_the_smallest():
    for gamma in (0.0, 0.01):  # 0.01 of 30 entries is none
        np.testing.assert_array_equal(
            merge("breadcrumbs", {"a": MODELS["a"]}, weight=1.0, density=0.5, gamma=gamma),
            merge("ties", {"a": MODELS["a"]}, weight=1.0, density=0.5, normalize=False),
        )


def test_dare_keeps_the_sum_of_magnitudes_or_the_expectation():
    delta = {"a": MODELS["a"] - BASE}
    zero = np.zeros_like(BASE)
    drawn = np.stack(
        [merge("dare_linear", delta, zero, weight=1.0, density=0.5, compat="paper", seed=i) for i in range(2000)]
    )
    error = np.abs(drawn.mean(0) - delta["a"])
    assert (error <= 4 * drawn.std(0) / np.sqrt(2000)).all()
    share = np.count_nonzero(drawn) / drawn.size
    assert share == pytest.approx(0.5, abs=0.01)
    as_mergekit = merge("dare_linear", delta, zero, weight=1.0, density=0.5)
    assert np.abs(as_mergekit).sum() == pytest.approx(np.abs(delta["a"]).sum(), rel=1e-5)
    again = merge("dare_linear", delta, zero, weight=1.0, density=0.5)
    assert as_mergekit.tobytes() == again.tobytes()
    assert as_mergekit.tobytes() != merge("dare_linear", delta, zero, weight=1.0, density=0.5, seed=1).tobytes()
    np.testing.assert_array_equal(merge("dare_linear", delta, zero, weight=1.0, density=1.0), delta["a"])


def test_della_keeps_more_of_what_is_greater():
    delta = {"a": np.tile(np.arange(1, 21, dtype=np.float32), (4, 1))}
    zero = np.zeros((4, 20), np.float32)
    settings = {"weight": 1.0, "density": 0.5, "epsilon": 0.3}
    kept = np.mean([merge("della", delta, zero, seed=i, **settings) != 0 for i in range(500)], axis=(0, 1))
    np.testing.assert_allclose(kept, np.linspace(0.2, 0.8, 20), atol=0.05)
    assert kept.mean() == pytest.approx(0.5, abs=0.01)
    paper = np.mean([merge("della", delta, zero, seed=i, compat="paper", **settings) for i in range(2000)], axis=(0, 1))
    np.testing.assert_allclose(paper, delta["a"][0], rtol=0.1)


def test_the_paper_s_election_does_not_weigh():
    """mergekit elects the sign of 0.9 * 1 - 0.2 * 2 = 0.5, the paper that of 1 - 2; and it divides by the count."""
    models = {"a": np.float32([1.0, 1.0]), "b": np.float32([-2.0, 3.0])}
    zero = np.zeros(2, np.float32)
    weight = {"a": 0.9, "b": 0.2}
    np.testing.assert_allclose(merge("ties", models, zero, weight=weight), [1, (0.9 + 0.6) / 1.1], rtol=1e-6)
    np.testing.assert_allclose(merge("ties", models, zero, weight=weight, compat="paper"), [-0.4, 0.75], rtol=1e-6)


def test_random_numbers_do_not_depend_on_other_tensors():
    one, two = (differences.generator(3, name, 0).random(4) for name in ("x", "y"))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, differences.generator(3, "x", 0).random(4))


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("tie", {}, "unknown merge_method 'tie'; did you mean 'ties'?"),
        ("ties", {"density": 0.0}, "density=0: drops everything; leave the model out or give it a weight of 0"),
        ("ties", {"density": 1.5}, "density=1.5: must be between 0 and 1"),
        ("ties", {"gamma": 0.1}, "ties has no parameter 'gamma'; it has density, lambda, normalize, weight"),
        ("ties", {"weight": {"a": 1.0}}, "ties needs weight of b"),
        (
            "della",
            {"weight": 1.0, "density": 0.9, "epsilon": 0.2},
            "density=0.9, epsilon=0.2: density - epsilon and density + epsilon",
        ),
        ("slerp", {"t": 2.0}, "t=2.0: must be between 0 and 1"),
        ("wise_ft", {"weight": 1.0}, "wise_ft has no parameter 'weight'; it has alpha"),
        ("nuslerp", {"weight": {"a": 1.0, "b": -1.0}}, "the weights of nuslerp add up to 0"),
    ],
)
def test_wrong_parameters_are_one_line(method, changes, message):
    arrays = {"base": BASE, "a": MODELS["a"], "b": MODELS["b"]}
    with pytest.raises(UserError) as refused:
        merge_arrays(method, arrays, "base", {"weight": 1.0} | changes if method == "ties" else changes or {"t": 1})
    assert str(refused.value).startswith(message)


def test_arrays_must_fit():
    with pytest.raises(UserError, match="different shapes"):
        merge_arrays("linear", {"a": BASE, "b": BASE[:2]}, None, {"weight": 1.0})
    with pytest.raises(UserError, match="ties needs a base"):
        merge_arrays("ties", {"a": BASE}, None, {"weight": 1.0})
    with pytest.raises(UserError, match="is not among the arrays"):
        merge_arrays("ties", {"a": BASE}, "base", {"weight": 1.0})
    with pytest.raises(UserError, match="nuslerp merges exactly 2 models beside the base, not 1"):
        merge_arrays("nuslerp", {"a": BASE, "base": BASE}, "base", {"weight": 1.0})
