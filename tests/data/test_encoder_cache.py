"""Tests of the store of encoder frames: batches with frames, missing windows, damage, and several writers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import time

import numpy as np
import pytest

from data_pipelines.encoder_cache import store as store_module
from data_pipelines.encoder_cache import writer as writer_module
from data_pipelines.encoder_cache.store import FrameStore, check_description, window_key
from data_pipelines.encoder_cache.windows import CompleteSources, SourceWindows
from data_pipelines.encoder_cache.writer import FrameWriter
from data_pipelines.examples import BadExample
from salmonn_jax.batch import FramesShape
from salmonn_jax.errors import AudioWarning, RunError, UserError
from tests.data.streams import DATA, SIZES, WINDOW, Source, audio_rules, equal, stream

FRAMES = FramesShape(50, 3, np.dtype("float32"))
DESCRIPTION = {"weights": "0123"}
CHUNK = dataclasses.replace(DATA, too_long="chunk")


def fake_frames(window: np.ndarray) -> np.ndarray:
    """Returns one frame for 320 samples, which tells the window and the position in it."""
    starts = np.arange(0, len(window), 320)
    return np.stack([np.full(len(starts), len(window)), window[starts], 1 + starts], axis=1).astype(np.float32)


def sources(data) -> list[SourceWindows]:
    return [SourceWindows(name, "train", Source(name), audio_rules(data), WINDOW, 6) for name in SIZES]


def open_store(location, frames_shape=FRAMES, description=DESCRIPTION) -> FrameStore:
    return FrameStore(location, description, frames_shape)


def fill(location, data, names=tuple(SIZES)) -> FrameStore:
    """Writes the windows of sources to a store."""
    with FrameWriter(open_store(location)) as writer:
        for source in sources(data):
            if source.name in names:
                for windows in source.read((0, 1)):
                    for window in windows:
                        writer.add(window.key, fake_frames(window.samples))
    return open_store(location)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FrameStore:
    """Returns a store with the windows of all sources, of clips cut into several windows."""
    return fill(tmp_path_factory.mktemp("store"), CHUNK)


@pytest.mark.parametrize(
    "changes",
    [
        {"packing": "pack"},
        {"packing": "pad", "rows": 48},
        {"packing": "pad", "rows": 48, "buckets": {"64": 0.5, "128": 0.5}},
        pytest.param({"num_workers": 1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_batches_with_frames_have_the_examples_of_those_with_samples(store, changes):
    """All other arrays are equal, with text-only examples and with two windows per clip."""
    data = dataclasses.replace(CHUNK, **changes)
    with contextlib.closing(stream(data, frame_store=store)) as cached, contextlib.closing(stream(data)) as plain:
        windows_of_two = 0
        for _ in range(3):
            ours, theirs = next(cached), next(plain)
            assert ours.frames.shape == (48, 50, 3) and ours.frames.dtype == np.float32 and ours.pcm.shape == (48, 0)
            assert theirs.frames.shape == (48, 0, 0) and theirs.pcm.shape == (48, WINDOW)
            assert equal(ours._replace(pcm=0, frames=0), theirs._replace(pcm=0, frames=0))
            for frames, pcm, length in zip(ours.frames, theirs.pcm, theirs.pcm_length, strict=True):
                expected = fake_frames(pcm[:length])
                np.testing.assert_array_equal(frames[: len(expected)], expected)
                assert not frames[len(expected) :].any()
            windows_of_two += int((ours.pcm_length == WINDOW).sum())
        assert windows_of_two > 0
        assert cached.get_state() == plain.get_state()


def test_a_restored_stream_goes_on_with_frames(store):
    cached = stream(CHUNK, frame_store=store)
    next(cached)
    state = json.loads(json.dumps(cached.get_state()))
    expected = next(cached)
    again = stream(CHUNK, frame_store=store)
    again.set_state(state)
    assert equal(next(again), expected)


def test_windows_that_are_not_in_the_store_end_the_run_by_their_share(tmp_path):
    """The clips of "events" are the first ones of "speech", so the others are missing, a third of all examples."""
    store, rejected = fill(tmp_path, CHUNK, ("events", "text")), []
    cached = stream(CHUNK, rejected=rejected.append, frame_store=store)
    with pytest.raises(UserError, match="not in the encoder cache: encoder window 0; the data have changed"):
        for _ in range(20):
            next(cached)
    assert {(r.source, r.reason) for r in rejected} == {("speech", "not in the encoder cache")}
    assert min(r.example for r in rejected) >= SIZES["events"]


def test_the_index_finds_every_key_and_no_other(tmp_path, monkeypatch):
    """Shards have the size limit; a key that is written twice is found; keys with equal halves are told apart."""
    monkeypatch.setattr("data_pipelines.encoder_cache.writer.SHARD_BYTES", 100)
    rng = np.random.default_rng(0)
    keys = [high + low for high in (rng.bytes(8), rng.bytes(8)) for low in (rng.bytes(8), rng.bytes(8), rng.bytes(8))]
    for _ in range(2):  # two writers, as in a lost race
        with FrameWriter(open_store(tmp_path)) as writer:
            for number, key in enumerate(keys):
                writer.add(key, np.full((4, 3), number, np.float32))
    assert len(list(tmp_path.glob("frames-*.array_record"))) == 4
    store = pickle.loads(pickle.dumps(open_store(tmp_path)))
    frames = store.read([store.find(key) for key in reversed(keys)])
    assert [x.shape for x in frames] == [(4, 3)] * 6
    assert [x[0, 0] for x in frames] == [5, 4, 3, 2, 1, 0]
    assert store.find(rng.bytes(16)) is None and store.find(keys[0][:8] + keys[0][:8]) is None
    assert store.index_bytes == 12 * 20
    assert not len(open_store(tmp_path / "..")) and open_store(tmp_path / "..").read([]) == []


def test_keys_depend_on_the_samples_alone():
    pcm = np.arange(-500, 500, dtype=np.int16)
    assert window_key(pcm) == window_key(np.repeat(pcm, 2)[::2]) == window_key(pcm.copy())
    assert len({window_key(x) for x in (pcm, pcm[:-1], np.append(pcm, np.int16(0)), pcm + np.int16(1))}) == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_frames_keep_their_dtype(tmp_path, dtype):
    import ml_dtypes  # noqa: F401

    shape = FramesShape(50, 3, np.dtype(dtype))
    frames = np.random.default_rng(0).normal(size=(7, 3)).astype(dtype)
    with FrameWriter(open_store(tmp_path)) as writer:
        writer.add(bytes(16), frames)
    (found,) = open_store(tmp_path, shape).read([0])
    assert found.dtype == frames.dtype
    np.testing.assert_array_equal(found, frames)


def test_an_interrupted_writer_keeps_what_it_has(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), FrameWriter(open_store(tmp_path)) as writer:
        writer.add(window_key(np.arange(9, dtype=np.int16)), np.ones((2, 3), np.float32))
        raise KeyboardInterrupt
    assert len(open_store(tmp_path)) == 1
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    """The shard is written to /dev/full, whose every write fails."""
    monkeypatch.setattr(writer_module, "atomic_write", lambda path: contextlib.nullcontext("/dev/full"))
    full = pytest.raises(RunError, match=r"cannot be written to .*No space left on device")
    with full, FrameWriter(open_store(tmp_path)) as writer:
        for _ in range(100):
            writer.add(bytes(16), np.ones((1000, 1000), np.float32))


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_partial_shard_is_not_used(tmp_path, keep):
    """Its windows are missing then, so the run encodes them again."""
    fill(tmp_path, CHUNK, ("events",))
    (shard,) = tmp_path.glob("frames-*")
    shard.write_bytes(shard.read_bytes()[: int(shard.stat().st_size * keep)])
    with pytest.warns(AudioWarning, match=f"{shard.name} cannot be used .*; delete it if it is damaged"):
        assert len(open_store(tmp_path)) == 0


def test_a_damaged_record_is_named_when_it_is_read(tmp_path):
    for names in (("events",), ("speech",)):
        store = fill(tmp_path, CHUNK, names)
    shard = sorted(tmp_path.glob("frames-*"))[1]
    content = bytearray(shard.read_bytes())
    content[content.index(store.read([len(store) - 1])[0].tobytes())] ^= 255
    shard.write_bytes(content)
    store = open_store(tmp_path)
    with pytest.raises(RunError, match=f"the encoder cache is damaged .*; delete .*{shard.name} and run"):
        store.read(range(len(store)))


def test_shards_of_other_encoders_are_not_read(tmp_path):
    """Two runs may start a store at the same time, before either sees the description of the other."""
    fill(tmp_path, CHUNK, ("events",))
    assert len(open_store(tmp_path)) and not len(open_store(tmp_path, description={"weights": "4567"}))


def test_unfinished_shards_of_killed_processes_are_deleted_after_a_day(tmp_path):
    with FrameWriter(open_store(tmp_path)) as writer:
        writer.add(bytes(16), np.ones((2, 3), np.float32))
        (unfinished,) = tmp_path.glob("*.unfinished")
        old = unfinished.with_name(unfinished.name.replace("frames-", "frames-0"))
        old.touch()
        os.utime(old, (0, time.time() - 25 * 3600))
        with FrameWriter(open_store(tmp_path)):
            assert list(tmp_path.glob("*.unfinished")) == [unfinished]


def test_the_description_of_a_store_is_compared(tmp_path):
    ours = {"dtype": "float32", "encoders": {"whisper": {"d_model": 16}}}
    check_description(tmp_path / "store", ours)
    check_description(tmp_path / "store", ours)
    with pytest.raises(
        UserError, match=r"another encoder or in another form: encoders\.whisper\.d_model is 16, not 32"
    ):
        check_description(tmp_path / "store", {"dtype": "float32", "encoders": {"whisper": {"d_model": 32}}})
    with pytest.raises(UserError, match="holds something else; choose another directory"):
        check_description(tmp_path, ours)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*; choose another directory"):
        check_description(tmp_path / "file" / "store", ours)
    (tmp_path / "store" / store_module.DESCRIPTION).write_text("{")
    with pytest.raises(UserError, match=r"encoders\.json is not JSON"):
        check_description(tmp_path / "store", ours)


def test_a_store_in_a_bucket_that_array_record_cannot_read_is_refused():
    from salmonn_jax.paths import epath

    with pytest.raises(UserError, match="array_record opens only local files and gs://"):
        check_description(epath.Path("s3://lab/store"), {})


def test_windows_are_cut_as_in_training():
    """The last clips of "speech" have two windows. An example that training rejects has none."""
    speech, _, text = sources(CHUNK)
    assert [len(speech[index]) for index in (0, 80, 81, 96)] == [1, 1, 2, 2]
    assert len(sources(DATA)[0][96]) == 1 and not text[0]
    assert speech[96][1].key == window_key(speech[96][1].samples) and len(speech[96][1].samples) == 1600
    assert dataclasses.replace(speech, max_windows=1)[96] == ()
    assert not dataclasses.replace(speech, examples=Source("speech", bad=7))[1]
    shares = [list(speech.read((index, 3))) for index in range(3)]
    keys = [window.key for share in shares for windows in share for window in windows]
    assert sorted(keys) == sorted(window.key for index in range(97) for window in speech[index])


def test_a_complete_source_is_not_read_again_unless_something_changed(tmp_path, store):
    """Checks a lost shard, changed clips, another number of examples, another directory and other rules."""
    speech = sources(CHUNK)[0]
    local = fill(tmp_path, CHUNK, ("speech",))
    complete = CompleteSources(local, {"data_dir": "here"})
    assert complete.num_windows(speech) is None
    complete.add(speech, 113)
    reads = []
    assert complete.num_windows(dataclasses.replace(speech, examples=Source("speech", on_read=reads.append))) == 113
    assert len(reads) == 16
    assert CompleteSources(local, {"data_dir": "there"}).num_windows(speech) is None
    assert complete.num_windows(dataclasses.replace(speech, examples=[speech.examples[0]])) is None
    assert complete.num_windows(dataclasses.replace(speech, rules=audio_rules(DATA))) is None
    examples = [speech.examples[index] for index in range(len(speech))]
    changed = [dataclasses.replace(example, audio=example.audio + np.int16(1)) for example in examples]
    assert complete.num_windows(dataclasses.replace(speech, examples=changed)) is None
    next(tmp_path.glob("frames-*")).unlink()
    assert CompleteSources(open_store(tmp_path), {"data_dir": "here"}).num_windows(speech) is None


def test_a_store_that_grows_is_read_as_it_was_opened(tmp_path):
    before = fill(tmp_path, CHUNK, ("events",))
    fill(tmp_path, CHUNK, ("speech",))
    assert len(before) < len(open_store(tmp_path))
    with pytest.raises(BadExample):
        before.find_windows([Source("speech")[80].audio])
    frames = before.read(before.find_windows([Source("events")[3].audio]))[0]
    np.testing.assert_array_equal(frames, fake_frames(Source("events")[3].audio))
