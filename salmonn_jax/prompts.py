"""How a question, its clips and its answer become one sequence (original: `SALMONN.prompt_wrap` and `forward`).

    <s> USER: <Speech> [88 audio tokens] </Speech> Describe the audio.\\nASSISTANT: a dog barks </s>

Text on either side of a clip is tokenised on its own, as in the original: each part gets its own leading space piece.
`<Speech>` and `</Speech>` are ordinary text.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import Tokenizer

PLACEHOLDER = "<SpeechHere>"
TEXT = -1  # in `slots`: an ordinary token


class Sequence(NamedTuple):
    """Token ids, and beside each the audio token that stands in its place: window * audio tokens + index, or TEXT."""

    tokens: list[int]
    slots: list[int]


def encode_prompt(
    tokenizer: Tokenizer, template: str, prompt: str, *, windows: Collection[int], audio_tokens: int
) -> Sequence:
    """Wraps `prompt` in the template and lays it out up to where the answer begins.

    Args:
      template: holds `{}` where the prompt goes.
      prompt: holds one `<SpeechHere>` per clip.
      windows: into how many windows each clip is cut, one for all but the longest; they are heard one after another.
      audio_tokens: what a window takes.

    Raises:
      UserError: the prompt has not as many placeholders as there are clips, or is empty.
    """
    parts = template.replace("{}", prompt, 1).split(PLACEHOLDER)
    if len(parts) != len(windows) + 1:
        raise UserError(f"prompt {prompt!r} has {len(parts) - 1} {PLACEHOLDER} for {len(windows)} clip(s)")
    tokens, slots = list(tokenizer.prefix), [TEXT] * len(tokenizer.prefix)
    heard = 0
    for part, count in zip(parts, (0, *windows), strict=True):
        tokens += [tokenizer.bos] * (count * audio_tokens)  # replaced by the audio; any valid id will do
        slots += range(heard * audio_tokens, (heard + count) * audio_tokens)
        heard += count
        ids = tokenizer.encode(part)
        tokens += ids
        slots += [TEXT] * len(ids)
    if not tokens:
        raise UserError("the prompt is empty")
    return Sequence(tokens, slots)


def encode_answer(tokenizer: Tokenizer, answer: str, limit: int | None = None) -> list[int]:
    """The answer and `</s>`, cut to `limit` tokens; a cut answer has no `</s>`, as in the original."""
    return [*tokenizer.encode(answer), tokenizer.eos][:limit]
