"""The train step: sharded equals unsharded, only trainable parameters change, the recipe is the original's."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import corpora
from data_pipelines.from_config import make_training_data
from salmonn_jax import sharding
from salmonn_jax.batch import Batch
from salmonn_jax.config import AdamW, Lion, Recipe, WarmupConstant, WarmupCosine
from salmonn_jax.configs import get_preset
from salmonn_jax.configs.salmonn import MODEL_7B, MODEL_13B
from salmonn_jax.models import parameters
from salmonn_jax.tokenizer import load_tokenizer
from salmonn_jax.training import optimizer
from salmonn_jax.training.accumulation import sum_over_micro_batches
from salmonn_jax.training.step import gradient_norms, init_train_state, make_train_step

MODEL, RECIPE = get_preset("debug").model, get_preset("debug").recipe

# Gradients of these are zero but for rounding, which Adam makes large: a single query attends to itself with weight
# one whatever its query and key are, and softmax does not see what is added to all keys.
UNUSED = {f"qformer/layers/attention/{name}/{leaf}" for name in ("query", "key") for leaf in ("kernel", "bias")}
UNUSED |= {"qformer/layers/cross_attention/key/bias"}


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Two batches of the debug configuration."""
    corpus = corpora.open_corpus("tones", tmp_path_factory.mktemp("tones"))
    stream = make_training_data(corpus, load_tokenizer(corpus.tokenizer_dir), MODEL, RECIPE.data, seed=0)
    return [next(stream) for _ in range(2)]


def split(params, chosen):
    """Splits parameters into the trainable and the frozen ones."""
    return {p: x for p, x in params.items() if p in chosen}, {p: x for p, x in params.items() if p not in chosen}


def take_steps(recipe: Recipe, mesh, batches, model=MODEL):
    """Returns the initial parameters, the state after a step on each batch, and the metrics of each step."""
    structure = parameters.model_structure(model)
    params = parameters.init_params(model, recipe.seed)
    chosen = parameters.trainable_paths(params, recipe.trainable)
    trainable, frozen = split(params, chosen)
    state = jax.device_put(init_train_state(recipe, trainable), sharding.replicated(mesh))
    placement = sharding.Placement(mesh)
    frozen = {path: jax.device_put(x, placement(path, x).sharding) for path, x in frozen.items()}
    step, metrics = make_train_step(recipe, structure, mesh), []
    for batch in batches:
        state, values = step(state, frozen, sharding.make_global_batch(batch, mesh, RECIPE.data.streams))
        metrics.append(jax.device_get(values))
    return params, state, metrics


def one_device():
    return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def unsharded(batches):
    """Two steps on one device: see `take_steps`."""
    return take_steps(RECIPE, one_device(), batches)


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
    _, spread, metrics = take_steps(RECIPE, sharding.make_mesh(sizes, devices), batches)
    for ours, theirs in zip(metrics, expected, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
    for path in set(alone.trainable) - UNUSED:
        value = alone.trainable[path]
        np.testing.assert_allclose(spread.trainable[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


def test_metrics_by_source_add_up(batches, unsharded):
    """Sums over sources are those of the batch, and counts are those of its arrays."""
    for batch, metrics in zip(batches, unsharded[2], strict=True):
        sums = metrics["source_sums"]
        np.testing.assert_allclose(sums.loss.sum() / sums.targets.sum(), metrics["loss"], rtol=1e-6)
        np.testing.assert_allclose(sums.correct.sum() / sums.targets.sum(), metrics["accuracy"], rtol=1e-6)
        first_tokens = (batch.segments > 0) & (batch.positions == 0)
        for index in range(len(RECIPE.data.source_names)):
            is_source = batch.source_index == index
            assert sums.targets[index] == (batch.loss_mask & is_source).sum() > 0
            assert metrics["source_examples"][index] == (first_tokens & is_source).sum() > 0
        assert metrics["tokens"] == (batch.segments > 0).sum() and metrics["clips"] == (batch.pcm_length > 0).sum()
        np.testing.assert_allclose(metrics["audio_seconds"], batch.pcm_length.sum() / 16_000, rtol=1e-6)


def test_loss_of_one_source(batches, unsharded):
    """With answers of one source alone, its loss is the loss of the batch."""
    is_words = batches[0].source_index == RECIPE.data.source_names.index("words")
    batch = batches[0]._replace(loss_mask=batches[0].loss_mask & is_words)
    _, _, (metrics,) = take_steps(RECIPE, one_device(), [batch])
    whole = unsharded[2][0]["source_sums"]
    np.testing.assert_allclose(metrics["source_sums"].loss, [0, whole.loss[1]], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], whole.loss[1] / whole.targets[1], rtol=1e-5)
    np.testing.assert_array_equal(metrics["source_sums"].correct, [0, whole.correct[1]])


def test_gradient_norms_by_module(unsharded):
    gradient = {"query_tokens": [3.0, 4.0], "qformer/b": [12.0], "llama/q_proj/lora_a": [84.0], "llama/norm": [132.0]}
    norms = gradient_norms({path: jnp.array(value) for path, value in gradient.items()})
    modules = {"query_tokens": 5, "qformer": 12, "adapters": 84, "llm": 132}
    assert norms == {"gradient_norm": 157} | {
        f"gradient_norm/{name}": pytest.approx(norm) for name, norm in modules.items()
    }
    logged = {name.partition("/")[2] for name in unsharded[2][0] if name.startswith("gradient_norm/")}
    assert logged == set(RECIPE.trainable)


@pytest.mark.parametrize(
    ("sizes", "micro_batches"),
    [({}, 4), pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, 2, marks=pytest.mark.slow)],
    ids=str,
)
def test_micro_batches_equal_the_whole_batch(batches, sizes, micro_batches):
    """Two steps with the CTC loss, of the whole batch on one device and of micro-batches on the mesh `sizes`.

    Dropout is off, because each micro-batch has its own key. The micro-batches have unequal numbers of answer and
    transcript tokens.
    """
    model = dataclasses.replace(
        MODEL,
        qformer=dataclasses.replace(MODEL.qformer, dropout=0.0),
        lora=dataclasses.replace(MODEL.lora, dropout=0.0),
    )
    data = dataclasses.replace(RECIPE.data, max_transcript_tokens=2)
    recipe = dataclasses.replace(RECIPE, data=data, ctc_weight=0.5, ctc_blank=3)
    transcripts = np.where(np.arange(2) < np.arange(8)[:, None] % 3, np.arange(8)[:, None] + 4, -1).astype(np.int32)
    has_answer = np.arange(16)[:, None] >= 3  # two of the first three rows are in the first micro-batch, or all three
    batches = [batch._replace(transcript=transcripts, loss_mask=batch.loss_mask & has_answer) for batch in batches]
    _, whole, expected = take_steps(recipe, one_device(), batches, model)
    devices = jax.devices()[: math.prod(sizes.values())]
    recipe = dataclasses.replace(recipe, gradient_accumulation_steps=micro_batches)
    _, state, metrics = take_steps(recipe, sharding.make_mesh(sizes, devices), batches, model)
    for ours, theirs in zip(metrics, expected, strict=True):
        assert theirs["ctc"] > 0
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
    for path in set(whole.trainable) - UNUSED:
        np.testing.assert_allclose(state.trainable[path], whole.trainable[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_each_micro_batch_has_its_own_dropout_key():
    """Sums one-hot vectors at the index of the micro-batch, times a random number of its key."""
    batch = Batch(*[np.arange(3)[:, None]] * len(Batch._fields))
    draws = sum_over_micro_batches(
        lambda batch, key: jax.nn.one_hot(batch.tokens[0], 3) * jax.random.uniform(key), batch, jax.random.key(0)
    )
    assert len(set(np.asarray(draws).tolist())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_result(batches, unsharded, remat):
    """The loss, the gradient norm and the parameters after two steps are those of `remat_policy="none"`."""
    _, state, expected = unsharded
    _, again, metrics = take_steps(dataclasses.replace(RECIPE, remat_policy=remat), one_device(), batches)
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
    chosen = parameters.trainable_paths(shapes, Recipe().trainable)
    assert sum(math.prod(shapes[path].shape) for path in chosen) == count


def test_weight_decay_of_the_released_13b():
    """Weight decay applies to 182 tensors and not to 39, counted per layer as the original stores them."""
    shapes = parameters.model_structure(MODEL_13B).shapes
    chosen = parameters.trainable_paths(shapes, Recipe().trainable)
    counts = {True: 0, False: 0}
    for path, applies in optimizer.weight_decay_mask(dict.fromkeys(chosen)).items():
        counts[applies] += shapes[path].shape[0] if "/layers/" in path else 1
    assert counts == {True: 182, False: 39}


def test_learning_rate():
    schedule = WarmupCosine().create(90_000)
    assert schedule(0) == pytest.approx(1e-6)
    assert schedule(1500) == pytest.approx((1e-6 + 3e-5) / 2)
    assert schedule(3000) == pytest.approx(1e-5 + 2e-5 * 0.5 * (1 + math.cos(math.pi * 3000 / 90_000)))
    assert schedule(90_000) == pytest.approx(1e-5)


def test_learning_rate_of_the_constant_schedule():
    schedule = WarmupConstant(peak_lr=2e-5, init_lr=1e-5, warmup_steps=10).create(90_000)
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10), schedule(80_000)], [1e-5, 1.5e-5, 2e-5, 2e-5])


def test_lion_moves_every_weight_by_the_learning_rate():
    """The sign of the first gradient times the learning rate, and weight decay on the kernel but not on the bias."""
    recipe = Recipe(optimizer=Lion(weight_decay=0.5), lr_schedule=WarmupConstant(peak_lr=0.1, warmup_steps=0))
    params = {"a/kernel": jnp.array([2.0]), "a/bias": jnp.array([2.0])}
    lion = optimizer.make_optimizer(recipe)
    updates, _ = lion.update({"a/kernel": jnp.array([-3.0]), "a/bias": jnp.array([7.0])}, lion.init(params), params)
    np.testing.assert_allclose(updates["a/kernel"], [0.1 * (1 - 0.5 * 2)], atol=1e-7)
    np.testing.assert_allclose(updates["a/bias"], [-0.1])


def test_the_clip_norm_limits_the_gradient_of_every_optimizer():
    for config in (AdamW(clip_norm=1.0, b2=0.5), Lion(clip_norm=1.0)):
        params = {"kernel": jnp.array([3.0, 4.0])}
        made = optimizer.make_optimizer(Recipe(optimizer=config))
        _, clipped = made.update({"kernel": jnp.array([30.0, 40.0])}, made.init(params), params)
        _, unit = made.update({"kernel": jnp.array([0.6, 0.8])}, made.init(params), params)
        for ours, expected in zip(jax.tree.leaves(clipped), jax.tree.leaves(unit), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_frozen_weights_get_no_gradient_work(batches):
    """Training everything costs the FLOPs of the frozen parts' backward pass in addition.

    Counts the program before XLA optimises it: so what is not there was never asked for, and nothing is compiled. The
    count has each scanned body once, so it compares one layer of each stack and what is outside of the stacks.
    """
    params, structure = parameters.init_params(MODEL, 0), parameters.model_structure(MODEL)

    def flops(recipe):
        trainable, frozen = split(params, parameters.trainable_paths(params, recipe.trainable))
        step = make_train_step(recipe, structure, one_device())
        return step.lower(init_train_state(recipe, trainable), frozen, batches[0]).cost_analysis()["flops"]

    everything = dataclasses.replace(RECIPE, trainable=(".*",))
    assert flops(RECIPE) < 0.85 * flops(everything)
