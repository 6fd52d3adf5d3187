"""Encoding of prompts with audio, and of answers, as token ids (original: `SALMONN.prompt_wrap` and `forward`).

    <s> USER: <Speech> [88 audio tokens] </Speech> Describe the audio.\\nASSISTANT: a dog barks </s>

The text before and after a clip is tokenised separately, as in the original, so each piece of text starts with its own
leading-space token. `<Speech>` and `</Speech>` are ordinary text. Data pipelines, `salmonn_jax.api` and evaluation use
this module.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import Tokenizer

AUDIO_PLACEHOLDER = "<SpeechHere>"
TEXT_SLOT = -1  # value in `audio_slots` at text tokens


class EncodedPrompt(NamedTuple):
    """Token ids of a prompt and, at each position, the audio token that replaces the embedding of the token.

    Audio token `i` of encoder window `w` has the slot `w * num_audio_tokens + i`, where windows are counted over all
    clips of the prompt. Positions of text have `TEXT_SLOT`.
    """

    tokens: list[int]
    audio_slots: list[int]


def encode_prompt(
    tokenizer: Tokenizer,
    template: str,
    prompt: str,
    *,
    valid_audio_token_counts: Collection[Collection[int]],
    num_audio_tokens: int,
) -> EncodedPrompt:
    """Inserts the prompt into the template and encodes it up to the position where the answer begins.

    Args:
      tokenizer: tokenizer of the language model.
      template: prompt template of the model, in which `{}` is replaced by the prompt.
      prompt: prompt with one `<SpeechHere>` per clip.
      valid_audio_token_counts: one list per clip: the number of audio tokens in the prompt for each encoder window of
        the clip. A clip that is longer than one window has several, whose audio tokens follow each other.
      num_audio_tokens: number of audio tokens that are computed for an encoder window.

    Raises:
      UserError: the number of placeholders differs from the number of clips, or the prompt is empty.
    """
    text_pieces = template.replace("{}", prompt, 1).split(AUDIO_PLACEHOLDER)
    if len(text_pieces) != len(valid_audio_token_counts) + 1:
        raise UserError(
            f"prompt {prompt!r} has {len(text_pieces) - 1} {AUDIO_PLACEHOLDER} for "
            f"{len(valid_audio_token_counts)} clip(s)"
        )
    tokens, audio_slots = list(tokenizer.prefix_tokens), [TEXT_SLOT] * len(tokenizer.prefix_tokens)
    window = 0
    for text_piece, tokens_per_window in zip(text_pieces, ((), *valid_audio_token_counts), strict=True):
        for num_tokens in tokens_per_window:
            tokens += [tokenizer.bos_token_id] * num_tokens  # any valid id: audio tokens replace these embeddings
            audio_slots += range(window * num_audio_tokens, window * num_audio_tokens + num_tokens)
            window += 1
        ids = tokenizer.encode(text_piece)
        tokens += ids
        audio_slots += [TEXT_SLOT] * len(ids)
    if not tokens:
        raise UserError("the prompt is empty")
    return EncodedPrompt(tokens, audio_slots)


def encode_answer(tokenizer: Tokenizer, answer: str, max_answer_tokens: int | None = None) -> list[int]:
    """Returns the token ids of the answer, with `</s>` at the end.

    Args:
      tokenizer: tokenizer of the language model.
      answer: text of the answer.
      max_answer_tokens: maximum number of tokens, `</s>` included; None for no limit. As in the original, an answer
        that is cut has no `</s>`.
    """
    return [*tokenizer.encode(answer), tokenizer.eos_token_id][:max_answer_tokens]
