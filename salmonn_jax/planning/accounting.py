"""FLOPs of the matrix products in a training step, computed from the configuration. Used by `planning`.

A frozen language model costs 4 FLOPs per parameter and token instead of 6. Its backward pass computes the gradients of
the activations, which the adapters and the audio tokens need, but not those of the weights. The encoders have a forward
pass only. Trained parts cost three times their forward pass.
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.config import (
    BeatsConfig,
    DataConfig,
    LlamaConfig,
    LoraConfig,
    ModelConfig,
    QFormerConfig,
    WhisperConfig,
)


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step on all chips, by component. A multiply-add counts as two; elementwise operations do not count.

    Attributes:
      features: mel filters of both front ends. Their Fourier transforms do not count as matrix products.
      whisper: forward pass of the Whisper encoder.
      beats: forward pass of the BEATs encoder.
      qformer: forward and backward pass of the Q-Former and the projection.
      llama: forward and backward pass of the frozen matrix products of the language model, 4 FLOPs per parameter.
      attention: forward and backward pass of the language model's attention over whole rows.
      lora: forward and backward pass of the adapters.
      remat: recomputation in the backward pass; not part of `model_flops`.
      duplicated: encoder work that the devices of the `tensor` axis repeat if the number of clips is not a multiple of
        the number of devices; not part of `model_flops`.
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
        """Returns the FLOPs without recomputation and duplication, the numerator of MFU."""
        return self.features + self.whisper + self.beats + self.qformer + self.llama + self.attention + self.lora

    @property
    def hardware_flops(self) -> int:
        """Returns the FLOPs with recomputation and duplication, the numerator of HFU."""
        return self.model_flops + self.remat + self.duplicated


def step_flops(
    model: ModelConfig,
    data: DataConfig,
    *,
    remat_policy: str = "none",
    gradient_accumulation_steps: int = 1,
    tensor_shards: int = 1,
    num_devices: int = 1,
) -> StepFlops:
    """Returns the FLOPs of a `training.step` that trains the parameters which the released models train.

    Args:
      model: configuration of the model.
      data: shape of the batch.
      remat_policy: name in `salmonn_jax.models.common.REMAT_POLICIES`.
      gradient_accumulation_steps: micro-batches of a step.
      tensor_shards: size of the mesh axis `tensor`.
      num_devices: devices of the mesh.
    """
    clips, tokens = data.clips, data.rows * data.seq_len
    layers_flops = llama_layers_flops(model.llama) * tokens
    head_flops = 2 * model.llama.hidden_size * model.llama.vocab_size * tokens
    attention_flops = llama_attention_flops(model.llama, data.seq_len) * data.rows
    adapter_flops = lora_flops(model.llama, model.lora) * tokens
    audio_flops = {
        "features": feature_flops(model) * clips,
        "whisper": whisper_flops(model.whisper, model.audio.whisper_frames) * clips,
        "beats": beats_flops(model.beats, model.audio.window_samples) * clips if model.beats else 0,
        "qformer": 3 * qformer_flops(model) * clips,
    }
    return StepFlops(
        **audio_flops,
        llama=2 * (layers_flops + head_flops),
        attention=3 * attention_flops,
        lora=3 * adapter_flops,
        remat=remat_flops(model, remat_policy, tokens, layers_flops, attention_flops, adapter_flops),
        duplicated=(tensor_shards - 1) * sum(audio_flops.values())
        if clips // gradient_accumulation_steps % num_devices
        else 0,
    )


def remat_flops(
    model: ModelConfig, remat_policy: str, tokens: int, layers_flops: int, attention_flops: int, adapter_flops: int
) -> int:
    """Returns the FLOPs that the backward pass recomputes under a remat policy.

    The gradient of a frozen product with respect to its input needs its weights, but not its input. Therefore the last
    product of a layer is never recomputed. The policy "dots" keeps the outputs of all products with weights, so only
    attention is recomputed: the scores, and if `o_proj` has an adapter also the weighted sum of the values.

    Args:
      model: configuration of the model.
      remat_policy: name in `salmonn_jax.models.common.REMAT_POLICIES`.
      tokens: tokens of the batch.
      layers_flops: FLOPs of a forward pass through the weights of all layers.
      attention_flops: FLOPs of a forward pass through the attention of all layers.
      adapter_flops: FLOPs of a forward pass through all adapters.
    """
    llama, lora = model.llama, model.lora
    if remat_policy == "none":
        return 0
    if remat_policy == "dots":
        return attention_flops if "o_proj" in lora.target_modules else attention_flops // 2
    if "down_proj" in lora.target_modules:
        last_matmul_inputs = llama.intermediate_size + lora.rank
    else:
        last_matmul_inputs = llama.intermediate_size
    last_matmul = llama.num_hidden_layers * 2 * last_matmul_inputs * llama.hidden_size * tokens
    return layers_flops + attention_flops + adapter_flops - last_matmul


def feature_flops(config: ModelConfig) -> int:
    """Returns the FLOPs of both filter banks for one clip of the window's length."""
    samples = config.audio.window_samples
    mel = samples // 160 * 201 * config.whisper.num_mel_bins if config.whisper else 0
    kaldi = ((samples - 400) // 160 + 1) * 257 * config.beats.num_mel_bins if config.beats else 0
    return 2 * (mel + kaldi)


def whisper_flops(config: WhisperConfig, frames: int) -> int:
    """Returns the FLOPs of a forward pass of one clip. `frames` is the number of encoder frames."""
    d, t = config.d_model, frames
    convolutions = 2 * (2 * t) * 3 * config.num_mel_bins * d + 2 * t * 3 * d * d
    layer = 2 * t * d * (4 * d + 2 * config.encoder_ffn_dim) + 4 * t * t * d
    return convolutions + config.encoder_layers * layer


def beats_flops(config: BeatsConfig, samples: int) -> int:
    """Returns the FLOPs of a forward pass of one clip of `samples` samples."""
    frames = (samples - 400) // 160 + 1
    t = frames // config.input_patch_size * (config.num_mel_bins // config.input_patch_size)
    d = config.encoder_embed_dim
    patches = 2 * t * (config.input_patch_size**2 * config.embed_dim + config.embed_dim * d)
    positions = 2 * t * config.conv_pos * (d // config.conv_pos_groups) * d
    gates = 2 * t * d * 8
    layer = 2 * t * d * (4 * d + 2 * config.encoder_ffn_embed_dim) + 4 * t * t * d + gates
    return patches + positions + config.encoder_layers * layer


def qformer_flops(config: ModelConfig) -> int:
    """Returns the FLOPs of a forward pass of one clip through the Q-Former and the projection."""
    q: QFormerConfig = config.qformer
    d, frames, windows = q.hidden_size, config.audio.whisper_frames, config.num_windows
    tokens = windows * q.num_speech_query_token
    encoder_hidden_size = config.whisper.d_model + (config.beats.encoder_embed_dim if config.beats else 0)
    self_attention = 8 * tokens * d * d + 4 * tokens * q.num_speech_query_token * d
    cross_attention = 4 * tokens * d * d + 4 * frames * encoder_hidden_size * d + 4 * tokens * q.window_frames * d
    layer = self_attention + cross_attention + 4 * tokens * d * q.intermediate_size
    return q.num_hidden_layers * layer + 2 * tokens * d * config.llama.hidden_size


def llama_layers_flops(config: LlamaConfig) -> int:
    """Returns the FLOPs of a forward pass of one token through the weights of all layers."""
    d = config.hidden_size
    q_dim, kv_dim = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
    return config.num_hidden_layers * 2 * d * (2 * q_dim + 2 * kv_dim + 3 * config.intermediate_size)


def llama_attention_flops(config: LlamaConfig, seq_len: int) -> int:
    """Returns the FLOPs of a forward pass of one row's attention, including masked positions."""
    return config.num_hidden_layers * 4 * seq_len * seq_len * config.num_attention_heads * config.head_size


def lora_flops(config: LlamaConfig, lora_config: LoraConfig) -> int:
    """Returns the FLOPs of a forward pass of one token through the adapters of all layers."""
    d = config.hidden_size
    q_dim, kv_dim = config.num_attention_heads * config.head_size, config.num_key_value_heads * config.head_size
    sizes = {"q_proj": (d, q_dim), "k_proj": (d, kv_dim), "v_proj": (d, kv_dim), "o_proj": (q_dim, d)}
    sizes |= {
        "gate_proj": (d, config.intermediate_size),
        "up_proj": (d, config.intermediate_size),
        "down_proj": (config.intermediate_size, d),
    }
    return config.num_hidden_layers * sum(
        2 * lora_config.rank * sum(sizes[name]) for name in lora_config.target_modules
    )
