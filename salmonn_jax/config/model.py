"""Configuration of a model, which is stored with its weights."""

from __future__ import annotations

import dataclasses
from typing import Literal

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
