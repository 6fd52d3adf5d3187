"""From examples to segments of rows: prompt, tokens, labels, the place of the audio. numpy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.sources.manifest_entries import BadExample
from data_pipelines.stream.prompt_templates import Wordings
from salmonn_jax.batch import Segment
from salmonn_jax.config import DataConfig, ModelConfig
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT, encode_answer, encode_prompt
from salmonn_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The sizes that rows and clips are made to (see `salmonn_jax.config.DataConfig` and `ModelConfig`)."""

    template: str
    audio_tokens: int  # of one window
    audio_tokens_of: Callable[[int], int]  # those of them that are read where so many samples are of the clip
    window: int  # samples of one
    sequence: int
    answer: int
    transcript: int
    clips: int  # of the largest example that can be placed


def layout(model: ModelConfig, data: DataConfig) -> Layout:
    """The sizes that a configuration asks for."""
    return Layout(
        template=model.prompt_template,
        audio_tokens=model.audio_tokens,
        audio_tokens_of=model.audio_tokens_of,
        window=model.audio.window_samples,
        sequence=data.seq_len,
        answer=data.max_answer_tokens,
        transcript=data.max_transcript_tokens,
        clips=data.clips // data.streams,
    )


def segment(example: Example, number: int, *, source: int, tokenizer: Tokenizer, wordings: Wordings, sizes: Layout):
    """Lays an example out: `salmonn_jax.batch.Segment`.

    Args:
      example: with or without audio, which is cut into windows.
      number: chooses among the wordings of its task, where it brings no prompt of its own.
      source: the index that stands for its source in a batch.

    Raises:
      BadExample: it has more tokens than a row, or more windows than there are slots; or its prompt says not where its
        clip stands.
    """
    windows = () if example.audio is None else tuple(_windows(example.audio, sizes.window))
    heard = example.audio is not None
    prompt = example.prompt or wordings.choose(example.task, example.question, number, audio=heard)
    try:
        asked = encode_prompt(
            tokenizer,
            sizes.template,
            prompt,
            clips=[[sizes.audio_tokens_of(len(window)) for window in windows]] if heard else [],
            audio_tokens=sizes.audio_tokens,
        )
    except UserError as error:
        raise BadExample("wrong line", str(error)) from None
    answer = encode_answer(tokenizer, example.answer, sizes.answer)
    tokens = asked.tokens + answer
    if len(tokens) > sizes.sequence:
        raise BadExample(
            "does not fit",
            f"{len(tokens)} tokens in a row of {sizes.sequence}; set data.seq_len to at least {len(tokens)}",
        )
    if len(windows) > sizes.clips:
        raise BadExample("does not fit", f"{len(windows)} clip slots where a stream has {sizes.clips} of a step")
    return Segment(
        tokens=tokens,
        slots=asked.slots + [TEXT] * len(answer),
        prompt=len(asked.tokens),
        clips=windows,
        # Spread over several windows, nobody knows which words lie in which.
        transcript=tokenizer.encode(example.transcript) if len(windows) == 1 and sizes.transcript else (),
        source=source,
    )


def _windows(pcm: np.ndarray, size: int) -> list[np.ndarray]:
    """Equal windows of a clip, the last one shorter."""
    return [pcm[start : start + size] for start in range(0, len(pcm), size)]
