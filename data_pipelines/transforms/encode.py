"""From examples to segments of rows: prompt, tokens, labels, the place of the audio. numpy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from data_pipelines.examples import BadExample, Example
from data_pipelines.transforms.prompt_templates import PromptTemplates
from salmonn_jax.batch import Segment
from salmonn_jax.config import DataConfig, ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT_SLOT, encode_answer, encode_prompt
from salmonn_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """The sizes that rows and clips are made to (see `salmonn_jax.config.DataConfig` and `ModelConfig`)."""

    prompt_template: str
    audio_tokens: int  # of one window
    audio_tokens_of: Callable[[int], int]  # those of them that are read where so many samples are of the clip
    window_samples: int  # samples of one
    seq_len: int
    max_answer_tokens: int
    max_transcript_tokens: int
    max_clips: int  # of the largest example that can be placed


def encode_config(model: ModelConfig, data: DataConfig) -> EncodeConfig:
    """The sizes that a configuration asks for."""
    return EncodeConfig(
        prompt_template=model.prompt_template,
        audio_tokens=model.num_audio_tokens,
        audio_tokens_of=model.num_valid_audio_tokens,
        window_samples=model.audio.window_samples,
        seq_len=data.seq_len,
        max_answer_tokens=data.max_answer_tokens,
        max_transcript_tokens=data.max_transcript_tokens,
        max_clips=data.clips // data.streams,
    )


def encode_example(
    example: Example,
    template_index: int,
    *,
    source_index: int,
    tokenizer: Tokenizer,
    prompt_templates: PromptTemplates,
    config: EncodeConfig,
):
    """Lays an example out: `salmonn_jax.batch.Segment`.

    Args:
      example: with or without audio, which is cut into windows.
      number: chooses among the wordings of its task, where it brings no prompt of its own.
      source: the index that stands for its source in a batch.

    Raises:
      BadExample: it has more tokens than a row, or more windows than there are slots; or its prompt says not where its
        clip stands.
    """
    windows = () if example.audio is None else tuple(_windows(example.audio, config.window_samples))
    heard = example.audio is not None
    prompt = example.prompt or prompt_templates.render(example.task, example.question, template_index, has_audio=heard)
    try:
        asked = encode_prompt(
            tokenizer,
            config.prompt_template,
            prompt,
            valid_audio_tokens=[[config.audio_tokens_of(len(window)) for window in windows]] if heard else [],
            num_audio_tokens=config.audio_tokens,
        )
    except UserError as error:
        raise BadExample("wrong line", str(error)) from None
    answer = encode_answer(tokenizer, example.answer, config.max_answer_tokens)
    tokens = asked.tokens + answer
    if len(tokens) > config.seq_len:
        raise BadExample(
            "does not fit",
            f"{len(tokens)} tokens in a row of {config.seq_len}; set data.seq_len to at least {len(tokens)}",
        )
    if len(windows) > config.max_clips:
        raise BadExample("does not fit", f"{len(windows)} clip slots where a stream has {config.max_clips} of a step")
    return Segment(
        tokens=tokens,
        audio_slots=asked.audio_slots + [TEXT_SLOT] * len(answer),
        prompt_length=len(asked.tokens),
        clips=windows,
        # Spread over several windows, nobody knows which words lie in which.
        transcript=tokenizer.encode(example.transcript) if len(windows) == 1 and config.max_transcript_tokens else (),
        source_index=source_index,
    )


def _windows(pcm: np.ndarray, size: int) -> list[np.ndarray]:
    """Equal windows of a clip, the last one shorter."""
    return [pcm[start : start + size] for start in range(0, len(pcm), size)]
