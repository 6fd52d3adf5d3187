"""`launch.train` with `data.encoder_cache`: same losses, resumption, shared stores, interrupted and refused filling."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import corpora
from launch import encoder_cache
from launch.presets import resolve_preset
from launch.train import train
from salmonn_jax import sharding
from salmonn_jax.errors import AudioWarning, UserError
from salmonn_jax.training import encoder_frames
from salmonn_jax.training.run_directory import open_run
from tests import gcs_server
from tests.runs import copy_run, debug_preset, evaluations, losses


def cached_preset(folder: pathlib.Path, store: object, **changes):
    preset = debug_preset(folder / "tones", **changes)
    data = dataclasses.replace(preset.recipe.data, encoder_cache=str(store))
    return dataclasses.replace(preset, recipe=dataclasses.replace(preset.recipe, data=data))


def train_and_read(preset, output: pathlib.Path, model: pathlib.Path | None = None) -> str:
    """Trains and returns what is printed."""
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        assert train(preset, output, model)
    return printed.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cached")


@pytest.fixture(scope="module")
def printed(folder) -> str:
    """Trains the debug preset with a new store, in `folder`, and returns what is printed."""
    return train_and_read(cached_preset(folder, folder / "store"), folder / "run")


@pytest.mark.slow
def test_a_run_with_a_cache_has_the_losses_of_one_without(folder, printed, debug_run):
    """The sources are one with clips and one text-only. Sums of float32 numbers in another order differ."""
    ours, theirs = losses(folder / "run"), losses(debug_run)
    assert list(ours) == list(theirs) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    assert "60 encoder windows of the data, 60 encoded now; it holds 60, 7." in printed
    assert "encoder cache: filled in" in printed and "it pays for itself after" in printed
    assert not list((folder / "store").glob("*.unfinished"))


@pytest.mark.slow
def test_a_run_resumes_with_the_cache(folder, printed):
    """With evaluations, it also stores the windows of the held-out examples."""
    run = copy_run(folder / "run", folder / "resumed", last_step=4)
    said = train_and_read(cached_preset(folder, folder / "store", eval_every=6), run)
    assert "resuming from step 4" in said and "72 encoder windows of the data, 12 encoded now" in said
    assert "held-out examples (split test): tones 12, words 12" in said
    assert losses(run) == losses(folder / "run") and list(evaluations(run)) == [6]


@pytest.mark.slow
def test_evaluations_with_a_cache_are_those_without(folder, debug_run):
    values = []
    for name in ("", "evaluated store"):
        run = copy_run(debug_run, folder / f"evaluated with {name}", last_step=4)
        train(cached_preset(folder, name and folder / name, eval_every=6), run, None)
        values.append(evaluations(run)[6])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.slow
def test_the_next_stage_shares_the_store(folder, printed):
    """Stage 2 starts from the trained model of stage 1, whose encoders are the same."""
    said = train_and_read(cached_preset(folder, folder / "store"), folder / "next", folder / "run")
    assert "60 encoder windows of the data, 0 encoded now" in said
    assert len(losses(folder / "next")) == 6


def test_a_trained_encoder_is_refused_before_the_run_directory_is_made(folder):
    with pytest.raises(UserError, match="needs frozen encoders, but trainable entry 'whisper'"):
        train(cached_preset(folder, folder / "none", trainable=("whisper",)), folder / "trained", None)
    assert not (folder / "trained").exists() and not (folder / "none").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.speed=0.1",
            "data.encoder_cache=X stores frames of unchanged clips; set speed=0, or leave encoder_cache",
        ),
        ("data.gain=3", "data.encoder_cache=X stores frames of unchanged clips; set gain=0"),
        ("data.noise=0.5", "data.encoder_cache=X stores frames of unchanged clips; set noise=0"),
    ],
)
def test_augmentation_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        resolve_preset("debug", ["data.encoder_cache=X", override])


def test_a_dtype_without_a_cache_is_refused():
    with pytest.raises(UserError, match="encoder_cache_dtype has no effect without encoder_cache"):
        resolve_preset("debug", ["data.encoder_cache_dtype=float16"])


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Returns a function that opens a store for the debug preset. Its encoder takes one window per device at a time."""
    folder = tmp_path_factory.mktemp("opened")
    preset, mesh = debug_preset(folder / "tones"), sharding.make_mesh({})
    corpus = corpora.open_corpus("tones", folder / "tones")
    run = open_run(preset.recipe, preset.model, folder / "run", None, tokenizer_dir=folder / "tones", mesh=mesh)

    def open_store(location, dtype="", weights=None):
        recipe = cached_preset(folder, location).recipe
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, encoder_cache_dtype=dtype))
        changed = dataclasses.replace(run, frozen=run.frozen | (weights or {}))
        return encoder_cache.open_store(recipe, corpus, changed, mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_frames, "WINDOWS_PER_DEVICE", 1)
        yield open_store


def test_other_frames_are_refused(opened, tmp_path):
    """Another dtype, and one parameter of an encoder that is another. Other frozen parameters do not matter."""
    opened(tmp_path / "store")
    with pytest.raises(UserError, match="another form: dtype is 'float32', not 'bfloat16'; choose another directory"):
        opened(tmp_path / "store", dtype="bfloat16")
    with pytest.raises(UserError, match=r"holds frames of another encoder .*: weights is '\w+', not '\w+'"):
        opened(tmp_path / "store", weights={"beats/norm/bias": jnp.ones(16)})
    opened(tmp_path / "store", weights={"llama/norm/scale": jnp.zeros(32)})


def test_interrupted_filling_goes_on(opened, tmp_path, monkeypatch, capsys):
    """The interrupt comes in the fourth batch of eight windows. What was encoded before it is kept."""
    encode, calls = encoder_frames.FrameEncoder.encode, []

    def interrupted(self, windows):
        calls.append(len(windows))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, windows)

    monkeypatch.setattr(encoder_frames.FrameEncoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "store")
    store = opened(tmp_path / "store")
    assert "60 encoder windows of the data, 36 encoded now; it holds 60" in capsys.readouterr().err
    assert len(store) == 60 and sum(calls[4:]) == 36


def test_windows_of_a_partial_shard_are_encoded_again(opened, tmp_path, capsys):
    opened(tmp_path / "store")
    (shard,) = (tmp_path / "store").glob("frames-*")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.warns(AudioWarning, match="cannot be used .it is cut., so its windows are encoded anew"):
        assert len(opened(tmp_path / "store")) == 60
    assert capsys.readouterr().err.count("60 encoder windows of the data, 60 encoded now") == 2


@pytest.mark.slow
def test_a_store_in_a_bucket(opened, bucket, monkeypatch, capsys):
    """The bucket is read by array_record itself, through a server with the protocol of Cloud Storage."""
    server = gcs_server.serve(bucket)
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    for encoded in (60, 0):
        store = opened("gs://lab/store")
        assert f"60 encoder windows of the data, {encoded} encoded now" in capsys.readouterr().err
    server.shutdown()
    assert len(bucket.files("gs://lab/store/frames-")) == 1 and len(bucket.files("gs://lab/store/complete/")) == 2
    assert len(store) == 60
