"""Conversion tables: one per kind of PyTorch checkpoint. Each pairs torch tensor names with JAX parameter paths."""

from __future__ import annotations

from salmonn_jax.conversion.mapping import (
    CONV1D_KERNEL,
    LINEAR_KERNEL,
    SQUEEZE_FIRST_AXIS,
    Rule,
    Table,
    Transform,
    reshape,
)


def _linear(torch_name: str, path: str, *, bias: bool = True) -> tuple[Rule, ...]:
    """Returns the rules of a linear layer."""
    rules = (Rule(f"{torch_name}.weight", f"{path}/kernel", LINEAR_KERNEL), Rule(f"{torch_name}.bias", f"{path}/bias"))
    return rules if bias else rules[:1]


def _layer_norm(torch_name: str, path: str) -> tuple[Rule, ...]:
    """Returns the rules of a layer normalisation."""
    return Rule(f"{torch_name}.weight", f"{path}/scale"), Rule(f"{torch_name}.bias", f"{path}/bias")


def _whisper(kind: str, prefix: str, layer: str, names: dict[str, str], ignored_patterns) -> Table:
    """Returns the table of a Whisper encoder. `names` maps the JAX names to those of the checkpoint's format."""
    rules = [
        rule
        for conv in ("conv1", "conv2")
        for rule in (
            Rule(f"{prefix}{conv}.weight", f"whisper/{conv}/kernel", CONV1D_KERNEL),
            Rule(f"{prefix}{conv}.bias", f"whisper/{conv}/bias"),
        )
    ]
    rules.append(Rule(prefix + names["positions"], "whisper/positions"))
    rules += _layer_norm(prefix + names["norm"], "whisper/norm")
    for name in ("attention_norm", "ffn_norm"):
        rules += _layer_norm(prefix + layer + names[name], f"whisper/layers/{name}")
    for name in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"):
        rules += _linear(prefix + layer + names[name], f"whisper/layers/{name}", bias=name != "k_proj")
    return Table(kind, tuple(rules), ignored_patterns, "whisper/")


_NO_DECODER = "the decoder: only the encoder is used"
_HF_WHISPER = {
    "positions": "embed_positions.weight",
    "norm": "layer_norm",
    "attention_norm": "self_attn_layer_norm",
    "ffn_norm": "final_layer_norm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "out_proj": "self_attn.out_proj",
    "fc1": "fc1",
    "fc2": "fc2",
}
_OPENAI_WHISPER = {
    "positions": "positional_embedding",
    "norm": "ln_post",
    "attention_norm": "attn_ln",
    "ffn_norm": "mlp_ln",
    "q_proj": "attn.query",
    "k_proj": "attn.key",
    "v_proj": "attn.value",
    "out_proj": "attn.out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
}


def whisper_hf(prefix: str) -> Table:
    """Returns the table of a Hugging Face Whisper.

    Args:
      prefix: text before `conv1` in the tensor names: "model.encoder.", "encoder." or "".
    """
    ignored_patterns = ((r"(model\.)?decoder\..*", _NO_DECODER), (r"proj_out\.weight", _NO_DECODER))
    return _whisper("Whisper checkpoint", prefix, "layers.{layer}.", _HF_WHISPER, ignored_patterns)


WHISPER_OPENAI = _whisper(
    "OpenAI Whisper checkpoint",
    "encoder.",
    "blocks.{layer}.",
    _OPENAI_WHISPER,
    ((r"decoder\..*", _NO_DECODER), (r"alignment_heads", _NO_DECODER)),
)


def _patches(patch_size: int) -> Transform:
    """Returns the transform between torch's float[O,1,P,P] convolution kernel and the float[P*P,O] matrix in JAX."""
    return Transform(
        lambda x, shape: x.reshape(x.shape[0], -1).T, lambda x: x.T.reshape(x.shape[1], 1, patch_size, patch_size)
    )


_GATE_SCALE = reshape(lambda shape: (1, shape[0], 1, 1))
_MAGNITUDE = reshape(lambda shape: (1, 1, shape[0]))


def beats(patch_size: int) -> Table:
    """Returns the table of a BEATs with patches of `patch_size` x `patch_size`. Names are those of microsoft/unilm."""
    layer = "encoder.layers.{layer}."
    rules = [
        Rule("patch_embedding.weight", "beats/patch_kernel", _patches(patch_size)),
        *_layer_norm("layer_norm", "beats/patch_norm"),
        *_linear("post_extract_proj", "beats/patch_proj"),
        Rule("encoder.pos_conv.0.weight_v", "beats/positional_conv/direction", CONV1D_KERNEL),
        Rule("encoder.pos_conv.0.weight_g", "beats/positional_conv/magnitude", _MAGNITUDE),
        Rule("encoder.pos_conv.0.bias", "beats/positional_conv/bias"),
        *_layer_norm("encoder.layer_norm", "beats/norm"),
        Rule("encoder.layers.0.self_attn.relative_attention_bias.weight", "beats/relative_bias"),
        Rule(f"{layer}self_attn.grep_a", "beats/layers/gate_scale", _GATE_SCALE),
        *_linear(f"{layer}self_attn.grep_linear", "beats/layers/gate"),
        *_layer_norm(f"{layer}self_attn_layer_norm", "beats/layers/attention_norm"),
        *_layer_norm(f"{layer}final_layer_norm", "beats/layers/ffn_norm"),
        *_linear(f"{layer}fc1", "beats/layers/fc1"),
        *_linear(f"{layer}fc2", "beats/layers/fc2"),
    ]
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        rules += _linear(f"{layer}self_attn.{name}", f"beats/layers/{name}")
    return Table(
        "BEATs checkpoint",
        tuple(rules),
        ((r"predictor\..*", "the classification head: only the encoder is used"),),
        "beats/",
        (
            (
                r"encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight",
                "encoder.layers.0.self_attn.relative_attention_bias.weight",
                "in a BEATs that can be converted, all layers share the bias of the first",
            ),
        ),
    )


_ROTARY_REASON = "rotary frequencies: computed, not learned"
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def llama(*, tie_word_embeddings: bool) -> Table:
    """Returns the table of a Hugging Face LLaMA, Mistral, Qwen2 or Qwen3. Their tensors have the same names.

    Args:
      tie_word_embeddings: whether the output projection is the embedding table. If so, a stored `lm_head` must be a
        copy of it.
    """
    layer = "model.layers.{layer}."
    rules = [
        Rule("model.embed_tokens.weight", "llama/embedding"),
        Rule("model.norm.weight", "llama/norm/scale"),
        Rule("lm_head.weight", "llama/lm_head/kernel", LINEAR_KERNEL),
        Rule(f"{layer}input_layernorm.weight", "llama/layers/attention_norm/scale"),
        Rule(f"{layer}post_attention_layernorm.weight", "llama/layers/ffn_norm/scale"),
        Rule(f"{layer}self_attn.q_norm.weight", "llama/layers/q_norm/scale"),
        Rule(f"{layer}self_attn.k_norm.weight", "llama/layers/k_norm/scale"),
    ]
    for name in _ATTENTION:
        rules += _linear(f"{layer}self_attn.{name}", f"llama/layers/{name}")
    for name in _MLP:
        rules += _linear(f"{layer}mlp.{name}", f"llama/layers/{name}")
    ignored_patterns = [(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", _ROTARY_REASON)]
    head = (
        r"lm_head\.weight",
        "model.embed_tokens.weight",
        "set tie_word_embeddings to false in config.json to use it, or remove it from the file",
    )
    copies = (head,) if tie_word_embeddings else ()
    return Table("language model", tuple(rules), tuple(ignored_patterns), "llama/", copies)


def _qformer() -> tuple[Rule, ...]:
    """Returns the rules of the window-level Q-Former."""
    prefix = "speech_Qformer.bert."
    layer = prefix + "encoder.layer.{layer}."
    rules = [*_layer_norm(f"{prefix}embeddings.LayerNorm", "qformer/norm")]
    for path, torch_name in (("attention", "attention"), ("cross_attention", "crossattention")):
        for name in ("query", "key", "value"):
            rules += _linear(f"{layer}{torch_name}.self.{name}", f"qformer/layers/{path}/{name}")
        rules += _linear(f"{layer}{torch_name}.output.dense", f"qformer/layers/{path}/dense")
        rules += _layer_norm(f"{layer}{torch_name}.output.LayerNorm", f"qformer/layers/{path}/norm")
    rules += _linear(f"{layer}intermediate_query.dense", "qformer/layers/intermediate")
    rules += _linear(f"{layer}output_query.dense", "qformer/layers/output")
    rules += _layer_norm(f"{layer}output_query.LayerNorm", "qformer/layers/norm")
    return tuple(rules)


def _lora(prefix: str, suffix: str) -> tuple[Rule, ...]:
    """Returns the rules of the LoRA adapters on every linear layer that may have one."""
    layer = prefix + "model.layers.{layer}."
    return tuple(
        Rule(
            f"{layer}{block}.{name}.lora_{letter}{suffix}", f"llama/layers/{name}/lora_{letter.lower()}", LINEAR_KERNEL
        )
        for block, names in (("self_attn", _ATTENTION), ("mlp", _MLP))
        for name in names
        for letter in "AB"
    )


# Checkpoint written by the original's trainer. It contains all trained parameters, and a few buffers and frozen
# parameters, which are ignored.
SALMONN = Table(
    "SALMONN checkpoint",
    (
        Rule("speech_query_tokens", "query_tokens", SQUEEZE_FIRST_AXIS),
        *_layer_norm("ln_speech", "ln_speech"),
        *_layer_norm("ln_audio", "ln_audio"),
        *_linear("speech_llama_proj", "projection"),
        *_qformer(),
        *_lora("llama_model.base_model.model.", ".default.weight"),
    ),
    (
        (r"llama_model\..*\.rotary_emb\.inv_freq", _ROTARY_REASON),
        (r"speech_Qformer\..*\.position_ids", "an index buffer, not a weight"),
        (r"beats\..*\.relative_attention_bias\.weight", "a frozen BEATs weight: the BEATs checkpoint has it"),
    ),
)

# A PEFT adapter directory. It has the same adapters under PEFT's names.
PEFT = Table("PEFT adapter", _lora("base_model.model.", ".weight"))
