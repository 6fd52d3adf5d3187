"""Held-out batches: each example once, the same for any number of hosts, with padding at the end."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools

import numpy as np
import pytest

from data_pipelines import corpora, from_config
from data_pipelines.examples import BadExample
from data_pipelines.stream.held_out import HeldOutData
from salmonn_jax.configs import get_preset
from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import load_tokenizer
from tests.data.streams import DATA, MODEL, SIZES, equal, examples, joined, parts_of, sample_reader

PAD = dataclasses.replace(DATA, packing="pad", rows=16, clips=8, eval_examples=1000)
PACK = dataclasses.replace(DATA, eval_examples=1000)
BUCKETS = dataclasses.replace(PAD, buckets={"64": 0.5, "128": 0.5})
NAMES = sorted(SIZES)


def held_out(data, streams=None, sizes=SIZES, **reader) -> HeldOutData:
    return HeldOutData(sample_reader(data, **reader), sizes, data, streams=streams)


def read(data: HeldOutData, num_batches: int | None = None):
    with contextlib.closing(data):
        return list(data.batches(data.num_batches if num_batches is None else num_batches))


@pytest.mark.parametrize("data", [PAD, PACK, BUCKETS], ids=["pad", "pack", "buckets"])
def test_every_example_is_in_one_batch(data):
    batches = read(held_out(data))
    found = collections.Counter(itertools.chain.from_iterable(map(examples, batches)))
    assert found == {(NAMES.index(name), i): 1 for name, size in SIZES.items() for i in range(size)}
    assert {batch.tokens.shape for batch in batches} == {(16, 128)}
    assert {batch.pcm.shape for batch in batches} == {(data.clips, MODEL.audio.window_samples)}


@pytest.mark.parametrize("hosts", [2, 8])
@pytest.mark.parametrize("data", [PAD, PACK], ids=["pad", "pack"])
def test_hosts_read_parts_of_the_same_batches(data, hosts):
    """Hosts agree on the largest number of batches, and those with fewer examples add padding."""
    parts = [held_out(data, streams, bad=7) for streams in parts_of(hosts)]
    num_batches = max(part.num_batches for part in parts)
    whole = held_out(data, bad=7)
    assert whole.num_batches == num_batches
    assert sum((part.num_examples for part in parts), collections.Counter()) == whole.num_examples
    assert sum(len(part.rejections) for part in parts) == len(whole.rejections) > 0
    for batch, *of_hosts in zip(read(whole), *(read(part, num_batches) for part in parts), strict=True):
        assert equal(batch, joined(of_hosts))


def test_every_iteration_has_the_same_batches():
    """With fewer examples than there are: the same ones, which depend on the seed."""
    data = dataclasses.replace(PACK, eval_examples=10)
    one, other = held_out(data), held_out(data, seed=1)
    first, second = list(one.batches(one.num_batches)), read(one)
    assert all(map(equal, first, second))
    chosen = collections.Counter(source for source, _ in itertools.chain.from_iterable(map(examples, first)))
    assert chosen == dict.fromkeys(range(3), 10) == dict.fromkeys(range(3), one.num_examples["text"])
    assert sorted(map(examples, first)) != sorted(map(examples, read(other)))


def test_one_example_and_padding():
    """A single example of one source is read by one stream; the other hosts have only padding."""
    data, sizes = dataclasses.replace(PAD, eval_examples=1), {"speech": 97}
    parts = [held_out(data, streams, sizes) for streams in parts_of(2)]
    assert [part.num_batches for part in parts] == [1, 0]
    (first,), (second,) = (read(part, 1) for part in parts)
    assert len(examples(first)) == 1 and examples(first)[0][0] == NAMES.index("speech")
    assert not second.loss_mask.any() and not second.segments.any() and (second.source_index == -1).all()


def test_what_cannot_be_read_any_more_is_told():
    readable = True

    def on_read(index):
        if not readable:
            raise BadExample("missing", f"file {index}")

    data = held_out(dataclasses.replace(PAD, eval_examples=1), on_read=on_read)
    readable = False
    with contextlib.closing(data), pytest.raises(UserError, match="cannot be read any more \\(missing: file"):
        list(data.batches(1))


def test_sources_without_the_split_are_left_out(tmp_path):
    """One of two manifests has held-out examples. Its index is that among all sources."""
    (tmp_path / "data").mkdir()
    for name in ("a.jsonl", "b.jsonl", "b.test.jsonl", "c.jsonl", "c.test.jsonl"):
        line = '{"prompt": "low", "answer": "low", "task": "text"}\n' if name != "c.test.jsonl" else ""
        (tmp_path / "data" / name).write_text(line)
    tokenizer_dir = corpora.open_corpus("tones", tmp_path / "tones").tokenizer_dir
    preset = get_preset("debug")
    data = dataclasses.replace(
        preset.recipe.data, corpus="files", data_dir=str(tmp_path / "data"), mixture={"a": 1.0, "b": 1.0, "c": 1.0}
    )
    arguments = corpora.open_corpus("files", data.data_dir), load_tokenizer(tokenizer_dir), preset.model
    made = from_config.make_held_out_data(*arguments, data, seed=0)
    assert made.num_examples == {"b": 1}
    (batch,) = read(made)
    assert set(np.unique(batch.source_index)) == {-1, 1}
    data = dataclasses.replace(data, eval_split="unheard")
    with pytest.raises(UserError, match=r"no source has examples in the split data.eval_split=unheard \(sources: a, b"):
        from_config.make_held_out_data(*arguments, data, seed=0)
