"""How a question, its clips and its answer become one sequence (original: `SALMONN.prompt_wrap` and `forward`).

    <s> USER: <Speech> [88 audio tokens] </Speech> Describe the audio.\\nASSISTANT: a dog barks </s>

Text on either side of a clip is tokenised on its own, as in the original: each part gets its own leading space piece.
`<Speech>` and `</Speech>` are ordinary text.
"""

from __future__ import annotations

from typing import NamedTuple

from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import Tokenizer

PLACEHOLDER = "<SpeechHere>"
TEXT = -1  # in `slots`: an ordinary token


class Sequence(NamedTuple):
    """Token ids, and beside each the audio token that stands in its place: clip * audio tokens + index, or TEXT."""

    tokens: list[int]
    slots: list[int]


def encode_prompt(tokenizer: Tokenizer, template: str, prompt: str, *, clips: int, audio_tokens: int) -> Sequence:
    """Wraps `prompt` in the template and lays it out up to where the answer begins.

    Args:
      template: holds `{}` where the prompt goes.
      prompt: holds one `<SpeechHere>` per clip.
      clips: how many clips there are.
      audio_tokens: what each takes.

    Raises:
      UserError: the prompt has not as many placeholders as there are clips, or is empty.
    """
    parts = template.replace("{}", prompt, 1).split(PLACEHOLDER)
    if len(parts) != clips + 1:
        raise UserError(f"prompt {prompt!r} has {len(parts) - 1} {PLACEHOLDER} for {clips} clip(s)")
    tokens, slots = list(tokenizer.prefix), [TEXT] * len(tokenizer.prefix)
    for clip, part in enumerate(parts):
        if clip:
            tokens += [tokenizer.bos] * audio_tokens  # replaced by the audio; any valid id will do
            slots += range((clip - 1) * audio_tokens, clip * audio_tokens)
        ids = tokenizer.encode(part)
        tokens += ids
        slots += [TEXT] * len(ids)
    if not tokens:
        raise UserError("the prompt is empty")
    return Sequence(tokens, slots)


def encode_answer(tokenizer: Tokenizer, answer: str, limit: int | None = None) -> list[int]:
    """The answer and `</s>`, cut to `limit` tokens; a cut answer has no `</s>`, as in the original."""
    return [*tokenizer.encode(answer), tokenizer.eos][:limit]
