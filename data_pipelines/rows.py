"""From examples to the rows of a batch: tokens, labels and the place of the audio. numpy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain

from data_pipelines.examples import Example
from salmonn_jax import batch
from salmonn_jax.batch import Batch, Row
from salmonn_jax.errors import UserError
from salmonn_jax.prompts import TEXT, encode_answer, encode_prompt
from salmonn_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The sizes rows and batches are made to (see `salmonn_jax.config.DataConfig` and `ModelConfig`)."""

    template: str
    audio_tokens: int  # of one clip
    window: int  # samples of one clip
    sequence: int
    answer: int
    transcript: int


@dataclasses.dataclass(frozen=True)
class ToRow(grain.transforms.Map):
    """Tokenises an example. Raises UserError for one that does not fit its row."""

    tokenizer: Tokenizer
    layout: Layout
    sources: tuple[str, ...]

    def map(self, example: Example) -> Row:
        clips = int(example.audio is not None)
        prompt = encode_prompt(
            self.tokenizer, self.layout.template, example.prompt, clips=clips, audio_tokens=self.layout.audio_tokens
        )
        answer = encode_answer(self.tokenizer, example.answer, self.layout.answer)
        tokens = prompt.tokens + answer
        if len(tokens) > self.layout.sequence:
            raise UserError(
                f"{example.source} example {example.id} takes {len(tokens)} tokens and a row has "
                f"{self.layout.sequence}; set data.sequence to at least {len(tokens)}"
            )
        return Row(
            tokens=tokens,
            slots=prompt.slots + [TEXT] * len(answer),
            prompt=len(prompt.tokens),
            audio=example.audio,
            transcript=self.tokenizer.encode(example.transcript) if clips else [],
            source=self.sources.index(example.source),
        )


def to_batch(rows: Sequence[Row], layout: Layout, part: int = 0) -> Batch:
    """Pads rows to one batch, or to part number `part` of one. Rows with a clip are spread evenly among those without.

    Spread so, the clips of any equal part of the rows are the same part of the clips, for every number of parts that
    divides both: what `Batch` promises to a sharded model.
    """
    heard = [row for row in rows if row.audio is not None]
    read = iter([row for row in rows if row.audio is None])
    places = {clip * len(rows) // len(heard): row for clip, row in enumerate(heard)} if heard else {}
    return batch.collate(
        [places[i] if i in places else next(read) for i in range(len(rows))],
        sequence=layout.sequence,
        window=layout.window,
        audio_tokens=layout.audio_tokens,
        transcript=layout.transcript,
        first_clip=part * len(heard),
    )
