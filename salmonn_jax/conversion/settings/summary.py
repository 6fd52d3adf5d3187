"""Summary of a converted SALMONN, printed by `launch.convert to-jax salmonn`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from salmonn_jax.config import ModelConfig
from salmonn_jax.conversion.to_jax import ConversionPlan, parameter_shapes
from salmonn_jax.models import parameters
from salmonn_jax.prompts import stop_tokens, template_name
from salmonn_jax.tokenizer import Tokenizer


def describe(plan: ConversionPlan, tokenizer: Tokenizer) -> Iterator[str]:
    """Yields lines: modules with their sizes, encoder input, prompt template, stop tokens, and settings by origin.

    Args:
      plan: plan of a whole SALMONN.
      tokenizer: tokenizer of its language model.
    """
    yield from _describe_modules(plan)
    yield from _describe_audio(plan)
    config = plan.config
    start = " after the tokenizer's start token" if config.add_bos_token and tokenizer.prefix_tokens else ""
    name = template_name(config.prompt_template)
    yield f"prompt template: {name} ({plan.prompt_origin}){start}: {config.prompt_template!r}"
    end, *others = (f"{tokenizer.id_to_token(i)} ({i})" for i in stop_tokens(config.stop_token_ids, tokenizer))
    yield f"stop tokens: {', '.join([end, *others])}; answers in training end with {end}"
    for name, setting in plan.settings.items():
        value = " ".join(setting.value) or "none" if isinstance(setting.value, tuple) else setting.value
        yield f"{name}: {value} ({setting.origin})"


def _describe_modules(plan: ConversionPlan) -> Iterator[str]:
    """Yields one line per module with its number of parameters, their state and its sizes, and one with the sums."""
    sizes = {path: math.prod(shape) for path, shape in parameter_shapes(plan.config).items()}
    details = _module_details(plan.config)
    yield f"{'module':12} {'parameters':>14}  {'state':10}  sizes"
    for name, pattern in parameters.MODULES.items():
        paths = [path for path in sizes if re.fullmatch(pattern, path)]
        if not paths:
            yield f"{name:12} {'none':>14}"
            continue
        yield (
            f"{name:12} {sum(sizes[path] for path in paths):14,}  {_state(plan, paths[0]):10}  {details[name]}".rstrip()
        )
    frozen = sum(sizes[path] for path in plan.base)
    total = sum(sizes.values())
    yield f"{'total':12} {total:14,}  {frozen:,} frozen, {total - frozen:,} {_state(plan, 'query_tokens')}"


def _state(plan: ConversionPlan, path: str) -> str:
    """Returns where the values of a parameter come from."""
    if path in plan.base:
        return "frozen"
    return "new" if path in plan.newly_initialized else "trained"


def _module_details(config: ModelConfig) -> dict[str, str]:
    """Returns the sizes of each module of `parameters.MODULES` that the model may have, as text."""
    whisper, beats, qformer, llama, lora = config.whisper, config.beats, config.qformer, config.llama, config.lora
    return {
        "query_tokens": f"{qformer.num_speech_query_token} of size {qformer.hidden_size}",
        "qformer": f"{qformer.num_hidden_layers} layers of size {qformer.hidden_size}, "
        f"{qformer.num_attention_heads} heads, feed-forward {qformer.intermediate_size}",
        "norms": "",
        "projection": f"{qformer.hidden_size} to {llama.hidden_size}",
        "adapters": f"LoRA of rank {lora.rank}, scale {lora.scale:g}, on {' '.join(lora.target_modules)}",
        "whisper": f"{whisper.encoder_layers} layers of size {whisper.d_model}, "
        f"{whisper.encoder_attention_heads} heads",
        "beats": beats
        and f"{beats.encoder_layers} layers of size {beats.encoder_embed_dim}, {beats.encoder_attention_heads} heads",
        "llm": f"{llama.num_hidden_layers} layers of size {llama.hidden_size}, {llama.num_attention_heads} heads "
        f"({llama.num_key_value_heads} for keys and values), context {llama.max_position_embeddings}, "
        f"vocabulary {llama.vocab_size:,}",
    }


def _describe_audio(plan: ConversionPlan) -> Iterator[str]:
    """Yields the length of the encoder input with its number of audio tokens, and what a cut position table changes."""
    config, seconds = plan.config, plan.config.audio.window_seconds
    which = "of the whole window" if config.audio.tokens == "window" else "of the clip, of at most"
    yield f"audio: windows of {seconds:g} s; a prompt has the audio tokens {which}: {config.num_audio_tokens}"
    if seconds < plan.whisper_seconds:
        yield (
            f"Whisper's position table is cut from {plan.whisper_seconds:g} s to {seconds:g} s: Whisper reads a "
            "shorter input than the one it was trained with, and there are fewer audio tokens; `to-torch salmonn` "
            "refuses such a model"
        )
