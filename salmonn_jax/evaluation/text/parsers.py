"""Parsers of closed answers. They are deterministic: an answer that names no option, or several, is unparseable.

A metric counts an unparseable answer as wrong and reports how many there are. No parser guesses or drops one.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence

from salmonn_jax.evaluation.text.normalizers import normalize_plain

# Names of the rules, recorded in the scores. A change of the rules changes the number.
CHOICE_RULES, YES_NO_RULES, LABEL_RULES, KEYWORD_RULES = "choice@1", "yes-no@1", "labels@1", "keywords@1"

_LETTER = r"[A-Za-z]"
_WHOLE = re.compile(rf"\W*({_LETTER})\W*")
_LEADING = re.compile(rf"\W*(?:\(({_LETTER})\)|\[({_LETTER})\]|({_LETTER})[).:\]])(?:\s|$)")
_CUED = re.compile(
    rf"\b(?:answer|option|choice)\b(?:\s+is\b|\s*:)?[\s:*\"'(\[]*"
    rf"(?:({_LETTER})(?=\W*$|[).:,;\]*\"'])|([B-HJ-Z])\b)",
    re.IGNORECASE,
)
_BRACKETED = re.compile(rf"[(\[]({_LETTER})[)\]]")
_CAPITAL = re.compile(r"(?<![\w'])([B-HJ-Z])(?![\w'])")  # "A" and "I" are words
_PAIR = re.compile(r"(?<!\w)([A-Z])\s*(?:,|/|or|and)\s*([A-Z])(?!\w)")
_NEGATION = re.compile(r"\b(?:not|isnt|arent|wasnt|nicht|kein|keine)(?: (?:a|an|the|very|really|at all))? $")
_YES, _NO = ("yes", "yeah", "yep"), ("no", "nope")


def parse_choice(answer: str, choices: Sequence[str]) -> int | None:
    """Returns the index of the choice that an answer names; the rules are `CHOICE_RULES`.

    An answer names a choice by its letter ("B", "(b)", "B. Woman", "The answer is B") or by its text as whole words
    ("The speaker is a woman"). "A" and "I" inside a sentence are words, not letters. A choice whose only occurrences
    lie inside the text of a longer choice is not named.

    Args:
      answer: answer of the model.
      choices: texts of the choices, of which the first has the letter A.

    Returns:
      The index, or None if the answer names no choice or several.
    """
    text = normalize_plain(answer)
    equal = [index for index, choice in enumerate(choices) if text and normalize_plain(choice) == text]
    if len(equal) == 1:
        return equal[0]
    named = _letters(answer.strip(), len(choices)) | set(_named(text, [(choice,) for choice in choices]))
    return named.pop() if len(named) == 1 else None


def parse_yes_no(answer: str) -> bool | None:
    """Returns the verdict of a yes/no answer; the rules are `YES_NO_RULES`.

    The first word decides if it is "yes" or "no". Otherwise the answer must contain one of the two words and not the
    other. None: unparseable.
    """
    words = normalize_plain(answer).split()
    if words and words[0] in _YES + _NO:
        return words[0] in _YES
    verdicts = {word in _YES for word in words if word in _YES + _NO}
    return verdicts.pop() if len(verdicts) == 1 else None


def parse_label(answer: str, labels: Mapping[str, Sequence[str]]) -> str | None:
    """Returns the label that an answer names; the rules are `LABEL_RULES`.

    Args:
      answer: answer of the model.
      labels: label -> its synonyms. The label itself is one of its synonyms. Case and punctuation do not matter.

    Returns:
      The label whose synonym the answer contains as whole words, not after "not"; None if there is none, or several.
    """
    named = _named(normalize_plain(answer), [(label, *synonyms) for label, synonyms in labels.items()])
    return list(labels)[named[0]] if len(named) == 1 else None


def parse_keywords(answer: str) -> list[str]:
    """Returns the keywords of an answer in their order, normalised and without repeats; the rules are `KEYWORD_RULES`.

    Commas, semicolons, line breaks, bullets and numbers such as "1." separate keywords. Without any of them, every word
    is a keyword, except "and". A text before a colon is not a keyword.
    """
    answer = re.sub(r"^[^,;\n]*:", "", answer.strip())
    parts = re.split(r"[,;\n•\u3001\uff0c\uff1b]|(?<!\S)\d+[.)]\s|(?<!\S)[-*]\s", answer)
    keywords = [re.sub(r"^and ", "", normalize_plain(part)) for part in parts if normalize_plain(part)]
    if len(keywords) == 1:
        keywords = [word for word in keywords[0].split() if word != "and"]
    return list(dict.fromkeys(keywords))


def _letters(answer: str, num_choices: int) -> set[int]:
    """Returns the indices of the choices that an answer names by their letters."""
    whole = _WHOLE.fullmatch(answer)
    found: Iterable[re.Match[str]] = [whole] if whole else []
    if not whole:
        found = [m for m in (_LEADING.match(answer), *_CUED.finditer(answer)) if m]
        found += [*_BRACKETED.finditer(answer), *_CAPITAL.finditer(answer)]
        found += _PAIR.finditer(answer)
    letters = [letter for match in found for letter in match.groups() if letter]
    indices = {string.ascii_uppercase.index(letter.upper()) for letter in letters}
    return {index for index in indices if index < num_choices}


def _named(text: str, names: Sequence[Sequence[str]]) -> list[int]:
    """Returns the indices of the groups of names of which one occurs in a normalised text as whole words.

    Occurrences inside a longer occurrence of another group and those after "not" do not count.
    """
    spans = [
        (match.start(), match.end(), index)
        for index, group in enumerate(names)
        for name in dict.fromkeys(map(normalize_plain, group))
        if name
        for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)
    ]
    outer = [
        (start, index)
        for start, end, index in spans
        if not any(s <= start and end <= e and (s, e) != (start, end) and i != index for s, e, i in spans)
    ]
    return sorted({index for start, index in outer if not _NEGATION.search(text[:start])})
