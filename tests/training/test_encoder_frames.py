"""Tests of training on stored encoder frames: results equal those of running the encoders, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from salmonn_jax import sharding
from salmonn_jax.batch import Batch, FramesShape, Segment, empty_batch, fill_batch
from salmonn_jax.config import ModelConfig
from salmonn_jax.configs import get_preset
from salmonn_jax.errors import UserError
from salmonn_jax.models import parameters
from salmonn_jax.training.encoder_frames import FRAMES_VERSION, FrameEncoder, stored_frames_shape
from salmonn_jax.training.step import init_train_state, make_train_step

RECIPE = get_preset("debug").recipe
CLIPS = 8


def test_model() -> ModelConfig:
    """Returns the debug model without dropout, whose language model reads only the audio tokens of a clip."""
    model = get_preset("debug").model
    return dataclasses.replace(
        model,
        audio=dataclasses.replace(model.audio, tokens="clip", minimum_seconds=0.3),
        qformer=dataclasses.replace(model.qformer, dropout=0.0, second_per_window=0.2, second_stride=0.1),
        lora=dataclasses.replace(model.lora, dropout=0.0),
    )


test_model.__test__ = False
MODEL = test_model()


# Four frames and four of their 32 values, two of each encoder; the last two frames of BEATs do not exist.
VERSION_1 = [
    [0.020214, -0.325216, 0.447985, 0.246679],
    [-0.006149, -0.295108, 0.449163, 0.246548],
    [0.003125, -0.302006, 0.0, 0.0],
    [0.026227, -0.338466, 0.0, 0.0],
]


@pytest.fixture(scope="module")
def params():
    """Parameters that depend on no random generator."""
    shapes = parameters.model_structure(MODEL).shapes
    return {
        path: jnp.asarray(np.sin(np.arange(math.prod(x.shape)) * 1.7 + i).reshape(x.shape) * 0.3, jnp.float32)
        for i, (path, x) in enumerate(sorted(shapes.items()))
    }


@pytest.fixture(scope="module")
def windows():
    """Windows of 0.3 to 1 second."""
    rng = np.random.default_rng(0)
    return [(rng.normal(size=4800 + 1600 * i) * 2000).astype(np.int16) for i in range(CLIPS)]


@pytest.fixture(scope="module")
def encoder(params) -> FrameEncoder:
    structure = parameters.model_structure(MODEL)
    placed = {path: jax.device_put(x, sharding.Placement(mesh())(path, x).sharding) for path, x in params.items()}
    return FrameEncoder(structure, placed, RECIPE, mesh())


@pytest.fixture(scope="module")
def frames(encoder, windows) -> list[np.ndarray]:
    """The frames that are stored of each window."""
    encoded = encoder.encode(windows)
    return [x[: MODEL.num_valid_frames(len(w))] for x, w in zip(encoded, windows, strict=True)]


def mesh(devices: int = 8):
    sizes = {"data": 2, "fsdp": 2, "tensor": 2} if devices == 8 else {}
    return sharding.make_mesh(sizes, jax.devices()[:devices])


def make_batch(windows, frames) -> Batch:
    """Returns a batch with a clip in every other row, given by samples or, if there are some, by frames."""
    shape = stored_frames_shape(MODEL, RECIPE) if frames else FramesShape(0, 0, np.dtype("float32"))
    batch = empty_batch(2 * CLIPS, 64, CLIPS, MODEL.audio.window_samples, 0, shape)
    rows = []
    for i, window in enumerate(windows):
        slots = list(range(MODEL.num_valid_audio_tokens(len(window))))
        with_clip = Segment([5] * (len(slots) + 4), [-1, *slots, -1, -1, -1], len(slots) + 2, (window,))
        rows += [[with_clip], [Segment([6, 7, 8 + i, 9], [-1] * 4, 2)]]
    fill_batch(batch, rows, num_audio_tokens=MODEL.num_audio_tokens, frames=frames)
    return batch


def test_frames_are_those_of_this_version(encoder):
    """If this fails because frames are computed in another way, raise FRAMES_VERSION: stores of before are refused."""
    time = np.arange(9600) / 16_000
    (frames,) = encoder.encode([(8000 * np.sin(2 * np.pi * (200 + 600 * time) * time)).astype(np.int16)])
    assert FRAMES_VERSION == 1 == encoder.description["version"]
    np.testing.assert_allclose(frames[[0, 20, 29, 40]][:, [0, 7, 16, 31]], VERSION_1, atol=1e-4)


def test_the_audio_tokens_that_are_read_are_those_of_the_encoders(params, windows, frames):
    """The encoders' parameters are not needed for them. Float32 sums in another order differ by a few units."""
    assert [len(x) for x in frames] == [20, 25, 30, 35, 40, 45, 50, 50]
    structure = parameters.model_structure(MODEL)
    batch, samples = jax.device_put((make_batch(windows, frames), make_batch(windows, ())))
    with_encoders = jax.jit(lambda p: structure.merge(p).encode_audio(samples.pcm, samples.pcm_length))(params)
    without = structure.without(structure.encoder_paths)
    assert {path.split("/")[0] for path in structure.encoder_paths} == {"whisper", "beats"}

    def audio_tokens(params):
        model = without.merge(params)
        return model.compute_audio_tokens(model.split_frames(batch.frames))

    from_frames = jax.jit(audio_tokens)({path: x for path, x in params.items() if path in without.shapes})
    for i, window in enumerate(windows):
        count = MODEL.num_valid_audio_tokens(len(window))
        np.testing.assert_allclose(from_frames[i, :count], with_encoders[i, :count], rtol=1e-5, atol=1e-5)
    assert not np.allclose(from_frames[0, -1], with_encoders[0, -1])  # beyond the clip, which is not stored


def take_steps(params, batch, device_mesh, recipe=RECIPE):
    """Returns the state after two steps on the same batch, and the metrics of each step."""
    structure = parameters.model_structure(MODEL)
    if batch.frames.size:
        structure = structure.without(structure.encoder_paths)
    chosen = parameters.trainable_paths(structure.shapes, recipe.trainable)
    state = init_train_state(recipe, {path: jnp.array(params[path]) for path in chosen})  # copies, which are donated
    state = jax.device_put(state, sharding.replicated(device_mesh))
    placement = sharding.Placement(device_mesh)
    frozen = {
        path: jax.device_put(params[path], placement(path, x).sharding)
        for path, x in structure.shapes.items()
        if path not in chosen
    }
    step, metrics = make_train_step(recipe, structure, device_mesh), []
    for _ in range(2):
        state, values = step(state, frozen, sharding.make_global_batch(batch, device_mesh, recipe.data.streams))
        metrics.append(jax.device_get(values))
    return state, metrics


@pytest.mark.slow
def test_steps_on_frames_equal_steps_on_samples(params, windows, frames):
    """On eight devices with micro-batches, and on one device without. Frames that move by one position are told apart.

    The tolerance is that of other tests of sharded steps: sums of float32 numbers in another order.
    """
    alone, expected = take_steps(params, make_batch(windows, ()), mesh(1))
    split = dataclasses.replace(RECIPE, gradient_accumulation_steps=2)
    spread, metrics = take_steps(params, make_batch(windows, frames), mesh(), split)
    for ours, theirs in zip(metrics, expected, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=name)
    for path in ("projection/kernel", "ln_speech/bias", "ln_audio/scale", "llama/layers/q_proj/lora_b"):
        np.testing.assert_allclose(spread.trainable[path], alone.trainable[path], rtol=1e-4, atol=1e-6, err_msg=path)
    _, moved = take_steps(params, make_batch(windows, [np.roll(x, 1, axis=0) for x in frames]), mesh(), split)
    assert abs(moved[0]["gradient_norm/norms"] / expected[0]["gradient_norm/norms"] - 1) > 1e-3


def test_padded_lengths_are_refused_with_frames(params, windows, frames):
    model = parameters.model_structure(MODEL).merge(params)
    with pytest.raises(ValueError, match="padded_length has no effect"):
        model(make_batch(windows, frames), lora_scale=1.0, padded_length=jnp.full(CLIPS, 16_000))


def test_what_frames_depend_on(encoder, params):
    """Other weights, and another dtype of the frames, of activations or of frozen weights, give another description."""
    structure, described = parameters.model_structure(MODEL), [encoder.description]
    for changes in ({"weights": 1.0}, {"dtype": "float16"}, {"activation_dtype": "bfloat16"}, {"frozen": "bfloat16"}):
        data = dataclasses.replace(RECIPE.data, encoder_cache="store", encoder_cache_dtype=changes.get("dtype", ""))
        activation_dtype = changes.get("activation_dtype", "float32")
        recipe = dataclasses.replace(RECIPE, data=data, activation_dtype=activation_dtype)
        path = "beats/norm/bias"
        changed = params | {path: (params[path] + changes.get("weights", 0)).astype(changes.get("frozen", "float32"))}
        described.append(FrameEncoder(structure, changed, recipe, mesh(1)).description)
    assert len({str(description) for description in described}) == 5
    again = params | {"llama/embedding": params["llama/embedding"] + 1}
    assert FrameEncoder(structure, again, RECIPE, mesh(1)).description == encoder.description


def test_frames_that_overflow_their_dtype_are_refused(params, windows):
    data = dataclasses.replace(RECIPE.data, encoder_cache="store", encoder_cache_dtype="float16")
    large = params | {"whisper/norm/scale": params["whisper/norm/scale"] * 1e6}
    recipe = dataclasses.replace(RECIPE, data=data)
    encoder = FrameEncoder(parameters.model_structure(MODEL), large, recipe, mesh(1))
    with pytest.raises(UserError, match="not finite, or zero, as float16; choose another"):
        encoder.encode(windows[:2])


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        (("adapters", "whisper"), "trainable entry 'whisper' selects whisper/"),
        ((".*",), r"trainable entry '\.\*' selects beats/"),
        (("beats/layers/.*",), "trainable entry 'beats/layers/"),
    ],
)
def test_a_trained_encoder_is_refused(trainable, message):
    with pytest.raises(UserError, match=f"data.encoder_cache needs frozen encoders, but {message}"):
        parameters.check_frozen_encoders(parameters.model_structure(MODEL), trainable)


def test_frozen_encoders_with_trained_norms_are_allowed_and_a_model_without_encoders_is_not():
    structure = parameters.model_structure(MODEL)
    parameters.check_frozen_encoders(structure, RECIPE.trainable)
    parameters.check_frozen_encoders(structure, ("norms", "ln_audio/.*", "llm"))
    text = dataclasses.replace(MODEL, whisper=None, beats=None, qformer=None)
    with pytest.raises(UserError, match="the model has no encoder; leave it out"):
        parameters.check_frozen_encoders(parameters.model_structure(text), ("llm",))
