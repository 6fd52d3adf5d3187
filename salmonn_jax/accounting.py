"""What a training step costs, from the configuration alone: floating-point operations of its matrix products.

A language model that is frozen, with gradients flowing through it to adapters inside and audio tokens before it, costs
4 operations a parameter and token, not 6: the forward pass and the gradients of activations, but none of weights. The
encoders have a forward pass only; what is trained costs its forward pass three times.
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.config import (
    BeatsConfig,
    LlamaConfig,
    LoraConfig,
    ModelConfig,
    QFormerConfig,
    RunConfig,
    WhisperConfig,
)


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """Operations of one step over all chips, by part; a multiply and an add are two. Elementwise work is not counted.

    Attributes:
      features: the filters of both front ends, of all clips (their Fourier transforms are not products).
      whisper, beats: forward, of all clips.
      qformer: with the projection, forward and backward.
      llama: the frozen products, forward and backward: the 4N rule.
      attention: of the language model, forward and backward, over whole rows.
      lora: forward and backward.
      remat: what the backward pass computes again; not part of `model`.
      duplicated: the encoders, where chips that share a language model by `tensor` cannot share its clips; not part
        of `model`.
    """

    features: int
    whisper: int
    beats: int
    qformer: int
    llama: int
    attention: int
    lora: int
    remat: int
    duplicated: int

    @property
    def model_flops(self) -> int:
        """What the mathematics asks for: the numerator of MFU."""
        return self.features + self.whisper + self.beats + self.qformer + self.llama + self.attention + self.lora

    @property
    def hardware_flops(self) -> int:
        """What is computed: the numerator of HFU."""
        return self.model_flops + self.remat + self.duplicated


def step_flops(config: RunConfig, num_devices: int = 1) -> StepFlops:
    """Of a training step as `training.step` computes it, with the released models' choice of what is trained."""
    model, clips, tokens = config.model, config.data.clips, config.data.rows * config.data.seq_len
    layers = llama_layers_flops(model.llama) * tokens
    head = 2 * model.llama.hidden_size * model.llama.vocab_size * tokens
    attention = llama_attention_flops(model.llama, config.data.seq_len) * config.data.rows
    adapters = lora_flops(model.llama, model.lora) * tokens
    heard = {
        "features": feature_flops(model) * clips,
        "whisper": whisper_flops(model.whisper, model.audio.whisper_frames) * clips,
        "beats": beats_flops(model.beats, model.audio.window_samples) * clips if model.beats else 0,
        "qformer": 3 * qformer_flops(model) * clips,
    }
    return StepFlops(
        **heard,
        llama=2 * (layers + head),
        attention=3 * attention,
        lora=3 * adapters,
        remat=remat_flops(config, layers, attention, adapters),
        duplicated=(config.mesh.get("tensor", 1) - 1) * sum(heard.values()) if clips % num_devices else 0,
    )


def remat_flops(config: RunConfig, layers: int, attention: int, adapters: int) -> int:
    """What the backward pass computes again of a forward pass of these costs.

    Of a frozen product only the gradient of its input is wanted, which takes its weights and not its input. So the
    last product of a layer is never computed again, and with the scores alone kept that of attention is not either.
    """
    if config.remat_policy == "none":
        return 0
    if config.remat_policy == "dots":
        return attention if "o_proj" in config.model.lora.target_modules else attention // 2
    c, lora_config = config.model.llama, config.model.lora
    tokens = config.data.rows * config.data.seq_len
    if "down_proj" in lora_config.target_modules:
        last = (
            c.num_hidden_layers * 2 * lora_config.rank * c.hidden_size * tokens
            + c.num_hidden_layers * 2 * c.intermediate_size * c.hidden_size * tokens
        )
    else:
        last = c.num_hidden_layers * 2 * c.intermediate_size * c.hidden_size * tokens
    return layers + attention + adapters - last


def feature_flops(config: ModelConfig) -> int:
    """Both filter banks of a clip that fills the window."""
    samples = config.audio.window_samples
    mel = samples // 160 * 201 * config.whisper.num_mel_bins if config.whisper else 0
    kaldi = ((samples - 400) // 160 + 1) * 257 * config.beats.num_mel_bins if config.beats else 0
    return 2 * (mel + kaldi)


def whisper_flops(config: WhisperConfig, frames: int) -> int:
    """Forward pass of a clip."""
    d, t = config.d_model, frames
    convolutions = 2 * (2 * t) * 3 * config.num_mel_bins * d + 2 * t * 3 * d * d
    layer = 2 * t * d * (4 * d + 2 * config.encoder_ffn_dim) + 4 * t * t * d
    return convolutions + config.encoder_layers * layer


def beats_flops(config: BeatsConfig, samples: int) -> int:
    """Forward pass of a clip that fills the window."""
    frames = (samples - 400) // 160 + 1
    t = frames // config.input_patch_size * (config.num_mel_bins // config.input_patch_size)
    d = config.encoder_embed_dim
    patches = 2 * t * (config.input_patch_size**2 * config.embed_dim + config.embed_dim * d)
    positions = 2 * t * config.conv_pos * (d // config.conv_pos_groups) * d
    gates = 2 * t * d * 8
    layer = 2 * t * d * (4 * d + 2 * config.encoder_ffn_embed_dim) + 4 * t * t * d + gates
    return patches + positions + config.encoder_layers * layer


def qformer_flops(config: ModelConfig) -> int:
    """Forward pass of a clip, with the projection."""
    q: QFormerConfig = config.qformer
    d, frames, windows = q.hidden_size, config.audio.whisper_frames, config.num_windows
    tokens = windows * q.num_speech_query_token
    memory = config.whisper.d_model + (config.beats.encoder_embed_dim if config.beats else 0)
    own = 8 * tokens * d * d + 4 * tokens * q.num_speech_query_token * d
    cross = 4 * tokens * d * d + 4 * frames * memory * d + 4 * tokens * q.window_frames * d
    layer = own + cross + 4 * tokens * d * q.intermediate_size
    return q.num_hidden_layers * layer + 2 * tokens * d * config.llama.hidden_size


def llama_layers_flops(config: LlamaConfig) -> int:
    """Forward pass of a token through the products with weights of all layers."""
    d, heads, shared = (
        config.hidden_size,
        config.num_attention_heads * config.head_size,
        config.num_key_value_heads * config.head_size,
    )
    return config.num_hidden_layers * 2 * d * (2 * heads + 2 * shared + 3 * config.intermediate_size)


def llama_attention_flops(config: LlamaConfig, seq_len: int) -> int:
    """Forward pass of a row's attention; masked scores are computed too."""
    return config.num_hidden_layers * 4 * seq_len * seq_len * config.num_attention_heads * config.head_size


def lora_flops(config: LlamaConfig, lora_config: LoraConfig) -> int:
    """Forward pass of a token through the adapters."""
    d, heads, shared = (
        config.hidden_size,
        config.num_attention_heads * config.head_size,
        config.num_key_value_heads * config.head_size,
    )
    sizes = {"q_proj": (d, heads), "k_proj": (d, shared), "v_proj": (d, shared), "o_proj": (heads, d)}
    sizes |= {
        "gate_proj": (d, config.intermediate_size),
        "up_proj": (d, config.intermediate_size),
        "down_proj": (config.intermediate_size, d),
    }
    return config.num_hidden_layers * sum(
        2 * lora_config.rank * sum(sizes[name]) for name in lora_config.target_modules
    )
