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
HOP_LENGTH = 160  # samples between two feature frames, of both front ends


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
        return self.window_samples // (2 * HOP_LENGTH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Whisper's encoder (Radford et al. 2022); the defaults are large-v2."""

    num_mel_bins: int = 80
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeatsConfig:
    """BEATs (Chen et al. 2022); the defaults are the fine-tuned iter3+ AS2M checkpoint."""

    num_mel_bins: int = 128
    input_patch_size: int = 16
    embed_dim: int = 512
    encoder_embed_dim: int = 768
    encoder_layers: int = 12
    encoder_attention_heads: int = 12
    encoder_ffn_embed_dim: int = 3072
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """The window-level Q-Former: a BERT with cross-attention in every layer, over windows of encoder frames."""

    hidden_size: int = 768
    num_hidden_layers: int = 2
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_speech_query_token: int = 1  # per window
    second_per_window: float = 0.333333
    second_stride: float = 0.333333
    dropout: float = 0.1

    @property
    def window_frames(self) -> int:
        return round(1500 * self.second_per_window / 30.0)  # rounded as the original rounds

    @property
    def stride_frames(self) -> int:
        return round(1500 * self.second_stride / 30.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How LLaMA 3.1 stretches slow rotary frequencies beyond the context it was first trained on."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A LLaMA-family decoder; the defaults are Vicuna-13B v1.1."""

    vocab_size: int = 32_000
    hidden_size: int = 5120
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    num_key_value_heads: int = 40
    intermediate_size: int = 13_824
    rms_norm_eps: float = 1e-6
    head_dim: int | None = None  # width of a head; None stands for width / heads
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False  # the output projection is the embedding table

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the projections named in `targets`: any of a layer's seven; none without adapters."""

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")

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
    def num_windows(self) -> int:
        """Q-Former windows in a clip; frames after the last whole window are not seen."""
        q = self.qformer
        return (self.audio.whisper_frames - q.window_frames) // q.stride_frames + 1

    @property
    def num_audio_tokens(self) -> int:
        """What is made of one clip, whatever its length: 88 for the released models."""
        return self.num_windows * self.qformer.num_speech_query_token if self.qformer else 0

    def num_valid_audio_tokens(self, num_samples: int) -> int:
        """How many of them the language model reads: all, or (`audio.tokens` "clip") those that begin in the clip."""
        if self.audio.tokens == "window" or not self.qformer:
            return self.num_audio_tokens
        frames = -(-max(num_samples, self.audio.minimum_samples) // (2 * HOP_LENGTH))
        return min(self.num_windows, -(-frames // self.qformer.stride_frames)) * self.qformer.num_speech_query_token


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
    data_dir: str = ".cache/minicorpus"  # where it lies; of the corpus "files": a directory or URL with a source a name
    mixture: dict[str, float] = dataclasses.field(default_factory=dict)  # weights by source
    weight_unit: Literal["examples", "hours", "tokens"] = "examples"  # what weights count: tokens that are predicted
    temperature: float = 1.0  # weights are raised to 1 / temperature: above 1, small sources are heard more
    replay: dict[str, float] = dataclasses.field(default_factory=dict)  # of older sources, against forgetting
    replay_as: Literal["additive", "share"] = "additive"  # its weights: on top of the mixture's 1, or of everything
    rows: int = 8
    clips: int = 8
    seq_len: int = 512
    max_answer_tokens: int = 300  # tokens kept of an answer, `</s>` included
    max_transcript_tokens: int = 0  # tokens kept of a transcript, for the CTC loss
    streams: int = 8
    packing: Literal["pack", "pad"] = "pack"  # several examples a row, which do not see each other; or one
    buckets: dict[str, float] = dataclasses.field(default_factory=dict)  # lengths of padded rows; see above
    lookahead: int = 32  # examples of a stream that wait to be packed
    prompt_templates: str = ""  # file of prompts by task, such as the original's train_prompt.json; "": ours
    channels: Literal["first", "mean"] = "first"  # of audio, as the original; or the mean of all
    too_long: Literal["truncate", "chunk", "drop", "error"] = "truncate"  # see `AudioRules`
    speed: float = 0.0  # augmentation: faster or slower by up to this part
    gain: float = 0.0  # augmentation: louder or softer by up to so many dB
    noise: float = 0.0  # augmentation: the share of clips that get noise, 10 to 30 dB below them
    noise_source: str = ""  # whose recordings the noise is cut from; "": it is white
    max_bad_share: float = 0.05  # the run ends when more than this share of the examples cannot be used
    read_ahead_mb: float = 512.0  # memory of a host for samples that are read before they are needed
    num_workers: int = 0  # processes that read and decode; 0 reads in threads

    @property
    def samples_per_step(self) -> int:
        """About the largest number of samples that a stream places in a step; rows without clips may hold more."""
        return max(self.rows, self.clips) // self.streams


def check_data_sizes(data: DataConfig) -> None:
    """Raises UserError if rows, their lengths, clips and the window of samples do not go together."""
    if data.buckets:
        if data.packing != "pad":
            raise UserError("data.buckets are lengths of padded rows; set data.packing=pad, or leave them out")
        whole = all(length.isdecimal() and length == str(int(length)) != "0" for length in data.buckets)
        if not whole or max(map(int, data.buckets)) != data.seq_len:
            raise UserError(
                f"data.buckets has lengths {', '.join(data.buckets)}; they must be whole numbers above 0, and "
                f"the longest data.seq_len={data.seq_len}"
            )
        if not min(data.buckets.values()) > 0:
            raise UserError("a share in data.buckets is not above 0; leave that length out")
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % data.streams:
            raise UserError(f"data.{name}={size} does not divide over data.streams={data.streams}")
    if data.packing == "pad" and data.clips > data.rows:
        raise UserError(f"data.clips={data.clips} is more than data.rows={data.rows}; a row holds one clip at most")
    if data.lookahead < data.samples_per_step:
        raise UserError(
            f"data.lookahead={data.lookahead} is less than a stream places in a step; set it to {data.samples_per_step}"
        )
    if not data.read_ahead_mb > 0:
        raise UserError(f"data.read_ahead_mb={data.read_ahead_mb:g} must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, as the original's `LinearWarmupCosineLRScheduler`."""

    peak_lr: float = 3e-5
    init_lr: float = 1e-6
    end_lr: float = 1e-5
    warmup_steps: int = 3000
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
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
    num_train_steps: int = 90_000
    seed: int = 42
    save_every: int = 3000
    max_to_keep: int = 3
    ctc_weight: float = 0.0  # of the CTC loss on audio tokens; for training from random weights
    ctc_blank: int = 0  # the token that stands for "no word here"
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)  # sizes by axis; default: all devices on `data`
    # What of the language model's layers is computed again in the backward pass; see `models.common`.
    remat_policy: str = "none"


# What may change when a run goes on: where and how it is computed, not what.
MUTABLE_RUN_FIELDS = ("mesh", "remat_policy", "save_every", "max_to_keep")
MUTABLE_DATA_FIELDS = (
    "data_dir",
    "mixture",
    "weight_unit",
    "temperature",
    "replay",
    "replay_as",
    "max_bad_share",
    "num_workers",
)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the JSON form of a configuration."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(config_class: type, values: dict[str, Any], path_prefix: str = "") -> Any:
    """Builds a configuration of class `kind` from its JSON form. Raises UserError naming the wrong field."""
    hints = typing.get_type_hints(config_class)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown_name("configuration field", path_prefix + key, [path_prefix + h for h in hints])
        arguments[key] = _cast(hints[key], value, path_prefix + key)
    return config_class(**arguments)


def apply_override(config: Any, path: str, text: str) -> Any:
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
        value = apply_override(getattr(config, head), rest, text)
    else:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        value = _cast(hints[head], value, path)
    return dataclasses.replace(config, **{head: value})


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """Names the first field in which two JSON forms differ, with both values; None when they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    return None if old == new else f"{path} is {old!r} there and {new!r} here"


def _cast(hint: Any, value: Any, path: str) -> Any:
    """Checks `value` against the field's type and turns JSON's lists and ints into what the field holds."""
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, path + ".")
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        if value is None:
            return None
        return _cast(typing.get_args(hint)[0], value, path)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise unknown_name(f"value of {path}", str(value), typing.get_args(hint))
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin or hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{path} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return value
