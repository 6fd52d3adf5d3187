"""Text normalisers by name. Metrics apply one to references and predictions before they compare them.

The normalisers of Whisper and of the Open ASR leaderboard need the extra `score`. Changing what a normaliser does gives
it a new name: the name is part of a protocol.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from salmonn_jax.errors import import_optional, unknown_name

Normalizer = Callable[[str], str]

# Characters that people and programs write for an apostrophe. NFKC would split some of them into a space and a mark.
APOSTROPHES = (
    "'`\N{ACUTE ACCENT}\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
    "\N{SINGLE HIGH-REVERSED-9 QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}\N{MODIFIER LETTER TURNED COMMA}"
    "\N{PRIME}\N{FULLWIDTH APOSTROPHE}"
)
_WITHOUT_APOSTROPHES = str.maketrans("", "", APOSTROPHES)
_ASCII_APOSTROPHES = str.maketrans(dict.fromkeys(APOSTROPHES, "'"))

# Replacements of the package whisper-normalizer that OpenAI's normaliser does not have.
_NOT_WHISPER = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")

_OPEN_ASR_FILE = pathlib.Path(__file__).with_name("open_asr.json")
_OPEN_ASR_FILLERS = re.compile(r"\b(hmm|mm|mhm|mmm|uh|um|ah|aha|ahh|ahm|eh|ehehe|em|hm|huh|hum|mhum|uhm|umm|uhuh)\b")
_OPEN_ASR_IS = (r"\b(it|he|she|what|that|who|here|there|how|when|where|why|this)'s\b", r"\1 is")
_STRESS = re.compile(r"(?<=[A-Z])[0-2]$")


def get_normalizer(name: str) -> Normalizer:
    """Returns the normaliser with this name.

    Raises:
      UserError: the name is unknown, or the normaliser needs a package that is not installed.
    """
    if name not in _FACTORIES:
        raise unknown_name("normaliser", name, _FACTORIES)
    return _FACTORIES[name]()


def normalizer_names() -> list[str]:
    """Returns the names of all normalisers."""
    return sorted(_FACTORIES)


def normalize_plain(text: str) -> str:
    """Normalises a text of any language for comparison; the normaliser "plain".

    The steps, in this order:

    1. Remove apostrophes, in any of the characters that are written for them: "don't" is one word.
    2. Apply Unicode NFKC, convert to lower case, and remove invisible format characters.
    3. Replace every other punctuation mark, symbol and control character by a space: "twenty-one" is two words.
    4. Collapse runs of white space into one space and strip the ends.

    Letters, marks and digits of every script are kept. Numbers are not spelt out. A sentence in a script without spaces
    counts as one word.
    """
    text = unicodedata.normalize("NFKC", text.translate(_WITHOUT_APOSTROPHES)).lower()
    return " ".join("".join(map(_plain_character, text)).split())


def is_exact_match(reference: str, prediction: str) -> bool:
    """Returns whether two texts are equal after `normalize_plain`."""
    return normalize_plain(reference) == normalize_plain(prediction)


def normalize_phones(text: str) -> str:
    """Normalises a sequence of phones: upper case, white space between phones, ARPAbet stress digits removed."""
    return " ".join(_STRESS.sub("", phone) for phone in text.upper().split())


def _plain_character(character: str) -> str:
    """Returns "", " " or the character itself, as the steps of `normalize_plain` say."""
    category = unicodedata.category(character)
    if character in APOSTROPHES or category == "Cf":
        return ""
    return " " if category[0] in "PS" or category == "Cc" else character


def _collapse_spaces(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def _whisper_english_rules() -> Any:
    """Returns the rules of Whisper's English normaliser (Radford et al. 2022, appendix C), exactly as OpenAI's."""
    rules = import_optional("whisper_normalizer.english", "score").EnglishTextNormalizer()
    for pattern in _NOT_WHISPER:
        rules.replacers.pop(pattern, None)
    return rules


@functools.cache
def _whisper_english() -> Normalizer:
    rules = _whisper_english_rules()
    return lambda text: _collapse_spaces(rules(text))


@functools.cache
def _whisper_basic() -> Normalizer:
    rules = import_optional("whisper_normalizer.basic", "score").BasicTextNormalizer()
    return lambda text: _collapse_spaces(rules(text))


def _folded(factory: Callable[[], Normalizer]) -> Callable[[], Normalizer]:
    """Returns the factory of a normaliser for which all of `APOSTROPHES` are the same character."""

    def make() -> Normalizer:
        normalize = factory()
        return lambda text: normalize(text.translate(_ASCII_APOSTROPHES))

    return make


@functools.cache
def _open_asr() -> Normalizer:
    """Returns the English normaliser of the Open ASR leaderboard as of August 2026 (commit d1e99b2).

    It starts from Whisper's rules. It has more fillers, fewer "'s" that become "is", other spellings, names and
    compounds with one spelling, and joined acronyms. Its tables are in `open_asr.json`.
    """
    english = import_optional("whisper_normalizer.english", "score")
    rules = _whisper_english_rules()
    table = json.loads(_OPEN_ASR_FILE.read_text("utf-8"))
    replacers = dict(_OPEN_ASR_IS if item[0] == r"'s\b" else item for item in rules.replacers.items())
    spellings = {**rules.standardize_spellings.mapping, **table["spellings"]}
    for word in table["removed_spellings"]:
        del spellings[word]

    def normalize(text: str) -> str:
        text = re.sub(r"[<\[][^>\]]*[>\]]|\(([^)]+?)\)", "", text.lower())
        text = re.sub(r"\s+'", "'", _OPEN_ASR_FILLERS.sub("", text))
        for pattern, replacement in replacers.items():
            text = re.sub(pattern, replacement, text)
        text = re.sub(r"\.([^0-9]|$)", r" \1", re.sub(r"(\d),(\d)", r"\1\2", text))
        text = english.remove_symbols_and_diacritics(text, keep=".%$¢€£")
        for pattern, replacement in table["compounds"].items():
            text = re.sub(pattern, replacement, text)
        words = rules.standardize_numbers(text).split()
        words = [spellings.get(word, word) for word in words]
        text = _join_acronyms([table["names"].get(word, word) for word in words])
        text = re.sub(r"([^0-9])%", r"\1 ", re.sub(r"[.$¢€£]([^0-9])", r" \1", text))
        return _collapse_spaces(text)

    return normalize


def _join_acronyms(words: list[str]) -> str:
    """Joins runs of single characters, such as "b b c": two, or three if one of them is the word "a" or "i"."""
    joined: list[str] = []
    run: list[str] = []
    for word in [*words, ""]:
        if len(word) == 1 and word.isalnum():
            run.append(word)
            continue
        is_acronym = len(run) >= (3 if {"a", "i"} & set(run) else 2)
        joined += ["".join(run)] if is_acronym else run
        run = []
        joined += [word] if word else []
    return " ".join(joined)


@functools.cache
def _chinese() -> Normalizer:
    """Returns a normaliser of Chinese: NFKC, lower case, simplified characters, no punctuation and no spaces."""
    zhconv = import_optional("zhconv", "score")

    def normalize(text: str) -> str:
        return normalize_plain(zhconv.convert(unicodedata.normalize("NFKC", text), "zh-cn")).replace(" ", "")

    return normalize


_FACTORIES: dict[str, Callable[[], Normalizer]] = {
    "none": lambda: _collapse_spaces,
    "plain": lambda: normalize_plain,
    "phones": lambda: normalize_phones,
    "whisper-english": _whisper_english,
    "whisper-english-folded": _folded(_whisper_english),
    "whisper-basic": _whisper_basic,
    "whisper-basic-folded": _folded(_whisper_basic),
    "open-asr": _open_asr,
    "chinese": _chinese,
}
