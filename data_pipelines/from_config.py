"""Builds the training data of a run from its configuration. `launch.train` and `launch.prepare inspect` use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.corpora import Corpus, open_corpus
from data_pipelines.encoder_cache.store import FrameStore
from data_pipelines.encoder_cache.windows import SourceWindows
from data_pipelines.examples import BadExample, Example
from data_pipelines.sources.audio import AudioRules
from data_pipelines.stream.held_out import HeldOutData
from data_pipelines.stream.mixture import source_shares
from data_pipelines.stream.training_data import TrainingData
from data_pipelines.transforms.augment import augmentations
from data_pipelines.transforms.encode import encode_config
from data_pipelines.transforms.prompt_templates import PromptTemplates
from data_pipelines.transforms.samples import Encoder, SampleReader
from salmonn_jax.config import SAMPLE_RATE, DataConfig, ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.paths import Path
from salmonn_jax.tokenizer import Tokenizer

MEASURED_EXAMPLES = 64  # maximum number of examples from which the mean size of a source is estimated


def audio_rules(model: ModelConfig, data: DataConfig) -> AudioRules:
    """Returns the audio rules of a configuration."""
    return AudioRules(
        channels=data.channels,
        minimum_seconds=model.audio.minimum_seconds,
        maximum_seconds=model.audio.window_seconds,
        too_long=data.too_long,
    )


def find_tokenizer_dir(corpus: Corpus, model_dir: Path | None) -> Path:
    """Returns the directory of the tokenizer: the model to start from, or else the corpus.

    Raises:
      UserError: neither has a tokenizer.
    """
    found = model_dir or corpus.tokenizer_dir
    if found is None:
        raise UserError("--model is missing: this corpus has no tokenizer of its own")
    return found


def make_training_data(
    corpus: Corpus,
    tokenizer: Tokenizer,
    model: ModelConfig,
    data: DataConfig,
    *,
    seed: int,
    streams: Sequence[int] | None = None,
    frame_store: FrameStore | None = None,
) -> TrainingData:
    """Returns the training data of a configuration.

    Args:
      corpus: the sources.
      tokenizer: tokenizer of the model.
      model: configuration of the model.
      data: configuration of the data.
      seed: decides the order of the examples and all random choices.
      streams: indices of the streams that this process reads; all `data.streams` by default.
      frame_store: filled store of `data.encoder_cache`, from which batches have frames; None: they have samples.

    Raises:
      UserError: a source does not exist or has no examples, or the mixture or the sizes are inconsistent.
    """
    sources = {name: corpus.open_source(name, "train") for name in data.source_names}
    for name, source in sources.items():
        _check_not_empty(name, source)
    means = {}
    if data.weight_unit != "examples":
        means = {
            name: mean_example_size(source, data.weight_unit, tokenizer, data.max_answer_tokens)
            for name, source in sources.items()
        }
    shares = source_shares(data, means)
    recordings = None
    if data.noise_source:
        # "chunk" keeps whole recordings, so that noise can be cut from any position.
        rules = dataclasses.replace(audio_rules(model, data), too_long="chunk")
        recordings = open_corpus(data.corpus, data.data_dir, rules).open_source(data.noise_source, "train")
        _check_not_empty(data.noise_source, recordings)
    encoder = _make_encoder(tokenizer, model, data, frame_store)
    reader = SampleReader(sources, encoder, augmentations(data, recordings), seed=seed)
    return TrainingData(reader, data, shares, streams=streams)


def make_held_out_data(
    corpus: Corpus,
    tokenizer: Tokenizer,
    model: ModelConfig,
    data: DataConfig,
    *,
    seed: int,
    streams: Sequence[int] | None = None,
    frame_store: FrameStore | None = None,
) -> HeldOutData:
    """Returns the held-out examples of a configuration: those of the split `data.eval_split` of its sources.

    Args:
      corpus: the sources.
      tokenizer: tokenizer of the model.
      model: configuration of the model.
      data: configuration of the data.
      seed: chooses the examples of a source that has more than `data.eval_examples`, and their prompt templates.
      streams: indices of the streams that this process reads; all `data.streams` by default.
      frame_store: see `make_training_data`.

    Raises:
      UserError: no source has the split.
    """
    sources = {
        name: corpus.open_source(name, data.eval_split)
        for name in data.source_names
        if corpus.has_split(name, data.eval_split)
    }
    sizes = {name: len(source) for name, source in sources.items() if len(source)}
    if not sizes:
        raise UserError(
            f"no source has examples in the split data.eval_split={data.eval_split} (sources: "
            f"{', '.join(data.source_names)}); choose another split, or set eval_every=0"
        )
    reader = SampleReader(
        {name: sources[name] for name in sizes},
        _make_encoder(tokenizer, model, data, frame_store),
        seed=seed,
        source_names=data.source_names,
    )
    return HeldOutData(reader, sizes, data, streams=streams)


def _make_encoder(
    tokenizer: Tokenizer, model: ModelConfig, data: DataConfig, frame_store: FrameStore | None
) -> Encoder:
    return Encoder(
        tokenizer=tokenizer,
        prompt_templates=PromptTemplates.load(data.prompt_templates or None),
        config=encode_config(model, data),
        rules=audio_rules(model, data),
        frame_store=frame_store,
    )


def source_windows(
    corpus: Corpus, model: ModelConfig, data: DataConfig, splits: Sequence[str]
) -> Iterator[SourceWindows]:
    """Yields the encoder windows of each source of a configuration, for `data.encoder_cache`.

    Args:
      corpus: the sources.
      model: configuration of the model.
      data: configuration of the data.
      splits: names of the splits. Those that a source does not have are left out.
    """
    for split in splits:
        for name in (name for name in data.source_names if corpus.has_split(name, split)):
            yield SourceWindows(
                name=name,
                split=split,
                examples=corpus.open_source(name, split),
                rules=audio_rules(model, data),
                window_samples=model.audio.window_samples,
                max_windows=data.clips // data.streams,
            )


def _check_not_empty(name: str, source: Sequence[Example]) -> None:
    if not len(source):
        raise UserError(f"the source {name!r} has no examples in its split 'train'; fill it, or leave it out")


def mean_example_size(examples: Sequence[Example], unit: str, tokenizer: Tokenizer, max_answer_tokens: int) -> float:
    """Returns the mean size of an example: hours of audio, or number of predicted tokens.

    It measures at most `MEASURED_EXAMPLES` examples, spread evenly over the source. Examples that cannot be used are
    left out.

    Args:
      examples: the source.
      unit: "hours" or "tokens".
      tokenizer: counts the tokens.
      max_answer_tokens: limit of the predicted tokens of an example.
    """
    found = []
    for index in np.linspace(0, len(examples) - 1, min(MEASURED_EXAMPLES, len(examples))).astype(int):
        try:
            example = examples[int(index)]
        except BadExample:
            continue
        if unit == "hours":
            found.append(0.0 if example.audio is None else len(example.audio) / SAMPLE_RATE / 3600)
        else:
            found.append(min(len(tokenizer.encode(example.answer)) + 1, max_answer_tokens))
    return float(np.mean(found)) if found else 0.0
