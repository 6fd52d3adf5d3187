"""Prompt templates, and the encoding of prompts with audio and of answers as token ids.

The original's `SALMONN.prompt_wrap` and `forward` do this for Vicuna:

    <s> USER: <Speech> [88 audio tokens] </Speech> Describe the audio.\\nASSISTANT: a dog barks </s>

The text before and after a clip is tokenised separately, as in the original, so each piece of text starts with its own
leading-space token. `<Speech>` and `</Speech>` are ordinary text. Data pipelines, `salmonn_jax.api` and evaluation use
this module.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from salmonn_jax.errors import UserError, check_unicode
from salmonn_jax.tokenizer import Tokenizer

AUDIO_PLACEHOLDER = "<SpeechHere>"
# Marks the position of the clip in a prompt, as in the original.
SPEECH_TAG = f"<Speech>{AUDIO_PLACEHOLDER}</Speech>"
TEXT_SLOT = -1  # value in `audio_slots` at text tokens
_AUDIO_TOKEN_ID = 0  # any valid id: audio tokens replace the embeddings at audio slots


class PromptTemplate(NamedTuple):
    """A prompt template that has a name."""

    text: str  # `{}` is replaced by the prompt
    special_tokens: tuple[str, ...] = ()  # tokens that the tokenizer must have, the end of a turn last


# Templates of one question without a system prompt. The tokenizer's start token, if any, precedes them.
PROMPT_TEMPLATES = {
    "vicuna": PromptTemplate("USER: {}\nASSISTANT:"),  # of the original; ends with the tokenizer's end token
    "llama3": PromptTemplate(
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "chatml": PromptTemplate("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", ("<|im_start|>", "<|im_end|>")),
    "mistral": PromptTemplate("[INST] {} [/INST]"),  # ends with the tokenizer's end token
}
_MARKERS = {"<|im_start|>": "chatml", "<|start_header_id|>": "llama3", "[INST]": "mistral"}


def template_name(text: str) -> str:
    """Returns the name of the family to which a template belongs, or "custom"."""
    if text == PROMPT_TEMPLATES["vicuna"].text:
        return "vicuna"
    return next((name for marker, name in _MARKERS.items() if marker in text), "custom")


def stop_tokens(stop_token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the tokens at which decoding stops. Answers end with the first one.

    Args:
      stop_token_ids: those of `salmonn_jax.config.ModelConfig`, which may be empty.
      tokenizer: tokenizer of the language model, whose end token is the default.
    """
    return tuple(stop_token_ids) or (tokenizer.eos_token_id,)


class EncodedPrompt(NamedTuple):
    """Token ids of a prompt and, at each position, the audio token that replaces the embedding of the token.

    Audio token `i` of encoder window `w` has the slot `w * num_audio_tokens + i`, where windows are counted over all
    clips of the prompt. Positions of text have `TEXT_SLOT`.
    """

    tokens: list[int]
    audio_slots: list[int]


def add_audio_placeholder(prompt: str, *, num_clips: int) -> str:
    """Returns a prompt with one `<SpeechHere>` per clip, the rule for the prompts of training and of generation.

    Args:
      prompt: text of the user. If it has no `<SpeechHere>`, one `<Speech><SpeechHere></Speech> ` per clip is prepended.
      num_clips: number of clips of the prompt.

    Raises:
      UserError: the prompt has another number of `<SpeechHere>`, or is not Unicode text.
    """
    check_unicode("prompt", prompt)
    found = prompt.count(AUDIO_PLACEHOLDER)
    if found == 0:
        return f"{SPEECH_TAG} " * num_clips + prompt
    if found != num_clips:
        raise UserError(f"prompt {prompt!r} has {found} {AUDIO_PLACEHOLDER} for {num_clips} clip(s)")
    return prompt


def encode_prompt(
    tokenizer: Tokenizer,
    template: str,
    prompt: str,
    *,
    valid_audio_token_counts: Collection[Collection[int]],
    num_audio_tokens: int,
    add_bos_token: bool = True,
) -> EncodedPrompt:
    """Inserts the prompt into the template and encodes it up to the position where the answer begins.

    Args:
      tokenizer: tokenizer of the language model.
      template: prompt template of the model, in which `{}` is replaced by the prompt.
      prompt: prompt with one `<SpeechHere>` per clip.
      valid_audio_token_counts: one list per clip: the number of audio tokens in the prompt for each encoder window of
        the clip. A clip that is longer than one window has several, whose audio tokens follow each other.
      num_audio_tokens: number of audio tokens that are computed for an encoder window.
      add_bos_token: whether the tokenizer's start token precedes the template (see `ModelConfig`).

    Raises:
      UserError: the number of placeholders differs from the number of clips, or the prompt is empty.
    """
    text_pieces = template.replace("{}", prompt, 1).split(AUDIO_PLACEHOLDER)
    if len(text_pieces) != len(valid_audio_token_counts) + 1:
        raise UserError(
            f"prompt {prompt!r} has {len(text_pieces) - 1} {AUDIO_PLACEHOLDER} for "
            f"{len(valid_audio_token_counts)} clip(s)"
        )
    tokens = list(tokenizer.prefix_tokens) if add_bos_token else []
    audio_slots = [TEXT_SLOT] * len(tokens)
    window = 0
    for text_piece, tokens_per_window in zip(text_pieces, ((), *valid_audio_token_counts), strict=True):
        for num_tokens in tokens_per_window:
            tokens += [_AUDIO_TOKEN_ID] * num_tokens
            audio_slots += range(window * num_audio_tokens, window * num_audio_tokens + num_tokens)
            window += 1
        ids = tokenizer.encode(text_piece)
        tokens += ids
        audio_slots += [TEXT_SLOT] * len(ids)
    if not tokens:
        raise UserError("the prompt is empty")
    return EncodedPrompt(tokens, audio_slots)


def encode_answer(
    tokenizer: Tokenizer, answer: str, max_answer_tokens: int | None = None, *, stop_token_ids: Sequence[int] = ()
) -> list[int]:
    """Returns the token ids of the answer, with the end token of the model at the end.

    Args:
      tokenizer: tokenizer of the language model.
      answer: text of the answer.
      max_answer_tokens: maximum number of tokens, the end token included; None for no limit. As in the original, an
        answer that is cut has no end token.
      stop_token_ids: those of the model's configuration; the first one is the end token.
    """
    return [*tokenizer.encode(answer), stop_tokens(stop_token_ids, tokenizer)[0]][:max_answer_tokens]
