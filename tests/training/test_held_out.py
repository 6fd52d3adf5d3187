"""Evaluation on held-out examples: exact means over all tokens, on any mesh and with micro-batches."""

from __future__ import annotations

import contextlib
import dataclasses
import types

import jax
import numpy as np
import pytest

from data_pipelines import corpora
from data_pipelines.from_config import make_held_out_data
from salmonn_jax import sharding
from salmonn_jax.batch import make_batch
from salmonn_jax.configs import get_preset
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.preemption import StopRequest
from salmonn_jax.tokenizer import load_tokenizer
from salmonn_jax.training.held_out import HeldOutEvaluation, check_held_out
from salmonn_jax.training.step import batch_loss

MODEL, PRESET = get_preset("debug").model, get_preset("debug").recipe
DATA = dataclasses.replace(PRESET.data, eval_examples=7, max_transcript_tokens=2)
RECIPE = dataclasses.replace(PRESET, data=DATA, eval_every=2, num_train_steps=5, ctc_weight=0.5, ctc_blank=3)
WATCHDOG = types.SimpleNamespace(heartbeat=lambda: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven held-out examples of each of the two sources: a batch has 8 clips, so the last rows are padding."""
    corpus = corpora.open_corpus("tones", tmp_path_factory.mktemp("tones"))
    made = make_held_out_data(corpus, load_tokenizer(corpus.tokenizer_dir), MODEL, DATA, seed=0)
    with contextlib.closing(made):
        yield made


@pytest.fixture(scope="module")
def params():
    """Random weights, with adapters that are not zero."""
    params = parameters.init_params(MODEL, 0)
    rng = np.random.default_rng(0)
    return {p: rng.normal(0, 0.1, x.shape).astype("f4") if p.endswith("lora_b") else x for p, x in params.items()}


def make_evaluation(data, recipe=RECIPE, sizes=None) -> HeldOutEvaluation:
    """Returns the evaluation on a mesh of all eight devices, or on one device if there are no `sizes`."""
    mesh = sharding.make_mesh(sizes or {}, None if sizes else jax.devices()[:1])
    return HeldOutEvaluation(recipe, parameters.model_structure(MODEL), mesh, data)


@pytest.fixture(scope="module")
def evaluation(data):
    return make_evaluation(data)


def evaluate(evaluation, params, **options) -> dict[str, float] | None:
    """Evaluates a model whose parameters are placed as in training."""
    mesh = evaluation.mesh
    chosen, placement = parameters.trainable_paths(params, RECIPE.trainable), sharding.Placement(mesh)
    trainable = {p: jax.device_put(x, sharding.replicated(mesh)) for p, x in params.items() if p in chosen}
    frozen = {p: jax.device_put(x, placement(p, x).sharding) for p, x in params.items() if p not in chosen}
    with StopRequest() as stop_request:
        return evaluation.run(trainable, frozen, watchdog=WATCHDOG, stop_request=stop_request, **options)


@pytest.fixture(scope="module")
def values(evaluation, params):
    return evaluate(evaluation, params)


def test_means_are_over_all_tokens(data, params, values):
    """Each row is a batch of its own here, and means are weighted with its tokens."""
    structure = parameters.model_structure(MODEL)
    loss = jax.jit(lambda batch: batch_loss(RECIPE, structure, params, {}, batch, 1, None)[1])
    losses, correct, targets, ctc = (dict.fromkeys(range(2), 0.0) for _ in range(4))
    batches = list(data.batches(data.num_batches))
    for batch in batches:
        for row in np.flatnonzero(batch.segments.any(axis=1)):
            clip = max(int(batch.audio_slot[row].max()), 0) // MODEL.num_audio_tokens
            slots = batch.audio_slot[row] - clip * MODEL.num_audio_tokens
            one = batch._replace(audio_slot=np.where(batch.audio_slot >= 0, slots, -1))
            rows = {name: getattr(one, name)[row : row + 1] for name in one._fields}
            clips = {
                name: getattr(one, name)[clip : clip + 1] for name in ("pcm", "pcm_length", "frames", "transcript")
            }
            metrics = loss(make_batch(**rows | clips))
            source, count = int(batch.source_index[row, 0]), int(batch.loss_mask[row, 1:].sum())
            losses[source] += float(metrics["loss"]) * count
            correct[source] += float(metrics["accuracy"]) * count
            targets[source] += count
            if (batch.audio_slot[row] >= 0).any():
                tokens = int((clips["transcript"] >= 0).sum())
                ctc[0], ctc[1] = ctc[0] + float(metrics["ctc"]) * tokens, ctc[1] + tokens
    assert data.num_examples == {"tones": 7, "words": 7}
    total = sum(targets.values())
    expected = {
        "eval/loss": sum(losses.values()) / total,
        "eval/accuracy": sum(correct.values()) / total,
        "eval/ctc": ctc[0] / ctc[1],
        "eval/loss/tones": losses[0] / targets[0],
        "eval/accuracy/tones": correct[0] / targets[0],
        "eval/loss/words": losses[1] / targets[1],
        "eval/accuracy/words": correct[1] / targets[1],
    }
    assert values == pytest.approx(expected, rel=1e-5)
    assert set(values) == set(RECIPE.eval_metrics)


@pytest.mark.slow
def test_micro_batches_on_a_mesh_have_the_same_values(data, params, values):
    recipe = dataclasses.replace(RECIPE, gradient_accumulation_steps=2)
    spread = make_evaluation(data, recipe, {"data": 2, "fsdp": 2, "tensor": 2})
    assert evaluate(spread, params) == pytest.approx(values, rel=1e-5)


def test_the_scale_of_the_adapters(evaluation, params, values):
    halved = evaluate(evaluation, params, lora_multiplier=0.5)
    without = evaluate(evaluation, {p: 0 * x if p.endswith("lora_b") else x for p, x in params.items()})
    assert evaluate(evaluation, params, lora_multiplier=0.0) == pytest.approx(without, rel=1e-5)
    assert len({values["eval/loss"], halved["eval/loss"], without["eval/loss"]}) == 3
    broken = {p: x * np.nan if p.endswith("lora_b") else x for p, x in params.items()}
    assert evaluate(evaluation, broken, lora_multiplier=[0, 0]) == pytest.approx(without, rel=1e-5)


@pytest.mark.slow
def test_the_multiplier_of_the_recipe(data, evaluation, params):
    recipe = dataclasses.replace(RECIPE, eval_lora_multiplier=(0.5, 0.0))
    by_layer = evaluate(make_evaluation(data, recipe), params)
    assert by_layer == pytest.approx(evaluate(evaluation, params, lora_multiplier=(0.5, 0.0)), rel=1e-6)


def test_when_an_evaluation_is_due(evaluation):
    assert [step for step in range(6) if evaluation.is_due(step)] == [2, 4, 5]


def test_held_out_examples_are_told(data):
    assert check_held_out(RECIPE, data) == "held-out examples (split test): tones 7, words 7"
    rejection = types.SimpleNamespace(example=3, source="tones", reason="missing", detail="no file 3.wav")
    some = types.SimpleNamespace(num_examples={"words": 2}, rejections=[rejection] * 2)
    reason = "2 cannot be used (example 3 of tones: missing, no file 3.wav)"
    assert check_held_out(RECIPE, some) == f"held-out examples (split test): words 2; none of tones; {reason}"
    with pytest.raises(UserError, match="keep_best=eval/loss/tones: tones has no example in the split"):
        check_held_out(dataclasses.replace(RECIPE, keep_best="eval/loss/tones"), some)
    none = types.SimpleNamespace(num_examples={}, rejections=[rejection] * 2)
    with pytest.raises(UserError, match=r"none of the 2 examples in the split data\.eval_split=test can be used"):
        check_held_out(RECIPE, none)
