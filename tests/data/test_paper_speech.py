"""Tests of the readers of the paper's speech corpora, each with a few files in the layout of the distribution."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.examples import BadExample
from data_pipelines.sources.audio import AudioRules, read_clip
from data_pipelines.sources.manifest import to_example
from data_pipelines.sources.manifest_entry import GAP_SAMPLES, AudioSpan, ManifestEntry
from salmonn_jax.errors import UserError
from tests.data.paper_files import audio_entry, read, speech_entry, write, write_tone

# TextGrid file as written by the Montreal Forced Aligner, with a tier of words and a tier of phones.
GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0.0
xmax = 1.0
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        intervals [1]:
            xmin = 0.0
            xmax = 1.0
            text = "go"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        intervals [1]:
            xmin = 0.0
            xmax = 0.3
            text = "sil"
        intervals [2]:
            xmin = 0.3
            xmax = 0.6
            text = "G"
        intervals [3]:
            xmin = 0.6
            xmax = 1.0
            text = "OW1"
"""


@pytest.fixture
def librispeech(tmp_path):
    """Returns a LibriSpeech folder with four training utterances, one test utterance and two alignments."""
    write(
        tmp_path,
        "SPEAKERS.TXT",
        ";ID  |SEX| SUBSET           |MINUTES| NAME\n"
        "103  | F | train-clean-100  | 20.27 | Karen Savage\n"
        "1034 | M | train-clean-100  | 25.1  | A | B\n",
    )
    for subset in ("train-clean-360", "train-other-500"):
        (tmp_path / subset).mkdir()
    chapter = "train-clean-100/103/1240/103-1240"
    write(tmp_path, f"{chapter}.trans.txt", "103-1240-0000 GO ON\n103-1240-0001 MISSUS LYNDE'S HOUSE\n")
    write(tmp_path, "train-clean-100/1034/1/1034-1.trans.txt", "1034-1-0000 YES\n")
    write(tmp_path, "train-clean-100/999/1/999-1.trans.txt", "999-1-0000 WHO\n")
    write(tmp_path, "test-clean/61/1/61-1.trans.txt", "61-1-0000 HELD OUT\n")
    write(tmp_path, f"{chapter}-0000.TextGrid", GRID)
    write(tmp_path, f"{chapter}-0001.TextGrid", GRID.replace('"G"', '"spn"'))
    return tmp_path


def test_librispeech(librispeech):
    chapter = "train-clean-100/103/1240/103-1240"
    assert read("librispeech", librispeech) == [
        speech_entry("103-1240-0000", f"{chapter}-0000.flac", "Go on"),
        speech_entry("103-1240-0001", f"{chapter}-0001.flac", "Missus lynde's house"),
        speech_entry("1034-1-0000", "train-clean-100/1034/1/1034-1-0000.flac", "Yes"),
        speech_entry("999-1-0000", "train-clean-100/999/1/999-1-0000.flac", "Who"),
    ]
    held_out = speech_entry("61-1-0000", "test-clean/61/1/61-1-0000.flac", "Held out")
    assert read("librispeech", librispeech, "test_clean") == [held_out]


def test_librispeech_gender(librispeech):
    """Checks that an utterance of an unknown speaker is rejected and the other utterances are read."""
    chapter, task = "train-clean-100/103/1240/103-1240", "gender_recognition"
    *known, unknown = read("librispeech_gender", librispeech)
    assert known == [
        speech_entry("103-1240-0000", f"{chapter}-0000.flac", "Go on", "Female", task),
        speech_entry("103-1240-0001", f"{chapter}-0001.flac", "Missus lynde's house", "Female", task),
        speech_entry("1034-1-0000", "train-clean-100/1034/1/1034-1-0000.flac", "Yes", "Male", task),
    ]
    assert isinstance(unknown, BadExample) and unknown.reason == "invalid" and "999-1-0000" in str(unknown)


def test_librispeech_phones(librispeech):
    """Checks that utterances without an alignment or with an unknown word are skipped."""
    with pytest.raises(UserError, match=r"train-clean-360 has no \.TextGrid files; .*librispeech-alignments"):
        read("librispeech_phones", librispeech)
    for subset in ("train-clean-360", "train-other-500"):
        write(librispeech, f"{subset}/1/2/1-2-0000.TextGrid", GRID)
    path = "train-clean-100/103/1240/103-1240-0000.flac"
    phones = speech_entry("103-1240-0000", path, "Go on", "G OW1", "phone_recognition")
    assert read("librispeech_phones", librispeech) == [phones]


def test_gigaspeech(tmp_path):
    def segment(sid, begin, end, text, *subsets):
        return {"sid": sid, "begin_time": begin, "end_time": end, "text_tn": text, "subsets": list(subsets)}

    path = "audio/podcast/P0000/POD1.flac"
    segments = [
        segment("POD1_S1", 0.5, 1.25, "IT'S <COMMA> WELL <COMMA> HERE <PERIOD>", "{XL}", "{M}"),
        segment("POD1_S2", 1.25, 2.0, "ONLY IN XL", "{XL}"),
        segment("POD1_S3", 2.0, 2.5, "<MUSIC>", "{M}"),
        {"sid": "POD1_S4", "subsets": ["{M}"]},
        segment("POD1_S5", 2.5, 3, "BYE <EXCLAMATIONPOINT>", "{M}"),
        segment("POD1_S6", 0, 1, "TESTED", "{TEST}"),
    ]
    write(tmp_path, "GigaSpeech.json", {"version": "v1", "audios": [{"path": path, "segments": segments}]})
    first, wrong, last = read("gigaspeech", tmp_path)
    assert first == ManifestEntry(
        id="POD1_S1", audio=(AudioSpan(path, 0.5, 1.25),), answer="It's well here", transcript="It's well here"
    )
    assert isinstance(wrong, BadExample)
    assert last == ManifestEntry(id="POD1_S5", audio=(AudioSpan(path, 2.5, 3.0),), answer="Bye", transcript="Bye")
    assert [entry.id for entry in read("gigaspeech", tmp_path, "test")] == ["POD1_S6"]

    samples = write_tone(tmp_path, path, 3.0)
    clip = read_clip([span._replace(path=str(tmp_path / span.path)) for span in first.audio], AudioRules())
    example = to_example(first, "gigaspeech", clip)
    assert np.array_equal(example.audio[:12_000], samples[8_000:20_000]) and not example.audio[12_000:].any()
    assert (example.answer, example.task, example.source) == ("It's well here", "asr", "gigaspeech")


def test_covost2(tmp_path):
    """Checks that quotes in the tab-separated files are kept as text."""
    translations = "path\ttranslation\tsplit\nb.mp3\t他说“再见”。\ttrain_covost\na.mp3\t你好\ttrain\nc.mp3\t不\ttest\n"
    write(tmp_path, "covost_v2.en_zh-CN.tsv", translations)
    sentences = (
        'client_id\tpath\tsentence\n1\ta.mp3\tHello\n2\tb.mp3\t"Bye," he said.\n3\tc.mp3\tNo\n4\td.mp3\tUnused\n'
    )
    write(tmp_path, "validated.tsv", sentences)
    assert read("covost2", tmp_path) == [
        speech_entry("a.mp3", "clips/a.mp3", "Hello", "你好", "translation_ec"),
        speech_entry("b.mp3", "clips/b.mp3", '"Bye," he said.', "他说“再见”。", "translation_ec"),
    ]
    assert [entry.id for entry in read("covost2", tmp_path, "test")] == ["c.mp3"]


def test_iemocap(tmp_path):
    for session in range(1, 6):
        name = f"Ses0{session}F_impro01"
        turns = [("F000", "neu"), ("F001", "fru"), ("M000", "exc"), ("M001", "xxx")]
        lines = [
            f"[{i}.2901 - {i}.9]\t{name}_{turn}\t{emotion}\t[2.5, 2.5, 2.5]\nC-E2:\tSadness;\t()\n"
            for i, (turn, emotion) in enumerate(turns)
        ]
        head = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        write(tmp_path, f"Session{session}/dialog/EmoEvaluation/{name}.txt", head + "\n".join(lines))
        write(tmp_path, f"Session{session}/dialog/EmoEvaluation/._{name}.txt", "resource fork of macOS")
    name = "Ses05F_impro01"
    assert read("iemocap", tmp_path, "test") == [
        audio_entry(f"{name}_F000", f"Session5/sentences/wav/{name}/{name}_F000.wav", "Neutral", "emotion_recognition"),
        audio_entry(f"{name}_M000", f"Session5/sentences/wav/{name}/{name}_M000.wav", "Happy", "emotion_recognition"),
    ]
    assert [entry.id[:5] for entry in read("iemocap", tmp_path)] == [f"Ses0{s}" for s in (1, 1, 2, 2, 3, 3, 4, 4)]


def test_librimix(tmp_path):
    write(tmp_path, "LibriSpeech/test-clean/61/1/61-1.trans.txt", "61-1-0000 ONE VOICE\n61-1-0001 NOBODY\n")
    write(tmp_path, "LibriSpeech/test-clean/84/2/84-2.trans.txt", "84-2-0007 THE OTHER\n")
    table = "mixture_ID,mixture_path,source_1_path,source_2_path,length\n"
    names = ["61-1-0000_84-2-0007", "61-1-0000_7-7-0000"]
    rows = "".join(f"{name},/made/elsewhere/{name}.wav,/x/s1,/x/s2,99\n" for name in names)
    write(tmp_path, "Libri2Mix/wav16k/max/metadata/mixture_test_mix_clean.csv", table + rows)
    mixture, unknown = read("librimix", tmp_path, "test")
    path = f"Libri2Mix/wav16k/max/test/mix_clean/{names[0]}.wav"
    assert mixture == audio_entry(names[0], path, "One voice\nThe other", "speech_separation")
    assert isinstance(unknown, BadExample) and "7-7-0000" in str(unknown)


def paths(entries):
    """Returns [speaker, video, file] of each audio span of each entry."""
    return [[span.path.split("/")[2:] for span in entry.audio] for entry in entries]


def test_voxceleb1_pairs(tmp_path):
    """Checks the generated pairs.

    Pairs of one speaker and of two speakers are equally frequent. A pair of one speaker uses two videos if there are
    two. No utterance is paired with itself.
    """
    utterances = [f"id1/{video}/0000{i}.wav" for video in "abc" for i in (1, 2)]
    utterances += ["id2/a/00001.wav", "id2/a/00002.wav", "id3/a/00001.wav"]
    for name in utterances:
        write(tmp_path, f"dev/wav/{name}", "")
    entries = read("voxceleb1", tmp_path)
    same, other = entries[::2], entries[1::2]
    assert {entry.answer for entry in same} == {"Yes"} and {entry.answer for entry in other} == {"No"}
    assert {entry.task for entry in entries} == {"speaker_verification"}
    assert len({entry.id for entry in entries}) == len(entries)
    firsts = [name.split("/") for name in utterances[:-1]]  # the third speaker has only one utterance
    assert [first for first, _ in paths(same)] == [first for first, _ in paths(other)] == firsts
    for first, second in paths(same):
        assert first[0] == second[0] and first != second and (first[0] == "id2" or first[1] != second[1])
    assert all(first[0] != second[0] for first, second in paths(other))


def test_voxceleb1_trials_are_concatenated(tmp_path):
    write(tmp_path, "veri_test.txt", "1 id9/a/1.wav id9/b/1.wav\n0 id9/a/1.wav id8/a/1.wav\nodd\n")
    same, other, wrong = read("voxceleb1", tmp_path, "test")
    first, second = "test/wav/id9/a/1.wav", "test/wav/id9/b/1.wav"
    spans = (AudioSpan(first), AudioSpan(second))
    assert same == ManifestEntry(id=f"{first}+{second}", audio=spans, answer="Yes", task="speaker_verification")
    assert other.answer == "No" and isinstance(wrong, BadExample)

    clips = write_tone(tmp_path, first, 1.0), write_tone(tmp_path, second, 0.5, hertz=880.0)
    joined = read_clip([span._replace(path=str(tmp_path / span.path)) for span in same.audio], AudioRules())
    assert np.array_equal(joined, np.concatenate([clips[0], np.zeros(GAP_SAMPLES, np.int16), clips[1]]))
