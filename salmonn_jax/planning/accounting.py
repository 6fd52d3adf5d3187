"""FLOPs of the matrix products in a training step, computed from the configuration. Used by `planning`.

The counts of the components are beside their modules in `salmonn_jax.models`; this module adds them up.

A frozen language model costs 4 FLOPs per parameter and token instead of 6. Its backward pass computes the gradients of
the activations, which the adapters and the audio tokens need, but not those of the weights. The encoders have a forward
pass only. Trained parts cost three times their forward pass.
"""

from __future__ import annotations

import dataclasses

from salmonn_jax.config import DataConfig, ModelConfig
from salmonn_jax.models.encoder import encoder_classes
from salmonn_jax.models.llama import llama_attention_flops, llama_layers_flops
from salmonn_jax.models.lora import lora_flops
from salmonn_jax.models.qformer import qformer_flops


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step on all chips, by component. A multiply-add counts as two; elementwise operations do not count.

    Attributes:
      features: mel filters of all front ends. Their Fourier transforms do not count as matrix products.
      encoders: forward pass of each encoder, by name; none with `data.encoder_cache`.
      qformer: forward and backward pass of the Q-Former and the projection.
      llama: forward and backward pass of the frozen matrix products of the language model, 4 FLOPs per parameter.
      attention: forward and backward pass of the language model's attention over whole rows.
      lora: forward and backward pass of the adapters.
      remat: recomputation in the backward pass; not part of `model_flops`.
      duplicated: encoder work that the devices of the `tensor` axis repeat if the number of clips is not a multiple of
        the number of devices; not part of `model_flops`.
    """

    features: int
    encoders: dict[str, int]
    qformer: int
    llama: int
    attention: int
    lora: int
    remat: int
    duplicated: int

    @property
    def model_flops(self) -> int:
        """Returns the FLOPs without recomputation and duplication, the numerator of MFU."""
        audio = self.features + sum(self.encoders.values()) + self.qformer
        return audio + self.llama + self.attention + self.lora

    @property
    def hardware_flops(self) -> int:
        """Returns the FLOPs with recomputation and duplication, the numerator of HFU."""
        return self.model_flops + self.remat + self.duplicated

    @property
    def by_component(self) -> dict[str, int]:
        """Returns the FLOPs by component, with one entry for each encoder."""
        others = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del others["encoders"]
        return {"features": others.pop("features"), **self.encoders, **others}


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
    running = {} if data.encoder_cache else model.encoders
    encoders = {name: encoder_classes()[name].flops(c, model.audio) for name, c in running.items()}
    features_flops = sum(flops.features for flops in encoders.values()) * clips
    encoder_flops = {name: flops.layers * clips for name, flops in encoders.items()}
    projection_flops = 2 * model.num_audio_tokens * model.qformer.hidden_size * model.llama.hidden_size
    one_clip = qformer_flops(model.qformer, model.audio.num_frames, model.encoder_hidden_size) + projection_flops
    audio_flops = features_flops + sum(encoder_flops.values()) + 3 * one_clip * clips
    return StepFlops(
        features=features_flops,
        encoders=encoder_flops,
        qformer=3 * one_clip * clips,
        llama=2 * (layers_flops + head_flops),
        attention=3 * attention_flops,
        lora=3 * adapter_flops,
        remat=remat_flops(model, remat_policy, tokens, layers_flops, attention_flops, adapter_flops),
        duplicated=(tensor_shards - 1) * audio_flops if clips // gradient_accumulation_steps % num_devices else 0,
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
