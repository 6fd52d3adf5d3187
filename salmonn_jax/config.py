"""The configuration of a model and of a run, as plain data.

Everything is a frozen dataclass with JSON types, so a configuration can be compared, printed, stored beside a
checkpoint and read back. Named configurations are in `salmonn_jax.configs`.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal

from salmonn_jax.errors import UserError, unknown_name

SAMPLE_RATE = 16_000
HOP = 160  # samples between two feature frames, of both front ends


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """What a clip is made to be before the encoders see it."""

    window_seconds: float = 30.0  # clips are zero-padded to this; longer ones are cut
    minimum_seconds: float = 1.0  # BEATs sees shorter clips zero-padded to this
    # Which audio tokens the language model reads: of the whole window, as the original; or of what is clip in it.
    tokens: Literal["window", "clip"] = "window"

    @property
    def window_samples(self) -> int:
        return round(self.window_seconds * SAMPLE_RATE)

    @property
    def minimum_samples(self) -> int:
        return round(self.minimum_seconds * SAMPLE_RATE)

    @property
    def whisper_frames(self) -> int:
        """Encoder frames of one window, 50 a second."""
        return self.window_samples // (2 * HOP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Whisper's encoder (Radford et al. 2022); the defaults are large-v2."""

    mels: int = 80
    width: int = 1280
    layers: int = 32
    heads: int = 20
    ffn: int = 5120


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeatsConfig:
    """BEATs (Chen et al. 2022); the defaults are the fine-tuned iter3+ AS2M checkpoint."""

    mels: int = 128
    patch: int = 16
    patch_width: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    conv_positions: int = 128
    conv_groups: int = 16
    buckets: int = 320
    max_distance: int = 800


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """The window-level Q-Former: a BERT with cross-attention in every layer, over windows of encoder frames."""

    width: int = 768
    layers: int = 2
    heads: int = 12
    ffn: int = 3072
    queries: int = 1  # per window
    window_seconds: float = 0.333333
    stride_seconds: float = 0.333333
    dropout: float = 0.1

    @property
    def window_frames(self) -> int:
        return round(1500 * self.window_seconds / 30.0)  # rounded as the original rounds

    @property
    def stride_frames(self) -> int:
        return round(1500 * self.stride_seconds / 30.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How LLaMA 3.1 stretches slow rotary frequencies beyond the context it was first trained on."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A LLaMA-family decoder; the defaults are Vicuna-13B v1.1."""

    vocabulary: int = 32_000
    width: int = 5120
    layers: int = 40
    heads: int = 40
    kv_heads: int = 40
    ffn: int = 13_824
    rms_epsilon: float = 1e-6
    head: int | None = None  # width of a head; None stands for width / heads
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    context: int = 2048
    tied_embeddings: bool = False  # the output projection is the embedding table

    @property
    def head_width(self) -> int:
        return self.width // self.heads if self.head is None else self.head


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the projections named in `targets`: any of a layer's seven; none without adapters."""

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """SALMONN (Tang et al. 2024, figure 1): two encoders, the Q-Former, and the language model.

    None leaves a part out: `beats` for a SALMONN that hears through Whisper alone, as the original may be configured,
    or all others for a part on its own. A Q-Former needs Whisper and the language model.
    """

    audio: AudioConfig = AudioConfig()
    whisper: WhisperConfig | None = WhisperConfig()
    beats: BeatsConfig | None = BeatsConfig()
    qformer: QFormerConfig | None = QFormerConfig()
    llama: LlamaConfig | None = LlamaConfig()
    lora: LoraConfig = LoraConfig()
    activation_dtype: str = "bfloat16"
    frozen_dtype: str = "bfloat16"  # what is trained is stored in float32
    prompt_template: str = "USER: {}\nASSISTANT:"
    # Classes beyond the vocabulary that the loss counts with a logit of zero. The original adds one, [PAD], whose
    # random weights are in no checkpoint: zero is what they give on average.
    pad_classes: int = 0

    @property
    def windows(self) -> int:
        """Q-Former windows in a clip; frames after the last whole window are not seen."""
        q = self.qformer
        return (self.audio.whisper_frames - q.window_frames) // q.stride_frames + 1

    @property
    def audio_tokens(self) -> int:
        """What is made of one clip, whatever its length: 88 for the released models."""
        return self.windows * self.qformer.queries if self.qformer else 0

    def audio_tokens_of(self, samples: int) -> int:
        """How many of them the language model reads: all, or (`audio.tokens` "clip") those that begin in the clip."""
        if self.audio.tokens == "window" or not self.qformer:
            return self.audio_tokens
        frames = -(-max(samples, self.audio.minimum_samples) // (2 * HOP))
        return min(self.windows, -(-frames // self.qformer.stride_frames)) * self.qformer.queries


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a run reads.

    A step has `rows` rows of `sequence` tokens and `clips` slots for audio, over all devices; an example without audio
    takes no slot. Sources are mixed by weight, whatever they hold.

    Every source is dealt out to `streams` streams, each of which mixes, packs and makes an equal part of every batch;
    the processes of a job share the streams. So what a step sees is the same for any number of processes and devices,
    whose data shards must divide the number of streams.

    With `packing` "pad", `buckets` says which lengths rows have and in what share of the steps, `{"256": 0.8, "512":
    0.2}`; the longest must be `sequence`. Each length is compiled once. Examples that outnumber the steps that have
    room for them leave shorter rows empty: `launch.prepare inspect` shows lengths and fill.
    """

    corpus: str = "minicorpus"
    cache: str = ".cache/minicorpus"  # where it lies; of the corpus "files": a directory or URL with a source a name
    mixture: dict[str, float] = dataclasses.field(default_factory=dict)  # weights by source
    unit: Literal["examples", "hours", "tokens"] = "examples"  # what weights count: tokens that are predicted
    temperature: float = 1.0  # weights are raised to 1 / temperature: above 1, small sources are heard more
    replay: dict[str, float] = dataclasses.field(default_factory=dict)  # of older sources, against forgetting
    replay_as: Literal["additive", "share"] = "additive"  # its weights: on top of the mixture's 1, or of everything
    rows: int = 8
    clips: int = 8
    sequence: int = 512
    answer: int = 300  # tokens kept of an answer, `</s>` included
    transcript: int = 0  # tokens kept of a transcript, for the CTC loss
    streams: int = 8
    packing: Literal["pack", "pad"] = "pack"  # several examples a row, which do not see each other; or one
    buckets: dict[str, float] = dataclasses.field(default_factory=dict)  # lengths of padded rows; see above
    lookahead: int = 32  # examples of a stream that wait to be packed
    wordings: str = ""  # file of prompts by task, such as the original's train_prompt.json; "": ours
    channels: Literal["first", "mean"] = "first"  # of audio, as the original; or the mean of all
    too_long: Literal["truncate", "chunk", "drop", "error"] = "truncate"  # see `AudioRules`
    speed: float = 0.0  # augmentation: faster or slower by up to this part
    gain: float = 0.0  # augmentation: louder or softer by up to so many dB
    noise: float = 0.0  # augmentation: the share of clips that get noise, 10 to 30 dB below them
    noise_source: str = ""  # whose recordings the noise is cut from; "": it is white
    bad_share: float = 0.05  # the run ends when more than this share of the examples cannot be used
    workers: int = 0  # processes that read and decode; 0 reads in threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, as the original's `LinearWarmupCosineLRScheduler`."""

    peak: float = 3e-5
    start: float = 1e-6
    end: float = 1e-5
    warmup_steps: int = 3000
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float | None = None  # the original does not clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training stage.

    `trainable` lists regular expressions on parameter paths such as `llama/layers/q_proj/lora_a`. A parameter is
    trained if one of them matches the whole path; this alone decides gradients, optimiser state, dtype and what a
    checkpoint holds.
    """

    name: str
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainable: tuple[str, ...] = (
        "query_tokens",
        "qformer/.*",
        "ln_speech/.*",
        "ln_audio/.*",
        "projection/.*",
        ".*/lora_[ab]",
    )
    steps: int = 90_000
    seed: int = 42
    save_every: int = 3000
    keep: int = 3
    ctc_weight: float = 0.0  # of the CTC loss on audio tokens; for training from random weights
    ctc_blank: int = 0  # the token that stands for "no word here"
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)  # sizes by axis; default: all devices on `data`
    # What of the language model's layers is computed again in the backward pass; see `models.common`.
    remat: str = "none"


# What may change when a run goes on: where and how it is computed, not what.
OPERATIONAL = ("mesh", "remat", "save_every", "keep")
OPERATIONAL_DATA = ("cache", "mixture", "unit", "temperature", "replay", "replay_as", "bad_share", "workers")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the JSON form of a configuration."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type, values: dict[str, Any], where: str = "") -> Any:
    """Builds a configuration of class `kind` from its JSON form. Raises UserError naming the wrong field."""
    hints = typing.get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown_name("configuration field", where + key, [where + h for h in hints])
        arguments[key] = _cast(hints[key], value, where + key)
    return kind(**arguments)


def replace(config: Any, path: str, text: str) -> Any:
    """Returns `config` with the field at the dotted `path` set from the command line's `text`."""
    head, _, rest = path.partition(".")
    hints = typing.get_type_hints(type(config))
    if head not in hints:
        raise unknown_name("configuration field", head, hints)
    if rest and isinstance(getattr(config, head), dict):
        value = {**getattr(config, head), rest: json.loads(text)}
    elif rest:
        if not dataclasses.is_dataclass(getattr(config, head)):
            raise UserError(f"{head} has no fields; write {head}=VALUE instead of {path}={text}")
        value = replace(getattr(config, head), rest, text)
    else:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        value = _cast(hints[head], value, path)
    return dataclasses.replace(config, **{head: value})


def first_difference(old: Any, new: Any, where: str = "") -> str | None:
    """Names the first field in which two JSON forms differ, with both values; None when they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            found = first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else key)
            if found:
                return found
        return None
    return None if old == new else f"{where} is {old!r} there and {new!r} here"


def _cast(hint: Any, value: Any, where: str) -> Any:
    """Checks `value` against the field's type and turns JSON's lists and ints into what the field holds."""
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where + ".")
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        return _cast(typing.get_args(hint)[0], value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise unknown_name(f"value of {where}", str(value), typing.get_args(hint))
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin or hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return value
