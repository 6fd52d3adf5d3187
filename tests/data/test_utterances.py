"""The corpus of utterances, built from small packages of the same layout. No network."""

from __future__ import annotations

import gzip
import pathlib
import pickle

import numpy as np
import pytest
import soundfile

from data_pipelines import minicorpus, utterances
from data_pipelines.corpora import open_corpus
from data_pipelines.utterances.build import MAX_HELD_OUT, make_entries, prepare_utterances
from data_pipelines.utterances.readers import READERS
from data_pipelines.utterances.utterance import answer_text, is_test_group
from salmonn_jax.errors import UserError

HELD_OUT = next(text for text in (f"A bird of kind {chr(97 + i)}." for i in range(26)) if is_test_group(text))
SEEN = next(text for text in (f"A bird of kind {chr(97 + i)}." for i in range(26)) if not is_test_group(text))
SCENES = [f"scene{i}" for i in range(40)]


def write_clip(path: pathlib.Path, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).normal(scale=0.1, size=int(16_000 * seconds))
    format = {"format": "WAV"} if path.suffix == ".g722" else {}
    soundfile.write(path, noise, 16_000, **format)


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> pathlib.Path:
    """Returns a directory with a few files of each package."""
    root = tmp_path_factory.mktemp("packages")
    share = root / "usr" / "share"
    others = [f"word {chr(97 + i)}" for i in range(26)]  # enough prompts for both splits
    for language, texts in {"en": ("Hello there", "You have 3 messages", *others), "es": ("¡Hola, señor!", "")}.items():
        document = share / "doc" / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"
        document.parent.mkdir(parents=True)
        document.write_bytes(gzip.compress("".join(f"key{i}: {t}\n" for i, t in enumerate(texts)).encode()))
        voice = {"en": "en_US_f_Allison", "es": "es_MX_f_Allison"}[language]
        for i in range(len(texts)):
            write_clip(share / "asterisk" / "sounds" / voice / f"key{i}.g722")
    for language in ("fr", "it", "ru"):
        document = share / "doc" / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"
        document.parent.mkdir(parents=True)
        document.write_bytes(gzip.compress(b"; nothing\n"))

    game = share / "games" / "fillets-ng"
    for scene in SCENES:
        script = game / "script" / scene / "dialogs_cs.lua"
        script.parent.mkdir(parents=True)
        lines = [
            f'dialogId("{name}", "font_{font}", "I say \\"{name}\\".")\ndialogStr("Říkám {name}.")\n'
            for name, font in (("aa", "small"), ("bb", "big"), ("cc", "statue"), ("silent", "small"))
        ]
        script.write_text("\n\n".join([*lines, 'dialogId("x", "", "")']), encoding="utf-8")
        for name in ("aa", "bb", "cc"):
            write_clip(game / "sound" / scene / "cs" / f"{name}.ogg", 6.0 if (scene, name) == ("scene0", "aa") else 1.0)

    for i, text in enumerate((SEEN, HELD_OUT)):
        stamp = share / "tuxpaint" / "stamps" / "animals" / f"bird{i}.txt"
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(f"{text}\nca.utf8=Un ocell.\nfr.utf8=Un oiseau.\n")
        for suffix in ("_desc_ca", "_desc_fr", "_desc", "_desc_ru"):
            write_clip(stamp.with_name(f"bird{i}{suffix}.ogg"))
    return root


@pytest.fixture(scope="module")
def data_dir(packages, tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("corpus")
    prepare_utterances(directory, packages, workers=1)
    return directory


def test_texts_and_recordings_are_joined(packages):
    prompts = {item.id: item for item in READERS["telephone"](packages)}
    english, spanish = prompts["en/key0"], prompts["es/key0"]
    assert len(prompts) == 29  # one of the two Spanish prompts has no text
    assert (english.language, english.text, english.english) == ("en", "hello there", "")
    assert (spanish.language, spanish.text, spanish.english) == ("es", "hola señor", "hello there")
    lines = {item.id: item for item in READERS["dialogue"](packages)}
    assert len(lines) == 3 * len(SCENES)  # those with a recording
    small, statue = lines["cs/scene1/aa"], lines["cs/scene1/cc"]
    assert answer_text(small.english) == "i say aa" and answer_text(small.text) == "říkám aa"
    assert small.voice == "fillets-cs-small" and not small.unheard and statue.split == "unheard"


def test_neither_the_voice_nor_the_text_of_an_unheard_caption_is_in_training(packages):
    found = [(item.language, item.english, item.split) for item in READERS["captions"](packages)]
    assert sorted(found) == sorted(
        [("ca", SEEN, "train"), ("ca", HELD_OUT, "test"), ("fr", HELD_OUT, "unheard"), ("en", "", "unheard")]
    )


def test_texts_with_digits_and_long_texts_are_left_out():
    assert answer_text("You have 3 messages") == answer_text("word " * 20) == ""
    assert answer_text("Don\N{RIGHT SINGLE QUOTATION MARK}t (softly) worry!") == "don't worry"


def test_scenes_and_voices_are_held_out(data_dir):
    splits = {}
    for split in ("train", "test", "unheard"):
        examples = utterances.open_source(data_dir, "dialogue", split)
        splits[split] = {
            (example.id.split("/")[1], example.group["speaker"])
            for example in map(examples.__getitem__, range(len(examples)))
        }
    scenes = {split: {scene for scene, _ in pairs} for split, pairs in splits.items()}
    assert scenes["train"] and scenes["test"] and not scenes["train"] & scenes["test"]
    assert {voice for _, voice in splits["train"]} == {"fillets-cs-small", "fillets-cs-big"}
    assert {voice for _, voice in splits["unheard"]} == {"fillets-cs-statue"}


def test_a_long_recording_is_left_out(data_dir):
    """It has six seconds; it is the first line of `scene0`."""
    ids = set()
    for split in ("train", "test"):
        examples = utterances.open_source(data_dir, "dialogue", split)
        ids |= {examples[i].id for i in range(len(examples))}
    assert "cs/scene0/bb/transcribe" in ids and "cs/scene0/aa/transcribe" not in ids


def test_prompts_tell_transcription_and_translation_apart(data_dir):
    train = pickle.loads(pickle.dumps(utterances.open_source(data_dir, "dialogue", "train")))
    examples = [train[i] for i in range(len(train))]
    prompts = {task: {e.prompt for e in examples if e.task == task} for task in ("transcribe", "translate")}
    assert len(prompts["transcribe"]) == len(prompts["translate"]) == 3
    assert not prompts["transcribe"] & prompts["translate"]
    assert all("English" in prompt for prompt in prompts["translate"])
    assert {e.language for e in examples if e.task == "translate"} == {"en"}
    held_out = utterances.open_source(data_dir, "dialogue", "unheard")
    assert len({held_out[i].prompt for i in range(len(held_out)) if held_out[i].task == "transcribe"}) == 1


def test_every_utterance_is_transcribed_and_every_second_one_translated(packages):
    tasks = [[entry.task for entry in make_entries(item)] for item in READERS["dialogue"](packages)]
    translated = sum(task == ["transcribe", "translate"] for task in tasks)
    assert {tuple(task) for task in tasks} == {("transcribe",), ("transcribe", "translate")}
    assert 0.3 < translated / len(tasks) < 0.7


def test_held_out_utterances_are_of_all_voices(tmp_path, packages, monkeypatch):
    from data_pipelines.utterances import build

    monkeypatch.setattr(build, "MAX_HELD_OUT", 2)
    prepare_utterances(tmp_path, packages, workers=1)
    test = utterances.open_source(tmp_path, "dialogue", "test")
    assert {test[i].group["speaker"] for i in range(len(test))} == {"fillets-cs-small", "fillets-cs-big"}
    assert MAX_HELD_OUT > 2


def test_the_corpus_names_what_is_missing(tmp_path, data_dir, monkeypatch):
    with pytest.raises(UserError, match=r"no utterances in .*; build them with: python -m launch.prepare utterances"):
        utterances.open_source(tmp_path, "captions", "train")
    with pytest.raises(UserError, match="did you mean 'captions'"):
        utterances.open_source(data_dir, "caption", "train")
    monkeypatch.setattr(minicorpus, "notes", lambda directory: ())
    monkeypatch.setattr(minicorpus, "sources_with_audio", lambda directory, split: ["numbers"])
    corpus = open_corpus("utterances", data_dir)
    assert list(corpus.evaluation_sources("unheard")) == ["dialogue", "captions", "numbers"]
    assert [corpus.has_split(source, "unheard") for source in ("dialogue", "telephone")] == [True, False]
    assert any("other voices" in note for note in corpus.notes)
