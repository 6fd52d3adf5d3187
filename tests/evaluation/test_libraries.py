"""Values of metrics through the task files, against the libraries themselves, on random pairs with odd characters."""

from __future__ import annotations

import importlib.util
import random
import shutil

import jiwer
import numpy as np
import pytest

from salmonn_jax.evaluation import metrics, scoring
from salmonn_jax.evaluation.metrics import captions
from salmonn_jax.evaluation.scoring.rows import compute_score
from salmonn_jax.evaluation.text.normalizers import get_normalizer, normalize_plain
from tests.evaluation.answers import make_pairs, make_prediction

WORDS = [
    "the",
    "a",
    "cat",
    "sat",
    "on",
    "mat",
    "dog",
    "ran",
    "quickly",
    "colour",
    "don't",
    "won't",
    "twenty",
    "one",
    "1999",
    "$5",
    "é",
    "naïve",
    "Straße",
    "добрый",
    "день",
    "शुभ",
    "مرحبا",
    "x-ray",
    "\u200bzero",
    "á",
    "😀",
    "ﬁne",
    "İstanbul",
    "o'clock",
    "white",
    "paper",
    "whitepaper",
    "uh",
]
CHINESE = "今天天气很好我们去公园漢語轉換\uff0c。\uff01abc \uff11\uff12"
JAPANESE = "今日は晴れです私の猫がテレビを見る。東京タワーABC"


def random_pairs(seed: int, count: int = 1000, alphabet=WORDS, joiner: str = " ") -> tuple[list[str], list[str]]:
    """Returns references and answers; an answer has random edits of its reference. Some of both are empty."""
    rng = random.Random(seed)
    references, answers = [], []
    for _ in range(count):
        reference = rng.choices(alphabet, k=rng.choice([0, 1, 2, 5, 9, 14]))
        answer = [rng.choice(alphabet) if rng.random() < 0.2 else unit for unit in reference if rng.random() > 0.1]
        answer += rng.choices(alphabet, k=rng.choice([0, 0, 0, 1, 4]))
        references.append(joiner.join(reference))
        answers.append(joiner.join(answer if rng.random() > 0.05 else []))
    return references, answers


def only_row(task: str, references, answers, **fields) -> scoring.Score:
    """Returns the first score of a task that answers some pairs."""
    return scoring.score(make_pairs(task, references, answers, **fields))[0].audio


def words_and_edits(output) -> dict[str, int]:
    edits = {name: getattr(output, name) for name in ("substitutions", "deletions", "insertions")}
    return edits | {"reference_units": output.hits + output.substitutions + output.deletions}


@pytest.mark.parametrize(
    ("task", "normalizer"),
    [
        ("transcribe", "plain"),
        ("asr", "whisper-english-folded"),
        ("asr_de", "whisper-basic-folded"),
        ("phone_recognition", "phones"),
    ],
)
def test_word_and_phone_errors_are_those_of_jiwer(task, normalizer):
    pytest.importorskip("whisper_normalizer")
    references, answers = random_pairs(0)
    normalize = get_normalizer(normalizer)
    # A text without words after normalisation is no reference. "" is one: jiwer counts insertions.
    pairs = [(normalize(r), normalize(a)) for r, a in zip(references, answers, strict=True) if normalize(r) or not r]
    expected = jiwer.process_words(*map(list, zip(*pairs, strict=True)))
    score = only_row(task, references, answers)
    assert score.value == pytest.approx(expected.wer, abs=1e-12)
    assert words_and_edits(expected).items() <= score.details.items()
    assert (score.count, score.unscorable) == (len(pairs), 1000 - len(pairs))
    assert not any(r for r in references) or 0 < references.count("") < 1000


def test_character_errors_are_those_of_jiwer():
    pytest.importorskip("zhconv")
    references, answers = random_pairs(1, alphabet=CHINESE, joiner="")
    normalize = get_normalizer("chinese")
    pairs = [(normalize(r), normalize(a)) for r, a in zip(references, answers, strict=True) if normalize(r) or not r]
    expected = jiwer.process_characters(*map(list, zip(*pairs, strict=True)))
    score = only_row("asr_zh", references, answers)
    assert score.value == pytest.approx(expected.cer, abs=1e-12)
    assert score.details == words_and_edits(expected)


def test_open_asr_errors_are_those_of_kaldialign():
    kaldialign = pytest.importorskip("kaldialign")
    references, answers = random_pairs(2)
    references, answers = [*references, "a white paper", "whitepaper"], [*answers, "a whitepaper", "white paper"]
    normalize = get_normalizer("open-asr")
    pairs = [(normalize(r), normalize(a)) for r, a in zip(references, answers, strict=True) if normalize(r) or not r]
    values = {}
    for merge in (False, True):
        expected = kaldialign.batch_error_rate(
            *([t.split() for t in texts] for texts in zip(*pairs, strict=True)), merge_compounds=merge
        )
        protocol = f"asr-en-open-asr{'-merged' * merge}@1"
        (row,) = scoring.score(make_pairs("asr", references, answers), protocols={"asr": protocol})
        values[merge] = row.audio.value
        assert row.audio.value == pytest.approx(expected["err_rate"], abs=1e-12)
        assert row.protocol == f"salmonn_jax/{protocol}"
    assert values[True] < values[False]
    joined = make_pairs("asr", ["a white paper", "whitepaper"], ["a whitepaper", "white paper"])
    (row,) = scoring.score(joined, protocols={"asr": "asr-en-open-asr-merged@1"})
    assert row.audio.value == 0.0


@pytest.mark.parametrize(
    ("task", "tokenizer", "alphabet", "joiner"),
    [
        ("translation_en2de", "13a", WORDS, " "),
        ("translation_ec", "zh", CHINESE, ""),
        ("translation_ec", "char", CHINESE, ""),
        ("translation_en2ja", "ja-mecab", JAPANESE, ""),
        ("translation_en2ja", "char", JAPANESE, ""),
    ],
)
def test_bleu_is_that_of_sacrebleu(task, tokenizer, alphabet, joiner):
    sacrebleu = pytest.importorskip("sacrebleu")
    if tokenizer == "ja-mecab":
        pytest.importorskip("MeCab")
    references, answers = random_pairs(3, alphabet=alphabet, joiner=joiner)
    kept = [(r, a) for r, a in zip(references, answers, strict=True) if r.strip()]
    bleu = sacrebleu.BLEU(tokenize=tokenizer)
    expected = bleu.corpus_score([a for _, a in kept], [[r for r, _ in kept]])
    rows = scoring.score(make_pairs(task, references, answers))
    score = next(row for row in rows if row.metric == ("bleu_char" if tokenizer == "char" else "bleu")).audio
    assert score.value == pytest.approx(expected.score, abs=1e-9)
    assert score.details["signature"] == str(bleu.get_signature())
    assert f"tok:{tokenizer}" in score.details["signature"]
    assert score.low < score.value < score.high
    assert (score.count, score.unscorable) == (len(kept), 1000 - len(kept))


def test_bleu_with_several_references_is_that_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    first, answers = random_pairs(4, 200)
    second, _ = random_pairs(5, 200)
    references = [[r for r in pair if r] for pair in zip(first, second, strict=True)]
    kept = [(r, a) for r, a in zip(references, answers, strict=True) if r]
    streams = [[(*r, None)[k] for r, _ in kept] for k in range(2)]
    expected = sacrebleu.corpus_bleu([a for _, a in kept], streams).score
    predictions = [
        make_prediction("x", r or [""], a, id=str(i)) for i, (r, a) in enumerate(zip(references, answers, strict=True))
    ]
    assert compute_score(metrics.bleu("13a"), predictions).value == pytest.approx(expected, abs=1e-9)


def test_the_language_chooses_the_tokenizer_of_the_generic_metric():
    pytest.importorskip("MeCab")
    for language, tokenizer in {"zh": "zh", "ja": "ja-mecab", "de": "13a", "": "13a", "zh-CN": "zh"}.items():
        score = only_row("x", ["今日は晴れです"], ["今日は晴れです"], metric="bleu", language=language)
        assert f"tok:{tokenizer}" in score.details["signature"]
    mixed = [make_prediction("x", "a", "a", id=code, metric="bleu", language=code) for code in ("zh", "de")]
    assert "need different tokenizers" in scoring.score(mixed)[0].audio.notes[0]


def test_rouge_is_that_of_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    references, answers = random_pairs(6)
    kept = [(r, a) for r, a in zip(references, answers, strict=True) if any(c.isascii() and c.isalnum() for c in r)]
    expected = np.mean([scorer.score(r, a)["rougeL"].fmeasure for r, a in kept])
    rows = scoring.score(make_pairs("music_description", references, answers))
    assert rows[1].metric == "rouge_l"
    assert rows[1].audio.value == pytest.approx(expected, abs=1e-12)
    assert rows[1].audio.count == len(kept)


def test_permutation_invariant_errors_are_the_minimum_over_orders():
    references, answers = random_pairs(7, 400)
    pairs = [
        (f"{references[i]}\n{references[i + 1]}", f"{answers[i + 1]}\n{answers[i]}")
        for i in range(0, 400, 2)
        if normalize_plain(references[i]) and normalize_plain(references[i + 1])
    ]
    edits, words = 0, 0
    for reference, answer in pairs:
        streams = [normalize_plain(text) for text in reference.split("\n")]
        hypotheses = [normalize_plain(text) for text in answer.split("\n")]
        outputs = [jiwer.process_words(streams, order) for order in (hypotheses, hypotheses[::-1])]
        edits += min(o.substitutions + o.deletions + o.insertions for o in outputs)
        words += sum(len(stream.split()) for stream in streams)
    predictions = make_pairs("speech_separation", *zip(*pairs, strict=True))
    (row,) = scoring.score(predictions, protocols={"speech_separation": "overlapped-plain@1"})
    assert row.audio.value == pytest.approx(edits / words, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Speaker 1: hello you\nSpeaker 2: good day", 0.0),
        ("Speaker 2: hello you\nSpeaker 1: good day", 0.0),
        ("Speaker A: hello Speaker B: good day Speaker A: you", 0.0),
        ("hello you good day", 4 / 4),  # one stream for two speakers: two words inserted, two deleted
        ("", 1.0),
        ("[spk-1] hello [spk_2] good day [SPK1] you", 0.0),
        ("Speaker 1: hello you\nSpeaker 2: the speaker was loud good day", 4 / 4),
    ],
)
def test_conversations_are_compared_by_speaker(answer, expected):
    reference = "Speaker 1: hello Speaker 2: good day Speaker 1: you"
    protocols = {"speaker_diarization_asr": "conversation-plain@1"}
    (row,) = scoring.score([make_prediction("speaker_diarization_asr", reference, answer)], protocols=protocols)
    assert row.audio.value == pytest.approx(expected)


def has_caption_tools() -> bool:
    return importlib.util.find_spec("pycocoevalcap") is not None and shutil.which("java") is not None


needs_caption_tools = pytest.mark.skipif(not has_caption_tools(), reason="needs pycocoevalcap and Java")


def caption_pairs(count: int) -> list[tuple[list[str], str]]:
    """Returns references and captions of ASCII words; references of two kinds, some of them missing."""
    words = [word for word in WORDS if word.isascii()]
    first, answers = random_pairs(8, count, words)
    second, _ = random_pairs(9, count, words)
    references = [[f"{text}." for text in pair if text] for pair in zip(first, second, strict=True)]
    return [(r, a) for r, a in zip(references, answers, strict=True) if r]


def tokenize(pairs) -> list[dict[int, list[str]]]:
    """Returns the tokenised references and captions, by pycocoevalcap's own tokenizer."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    columns = [references for references, _ in pairs], [[caption] for _, caption in pairs]
    captions_of = [{i: [{"caption": t} for t in texts] for i, texts in enumerate(column)} for column in columns]
    return list(map(PTBTokenizer().tokenize, captions_of))


@needs_caption_tools
def test_cider_is_that_of_pycocoevalcap(capfd):
    from pycocoevalcap.cider.cider import Cider

    pairs = caption_pairs(1000)
    score = compute_score(metrics.cider(), make_pairs("audiocaption", *zip(*pairs, strict=True)))
    assert capfd.readouterr() == ("", "")
    assert score.value == pytest.approx(Cider().compute_score(*tokenize(pairs))[0], abs=1e-9)
    assert score.low < score.value < score.high


@pytest.mark.slow
@needs_caption_tools
def test_meteor_is_that_of_pycocoevalcap(capfd):
    from pycocoevalcap.meteor.meteor import Meteor

    pairs = caption_pairs(100)
    score = compute_score(metrics.meteor(), make_pairs("audiocaption", *zip(*pairs, strict=True)))
    assert capfd.readouterr() == ("", "")
    assert score.value == pytest.approx(Meteor().compute_score(*tokenize(pairs))[0], abs=1e-9)
    assert score.low is None and "no interval" in score.notes[0]


def test_caption_metrics_without_java_are_not_computed(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(captions.shutil, "which", lambda name: None)
    rows = scoring.score([make_prediction("audiocaption", "a dog barks", "a dog")])
    by_metric = {row.metric: row.audio for row in rows}
    for metric in ("meteor", "cider", "spice", "spider"):
        assert by_metric[metric].value is None
        assert by_metric[metric].notes == ("not computed: needs the program java; install a Java runtime",)
    assert by_metric["rouge_l"].value > 0
    assert "audiocaption  meteor   test   0      not computed " in scoring.format_table(rows)


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics", None)
    from salmonn_jax.evaluation.metrics import overlap

    overlap._bleu.cache_clear()
    (row, _) = scoring.score([make_prediction("translation_ec", "a", "a")])
    assert row.audio.value is None
    assert "pip install 'salmonn-jax[score]'" in row.audio.notes[0]
    overlap._bleu.cache_clear()
