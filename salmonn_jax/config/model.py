"""Configuration of a model, which is stored with its weights."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator
from pydantic.dataclasses import dataclass

from salmonn_jax.config.encoder import EncoderConfig
from salmonn_jax.config.typed import STRICT, NonNegativeInt, PositiveInt, check_multiple
from salmonn_jax.models.beats.config import BeatsConfig
from salmonn_jax.models.whisper.config import WhisperConfig

SAMPLE_RATE = 16_000  # Hz
HOP_LENGTH = 160  # samples between two feature frames (10 ms) of Whisper's log-mel and of BEATs' filter bank

Probability = Annotated[float, Field(ge=0, lt=1)]
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AudioConfig:
    """Length of the encoder input, and which audio tokens the language model reads."""

    window_seconds: PositiveFloat = Field(
        30.0,
        description="encoder input: shorter clips are zero-padded to this length; for longer ones see data.too_long",
    )
    minimum_seconds: PositiveFloat = Field(
        1.0, description="BEATs gets at least this much audio: shorter clips are zero-padded"
    )
    tokens: Literal["window", "clip"] = Field(
        "window",
        description='audio tokens in the prompt: "window" those of the whole window, with its padding, as in the '
        'original; "clip" only those that begin before the padded clip ends',
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.window_samples % (2 * HOP_LENGTH):
            raise ValueError(
                f"window_seconds={self.window_seconds:g}: must be a multiple of 0.02, the length of an encoder frame"
            )
        return self

    @property
    def window_samples(self) -> int:
        """Returns the length of the window in samples."""
        return round(self.window_seconds * SAMPLE_RATE)

    @property
    def minimum_samples(self) -> int:
        """Returns the minimum length of BEATs' input in samples."""
        return round(self.minimum_seconds * SAMPLE_RATE)

    @property
    def num_frames(self) -> int:
        """Returns the number of encoder frames in one window, at 50 frames a second."""
        return self.window_samples // (2 * HOP_LENGTH)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QFormerConfig:
    """Window-level Q-Former: a BERT that reads each window of encoder frames through cross-attention."""

    hidden_size: PositiveInt = Field(768, description="hidden size")
    num_hidden_layers: PositiveInt = Field(2, description="transformer layers")
    num_attention_heads: PositiveInt = Field(12, description="attention heads")
    intermediate_size: PositiveInt = Field(3072, description="hidden size of the feed-forward network")
    num_speech_query_token: PositiveInt = Field(1, description="queries, and so audio tokens, per window")
    second_per_window: PositiveFloat = Field(0.333333, description="length of a window in seconds")
    second_stride: PositiveFloat = Field(0.333333, description="seconds between the starts of two windows")
    dropout: Probability = Field(0.1, description="dropout probability, of attention weights and hidden states")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        check_multiple("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        if min(self.window_frames, self.stride_frames) < 1:
            raise ValueError("second_per_window and second_stride: must be at least 0.02, one encoder frame")
        return self

    @property
    def window_frames(self) -> int:
        """Returns the length of a window in encoder frames, rounded as in the original."""
        return round(1500 * self.second_per_window / 30.0)

    @property
    def stride_frames(self) -> int:
        """Returns the distance between the starts of two windows in encoder frames."""
        return round(1500 * self.second_stride / 30.0)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RopeScaling:
    """LLaMA 3.1's scaling of the rotary frequencies for long contexts, with the field names of transformers."""

    factor: PositiveFloat = Field(description="divisor of the low frequencies")
    low_freq_factor: PositiveFloat = Field(
        description="frequencies with fewer periods than this in the original context are divided by `factor`"
    )
    high_freq_factor: PositiveFloat = Field(
        description="frequencies with more periods than this in the original context stay unchanged"
    )
    original_max_position_embeddings: PositiveInt = Field(
        description="context length of the pretraining before the extension, in tokens"
    )

    @model_validator(mode="after")
    def _check_factors(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor:g}: must be greater than "
                f"low_freq_factor={self.low_freq_factor:g}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LlamaConfig:
    """Decoder of LLaMA, Mistral, Qwen2 or Qwen3, with the field names of transformers.

    The defaults are Vicuna-13B v1.1. `attention_bias` and `qk_norm` say what transformers' model types imply: Qwen2 has
    "qkv" biases, Qwen3 has `qk_norm`.
    """

    vocab_size: PositiveInt = Field(32_000, description="tokens in the vocabulary")
    hidden_size: PositiveInt = Field(5120, description="hidden size")
    num_hidden_layers: PositiveInt = Field(40, description="transformer layers")
    num_attention_heads: PositiveInt = Field(40, description="attention heads")
    num_key_value_heads: PositiveInt = Field(
        40, description="fewer than num_attention_heads for grouped-query attention"
    )
    intermediate_size: PositiveInt = Field(13_824, description="hidden size of the feed-forward network")
    rms_norm_eps: PositiveFloat = Field(1e-6, description="epsilon of the RMS norms")
    head_dim: PositiveInt | None = Field(
        None, description="size of an attention head; None means hidden_size / num_attention_heads"
    )
    attention_bias: Literal["none", "qkv", "qkvo"] = Field(
        "none",
        description='attention projections with a bias: "none", "qkv" those of queries, keys and values as in Qwen2, '
        '"qkvo" also the output projection, as with attention_bias=true in transformers\' LLaMA and Qwen3',
    )
    qk_norm: bool = Field(False, description="whether each head's queries and keys are RMS-normalised, as in Qwen3")
    mlp_bias: bool = Field(False, description="whether the projections of the feed-forward network have a bias")
    rope_theta: PositiveFloat = Field(10_000.0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling | None = Field(None, description="None leaves the rotary frequencies unscaled")
    max_position_embeddings: PositiveInt = Field(2048, description="context length in tokens")
    tie_word_embeddings: bool = Field(False, description="whether the output projection is the embedding table")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.head_dim is None:
            check_multiple("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        check_multiple("num_attention_heads", self.num_attention_heads, "num_key_value_heads", self.num_key_value_heads)
        if self.head_size % 2:
            raise ValueError(f"the size of an attention head, {self.head_size}: must be even for rotary positions")
        return self

    @property
    def head_size(self) -> int:
        """Returns the size of an attention head."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraConfig:
    """Low-rank adapters of the language model (Hu et al. 2021)."""

    rank: PositiveInt = Field(8, description="rank of the adapters")
    alpha: PositiveFloat = Field(32.0, description="adapters are scaled by alpha / rank")
    dropout: Probability = Field(0.1, description="dropout probability of the adapter's input")
    target_modules: tuple[Projection, ...] = Field(
        ("q_proj", "v_proj"),
        description="projections of the language model that have an adapter; empty for no adapters",
    )

    @model_validator(mode="after")
    def _check_modules(self) -> Self:
        if len(set(self.target_modules)) < len(self.target_modules):
            raise ValueError(f"target_modules={list(self.target_modules)}: names a projection twice; name it once")
        return self

    @property
    def scale(self) -> float:
        """Returns the factor by which the adapters' outputs are multiplied."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """SALMONN (Tang et al. 2024, figure 1): Whisper and BEATs encoders, Q-Former, and a language model with LoRA.

    A component set to None is left out. `beats=None` gives a SALMONN with Whisper as its only encoder, which the
    original also supports. A single component can be configured by setting all others to None. A Q-Former needs
    an encoder and the language model. Each field of an `EncoderConfig` class is an encoder; their frames are
    concatenated in the order of the fields.
    """

    audio: AudioConfig = Field(AudioConfig(), description="encoder input")
    whisper: WhisperConfig | None = Field(WhisperConfig(), description="Whisper encoder")
    beats: BeatsConfig | None = Field(BeatsConfig(), description="BEATs encoder")
    qformer: QFormerConfig | None = Field(QFormerConfig(), description="Q-Former")
    llama: LlamaConfig | None = Field(LlamaConfig(), description="language model")
    lora: LoraConfig = Field(LoraConfig(), description="adapters of the language model")
    prompt_template: str = Field(
        "USER: {}\nASSISTANT:", description="`{}` is replaced by the prompt; the answer follows the template"
    )
    add_bos_token: bool = Field(
        True,
        description="whether the tokenizer's start token, if any, precedes the template; false if it is in its text",
    )
    stop_token_ids: tuple[NonNegativeInt, ...] = Field(
        (),
        description="answers end with the first of these tokens, and decoding stops at any of them; empty means the "
        "tokenizer's end token",
    )
    pad_classes: NonNegativeInt = Field(
        0,
        description="extra classes with a logit of zero in the softmax of the loss; the original adds one, for its "
        "[PAD] token, whose random embedding is in no checkpoint and whose logit is zero on average",
    )

    @model_validator(mode="after")
    def _check_components(self) -> Self:
        if self.qformer and not (self.encoders and self.llama):
            names = " or ".join(self.encoder_classes())
            raise ValueError(f"qformer needs an encoder ({names}) and llama; set qformer=null, or add what is missing")
        if self.qformer and self.num_windows < 1:
            raise ValueError(
                f"audio.window_seconds={self.audio.window_seconds:g} is shorter than a window of the Q-Former, "
                f"qformer.second_per_window={self.qformer.second_per_window:g}"
            )
        if self.beats and self.audio.window_seconds < self.audio.minimum_seconds:
            raise ValueError(
                f"audio.window_seconds={self.audio.window_seconds:g}: must be at least "
                f"audio.minimum_seconds={self.audio.minimum_seconds:g}, the shortest input of BEATs"
            )
        if self.prompt_template.count("{}") != 1:
            raise ValueError(
                f"prompt_template={self.prompt_template!r}: must contain {{}}, the place of the prompt, exactly once"
            )
        if self.llama and max(self.stop_token_ids, default=0) >= self.llama.vocab_size:
            raise ValueError(
                f"stop_token_ids={list(self.stop_token_ids)}: must be below llama.vocab_size={self.llama.vocab_size}"
            )
        return self

    @classmethod
    def encoder_classes(cls) -> dict[str, type[EncoderConfig]]:
        """Returns the configuration class of each encoder that a model can have, by the name of its field."""
        return {
            name: option
            for name, field in cls.__pydantic_fields__.items()
            for option in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(option, type) and issubclass(option, EncoderConfig)
        }

    @property
    def encoders(self) -> dict[str, EncoderConfig]:
        """Returns the configurations of the encoders of this model by name, in the order of their frames."""
        encoders = {name: getattr(self, name) for name in self.encoder_classes()}
        return {name: encoder for name, encoder in encoders.items() if encoder is not None}

    @property
    def encoder_hidden_size(self) -> int:
        """Returns the size of a frame of all encoders together, which the Q-Former reads."""
        return sum(encoder.output_size for encoder in self.encoders.values())

    @property
    def num_windows(self) -> int:
        """Returns the number of Q-Former windows in an encoder window, without the frames after the last whole one."""
        qformer = self.qformer
        return (self.audio.num_frames - qformer.window_frames) // qformer.stride_frames + 1

    @property
    def num_audio_tokens(self) -> int:
        """Returns the number of audio tokens of an encoder window: 88 in the released models."""
        return self.num_windows * self.qformer.num_speech_query_token if self.qformer else 0

    def num_valid_audio_tokens(self, num_samples: int) -> int:
        """Returns how many audio tokens of an encoder window with `num_samples` samples of audio the LLM reads.

        With `audio.tokens` "window" these are all; with "clip" those that begin before the audio ends, where audio
        shorter than `audio.minimum_seconds` counts as that long.
        """
        if self.audio.tokens == "window" or not self.qformer:
            return self.num_audio_tokens
        frames = -(-max(num_samples, self.audio.minimum_samples) // (2 * HOP_LENGTH))
        return min(self.num_windows, -(-frames // self.qformer.stride_frames)) * self.qformer.num_speech_query_token

    def num_valid_frames(self, num_samples: int) -> int:
        """Returns how many encoder frames the audio tokens depend on that the LLM reads of an encoder window.

        With `audio.tokens` "window" these are all.

        Args:
          num_samples: samples of audio in the encoder window.
        """
        if self.audio.tokens == "window" or not self.qformer:
            return self.audio.num_frames
        windows = self.num_valid_audio_tokens(num_samples) // self.qformer.num_speech_query_token
        return (windows - 1) * self.qformer.stride_frames + self.qformer.window_frames


# Fields that a recipe may change for a model that has weights: they are used in training only.
MUTABLE_MODEL_FIELDS = ("qformer.dropout", "lora.dropout")
