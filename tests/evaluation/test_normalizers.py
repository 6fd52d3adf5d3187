"""Tests of text normalisers: the project's own, and those of Whisper and the Open ASR leaderboard."""

from __future__ import annotations

import pytest

from salmonn_jax.evaluation.text.normalizers import is_exact_match, normalize_plain


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
