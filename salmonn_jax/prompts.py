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

AUDIO_PLACEHOLDER = "<SpeechHere>"
TEXT_SLOT = -1  # in `slots`: an ordinary token


class EncodedPrompt(NamedTuple):
    """Token ids, and beside each the audio token that stands in its place: window * audio tokens + index, or TEXT."""

    tokens: list[int]
    audio_slots: list[int]


def encode_prompt(
    tokenizer: Tokenizer,
    template: str,
    prompt: str,
    *,
    valid_audio_tokens: Collection[Collection[int]],
    num_audio_tokens: int,
) -> EncodedPrompt:
    """Wraps `prompt` in the template and lays it out up to where the answer begins.

    Args:
      template: holds `{}` where the prompt goes.
      prompt: holds one `<SpeechHere>` per clip.
      clips: of each, how many audio tokens are read of each of its windows; the longest clips have several windows,
        which are heard one after another.
      audio_tokens: how many are made of a window.

    Raises:
      UserError: the prompt has not as many placeholders as there are clips, or is empty.
    """
    parts = template.replace("{}", prompt, 1).split(AUDIO_PLACEHOLDER)
    if len(parts) != len(valid_audio_tokens) + 1:
        raise UserError(
            f"prompt {prompt!r} has {len(parts) - 1} {AUDIO_PLACEHOLDER} for {len(valid_audio_tokens)} clip(s)"
        )
    tokens, slots = list(tokenizer.prefix_tokens), [TEXT_SLOT] * len(tokenizer.prefix_tokens)
    window = 0
    for part, clip in zip(parts, ((), *valid_audio_tokens), strict=True):
        for read in clip:
            tokens += [tokenizer.bos_token_id] * read  # replaced by the audio; any valid id will do
            slots += range(window * num_audio_tokens, window * num_audio_tokens + read)
            window += 1
        ids = tokenizer.encode(part)
        tokens += ids
        slots += [TEXT_SLOT] * len(ids)
    if not tokens:
        raise UserError("the prompt is empty")
    return EncodedPrompt(tokens, slots)


def encode_answer(tokenizer: Tokenizer, answer: str, max_answer_tokens: int | None = None) -> list[int]:
    """The answer and `</s>`, cut to `limit` tokens; a cut answer has no `</s>`, as in the original."""
    return [*tokenizer.encode(answer), tokenizer.eos_token_id][:max_answer_tokens]
