"""Rules that decide which generated answers become training data.

The stories of activation tuning (arXiv 2310.13289, section 4.3) are answers of the model itself. The paper does not say
how they were selected. These rules are ours.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.text.normalizers import normalize_plain

NGRAM = 3  # words of the sequences whose repetitions are counted
# A character of Chinese or Japanese, which are written without spaces, or a word of any other script.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿]|[^\s぀-ヿ㐀-䶿一-鿿]+")


class Rejection(NamedTuple):
    """Reason why an answer is not kept.

    Attributes:
      rule: name of the rule: "error", "empty", "cut", "short", "long", "repeats" or "transcript".
      detail: what exactly is wrong.
    """

    rule: str
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerRules:
    """Rules for answers. An answer also needs a text, and a stop token at its end.

    Attributes:
      min_words: minimum number of words.
      max_words: maximum number of words.
      max_repeated: maximum share of the sequences of three words that occurred before in the answer.
      max_transcript: maximum share of the words of the answer that are words of the transcript or of a reference, each
        counted as often as in that text.
    """

    min_words: int
    max_words: int
    max_repeated: float
    max_transcript: float

    def find_rejection(self, answer: Prediction, known_texts: Iterable[str] = ()) -> Rejection | None:
        """Returns the first rule that an answer breaks; None if it breaks none.

        Args:
          answer: the answer.
          known_texts: texts that the answer must not repeat, such as the transcript of the clip.
        """
        if answer.error:
            return Rejection("error", answer.error)
        words = split_words(answer.prediction)
        if not words:
            return Rejection("empty", "the answer has no word")
        if answer.finish_reason != "stop":
            return Rejection("cut", f"no stop token within {answer.num_tokens} tokens")
        if len(words) < self.min_words:
            return Rejection("short", f"{len(words)} words, fewer than {self.min_words}")
        if len(words) > self.max_words:
            return Rejection("long", f"{len(words)} words, more than {self.max_words}")
        repeated = repeated_share(words)
        if repeated > self.max_repeated:
            return Rejection("repeats", f"{repeated:.0%} of its word sequences are repeated")
        overlap, text = max(((word_overlap(words, split_words(text)), text) for text in known_texts), default=(0.0, ""))
        if overlap > self.max_transcript:
            return Rejection("transcript", f"{overlap:.0%} of its words are those of {text[:100]!r}")
        return None


def sort_answers(
    answers: Sequence[Prediction], rules: AnswerRules, known_texts: Callable[[Prediction], Iterable[str]]
) -> tuple[list[Prediction], list[tuple[Prediction, Rejection]]]:
    """Returns the answers to keep, and the others with the rule that each breaks, in their order.

    Args:
      answers: answers of a model.
      rules: rules for answers.
      known_texts: returns the texts that an answer must not repeat.
    """
    kept, rejected = [], []
    for answer in answers:
        rejection = rules.find_rejection(answer, known_texts(answer))
        if rejection is None:
            kept.append(answer)
        else:
            rejected.append((answer, rejection))
    return kept, rejected


def split_words(text: str) -> list[str]:
    """Returns the words of a text after the normaliser "plain"; each character in Chinese and Japanese."""
    return _WORD.findall(normalize_plain(text))


def repeated_share(words: Sequence[str]) -> float:
    """Returns the share of the sequences of `NGRAM` words that occurred before; 0 for a text without a sequence."""
    sequences = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def word_overlap(words: Sequence[str], other: Sequence[str]) -> float:
    """Returns the share of `words` that are in `other`, each counted at most as often as it is there."""
    common = collections.Counter(words) & collections.Counter(other)
    return common.total() / len(words) if words else 0.0
