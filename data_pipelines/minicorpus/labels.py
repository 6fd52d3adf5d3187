"""Labels and file names of the recordings: words for digits, voices, sound classes, instruments.

File names have the form `package:path`, with the path in the layout of the package (see `recordings.make_file_finder`).
"""

from __future__ import annotations

from typing import NamedTuple

LANGUAGES = ("en", "es", "fr", "it", "ru")

DIGITS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "es": ("cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"),
    "fr": ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
    "it": ("zero", "uno", "due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove"),
    "ru": ("ноль", "один", "два", "три", "четыре", "пять", "шесть", "семь", "восемь", "девять"),
}


class VoiceFiles(NamedTuple):
    """Files in which a voice says the digits. `{}` in the path is the digit. Some files may be missing."""

    language: str
    path_template: str


TRAINING_VOICES = {
    "allison-en": VoiceFiles("en", "asterisk:en_US_f_Allison/digits/{}.g722"),
    "allison-es": VoiceFiles("es", "asterisk:es_MX_f_Allison/digits/{}.g722"),
    "june-fr": VoiceFiles("fr", "asterisk:fr_CA_f_June/digits/{}.g722"),
    "carlo-it": VoiceFiles("it", "asterisk:it_IT_m_Carlo/digits/{}.g722"),
    "ivrvoice-ru": VoiceFiles("ru", "asterisk:ru_RU_f_IvrvoiceRU/digits/{}.g722"),
}
# Voices of the `unheard` splits. The .gsm files are telephone recordings at 8 kHz.
UNHEARD_VOICES = {
    "tuxpaint-en": VoiceFiles("en", "tuxpaint:symbols/math/{}.ogg"),
    "tuxpaint-en-gb": VoiceFiles("en", "tuxpaint:symbols/math/{}_en_GB.ogg"),
    "tuxpaint-es": VoiceFiles("es", "tuxpaint:symbols/math/{}_es.ogg"),
    "colombia-es": VoiceFiles("es", "asterisk:es/digits/{}.gsm"),
    "tuxpaint-fr": VoiceFiles("fr", "tuxpaint:symbols/math/{}_fr.ogg"),
    "armelle-fr": VoiceFiles("fr", "asterisk:fr/digits/{}.gsm"),
    "tuxpaint-it": VoiceFiles("it", "tuxpaint:symbols/math/{}_it.ogg"),
    "menardi-it": VoiceFiles("it", "asterisk:it_IT_f_Menardi/digits/{}.gsm"),
    "tuxpaint-ru": VoiceFiles("ru", "tuxpaint:symbols/math/{}_ru.ogg"),
    "tuxpaint-captions-ru": VoiceFiles("ru", "tuxpaint:symbols/math/{}_desc_ru.ogg"),
}
# Folder of the Asterisk voice of each language, with its digits and telephone phrases.
PHRASE_VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}
# Suffix of the files with spoken captions of Tux Paint's stamps, by language.
CAPTION_SUFFIXES = {"en": "_desc", "es": "_desc_es", "fr": "_desc_fr", "ru": "_desc_ru"}

# Files of each sound class. If a class has several files, the last one is the `unheard` split.
SOUNDS = {
    "applause": ("gcompris:memory-sound/LRApplauses_1_LA_cut.ogg",),
    "bee": ("tuxpaint:animals/insects/bee.ogg",),
    "bell": ("sonic-pi:perc_bell.flac",),
    "car": ("gcompris:memory-sound/LRStartAndStopCarEngine1LACut.ogg", "gcompris:traffic/car.wav"),
    "cat": ("tuxpaint:seasonal/halloween/blackcat.ogg", "gcompris:explore_farm_animals/cat.ogg"),
    "chicken": ("gcompris:explore_farm_animals/chickens.ogg", "tuxpaint:animals/birds/hen.ogg"),
    "cow": (
        "tuxpaint:animals/mammals/bovines/cow.ogg",
        "tuxpaint:animals/mammals/bovines/cow_white.ogg",
        "gcompris:explore_farm_animals/cow.ogg",
    ),
    "crow": ("tuxpaint:animals/birds/crow.ogg", "sonic-pi:misc_crow.flac"),
    "cymbal": (
        "tuxpaint:hobbies/music/percussion/cymbal_crash.ogg",
        "sonic-pi:drum_splash_hard.flac",
        "sonic-pi:drum_cymbal_hard.flac",
    ),
    "dog": (
        "gcompris:memory-sound/LRBark_1_LA_cut.ogg",
        "gcompris:memory-sound/LRBark_3_LA_cut.ogg",
        "tuxpaint:animals/mammals/dogs/dog.ogg",
        "gcompris:explore_farm_animals/dog.ogg",
    ),
    "donkey": ("tuxpaint:animals/mammals/equines/donkey.ogg",),
    "door": (
        "gcompris:canal_lock/door_close.wav",
        "gcompris:canal_lock/door_open.wav",
        "gcompris:memory-sound/LRDoor_Open_2_LA.ogg",
        "sonic-pi:perc_door.flac",
    ),
    "drums": ("gcompris:instruments/drum_kit.ogg", "tuxpaint:hobbies/music/percussion/drumkit.ogg"),
    "duck": ("tuxpaint:animals/birds/duck.ogg", "gcompris:explore_farm_animals/duck.ogg"),
    "elephant": ("tuxpaint:animals/mammals/elephant.ogg",),
    "frog": ("tuxpaint:animals/amphibians/frog.ogg",),
    "gong": ("gcompris:memory-sound/LRBuddhist_gong_05_LA.ogg",),
    "heart beat": ("gcompris:memory-sound/LRHeart_beat_01_LA.ogg",),
    "helicopter": ("gcompris:guessnumber/helicopter.wav",),
    "horse": ("gcompris:explore_farm_animals/horse.ogg",),
    "lion": ("tuxpaint:animals/mammals/cats/lion.ogg",),
    "mosquito": ("tuxpaint:animals/insects/mosquito.ogg",),
    "owl": ("tuxpaint:animals/birds/owl.ogg", "gcompris:explore_farm_animals/owl.ogg"),
    "pig": ("gcompris:explore_farm_animals/pig.ogg", "tuxpaint:animals/mammals/pig.ogg"),
    "rain": ("gcompris:memory-sound/LRRain_in_garden_01_LA_cut.ogg",),
    "rooster": ("tuxpaint:animals/birds/rooster.ogg",),
    "seagull": ("tuxpaint:animals/birds/seagull.ogg",),
    "sheep": (
        "tuxpaint:animals/mammals/bovines/sheep.ogg",
        "tuxpaint:animals/mammals/bovines/sheep_lamb.ogg",
        "gcompris:explore_farm_animals/sheep.ogg",
    ),
    "siren": ("tuxpaint:vehicles/emergency/firetruck.ogg",),
    "thunder": ("tuxpaint:naturalforces/lightningbolt.ogg",),
    "toilet": ("tuxpaint:household/toilet.ogg",),
    "train": ("gcompris:memory-sound/LRTrain_slowing_down_01_LA_cut.ogg", "gcompris:railroad/train.wav"),
    "vacuum cleaner": ("tuxpaint:household/vacuum_cleaner.ogg",),
}


class Instrument(NamedTuple):
    """An instrument: its General MIDI program, the MIDI key on which its tunes are centred, and a recording."""

    program: int
    centre: int
    recording: str


INSTRUMENTS = {
    "accordion": Instrument(21, 69, "gcompris:instruments/accordion.ogg"),
    "banjo": Instrument(105, 64, "gcompris:instruments/banjo.ogg"),
    "clarinet": Instrument(71, 65, "gcompris:instruments/clarinet.ogg"),
    "flute": Instrument(73, 78, "gcompris:instruments/flute_traversiere.ogg"),
    "guitar": Instrument(24, 57, "gcompris:instruments/guitar.ogg"),
    "harmonica": Instrument(22, 74, "gcompris:instruments/harmonica.ogg"),
    "harp": Instrument(46, 69, "gcompris:instruments/harp.ogg"),
    "organ": Instrument(19, 64, "gcompris:instruments/organ.ogg"),
    "piano": Instrument(0, 69, "gcompris:instruments/piano.ogg"),
    "trumpet": Instrument(56, 69, "gcompris:instruments/trumpet.ogg"),
    "tuba": Instrument(58, 41, "gcompris:instruments/tuba.ogg"),
    "violin": Instrument(40, 74, "gcompris:instruments/violin.ogg"),
}

# Answers by the M: and R: fields of a tune. Other values are too rare, or cannot be distinguished within four seconds.
METRES = {"3/4": "three four", "4/4": "four four", "C": "four four", "6/8": "six eight", "9/8": "nine eight"}
TUNE_TYPES = {
    "reel": "reel",
    "jig": "jig",
    "double jig": "jig",
    "hornpipe": "hornpipe",
    "slip jig": "slip jig",
    "slipjig": "slip jig",
}
