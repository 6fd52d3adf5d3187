"""Recordings of the mini-corpus: decoding from the unpacked packages, and storage in one file."""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
import pickle
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from data_pipelines import signals
from data_pipelines.minicorpus import labels
from data_pipelines.minicorpus.qt_resources import read_rcc
from data_pipelines.minicorpus.tunes import Tune, read_tunes
from salmonn_jax.audio.files import float_to_pcm, load_audio, pcm_to_float
from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_write

MAX_CLIP_SECONDS = 4.0
_MAX_TEXT_CHARS = 24  # maximum length of a phrase; longer phrases would need longer rows in training
_MIN_RMS = 0.005  # recordings with a lower RMS are silent


@dataclasses.dataclass(frozen=True)
class Voice:
    """A voice and its recordings, int16[samples] at 16 kHz by digit.

    `in_training` is False for voices of the split `unheard`.
    """

    language: str
    in_training: bool
    digits: Mapping[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A recorded phrase of at most `MAX_CLIP_SECONDS`. `english` is the translation, or "" if it is unknown."""

    id: str
    language: str
    voice: str
    in_training: bool
    text: str
    english: str
    audio: np.ndarray


@dataclasses.dataclass(frozen=True)
class Recording:
    """A sound: its file name and int16[samples] at 16 kHz."""

    name: str
    audio: np.ndarray


@dataclasses.dataclass(frozen=True)
class Recordings:
    """All recordings from which clips are generated.

    Attributes:
      origin: "recorded", or "synthesised" if the Debian packages were not available.
      voices: voices by name.
      phrases: telephone phrases for all splits.
      sounds: recordings by sound class. The last of several recordings of a class is not in training.
      instruments: recordings of real instruments by name, which are not in training.
      tunes: tunes with distinct titles.
      soundfont: content of an sf2 file.
    """

    origin: str
    voices: Mapping[str, Voice]
    phrases: tuple[Phrase, ...]
    sounds: Mapping[str, tuple[Recording, ...]]
    instruments: Mapping[str, tuple[Recording, ...]]
    tunes: tuple[Tune, ...]
    soundfont: bytes

    def save(self, path: pathlib.Path) -> None:
        """Writes the recordings to a file atomically."""
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(pickle.dumps(self, protocol=5))


def load(path: pathlib.Path) -> Recordings:
    """Loads the file that `Recordings.save` wrote. The file is a pickle, so it must come from this machine."""
    return pickle.loads(path.read_bytes())


def from_packages(debian: pathlib.Path, wheels: pathlib.Path) -> Recordings:
    """Decodes the recordings of the unpacked packages.

    Raises:
      UserError: a file for the training split is missing, broken or silent.
    """
    find = make_file_finder(debian)
    voices = {}
    for in_training, voice_files in ((True, labels.TRAINING_VOICES), (False, labels.UNHEARD_VOICES)):
        for name, voice in voice_files.items():
            digits = {
                digit: _read(find, voice.path_template.format(digit), required=in_training) for digit in range(10)
            }
            digits = {digit: audio for digit, audio in digits.items() if audio is not None}
            if digits:
                voices[name] = Voice(voice.language, in_training, digits)
    return Recordings(
        origin="recorded",
        voices=voices,
        phrases=(*_asterisk_phrases(debian), *_captions(debian)),
        sounds={
            name: tuple(Recording(file, _read(find, file)) for file in files) for name, files in labels.SOUNDS.items()
        },
        instruments={
            name: (Recording(kind.recording, _read(find, kind.recording)),) for name, kind in labels.INSTRUMENTS.items()
        },
        tunes=tuple(read_tunes(wheels / "music21" / "corpus")),
        soundfont=soundfont(wheels),
    )


def soundfont(wheels: pathlib.Path) -> bytes:
    """Returns the content of the General MIDI soundfont in the unpacked wheels."""
    return (wheels / "pretty_midi" / "TimGM6mb.sf2").read_bytes()


def make_file_finder(debian: pathlib.Path) -> Callable[[str], pathlib.Path | bytes]:
    """Returns a function that finds a recording by its name, `package:path`.

    It returns the path of the file, or the content if the file is inside an rcc file.
    """
    share = debian / "usr" / "share"
    roots = {
        "asterisk": share / "asterisk" / "sounds",
        "tuxpaint": share / "tuxpaint" / "stamps",
        "sonic-pi": share / "sonic-pi" / "samples",
    }
    archives: dict[str, dict[str, bytes]] = {}

    def find(name: str) -> pathlib.Path | bytes:
        package, _, path = name.partition(":")
        if package != "gcompris":
            return roots[package] / path
        archive, _, file = path.partition("/")
        if archive not in archives:
            content = (share / "gcompris-qt" / "rcc" / f"{archive}.rcc").read_bytes()
            archives[archive] = {inside.rpartition("/")[2]: data for inside, data in read_rcc(content)}
        if file not in archives[archive]:
            raise UserError(f"{archive}.rcc of gcompris-qt-data has no {file}")
        return archives[archive][file]

    return find


def clean_text(text: str) -> str:
    """Returns the text in lower case and NFC, without punctuation and without notes in brackets."""
    text = unicodedata.normalize("NFC", re.sub(r"\(.*?\)", " ", text).lower())
    return " ".join(re.sub(r"[^\w' ]|_", " ", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).split())


def asterisk_texts(path: pathlib.Path) -> dict[str, str]:
    """Reads the cleaned text of each phrase from `core-sounds-XX.txt.gz`. The first of several texts is used."""
    texts: dict[str, str] = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8", "replace").splitlines():
        key, separator, text = line.partition(":")
        # Texts in [] or <> describe tones, not speech.
        if separator and not line.startswith(";") and not text.strip().startswith(("[", "<")):
            texts.setdefault(key.strip(), clean_text(text))
    return {key: text for key, text in texts.items() if text}


def _asterisk_phrases(debian: pathlib.Path) -> Iterable[Phrase]:
    texts = {
        language: asterisk_texts(
            debian / "usr" / "share" / "doc" / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"
        )
        for language in labels.LANGUAGES
    }
    for language, voice in labels.PHRASE_VOICES.items():
        folder = debian / "usr" / "share" / "asterisk" / "sounds" / voice
        for key, text in sorted(texts[language].items()):
            path = folder / f"{key}.g722"
            # The digits belong to the source `numbers`. G.722 has 8,000 bytes per second.
            if re.fullmatch(r"digits/\d", key) or not path.is_file():
                continue
            if len(text) > _MAX_TEXT_CHARS or path.stat().st_size > 8000 * (MAX_CLIP_SECONDS + 1):
                continue
            audio = _decode(path)
            if audio is None or len(audio) > signals.num_samples(MAX_CLIP_SECONDS) or re.search(r"\d", text):
                continue
            english = texts["en"].get(key, "")
            english = "" if len(english) > _MAX_TEXT_CHARS else english
            yield Phrase(key, language, f"asterisk-{language}", True, text, english, audio)


def _captions(debian: pathlib.Path) -> Iterable[Phrase]:
    """Yields the spoken captions of Tux Paint's stamps, whose voices are not in training."""
    stamps = debian / "usr" / "share" / "tuxpaint" / "stamps"
    for language, suffix in labels.CAPTION_SUFFIXES.items():
        paths = sorted(path for path in stamps.rglob(f"*{suffix}.ogg") if "symbols" not in path.parts)
        num_phrases = 0
        for path in paths:
            text_file = path.with_name(path.name.removesuffix(f"{suffix}.ogg") + ".txt")
            if num_phrases == 20 or not text_file.is_file():
                continue
            lines = text_file.read_text(encoding="utf-8", errors="replace").splitlines()
            english = clean_text(lines[0]) if lines else ""
            captions = [line.partition("=")[2] for line in lines if line.startswith(f"{language}.utf8=")]
            text = english if language == "en" else clean_text(captions[0]) if captions else ""
            audio = _decode(path) if 0 < len(text) <= _MAX_TEXT_CHARS else None
            if audio is None or len(audio) > signals.num_samples(MAX_CLIP_SECONDS):
                continue
            num_phrases += 1
            name = path.relative_to(stamps).as_posix()
            yield Phrase(name, language, f"tuxpaint-{language}", False, text, english, audio)


def _read(find: Callable, name: str, *, required: bool = True) -> np.ndarray | None:
    try:
        audio = _decode(find(name))
    except UserError:
        if required:
            raise
        return None
    if audio is None and required:
        raise UserError(f"{name} is nearly silent")
    return audio


def _decode(source: pathlib.Path | bytes) -> np.ndarray | None:
    """Decodes and trims a recording and scales it to a common loudness. Returns None if it is nearly silent."""
    audio = pcm_to_float(load_audio(source))
    if signals.rms(audio) < _MIN_RMS:
        return None
    audio = signals.trim(audio)[: signals.num_samples(12)]
    return float_to_pcm(signals.set_loudness(audio, -20.0))
