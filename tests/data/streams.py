"""A stream of small made sources, for the tests of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from benchmarks.packing import NoOpReader
from data_pipelines.examples import BadExample, Example
from data_pipelines.sources.audio import AudioRules
from data_pipelines.stream.mixture import normalise
from data_pipelines.stream.sample_dataset import SampleIterDataset
from data_pipelines.stream.training_data import TrainingData
from data_pipelines.transforms.augment import augmentations
from data_pipelines.transforms.encode import encode_config
from data_pipelines.transforms.prompt_templates import PromptTemplates
from data_pipelines.transforms.samples import Encoder, SampleReader
from salmonn_jax.config import DataConfig
from salmonn_jax.configs import get_preset

DEBUG = get_preset("debug").model
# A token is a letter here, so examples have more tokens, and larger ones, than the debug model takes.
MODEL = dataclasses.replace(DEBUG, llama=dataclasses.replace(DEBUG.llama, max_position_embeddings=128, vocab_size=2048))
WINDOW = MODEL.audio.window_samples
SIZES = {"speech": 97, "events": 41, "text": 29}
SHARES = {"speech": 0.6, "events": 0.3, "text": 0.1}
DATA = DataConfig(mixture=SHARES, rows=16, clips=48, seq_len=128, streams=8, lookahead=16)


class Tokenizer:
    """One token a letter. The first token of an answer tells which example it is."""

    bos_token_id, eos_token_id, prefix_tokens = 1, 2, (1,)

    def encode(self, text):
        return [3 + ord(letter) for letter in text]


@dataclasses.dataclass
class Source:
    """Examples of lengths that differ; of "text" without audio. Every `bad`-th cannot be used."""

    name: str
    bad: int = 0
    on_read: Callable[[int], object] = bool

    def __len__(self):
        return SIZES[self.name]

    def __getitem__(self, i):
        self.on_read(i)
        if self.bad and i % self.bad == 1:
            raise BadExample("undecodable" if i % 2 else "empty", f"file {i}")
        pcm = None if self.name == "text" else np.full(WINDOW // 2 + 100 * i, 1 + i, np.int16)
        return Example(
            id=str(i), audio=pcm, prompt="", answer=chr(1000 + i) + "x" * (i * i % 23), task="asr", source=self.name
        )


PROMPT_TEMPLATES = PromptTemplates("here", {"asr": ("What?", "Who speaks?")})


def audio_rules(data):
    return AudioRules(minimum_seconds=0.5, maximum_seconds=1.0, too_long=data.too_long)


def sample_reader(data=DATA, bad=0, seed=0, model=MODEL, on_read=bool, frame_store=None):
    encoder = Encoder(
        tokenizer=Tokenizer(),
        prompt_templates=PROMPT_TEMPLATES,
        config=encode_config(model, data),
        rules=audio_rules(data),
        frame_store=frame_store,
    )
    recordings = Source(data.noise_source) if data.noise_source else None
    sources = {name: Source(name, bad, on_read) for name in SIZES}
    return SampleReader(sources, encoder, augmentations(data, recordings), seed=seed)


def stream(data=DATA, streams=None, rejected=lambda one: None, **reader):
    reader = sample_reader(data, **reader)
    return TrainingData(reader, data, normalise(data.mixture), streams=streams, on_reject=rejected)


def refs_of(shares, stream=0, num_streams=8):
    """An iterator over the references of the samples that a stream draws, none of which is read."""
    return iter(SampleIterDataset(shares, stream, num_streams, NoOpReader(), read_ahead=2))


def equal(ours, theirs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def joined(parts):
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def examples(batch) -> list[tuple[int, int]]:
    """(source, example) of every segment, in order: the token behind the prompt tells."""
    starts = batch.loss_mask & ~np.pad(batch.loss_mask, ((0, 0), (1, 0)))[:, :-1]
    return [(int(batch.source_index[r, s]), int(batch.tokens[r, s]) - 1003) for r, s in np.argwhere(starts)]


def parts_of(hosts):
    return [range(h * 8 // hosts, (h + 1) * 8 // hosts) for h in range(hosts)]
