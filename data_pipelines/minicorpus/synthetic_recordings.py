"""Synthetic recordings for machines without apt: speech of eSpeak NG and computed sounds.

The tunes come from music21, as in the recorded corpus.
"""

from __future__ import annotations

import ctypes
import functools
import pathlib
import zlib
from collections.abc import Callable

import numpy as np

from data_pipelines import signals
from data_pipelines.minicorpus import labels
from data_pipelines.minicorpus.recordings import Phrase, Recording, Recordings, Voice, clean_text, soundfont
from data_pipelines.minicorpus.speech import is_test_phrase
from data_pipelines.minicorpus.tunes import read_tunes
from salmonn_jax.audio.files import float_to_pcm, load_audio, pcm_to_float
from salmonn_jax.config import SAMPLE_RATE
from salmonn_jax.errors import UserError

_LANGUAGES = {"en": "en-us", "es": "es", "fr": "fr", "it": "it", "ru": "ru"}
# Voice variants of eSpeak NG.
_TRAINING_VARIANTS, _UNHEARD = ("m1", "f2", "m3"), ("f4", "m7")

# One phrase per line, in the languages of `labels.LANGUAGES`.
_PHRASES = (
    ("good morning", "buenos días", "bonjour", "buongiorno", "доброе утро"),
    ("good evening", "buenas noches", "bonsoir", "buonasera", "добрый вечер"),
    ("thank you very much", "muchas gracias", "merci beaucoup", "grazie mille", "большое спасибо"),
    ("please wait", "espere por favor", "veuillez patienter", "attendere prego", "пожалуйста подождите"),
    ("goodbye", "adiós", "au revoir", "arrivederci", "до свидания"),
    ("new message", "mensaje nuevo", "nouveau message", "nuovo messaggio", "новое сообщение"),
    ("old messages", "mensajes viejos", "anciens messages", "vecchi messaggi", "старые сообщения"),
    ("the number is busy", "el número está ocupado", "le numéro est occupé", "il numero è occupato", "номер занят"),
    ("try again later", "intente más tarde", "essayez plus tard", "riprova più tardi", "попробуйте позже"),
    (
        "enter your password",
        "marque su contraseña",
        "entrez votre mot de passe",
        "inserire la password",
        "введите пароль",
    ),
    ("the call has ended", "la llamada terminó", "l'appel est terminé", "la chiamata è finita", "звонок окончен"),
    ("leave a message", "deje un mensaje", "laissez un message", "lascia un messaggio", "оставьте сообщение"),
    ("today is monday", "hoy es lunes", "aujourd'hui c'est lundi", "oggi è lunedì", "сегодня понедельник"),
    ("tomorrow morning", "mañana por la mañana", "demain matin", "domani mattina", "завтра утром"),
    ("yes", "sí", "oui", "sì", "да"),
    ("no", "no", "non", "no", "нет"),
    ("open the door", "abra la puerta", "ouvrez la porte", "apri la porta", "откройте дверь"),
    ("where is the station", "dónde está la estación", "où est la gare", "dov'è la stazione", "где вокзал"),
    ("a glass of water", "un vaso de agua", "un verre d'eau", "un bicchiere d'acqua", "стакан воды"),
    ("the red house", "la casa roja", "la maison rouge", "la casa rossa", "красный дом"),
    ("the white cat", "el gato blanco", "le chat blanc", "il gatto bianco", "белый кот"),
    ("it is raining", "está lloviendo", "il pleut", "piove", "идёт дождь"),
    ("the sun is shining", "brilla el sol", "le soleil brille", "il sole splende", "солнце светит"),
    ("i do not know", "no lo sé", "je ne sais pas", "non lo so", "я не знаю"),
)


def from_wheels(wheels: pathlib.Path) -> Recordings:
    """Synthesises the recordings: digits, phrases and sounds.

    Raises:
      UserError: eSpeak NG's Python package is not installed.
    """
    voices, phrases = {}, []
    for language, code in _LANGUAGES.items():
        for variant in (*_TRAINING_VARIANTS, *_UNHEARD):
            in_training, name = variant in _TRAINING_VARIANTS, f"espeak-{language}-{variant}"
            digits = {digit: speak(word, code, variant) for digit, word in enumerate(labels.DIGITS[language])}
            voices[name] = Voice(language, in_training, digits)
            for translations in _PHRASES:
                if not in_training and not is_test_phrase(translations[0]):
                    continue
                text = clean_text(translations[labels.LANGUAGES.index(language)])
                english = clean_text(translations[0])
                phrases.append(
                    Phrase(translations[0], language, name, in_training, text, english, speak(text, code, variant))
                )
    return Recordings(
        origin="synthesised",
        voices=voices,
        phrases=tuple(phrases),
        sounds={name: tuple(_sounds(name, synthesise)) for name, synthesise in _SOUNDS.items()},
        instruments={},
        tunes=tuple(read_tunes(wheels / "music21" / "corpus")),
        soundfont=soundfont(wheels),
    )


def speak(text: str, code: str, variant: str) -> np.ndarray:
    """Speaks a text.

    Args:
      text: text to speak.
      code: eSpeak NG's code of the language.
      variant: eSpeak NG's voice variant.

    Returns:
      int16[samples] at 16 kHz, without silence at the ends.
    """
    speech, rate = _espeak()(text, f"{code}+{variant}")
    audio = signals.trim(pcm_to_float(load_audio((speech, rate))))
    return float_to_pcm(signals.set_loudness(audio, -20.0))


@functools.cache
def _espeak() -> Callable[[str, str], tuple[np.ndarray, int]]:
    """Loads eSpeak NG. Returns a function from a text and a voice to int16[samples] and their sample rate in Hz."""
    try:
        import espeakng_loader
    except ImportError:
        raise UserError(
            "without apt, the speech synthesiser is required: pip install 'salmonn-jax[minicorpus]'"
        ) from None
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    synchronous, utf8 = 2, 1
    rate = library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise UserError("eSpeak NG cannot be initialised; reinstall espeakng-loader")
    parts: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, events) -> int:
        if samples and count:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(receive)

    def speak(text: str, voice: str, keep_alive=receive) -> tuple[np.ndarray, int]:
        parts.clear()
        data = text.encode()
        if library.espeak_SetVoiceByName(voice.encode()):
            raise UserError(f"eSpeak NG has no voice {voice}; reinstall espeakng-loader")
        library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 0, 0, utf8, None, None)
        return np.concatenate(parts), rate

    return speak


def _time(seconds: float) -> np.ndarray:
    return np.arange(signals.num_samples(seconds), dtype=np.float64) / SAMPLE_RATE


def _tone(frequency, t: np.ndarray) -> np.ndarray:
    """Returns a sine wave. The frequency in Hz is a number or an array over time."""
    return np.sin(2 * np.pi * np.cumsum(np.broadcast_to(frequency, t.shape)) / SAMPLE_RATE)


def _strokes(t: np.ndarray, every: float, decay: float) -> np.ndarray:
    """Returns an envelope that decays exponentially and starts again every `every` seconds."""
    return np.exp(-(t % every) / decay)


def _rain(rng, pitch, t):
    return rng.standard_normal(len(t)) * (0.7 + 0.3 * _tone(0.5, t))


def _clock(rng, pitch, t):
    return _tone(2500 * pitch, t) * _strokes(t, 0.5 * pitch, 0.01)


def _bell(rng, pitch, t):
    return sum(_tone(700 * pitch * part, t) / part for part in (1, 2.4, 3.9)) * _strokes(t, 1.4, 0.5)


def _siren(rng, pitch, t):
    return _tone(900 * pitch + 400 * np.sin(2 * np.pi * 0.7 * t), t)


def _bird(rng, pitch, t):
    return _tone(3000 * pitch + 900 * np.sin(2 * np.pi * 9 * t), t) * (t % 0.6 < 0.35)


def _drum(rng, pitch, t):
    return _tone(90 * pitch, t) * _strokes(t, 0.45, 0.09)


def _engine(rng, pitch, t):
    return np.sign(_tone(70 * pitch, t)) * 0.6 + 0.4 * rng.standard_normal(len(t)) * _strokes(t, 0.12, 0.04)


def _telephone(rng, pitch, t):
    return (_tone(440 * pitch, t) + _tone(480 * pitch, t)) * (t % 1.2 < 0.7)


def _helicopter(rng, pitch, t):
    return rng.standard_normal(len(t)) * _strokes(t, 0.09 * pitch, 0.02)


def _mosquito(rng, pitch, t):
    return np.sign(_tone(560 * pitch + 25 * np.sin(2 * np.pi * 5 * t), t))


# Functions that imitate the sounds.
_SOUNDS = {
    "bell": _bell,
    "bird": _bird,
    "clock": _clock,
    "drum": _drum,
    "engine": _engine,
    "helicopter": _helicopter,
    "mosquito": _mosquito,
    "rain": _rain,
    "siren": _siren,
    "telephone": _telephone,
}


def _sounds(name: str, synthesise: Callable) -> list[Recording]:
    recordings = []
    for index, pitch in enumerate((0.9, 1.0, 1.12, 1.05)):
        rng = np.random.default_rng([zlib.crc32(name.encode()), index])
        audio = synthesise(rng, pitch, _time(3.0)).astype(np.float32)
        recordings.append(Recording(f"computed:{name}/{index}", float_to_pcm(signals.set_loudness(audio, -20.0))))
    return recordings
