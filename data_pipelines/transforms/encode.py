"""Encoding of examples as segments of batch rows: tokens, audio slots and encoder windows. It imports no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from data_pipelines.examples import BadExample, Example
from data_pipelines.transforms.prompt_templates import PromptTemplates
from salmonn_jax.audio.windows import split_windows
from salmonn_jax.batch import Segment
from salmonn_jax.config import DataConfig, ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT_SLOT, add_audio_placeholder, encode_answer, encode_prompt
from salmonn_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Sizes and limits of encoded examples (see `salmonn_jax.config.DataConfig` and `ModelConfig`).

    Attributes:
      prompt_template: prompt template of the LLM, with `{}` in place of the prompt.
      add_bos_token: whether the tokenizer's start token precedes the template.
      stop_token_ids: answers end with the first of these tokens; empty means the tokenizer's end token.
      num_audio_tokens: number of audio tokens of an encoder window.
      num_valid_audio_tokens: maps the length of the audio in an encoder window, in PCM samples, to the number of its
        audio tokens in the prompt.
      window_samples: length of an encoder window in PCM samples.
      seq_len: length of a row in tokens.
      context_len: context length of the language model in tokens; None for a model without one.
      vocab_size: tokens in the vocabulary of the language model; None for a model without one.
      max_answer_tokens: maximum number of tokens of an answer, including the end-of-sequence token.
      max_transcript_tokens: maximum number of tokens of a transcript; 0 leaves out transcripts.
      max_windows: maximum number of encoder windows of an example.
    """

    prompt_template: str
    add_bos_token: bool
    stop_token_ids: tuple[int, ...]
    num_audio_tokens: int
    num_valid_audio_tokens: Callable[[int], int]
    window_samples: int
    seq_len: int
    context_len: int | None
    vocab_size: int | None
    max_answer_tokens: int
    max_transcript_tokens: int
    max_windows: int


def encode_config(model: ModelConfig, data: DataConfig) -> EncodeConfig:
    """Returns the encoding configuration of a model and its data configuration."""
    return EncodeConfig(
        prompt_template=model.prompt_template,
        add_bos_token=model.add_bos_token,
        stop_token_ids=model.stop_token_ids,
        num_audio_tokens=model.num_audio_tokens,
        num_valid_audio_tokens=model.num_valid_audio_tokens,
        window_samples=model.audio.window_samples,
        seq_len=data.seq_len,
        context_len=model.llama and model.llama.max_position_embeddings,
        vocab_size=model.llama and model.llama.vocab_size,
        max_answer_tokens=data.max_answer_tokens,
        max_transcript_tokens=data.max_transcript_tokens,
        max_windows=data.clips // data.streams,
    )


def encode_example(
    example: Example,
    template_index: int,
    *,
    source_index: int,
    tokenizer: Tokenizer,
    prompt_templates: PromptTemplates,
    config: EncodeConfig,
) -> Segment:
    """Encodes an example as a `salmonn_jax.batch.Segment`.

    Args:
      example: example with or without audio. Audio is cut into encoder windows of `config.window_samples`.
      template_index: selects a prompt template of the task if the example has no prompt; any non-negative integer.
      source_index: index of the source, for `Batch.source_index`.
      tokenizer: tokenizer of the model.
      prompt_templates: prompt templates by task.
      config: sizes and limits.

    Raises:
      BadExample: the example has more tokens than a row or than the context of the language model, more encoder windows
        than `config.max_windows`, or a token that the language model does not have, or its prompt has more positions
        for clips than it has clips (see `salmonn_jax.prompts.add_audio_placeholder`).
    """
    windows = () if example.audio is None else tuple(split_windows(example.audio, config.window_samples))
    has_audio = example.audio is not None
    prompt = example.prompt or prompt_templates.render(
        example.task, example.question, template_index, has_audio=has_audio
    )
    valid_audio_token_counts = [[config.num_valid_audio_tokens(len(window)) for window in windows]] if has_audio else []
    try:
        encoded_prompt = encode_prompt(
            tokenizer,
            config.prompt_template,
            add_audio_placeholder(prompt, num_clips=1 if has_audio else 0),
            valid_audio_token_counts=valid_audio_token_counts,
            num_audio_tokens=config.num_audio_tokens,
            add_bos_token=config.add_bos_token,
        )
    except UserError as error:
        raise BadExample("invalid", str(error)) from None
    answer = encode_answer(tokenizer, example.answer, config.max_answer_tokens, stop_token_ids=config.stop_token_ids)
    tokens = encoded_prompt.tokens + answer
    # The CTC loss is computed per encoder window. Which words are in which of several windows is unknown.
    transcript = tokenizer.encode(example.transcript) if len(windows) == 1 and config.max_transcript_tokens else ()
    largest = max([*tokens, *transcript])
    if config.vocab_size is not None and largest >= config.vocab_size:
        raise BadExample(
            "invalid",
            f"token {largest} of the tokenizer is outside the vocabulary of the language model, which has "
            f"{config.vocab_size} tokens; use the tokenizer of the model",
        )
    if len(tokens) > config.seq_len:
        raise BadExample(
            "does not fit",
            f"{len(tokens)} tokens in a row of {config.seq_len}; set data.seq_len to at least {len(tokens)}",
        )
    if config.context_len is not None and len(tokens) > config.context_len:
        raise BadExample(
            "does not fit",
            f"{len(tokens)} tokens, but the context of the language model has {config.context_len}",
        )
    if len(windows) > config.max_windows:
        raise BadExample(
            "does not fit",
            f"{len(windows)} encoder windows, but only {config.max_windows} clip slots of a stream; raise data.clips",
        )
    return Segment(
        tokens=tokens,
        audio_slots=encoded_prompt.audio_slots + [TEXT_SLOT] * len(answer),
        prompt_length=len(encoded_prompt.tokens),
        clips=windows,
        transcript=transcript,
        source_index=source_index,
    )
