"""Configuration dataclasses of models and training runs, and their conversion from and to JSON.

All classes are frozen dataclasses whose fields have JSON types, so a configuration can be compared, printed, stored
with a checkpoint and read back. Named configurations are in `salmonn_jax.configs`.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal

from salmonn_jax.errors import UserError, unknown_name

SAMPLE_RATE = 16_000  # Hz
HOP_LENGTH = 160  # samples between two feature frames (10 ms) of Whisper's log-mel and of BEATs' filter bank


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """Length of the encoder input, and which audio tokens the language model reads."""

    window_seconds: float = 30.0  # encoder input: shorter clips are zero-padded to this length, longer ones are cut
    minimum_seconds: float = 1.0  # BEATs gets at least this much audio: shorter clips are zero-padded
    # Audio tokens in the prompt. "window": those of the whole window, padding included, as in the original.
    # "clip": only those that begin before the clip ends.
    tokens: Literal["window", "clip"] = "window"

    @property
    def window_samples(self) -> int:
        """Returns the length of the window in samples."""
        return round(self.window_seconds * SAMPLE_RATE)

    @property
    def minimum_samples(self) -> int:
        """Returns the minimum length of BEATs' input in samples."""
        return round(self.minimum_seconds * SAMPLE_RATE)

    @property
    def whisper_frames(self) -> int:
        """Returns the number of Whisper encoder frames in one window, at 50 frames a second."""
        return self.window_samples // (2 * HOP_LENGTH)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """Whisper encoder (Radford et al. 2022), with the field names of transformers. The defaults are large-v2."""

    num_mel_bins: int = 80  # features per log-mel frame
    d_model: int = 1280  # hidden size
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120  # hidden size of the feed-forward network


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeatsConfig:
    """BEATs encoder (Chen et al. 2022), with the original field names. The defaults are the iter3+ AS2M checkpoint."""

    num_mel_bins: int = 128  # features per filter-bank frame
    input_patch_size: int = 16  # a patch covers this many frames and this many mel bins
    embed_dim: int = 512  # size of a patch embedding
    encoder_embed_dim: int = 768  # hidden size of the transformer
    encoder_layers: int = 12
    encoder_attention_heads: int = 12
    encoder_ffn_embed_dim: int = 3072  # hidden size of the feed-forward network
    conv_pos: int = 128  # kernel size of the convolutional position embedding, in tokens
    conv_pos_groups: int = 16  # groups of that convolution
    num_buckets: int = 320  # buckets of the relative position bias
    max_distance: int = 800  # in tokens; positions at this distance or farther share the last bucket


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """Window-level Q-Former: a BERT that reads each window of encoder frames through cross-attention."""

    hidden_size: int = 768
    num_hidden_layers: int = 2
    num_attention_heads: int = 12
    intermediate_size: int = 3072  # hidden size of the feed-forward network
    num_speech_query_token: int = 1  # queries, and so audio tokens, per window
    second_per_window: float = 0.333333  # length of a window in seconds
    second_stride: float = 0.333333  # seconds between the starts of two windows
    dropout: float = 0.1  # dropout probability, of attention weights and hidden states

    @property
    def window_frames(self) -> int:
        """Returns the length of a window in encoder frames, rounded as in the original."""
        return round(1500 * self.second_per_window / 30.0)

    @property
    def stride_frames(self) -> int:
        """Returns the distance between the starts of two windows in encoder frames."""
        return round(1500 * self.second_stride / 30.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """LLaMA 3.1's scaling of the rotary frequencies for long contexts, with the field names of transformers."""

    factor: float  # divisor of the low frequencies
    low_freq_factor: float  # frequencies with fewer periods than this in the original context are divided by `factor`
    high_freq_factor: float  # frequencies with more periods than this in the original context stay unchanged
    original_max_position_embeddings: int  # context length of the pretraining before the extension, in tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """LLaMA-family decoder, with the field names of transformers. The defaults are Vicuna-13B v1.1."""

    vocab_size: int = 32_000
    hidden_size: int = 5120
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    num_key_value_heads: int = 40  # fewer than num_attention_heads for grouped-query attention
    intermediate_size: int = 13_824  # hidden size of the feed-forward network
    rms_norm_eps: float = 1e-6
    head_dim: int | None = None  # size of an attention head; None means hidden_size / num_attention_heads
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    rope_scaling: RopeScaling | None = None  # None leaves the rotary frequencies unscaled
    max_position_embeddings: int = 2048  # context length in tokens
    tie_word_embeddings: bool = False  # whether the output projection is the embedding table

    @property
    def head_size(self) -> int:
        """Returns the size of an attention head."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters of the language model (Hu et al. 2021)."""

    rank: int = 8
    alpha: float = 32.0  # adapters are scaled by alpha / rank
    dropout: float = 0.1  # dropout probability of the adapter's input
    # Projections with an adapter: any of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj, or none.
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")

    @property
    def scale(self) -> float:
        """Returns the factor by which the adapters' outputs are multiplied."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """SALMONN (Tang et al. 2024, figure 1): Whisper and BEATs encoders, Q-Former, and a language model with LoRA.

    A component set to None is left out. `beats=None` gives a SALMONN with Whisper as its only encoder, which the
    original also supports. A single component can be configured by setting all others to None. A Q-Former needs
    Whisper and the language model.
    """

    audio: AudioConfig = AudioConfig()
    whisper: WhisperConfig | None = WhisperConfig()
    beats: BeatsConfig | None = BeatsConfig()
    qformer: QFormerConfig | None = QFormerConfig()
    llama: LlamaConfig | None = LlamaConfig()
    lora: LoraConfig = LoraConfig()
    activation_dtype: str = "bfloat16"  # dtype of activations
    frozen_dtype: str = "bfloat16"  # dtype of frozen parameters; trainable parameters are stored in float32
    prompt_template: str = "USER: {}\nASSISTANT:"  # `{}` is replaced by the prompt; the answer follows the template
    # Number of extra classes with a logit of zero in the softmax of the loss. The original adds one, for its [PAD]
    # token. The random embedding of that token is in no checkpoint, and its logit is zero on average.
    pad_classes: int = 0

    @property
    def num_windows(self) -> int:
        """Returns the number of Q-Former windows in a clip; frames after the last whole window are dropped."""
        qformer = self.qformer
        return (self.audio.whisper_frames - qformer.window_frames) // qformer.stride_frames + 1

    @property
    def num_audio_tokens(self) -> int:
        """Returns the number of audio tokens computed for a clip of any length: 88 in the released models."""
        return self.num_windows * self.qformer.num_speech_query_token if self.qformer else 0

    def num_valid_audio_tokens(self, num_samples: int) -> int:
        """Returns how many of a clip's audio tokens the language model reads, given the clip's length in samples.

        These are all of them, or those that begin before the clip ends if `audio.tokens` is "clip".
        """
        if self.audio.tokens == "window" or not self.qformer:
            return self.num_audio_tokens
        frames = -(-max(num_samples, self.audio.minimum_samples) // (2 * HOP_LENGTH))
        return min(self.num_windows, -(-frames // self.qformer.stride_frames)) * self.qformer.num_speech_query_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data of a run: its sources, their mixture, and the shape of a batch.

    A global batch has `rows` rows of `seq_len` tokens and `clips` slots for audio. An example without audio takes no
    slot. The weights of the mixture apply to examples with and without audio alike.

    The data is split into `streams` independent streams. Each stream mixes the sources, packs its rows and fills an
    equal part of every batch. The processes of a job share the streams, so a batch is the same for any number of
    processes and devices. `rows` and `clips` must be multiples of `streams`, and `streams` must be a multiple of the
    number of data shards of the mesh.

    With `packing` "pad", `buckets` sets the row lengths and the share of the steps that each length gets, for example
    `{"256": 0.8, "512": 0.2}`. The longest length must be `seq_len`. Each length is compiled once. If long examples
    are more frequent than the steps with long rows, the shorter rows stay empty: `launch.prepare inspect` shows the
    lengths of the examples and how well they fill the rows.
    """

    # Name of a corpus in `data_pipelines.corpora`. "files" reads data sets that `launch.prepare` wrote, manifests,
    # annotation files of the original, and TFDS data sets.
    corpus: str = "minicorpus"
    data_dir: str = ".cache/minicorpus"  # directory of the corpus; for "files" also a URL
    mixture: dict[str, float] = dataclasses.field(default_factory=dict)  # {source: weight}
    weight_unit: Literal["examples", "hours", "tokens"] = "examples"  # unit of the weights; tokens are answer tokens
    temperature: float = 1.0  # weights are raised to 1 / temperature; values above 1 upsample small sources
    # {source: weight}: sources of earlier stages that are mixed in to prevent forgetting.
    replay: dict[str, float] = dataclasses.field(default_factory=dict)
    # "additive": replay weights are relative to the mixture, whose weights sum to 1. "share": fractions of all data.
    replay_as: Literal["additive", "share"] = "additive"
    rows: int = 8  # rows of a global batch
    clips: int = 8  # audio slots of a global batch
    seq_len: int = 512  # tokens per row
    max_answer_tokens: int = 300  # answers are cut to this many tokens, `</s>` included
    max_transcript_tokens: int = 0  # transcripts are cut to this many tokens; only the CTC loss uses them
    streams: int = 8  # independent data streams
    packing: Literal["pack", "pad"] = "pack"  # "pack": several examples per row; "pad": one example per row
    buckets: dict[str, float] = dataclasses.field(default_factory=dict)  # {row length: share of steps}, see above
    lookahead: int = 32  # examples each stream buffers, from which it chooses those of the next batch
    prompt_templates: str = ""  # JSON file of prompts by task, such as the original's train_prompt.json; "": ours
    channels: Literal["first", "mean"] = "first"  # which channel is used: the first, as in the original, or the mean
    # What happens to clips longer than the window: see `AudioRules` in `data_pipelines.sources.audio`.
    too_long: Literal["truncate", "chunk", "drop", "error"] = "truncate"
    speed: float = 0.0  # augmentation: maximum relative change of speed; 0.1 means 0.9 to 1.1 times
    gain: float = 0.0  # augmentation: maximum change of loudness in dB
    noise: float = 0.0  # augmentation: probability that noise is added to a clip, at 10 to 30 dB SNR
    noise_source: str = ""  # source whose recordings are used as noise; "": white noise
    # The run fails if significantly more than this share of the examples of a process cannot be used.
    max_bad_share: float = 0.05
    read_ahead_mb: float = 512.0  # memory per host in MiB for examples that are read in advance
    num_workers: int = 0  # worker processes per host that read and decode; 0 uses threads

    @property
    def stream_examples_per_step(self) -> int:
        """Returns an estimate of the examples that a stream places in a step: the larger of its rows and clip slots."""
        return max(self.rows, self.clips) // self.streams


def check_data_sizes(data: DataConfig) -> None:
    """Raises UserError if `rows`, `buckets`, `clips`, `streams` and `lookahead` are inconsistent."""
    if data.buckets:
        if data.packing != "pad":
            raise UserError(
                "data.buckets sets the lengths of padded rows; set data.packing=pad, or leave data.buckets out"
            )
        whole = all(length.isdecimal() and length == str(int(length)) != "0" for length in data.buckets)
        if not whole or max(map(int, data.buckets)) != data.seq_len:
            raise UserError(
                f"data.buckets has lengths {', '.join(data.buckets)}; they must be whole numbers above 0, and "
                f"the longest data.seq_len={data.seq_len}"
            )
        for length, share in data.buckets.items():
            if not share > 0:
                raise UserError(
                    f"data.buckets has a share of {share:g} for length {length}: must be > 0; leave the length out"
                )
    for name, size in (("rows", data.rows), ("clips", data.clips)):
        if size % data.streams:
            raise UserError(f"data.{name}={size}: must be a multiple of data.streams={data.streams}")
    if data.packing == "pad" and data.clips > data.rows:
        raise UserError(
            f"data.clips={data.clips}: must be at most data.rows={data.rows}, since a padded row holds at most one clip"
        )
    if data.lookahead < data.stream_examples_per_step:
        raise UserError(
            f"data.lookahead={data.lookahead}: must be at least {data.stream_examples_per_step}, the number of "
            "examples that a stream places in a step"
        )
    if not data.read_ahead_mb > 0:
        raise UserError(f"data.read_ahead_mb={data.read_ahead_mb:g}: must be > 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, as the original's `LinearWarmupCosineLRScheduler`."""

    peak_lr: float = 3e-5  # learning rate at the end of the warm-up
    init_lr: float = 1e-6  # learning rate at step 0
    end_lr: float = 1e-5  # learning rate at the last step
    warmup_steps: int = 3000
    b1: float = 0.9  # decay rate of Adam's first moment
    b2: float = 0.999  # decay rate of Adam's second moment
    eps: float = 1e-8
    weight_decay: float = 0.05  # not applied to biases and norms, see `salmonn_jax.training.optimizer`
    clip_norm: float | None = None  # maximum global norm of the gradient; None does not clip, as in the original


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training stage.

    `trainable` lists regular expressions for parameter paths such as `llama/layers/q_proj/lora_a`. A parameter is
    trainable if one of them matches its whole path. Trainable parameters have gradients and optimiser state, are
    stored in float32 and are saved in checkpoints. All other parameters are frozen.
    """

    name: str  # name of the configuration, which also labels the progress bar
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
    seed: int = 42  # seed of initial weights, data order and dropout
    save_every: int = 3000  # steps between checkpoints
    max_to_keep: int = 3  # checkpoints to keep; older ones are deleted
    ctc_weight: float = 0.0  # weight of the CTC loss on audio tokens, for training from random weights; 0 turns it off
    ctc_blank: int = 0  # token id of CTC's blank
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)  # {axis: size}; by default all devices are on `data`
    # Rematerialisation of the language model's layers: a name in `REMAT_POLICIES` of `salmonn_jax.models.common`.
    remat_policy: str = "none"


# Fields that may change when a run is resumed. They decide where and how a step is computed and where its data comes
# from, but not the model or the optimiser.
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
    """Converts a configuration to JSON values. `from_dict` reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(config_class: type, values: dict[str, Any], path_prefix: str = "") -> Any:
    """Builds a configuration from JSON values.

    Args:
      config_class: dataclass to build.
      values: field values by name, as `to_dict` returns them.
      path_prefix: prefix of the field names in error messages, such as "model.llama.".

    Raises:
      UserError: a field is unknown or its value has the wrong type. The message names the field.
    """
    hints = typing.get_type_hints(config_class)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown_name("configuration field", path_prefix + key, [path_prefix + h for h in hints])
        arguments[key] = _cast(hints[key], value, path_prefix + key)
    return config_class(**arguments)


def apply_override(config: Any, path: str, text: str) -> Any:
    """Returns a copy of `config` in which one field has a new value.

    Args:
      config: a configuration dataclass.
      path: dotted path of the field, such as "optimizer.peak_lr" or "data.mixture.tones".
      text: the new value as JSON; text that is not JSON is used as a string.

    Raises:
      UserError: the field is unknown or the value has the wrong type.
    """
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
    """Returns a description of the first field in which two configurations differ; None if they are equal.

    Args:
      old: JSON values of a configuration, as `to_dict` returns them.
      new: JSON values of the configuration that is compared with it.
      path: dotted path of the two values, for the description.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            difference = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if difference:
                return difference
        return None
    return None if old == new else f"{path} is {old!r}, not {new!r}"


def _cast(hint: Any, value: Any, path: str) -> Any:
    """Converts a JSON value to a field's type. Raises UserError naming the field if the type is wrong.

    Args:
      hint: type annotation of the field.
      value: JSON value, or a value that already has the field's type.
      path: dotted path of the field, for the error message.
    """
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
