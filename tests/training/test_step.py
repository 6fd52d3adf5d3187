"""The train step: sharded equals unsharded, only trainable parameters change, the recipe is the original's."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from data_pipelines import corpora
from data_pipelines.from_config import make_training_data
from salmonn_jax import sharding
from salmonn_jax.config import OptimizerConfig, RunConfig
from salmonn_jax.configs import get_config
from salmonn_jax.configs.salmonn import MODEL_7B, MODEL_13B
from salmonn_jax.models import parameters
from salmonn_jax.tokenizer import load_tokenizer
from salmonn_jax.training import optimizer
from salmonn_jax.training.step import init_train_state, make_train_step

CONFIG = get_config("debug")

# Gradients of these are zero but for rounding, which Adam makes large: a single query attends to itself with weight
# one whatever its query and key are, and softmax does not see what is added to all keys.
UNUSED = {f"qformer/layers/attention/{name}/{leaf}" for name in ("query", "key") for leaf in ("kernel", "bias")}
UNUSED |= {"qformer/layers/cross_attention/key/bias"}


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Two batches of the debug configuration."""
    corpus = corpora.open_corpus("tones", tmp_path_factory.mktemp("tones"))
    stream = make_training_data(corpus, load_tokenizer(corpus.tokenizer_dir), CONFIG.model, CONFIG.data, seed=0)
    return [next(stream) for _ in range(2)]


def split(params, chosen):
    """Splits parameters into the trainable and the frozen ones."""
    return {p: x for p, x in params.items() if p in chosen}, {p: x for p, x in params.items() if p not in chosen}


def take_steps(config: RunConfig, mesh, batches):
    """Returns the initial parameters, the state after a step on each batch, and the metrics of each step."""
    structure = parameters.model_structure(config.model)
    params = parameters.init_params(config.model, config.seed)
    chosen = parameters.trainable_paths(params, config.trainable)
    trainable, frozen = split(params, chosen)
    state = jax.device_put(init_train_state(config, trainable), sharding.replicated(mesh))
    placement = sharding.Placement(mesh)
    frozen = {path: jax.device_put(x, placement(path, x).sharding) for path, x in frozen.items()}
    step, metrics = make_train_step(config, structure, mesh), []
    for batch in batches:
        state, values = step(state, frozen, sharding.make_global_batch(batch, mesh, CONFIG.data.streams))
        metrics.append(jax.device_get(values))
    return params, state, metrics


def one_device():
    return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def unsharded(batches):
    """Two steps on one device: see `take_steps`."""
    return take_steps(CONFIG, one_device(), batches)


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        pytest.param({"tensor": 4, "data": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sharded_equals_unsharded(batches, unsharded, sizes):
    """Includes dropout, whose keys do not depend on the mesh."""
    _, alone, expected = unsharded
    devices = jax.devices()[: math.prod(sizes.values())]
    _, spread, metrics = take_steps(CONFIG, sharding.make_mesh(sizes, devices), batches)
    for ours, theirs in zip(metrics, expected, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
    for path in set(alone.trainable) - UNUSED:
        value = alone.trainable[path]
        np.testing.assert_allclose(spread.trainable[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("remat", [pytest.param("dots", marks=pytest.mark.slow), "full"])
def test_remat_changes_no_result(batches, unsharded, remat):
    """The loss, the gradient norm and the parameters after two steps are those of `remat_policy="none"`."""
    _, state, expected = unsharded
    _, again, metrics = take_steps(dataclasses.replace(CONFIG, remat_policy=remat), one_device(), batches)
    for ours, theirs in zip(metrics, expected, strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-6)
        np.testing.assert_allclose(ours["gradient_norm"], theirs["gradient_norm"], rtol=1e-5)
    for path in set(state.trainable) - UNUSED:
        np.testing.assert_allclose(again.trainable[path], state.trainable[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_only_what_is_trainable_changes_and_has_optimizer_state(unsharded):
    params, state, _ = unsharded
    expected = {
        path
        for path in params
        if path.split("/")[0] in ("query_tokens", "qformer", "ln_speech", "ln_audio", "projection") or "lora" in path
    }
    assert set(state.trainable) == expected
    for path in expected - UNUSED:
        assert not np.array_equal(state.trainable[path], params[path]), path
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(m.size for m in moments) == 2 * sum(params[path].size for path in expected)


@pytest.mark.parametrize(("model", "count"), [(MODEL_7B, 30_186_240), (MODEL_13B, 33_332_992)])
def test_trainable_parameters_of_the_released_models(model, count):
    shapes = parameters.model_structure(model).shapes
    chosen = parameters.trainable_paths(shapes, RunConfig(name="x").trainable)
    assert sum(math.prod(shapes[path].shape) for path in chosen) == count


def test_weight_decay_of_the_released_13b():
    """Weight decay applies to 182 tensors and not to 39, counted per layer as the original stores them."""
    shapes = parameters.model_structure(MODEL_13B).shapes
    chosen = parameters.trainable_paths(shapes, RunConfig(name="x").trainable)
    counts = {True: 0, False: 0}
    for path, applies in optimizer.weight_decay_mask(dict.fromkeys(chosen)).items():
        counts[applies] += shapes[path].shape[0] if "/layers/" in path else 1
    assert counts == {True: 182, False: 39}


def test_learning_rate():
    schedule = optimizer.learning_rate_schedule(OptimizerConfig(), 90_000)
    assert schedule(0) == pytest.approx(1e-6)
    assert schedule(1500) == pytest.approx((1e-6 + 3e-5) / 2)
    assert schedule(3000) == pytest.approx(1e-5 + 2e-5 * 0.5 * (1 + math.cos(math.pi * 3000 / 90_000)))
    assert schedule(90_000) == pytest.approx(1e-5)


def test_frozen_weights_get_no_gradient_work(batches):
    """Training everything costs the FLOPs of the frozen parts' backward pass in addition.

    Counts the program before XLA optimises it: so what is not there was never asked for, and nothing is compiled. The
    count has each scanned body once, so it compares one layer of each stack and what is outside of the stacks.
    """
    params, structure = parameters.init_params(CONFIG.model, 0), parameters.model_structure(CONFIG.model)

    def flops(config):
        trainable, frozen = split(params, parameters.trainable_paths(params, config.trainable))
        step = make_train_step(config, structure, one_device())
        return step.lower(init_train_state(config, trainable), frozen, batches[0]).cost_analysis()["flops"]

    everything = dataclasses.replace(CONFIG, trainable=(".*",))
    assert flops(CONFIG) < 0.85 * flops(everything)
