"""Tests of text normalisers: the project's own, and those of Whisper and the Open ASR leaderboard."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import random
import re
import string

import pytest

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation.text.normalizers import get_normalizer, is_exact_match, normalize_plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,\tWORLD!\n", "hello world"),
        ("Don't; don\N{RIGHT SINGLE QUOTATION MARK}t", "dont dont"),
        *((f"don{apostrophe}t", "dont") for apostrophe in "'`\u00b4\u2018\u2019\u201b\u02bc\u02bb\u2032\uff07\uff40"),
        ("\u0149", "n"),  # NFKC makes an apostrophe and a letter of it
        ("twenty-one", "twenty one"),
        ("6/8", "6 8"),
        ("$5 + 5°", "5 5"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}\N{LATIN SMALL LIGATURE FI}", "afi"),
        ("e\N{COMBINING ACUTE ACCENT}", "\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("«Добрый ДЕНЬ»", "добрый день"),
        ("ΟΔΟΣ", "οδος"),
        # The vowel signs of Devanagari are marks, not letters, and belong to the word.
        ("हिन्दी।", "हिन्दी"),
        ("مرحبا، كيف؟", "مرحبا كيف"),
        ("你好。世界。", "你好 世界"),
        ("soft\N{SOFT HYPHEN}ware\N{ZERO WIDTH NO-BREAK SPACE}", "software"),
        ("a\x00b", "a b"),
        ("...", ""),
    ],
)
def test_plain_normaliser(text, expected):
    assert normalize_plain(text) == expected
    assert normalize_plain(expected) == expected


def test_exact_match_compares_normalised_texts():
    assert is_exact_match("Church organ", "church  organ.")
    assert not is_exact_match("organ", "organs")


# The strings of openai/whisper, tests/test_normalizer.py, for the whole English normaliser.
WHISPER_VECTORS = {
    "two": "2",
    "thirty one": "31",
    "five twenty four": "524",
    "nineteen ninety nine": "1999",
    "twenty nineteen": "2019",
    "two point five million": "2500000",
    "four point two billions": "4200000000s",
    "200 thousand": "200000",
    "200 thousand dollars": "$200000",
    "$20 million": "$20000000",
    "€52.4 million": "€52400000",
    "£77 thousands": "£77000s",
    "two double o eight": "2008",
    "three thousand twenty nine": "3029",
    "forty three thousand two hundred sixty": "43260",
    "forty three thousand two hundred and sixty": "43260",
    "nineteen fifties": "1950s",
    "thirty first": "31st",
    "thirty three thousand and three hundred and thirty third": "33333rd",
    "three billion": "3000000000",
    "millions": "1000000s",
    "july third twenty twenty": "july 3rd 2020",
    "august twenty sixth twenty twenty one": "august 26th 2021",
    "3 14": "3 14",
    "3.14": "3.14",
    "3 point 2": "3.2",
    "3 point 14": "3.14",
    "fourteen point 4": "14.4",
    "two point two five dollars": "$2.25",
    "two hundred million dollars": "$200000000",
    "$20.1 million": "$20100000",
    "ninety percent": "90%",
    "seventy six per cent": "76%",
    "double oh seven": "007",
    "double zero seven": "007",
    "nine one one": "911",
    "nine double one": "911",
    "one triple oh one": "10001",
    "two thousandth": "2000th",
    "thirty two thousandth": "32000th",
    "minus 500": "-500",
    "positive twenty thousand": "+20000",
    "two dollars and seventy cents": "$2.70",
    "3 cents": "¢3",
    "$0.36": "¢36",
    "three euros and sixty five cents": "€3.65",
    "three and a half million": "3500000",
    "forty eight and a half dollars": "$48.5",
    "b747": "b 747",
    "10 th": "10th",
    "10th": "10th",
    "mobilisation": "mobilization",
    "cancelation": "cancellation",
    "Let's": "let us",
    "he's like": "he is like",
    "she's been like": "she has been like",
    "10km": "10 km",
    "10mm": "10 mm",
    "RC232": "rc 232",
    "Mr. Park visited Assoc. Prof. Kim Jr.": "mister park visited associate professor kim junior",
}
# Strings on which the package whisper-normalizer differs from Whisper.
NOT_IN_WHISPER = {"the cause": "the cause", "kinda sorta": "kinda sorta", "I dunno": "i dunno"}


@pytest.mark.parametrize("name", ["whisper-english", "whisper-english-folded"])
def test_whispers_own_test_strings(name):
    pytest.importorskip("whisper_normalizer")
    normalize = get_normalizer(name)
    vectors = WHISPER_VECTORS | NOT_IN_WHISPER
    assert {text: normalize(text) for text in vectors} == vectors


def random_texts(count: int) -> list[str]:
    """Returns texts of words with rules of their own, and of random characters."""
    rng = random.Random(0)
    special = """won't can't ain't y'all gonna cause 'cause he'd been she's got it's john's (laugh) [noise] <x>
        don\u2019t café Straße naïve uh um hmm mhm huh al right wi-fi e-mail o.k. colour organise travelling % ¢5 $0.36
        1,000 2.50 x y 5 g st dr gen th 日本語 добрый \u200b \u00ad ½ ① \ufb01 ' \u2032"""
    words = [*" ".join(WHISPER_VECTORS).split(), *re.split(r"[ \n]+", special)]
    texts = [" ".join(rng.choices(words, k=rng.randrange(12))) for _ in range(count * 4 // 5)]
    characters = string.printable + "éüß¢€£\u2019\u00a0\u3000\u0301"
    return texts + ["".join(rng.choices(characters, k=rng.randrange(30))) for _ in range(count // 5)]


def test_whisper_normalisers_equal_those_of_transformers_with_openais_table():
    pytest.importorskip("whisper_normalizer")
    theirs = pytest.importorskip("transformers.models.whisper.english_normalizer")
    whisper = importlib.util.find_spec("whisper")
    if whisper is None:
        pytest.skip("openai-whisper is not installed")
    table = pathlib.Path(whisper.origin).parent / "normalizers" / "english.json"
    pairs = {
        "whisper-english": theirs.EnglishTextNormalizer(json.loads(table.read_text("utf-8"))),
        "whisper-basic": theirs.BasicTextNormalizer(),
    }
    texts = random_texts(6000)
    for name, expected in pairs.items():
        normalize = get_normalizer(name)
        assert [normalize(text) for text in texts] == [" ".join(expected(text).split()) for text in texts]


# Outputs of the leaderboard's normalizer/normalizer.py (huggingface/open_asr_leaderboard, commit d1e99b2). The first
# ones are the examples of its docstrings.
OPEN_ASR_VECTORS = {
    "b b c": "bbc",
    "5 g": "5g",
    "a big cat": "a big cat",
    "The Wi-Fi is all right, O.K.?": "the wifi is alright okay",
    "E-mail me at 5 p m, et cetera": "email me at 5 pm etc",
    "Huh, uh, ahm, I do n't know": "i do not know",
    "John's dog says it's fine": "john s dog says it is fine",
    "Kathy and Jon met Mohammed Macdonald": "cathy and john met mohammed mcdonald",
    "the U. S. A. and a I": "the usa and a i",
    "I saw a b c": "i saw abc",
    "The archaeology of travelogues": "the archeology of travelogs",
    "kay, how ever you like": "okay however you like",
    "a T-shirt for $20 million": "a tshirt for $20000000",
    "there's Sara's [noise] flyer (laughs)": "there is sarah s flier",
    "mm-hmm mm": "",
    "cancelled cancellation at twenty one percent": "canceled cancelation at 21%",
    "don't we'll they've": "do not we will they have",
    "h t t p s 2": "https2",
    "a i r": "air",
    "X-ray sci fi hi fi": "xray scifi hifi",
}


def test_open_asr_vectors():
    pytest.importorskip("whisper_normalizer")
    normalize = get_normalizer("open-asr")
    assert {text: normalize(text) for text in OPEN_ASR_VECTORS} == OPEN_ASR_VECTORS


def test_the_folded_normaliser_treats_every_apostrophe_alike():
    pytest.importorskip("whisper_normalizer")
    folded, exact = get_normalizer("whisper-english-folded"), get_normalizer("whisper-english")
    for apostrophe in "'`\u00b4\u2018\u2019\u2032":
        assert folded(f"I don{apostrophe}t") == "i do not"
    assert exact("I don\u2019t") == "i don t"


def test_chinese_normaliser():
    pytest.importorskip("zhconv")
    assert get_normalizer("chinese")("漢語\uff0c\uff21\uff22 轉換。 \uff11\uff12") == "汉语ab转换12"


def test_phones():
    assert get_normalizer("phones")("hh  AH0 l\nOW1 2") == "HH AH L OW 2"


def test_unknown_normaliser():
    with pytest.raises(UserError, match="unknown normaliser 'whisper'"):
        get_normalizer("whisper")
