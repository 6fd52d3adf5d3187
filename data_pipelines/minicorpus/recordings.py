"""The raw material of the mini-corpus: every recording, decoded and trimmed, in one file of the cache."""

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
from salmonn_jax.audio_files import float_to_pcm, load_audio, pcm_to_float
from salmonn_jax.errors import UserError
from salmonn_jax.files import atomic_write

MAX_CLIP_SECONDS = 4.0
_LONGEST_TEXT = 24  # characters of a prompt: a longer one would make every row of the small model longer
_SILENT = 0.005


@dataclasses.dataclass(frozen=True)
class Voice:
    """A voice saying digits: int16[samples] by digit. `heard`: in training."""

    language: str
    in_training: bool
    digits: Mapping[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A recorded phrase, in at most `CLIP_SECONDS`. `english` is "" where no English text is known."""

    id: str
    language: str
    voice: str
    in_training: bool
    text: str
    english: str
    audio: np.ndarray


@dataclasses.dataclass(frozen=True)
class Recording:
    """One sound file: its name and int16[samples]."""

    name: str
    audio: np.ndarray


@dataclasses.dataclass(frozen=True)
class Recordings:
    """All there is to make clips of.

    Attributes:
      origin: "recorded", or "synthesised" where the packages could not be had.
      voices: by name.
      prompts: heard and unheard.
      sounds: recordings by class; where a class has several, the last is kept from training.
      instruments: recordings of real instruments, none of them for training.
      tunes: distinct by title.
      soundfont: the bytes of an sf2 file.
    """

    origin: str
    voices: Mapping[str, Voice]
    phrases: tuple[Phrase, ...]
    sounds: Mapping[str, tuple[Recording, ...]]
    instruments: Mapping[str, tuple[Recording, ...]]
    tunes: tuple[Tune, ...]
    soundfont: bytes

    def save(self, path: pathlib.Path) -> None:
        """Writes everything; the file is there whole or not at all."""
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(pickle.dumps(self, protocol=5))


def load(path: pathlib.Path) -> Recordings:
    """Reads what `Recordings.save` wrote, on this machine: it is a pickle."""
    return pickle.loads(path.read_bytes())


def from_packages(debian: pathlib.Path, wheels: pathlib.Path) -> Recordings:
    """Decodes the recordings of the unpacked packages.

    Raises:
      UserError: a file that training needs is missing or broken.
    """
    find = make_file_finder(debian)
    voices = {}
    for heard, files in ((True, labels.TRAINING_VOICES), (False, labels.UNHEARD_VOICES)):
        for name, voice in files.items():
            digits = {digit: _read(find, voice.path_template.format(digit), needed=heard) for digit in range(10)}
            digits = {digit: audio for digit, audio in digits.items() if audio is not None}
            if digits:
                voices[name] = Voice(voice.language, heard, digits)
    return Recordings(
        origin="recorded",
        voices=voices,
        phrases=(*_asterisk_prompts(debian), *_captions(debian)),
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
    """The General MIDI soundfont among the unpacked wheels."""
    return (wheels / "pretty_midi" / "TimGM6mb.sf2").read_bytes()


def make_file_finder(debian: pathlib.Path) -> Callable[[str], pathlib.Path | bytes]:
    """Returns the function from `package:path` to a path, or to the bytes of what is inside an rcc file."""
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
    """Lower case, composed letters, no punctuation and no notes in brackets."""
    text = unicodedata.normalize("NFC", re.sub(r"\(.*?\)", " ", text).lower())
    return " ".join(re.sub(r"[^\w' ]|_", " ", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).split())


def asterisk_texts(path: pathlib.Path) -> dict[str, str]:
    """Reads `core-sounds-XX.txt.gz`: the text of each prompt, cleaned; of two texts for one prompt the first."""
    texts: dict[str, str] = {}
    for line in gzip.decompress(path.read_bytes()).decode("utf-8", "replace").splitlines():
        key, separator, text = line.partition(":")
        # What stands in [] or <> is no speech but a tone.
        if separator and not line.startswith(";") and not text.strip().startswith(("[", "<")):
            texts.setdefault(key.strip(), clean_text(text))
    return {key: text for key, text in texts.items() if text}


def _asterisk_prompts(debian: pathlib.Path) -> Iterable[Phrase]:
    texts = {
        language: asterisk_texts(
            debian / "usr" / "share" / "doc" / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz"
        )
        for language in labels.LANGUAGES
    }
    for language, voice in labels.PROMPT_VOICES.items():
        folder = debian / "usr" / "share" / "asterisk" / "sounds" / voice
        for key, text in sorted(texts[language].items()):
            path = folder / f"{key}.g722"
            # The digits are the matter of the source `numbers`. G.722 takes 8,000 bytes a second.
            if re.fullmatch(r"digits/\d", key) or not path.is_file():
                continue
            if len(text) > _LONGEST_TEXT or path.stat().st_size > 8000 * (MAX_CLIP_SECONDS + 1):
                continue
            audio = _decode(path)
            if audio is None or len(audio) > signals.num_samples(MAX_CLIP_SECONDS) or re.search(r"\d", text):
                continue
            english = texts["en"].get(key, "")
            english = "" if len(english) > _LONGEST_TEXT else english
            yield Phrase(key, language, f"asterisk-{language}", True, text, english, audio)


def _captions(debian: pathlib.Path) -> Iterable[Phrase]:
    """The spoken captions of Tux Paint's stamps: voices that no training clip has."""
    stamps = debian / "usr" / "share" / "tuxpaint" / "stamps"
    for language, suffix in labels.CAPTION_SUFFIXES.items():
        found = sorted(path for path in stamps.rglob(f"*{suffix}.ogg") if "symbols" not in path.parts)
        kept = 0
        for path in found:
            lines = path.with_name(path.name.removesuffix(f"{suffix}.ogg") + ".txt")
            if kept == 20 or not lines.is_file():
                continue
            texts = lines.read_text(encoding="utf-8", errors="replace").splitlines()
            english = clean_text(texts[0]) if texts else ""
            told = [line.partition("=")[2] for line in texts if line.startswith(f"{language}.utf8=")]
            text = english if language == "en" else clean_text(told[0]) if told else ""
            audio = _decode(path) if 0 < len(text) <= _LONGEST_TEXT else None
            if audio is None or len(audio) > signals.num_samples(MAX_CLIP_SECONDS):
                continue
            kept += 1
            name = path.relative_to(stamps).as_posix()
            yield Phrase(name, language, f"tuxpaint-{language}", False, text, english, audio)


def _read(find: Callable, name: str, *, needed: bool = True) -> np.ndarray | None:
    try:
        audio = _decode(find(name))
    except UserError:
        if needed:
            raise
        return None
    if audio is None and needed:
        raise UserError(f"{name} is nearly silent")
    return audio


def _decode(source: pathlib.Path | bytes) -> np.ndarray | None:
    """Decodes and trims a recording, and brings it to the common loudness; None if it is nearly silent."""
    audio = pcm_to_float(load_audio(source))
    if signals.rms(audio) < _SILENT:
        return None
    audio = signals.trim(audio)[: signals.num_samples(12)]
    return float_to_pcm(signals.set_loudness(audio, -20.0))
