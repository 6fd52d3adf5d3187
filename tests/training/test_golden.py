"""Compares loss, gradients and five optimiser steps with what the original PyTorch code computes, at float32."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

from salmonn_jax.config import AdamW, Recipe, WarmupCosine
from salmonn_jax.conversion import mapping, tables
from salmonn_jax.models import parameters
from salmonn_jax.models.parameters import Params
from salmonn_jax.training.optimizer import make_optimizer, weight_decay_mask
from tests import golden
from tests.golden import MINI

RUNS = {"train": "trained", "train_mixed": "trained_mixed"}  # names of runs, and of the weights after them
# Largest relative errors. Adam magnifies rounding, so gradient norms drift by up to 7e-5 within five steps.
LOSS, GRADIENTS, GRADIENT_NORM, LEARNING_RATE = 1e-5, 2e-4, 2e-4, 1e-6
WEIGHTS = 1e-5  # largest absolute error; rounding to float32 took the original's by up to 4e-7


@pytest.fixture(scope="module", autouse=True)
def _golden():
    MINI.require()


class Step(NamedTuple):
    """Results of one optimiser step."""

    loss: jax.Array
    correct: jax.Array  # answer tokens predicted right
    total: jax.Array  # answer tokens
    gradients: Params
    gradient_norm: jax.Array
    trainable: Params  # after the step
    opt_state: optax.OptState


@pytest.fixture(scope="module")
def settings() -> dict:
    return MINI.expected_json["train"]


@pytest.fixture(scope="module")
def recipe(settings) -> Recipe:
    """The recipe that stands for the original's settings; its number of steps is that of their cosine."""
    theirs = settings["optimizer"]
    return Recipe(
        optimizer=AdamW(
            b1=theirs["adam_beta1"], b2=theirs["beta2"], eps=theirs["adam_eps"], weight_decay=theirs["weight_decay"]
        ),
        lr_schedule=WarmupCosine(
            peak_lr=theirs["init_lr"],
            init_lr=theirs["warmup_start_lr"],
            end_lr=theirs["min_lr"],
            warmup_steps=theirs["warmup_steps"],
        ),
        num_train_steps=theirs["max_epoch"] * theirs["iters_per_epoch"],
    )


@pytest.fixture(scope="module")
def split_params() -> tuple[Params, Params]:
    """The trainable and the frozen weights."""
    params = MINI.params_with_pad
    chosen = parameters.trainable_paths(params, Recipe().trainable)
    trainable = {path: x for path, x in params.items() if path in chosen}
    return trainable, {path: x for path, x in params.items() if path not in chosen}


@pytest.fixture(scope="module")
def train_step(recipe):
    """A jitted optimiser step; batches of any size share its one compilation."""
    optimizer = make_optimizer(recipe)

    def loss_fn(trainable, frozen, frames, batch):
        model = MINI.structure.merge(trainable, frozen)
        _, logits, losses, counted = golden.forward(model, frames, batch, MINI.config.lora.scale, MINI.pad_classes)
        correct = (logits[:, :-1].argmax(-1) == batch.tokens[:, 1:]) & counted
        return losses.sum() / counted.sum(), (correct.sum(), counted.sum())

    @jax.jit
    def step(trainable, opt_state, frozen, frames, batch) -> Step:
        gradient_of = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (correct, total)), gradients = gradient_of(trainable, frozen, frames, batch)
        updates, opt_state = optimizer.update(gradients, opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        return Step(loss, correct, total, gradients, optax.global_norm(gradients), trainable, opt_state)

    return step


@pytest.fixture(scope="module")
def runs(settings, recipe, split_params, train_step) -> dict[str, list[Step]]:
    """The five steps of each run."""
    trainable, frozen = split_params
    found = {}
    for name in RUNS:
        state, steps = (trainable, make_optimizer(recipe).init(trainable)), []
        for clips in settings["runs"][name]["batches"]:
            steps.append(train_step(*state, frozen, MINI.batch_frames(clips), MINI.padded_batch(clips)))
            state = steps[-1].trainable, steps[-1].opt_state
        found[name] = steps
    return found


def stored_tensors(prefix: str) -> dict[str, np.ndarray]:
    """Returns the original's tensors whose name begins with `prefix:`."""
    prefix += ":"
    return {name.removeprefix(prefix): x for name, x in MINI.expected.items() if name.startswith(prefix)}


def test_loss_and_accuracy_of_a_batch(runs):
    step = runs["train"][0]
    np.testing.assert_allclose(step.loss, MINI.expected["batch_loss"], rtol=LOSS)
    assert (step.correct, step.total) == (MINI.expected["batch_correct"], MINI.expected["batch_total"])


def test_gradients_of_a_batch(runs):
    step, expected = runs["train"][0], stored_tensors("grad")
    ours = golden.original_tensors(step.gradients, list(expected))
    assert len(expected) == 9
    for name, theirs in expected.items():
        assert golden.relative_error(ours[name], theirs) < GRADIENTS, name
    np.testing.assert_allclose(step.gradient_norm, MINI.expected["grad_norm"], rtol=GRADIENT_NORM)


@pytest.mark.parametrize("run", RUNS)
def test_losses_of_five_steps(runs, run):
    losses = [step.loss for step in runs[run]]
    np.testing.assert_allclose(losses, MINI.expected[f"{run}_loss"], rtol=LOSS)


@pytest.mark.parametrize("run", RUNS)
def test_gradient_norms_of_five_steps(runs, run):
    norms = [step.gradient_norm for step in runs[run]]
    np.testing.assert_allclose(norms, MINI.expected[f"{run}_grad_norm"], rtol=GRADIENT_NORM)


@pytest.mark.parametrize("run", RUNS)
def test_weights_after_five_steps(runs, run):
    """Leaves out key biases of the Q-Former, whose gradient is rounding alone: the set does not store them."""
    expected = stored_tensors(RUNS[run])
    ours = golden.original_tensors(runs[run][-1].trainable, list(expected))
    assert len(expected) == 6
    for name, theirs in expected.items():
        np.testing.assert_allclose(ours[name], theirs, rtol=0, atol=WEIGHTS, err_msg=name)


@pytest.mark.parametrize("run", RUNS)
def test_learning_rates_of_five_steps(recipe, run):
    ours = [recipe.lr_schedule.create(recipe.num_train_steps)(step) for step in range(5)]
    np.testing.assert_allclose(ours, MINI.expected[f"{run}_lr"], rtol=LEARNING_RATE)


def test_learning_rates_of_the_released_configuration():
    recorded = MINI.expected_json["lr_schedules"][0]
    theirs = recorded["settings"]
    config = WarmupCosine()
    assert (config.peak_lr, config.init_lr, config.end_lr, config.warmup_steps) == (
        theirs["init_lr"],
        theirs["warmup_start_lr"],
        theirs["min_lr"],
        theirs["warmup_steps"],
    )
    schedule = config.create(theirs["max_epoch"] * theirs["iters_per_epoch"])
    for epoch, step, rate in recorded["epoch_step_lr"]:
        np.testing.assert_allclose(schedule(epoch * theirs["iters_per_epoch"] + step), rate, rtol=LEARNING_RATE)


def test_tensors_without_weight_decay(settings, split_params):
    trainable, _ = split_params
    decayed = weight_decay_mask(trainable)
    found = mapping.destinations(tables.SALMONN, {path: x.shape for path, x in trainable.items()})
    without = {name for name, to in found.items() if not decayed[to.path]}
    assert without == set(settings["without_weight_decay"])
    assert [len(found) - len(without), len(without)] == [group["tensors"] for group in settings["groups"]]
