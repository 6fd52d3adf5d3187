"""Readers of the unpacked Debian packages: each yields the utterances of one source, in a fixed order.

A package keeps texts and recordings in its own way. A recording without a text, or a text without a recording, is left
out.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator

from data_pipelines.minicorpus import labels
from data_pipelines.minicorpus.recordings import asterisk_texts
from data_pipelines.utterances.utterance import Utterance, is_test_group

# Languages of the game's recordings. Its two main characters speak most lines; all other voices are held out.
DIALOGUE_LANGUAGES = ("cs", "nl")
DIALOGUE_VOICES = ("small", "big")
# Languages of the spoken captions; True if the voice is held out. The languages of voices that are held out are those
# of the telephone prompts and of the game.
CAPTION_LANGUAGES = {
    "be": False,
    "bg": False,
    "ca": False,
    "da": False,
    "el": False,
    "en": True,
    "es": True,
    "fr": True,
    "nl": True,
    "ro": False,
    "ru": True,
}
# A line of the game: its id, the font of the speaker, and the text in English and in the language of the file.
_TEXT = r'"((?:[^"\\]|\\.)*)"'
_LINE = re.compile(rf'dialogId\("([^"]+)", "font_([^"]+)", {_TEXT}\)(?:\s*dialogStr\({_TEXT}\))?')


def telephone(root: pathlib.Path) -> Iterator[Utterance]:
    """Yields the telephone prompts of `asterisk-core-sounds-*`, one voice in each of five languages."""
    share = root / "usr" / "share"
    texts = {
        language: asterisk_texts(share / "doc" / f"asterisk-core-sounds-{language}" / f"core-sounds-{language}.txt.gz")
        for language in labels.LANGUAGES
    }
    for language, voice in labels.PHRASE_VOICES.items():
        for key, text in sorted(texts[language].items()):
            path = share / "asterisk" / "sounds" / voice / f"{key}.g722"
            if path.is_file():
                yield Utterance(
                    id=f"{language}/{key}",
                    path=path,
                    language=language,
                    voice=voice,
                    unheard=False,
                    text=text,
                    english="" if language == "en" else texts["en"].get(key, ""),
                    group=key,
                )


def dialogue(root: pathlib.Path) -> Iterator[Utterance]:
    """Yields the lines of the game in `fillets-ng-data-*`. The lines of a level are in the same split."""
    game = root / "usr" / "share" / "games" / "fillets-ng"
    for language in DIALOGUE_LANGUAGES:
        for script in sorted((game / "script").glob(f"*/dialogs_{language}.lua")):
            level = script.parent.name
            for line_id, font, english, text in _LINE.findall(script.read_text(encoding="utf-8")):
                path = game / "sound" / level / language / f"{line_id}.ogg"
                if text and path.is_file():
                    yield Utterance(
                        id=f"{language}/{level}/{line_id}",
                        path=path,
                        language=language,
                        voice=f"fillets-{language}-{font}",
                        unheard=font not in DIALOGUE_VOICES,
                        text=text,
                        english=english,
                        group=level,
                    )


def captions(root: pathlib.Path) -> Iterator[Utterance]:
    """Yields the spoken captions of `tuxpaint-stamps-default`. Captions with the same English text are in one split.

    Captions of a held-out voice are left out if voices of training speak them in other languages, so that neither the
    voice nor the translation of an unheard caption is in training.
    """
    stamps = root / "usr" / "share" / "tuxpaint" / "stamps"
    for text_file in sorted(stamps.rglob("*.txt")):
        english, *lines = text_file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        texts = dict(line.split(".utf8=", 1) for line in lines if ".utf8=" in line)
        name = text_file.relative_to(stamps).with_suffix("").as_posix()
        for language, unheard in CAPTION_LANGUAGES.items():
            suffix = "_desc" if language == "en" else f"_desc_{language}"
            path = text_file.with_name(f"{text_file.stem}{suffix}.ogg")
            text = english if language == "en" else texts.get(language, "")
            if text and path.is_file() and (not unheard or is_test_group(english)):
                yield Utterance(
                    id=f"{language}/{name}",
                    path=path,
                    language=language,
                    voice=f"tuxpaint-{language}",
                    unheard=unheard,
                    text=text,
                    english="" if language == "en" else english,
                    group=english,
                )


READERS: dict[str, Callable[[pathlib.Path], Iterator[Utterance]]] = {
    "telephone": telephone,
    "dialogue": dialogue,
    "captions": captions,
}
