"""The scores and some sample answers as one HTML page that needs nothing else: no network, no script, no files."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence

import jinja2
import numpy as np
from PIL import Image

from salmonn_jax.audio_files import encode_flac
from salmonn_jax.evaluation import tasks
from salmonn_jax.evaluation.metrics import is_exact_match
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.files import atomic_write

SAMPLE_RATE = 16_000
# What all players and pictures of a page may take, in characters; the page then stays under 4 MB.
MEDIA_BUDGET = 3_600_000
WIDTH, HEIGHT = 320, 96  # pixels of a spectrogram
N_FFT = 1024  # samples
RANGE_DB = 70.0  # from the brightest point down to black
MIN_REFERENCE_POWER = (
    1e-4  # mel power below which even the loudest point of a clip is not drawn bright: silence stays dark
)
# Dark to bright in even steps of lightness, after matplotlib's "magma".
COLOURS = ((4, 4, 18), (74, 18, 110), (172, 50, 116), (246, 122, 92), (252, 240, 190))

AudioLookup = Callable[[str], np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Sample:
    """An answer to a clip, and the answer to the same prompt with silence, if there is one."""

    audio_prediction: Prediction
    silence_prediction: Prediction | None


@dataclasses.dataclass(frozen=True)
class Media:
    """What the page shows of a clip.

    Attributes:
      spectrogram, player: data URIs of a PNG picture and of the FLAC clip.
      seconds: length of the clip.
      played: length of its start that the player holds: less than `seconds` where the page would grow too large.
    """

    spectrogram_uri: str
    audio_uri: str
    seconds: float
    embedded_seconds: float


def write_report(
    path: str | os.PathLike[str],
    rows: Sequence[tasks.ScoreRow],
    predictions: Sequence[Prediction],
    get_audio: AudioLookup,
    *,
    title: str,
    notes: Sequence[str],
) -> None:
    """Writes the page; a reader of `path` sees the old page or the new one, never a part.

    Args:
      path: the HTML file.
      rows: the scores, from `tasks.score`.
      predictions: the answers to choose samples from.
      audio: gives the clip of an id, int16[samples] at 16 kHz, or None for an example without a clip.
      title: the heading.
      notes: paragraphs under it, such as what was held out of training.

    Raises:
      UserError: a prediction of an unknown task.
    """
    samples = choose_samples(predictions)
    media = _media({sample.audio_prediction.id: get_audio(sample.audio_prediction.id) for sample in samples})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        title=title,
        notes=notes,
        splits=[(split, list(part)) for split, part in itertools.groupby(rows, key=lambda row: row.split)],
        samples=[
            (task, list(part)) for task, part in itertools.groupby(samples, key=lambda one: one.audio_prediction.task)
        ],
        media=media,
        is_exact_match=is_exact_match,
        tasks=tasks,
    )
    with atomic_write(pathlib.Path(path)) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def choose_samples(predictions: Sequence[Prediction], per_task: int = 3) -> list[Sample]:
    """Picks up to `per_task` answers to clips of each task, right and wrong ones in turn while both last.

    The choice depends on the ids and on which answers are right, not on the order of `predictions`: pages of two
    checkpoints show much the same clips. Tasks come in the order of `tasks.TASKS`.

    Raises:
      UserError: a prediction of an unknown task.
    """
    for prediction in predictions:
        tasks.get_task(prediction.task)
    silence = {_example_key(one): one for one in predictions if one.condition == "silence"}
    heard = sorted((one for one in predictions if one.condition == "audio"), key=_shuffled)
    samples = []
    for task in tasks.TASKS:
        right = [one for one in heard if one.task == task and is_exact_match(one.reference, one.prediction)]
        wrong = [one for one in heard if one.task == task and not is_exact_match(one.reference, one.prediction)]
        in_turn = [one for pair in itertools.zip_longest(right, wrong) for one in pair if one]
        samples += [Sample(one, silence.get(_example_key(one))) for one in in_turn[:per_task]]
    return samples


def draw_spectrogram(audio: np.ndarray) -> Image.Image:
    """Draws the log-mel spectrogram of int16[samples] at 16 kHz: time runs right, frequency (0 to 8 kHz) up."""
    import librosa  # here, because it takes seconds to load and most users of this package draw nothing

    at_least_one_frame = np.pad(audio, (0, max(0, N_FFT - len(audio))))
    power = librosa.feature.melspectrogram(
        y=at_least_one_frame.astype(np.float32) / 32768.0,
        sr=SAMPLE_RATE,
        n_fft=N_FFT,
        win_length=400,
        hop_length=160,
        n_mels=HEIGHT,
        pad_mode="constant",
    )
    level = librosa.power_to_db(power, ref=max(float(power.max()), MIN_REFERENCE_POWER), top_db=None)
    level = np.clip(1.0 + level[::-1] / RANGE_DB, 0.0, 1.0)
    indices = np.round(255 * level).astype(np.uint8)
    picture = Image.fromarray(indices).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    # A palette keeps the file at a third of its size in full colour.
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(_palette().tobytes())
    return picture


def _example_key(prediction: Prediction) -> tuple[str, str, str, str]:
    return (prediction.source, prediction.split, prediction.task, prediction.id)


def _shuffled(prediction: Prediction) -> str:
    """Orders predictions as good as by chance, the same way every time."""
    return hashlib.sha256("\n".join(_example_key(prediction)).encode()).hexdigest()


def _palette() -> np.ndarray:
    """uint8[256, 3] from dark to bright."""
    stops = np.linspace(0, 255, len(COLOURS))
    channels = [np.interp(np.arange(256), stops, channel) for channel in zip(*COLOURS, strict=True)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def _media(clips: dict[str, np.ndarray | None]) -> dict[str, Media]:
    """Pictures and players of the clips that there are, within `MEDIA_BUDGET`."""
    clips = {name: clip for name, clip in clips.items() if clip is not None and len(clip)}
    pictures = {}
    for name, clip in clips.items():
        buffer = io.BytesIO()
        draw_spectrogram(clip).save(buffer, "PNG", optimize=True)
        pictures[name] = _data_uri("image/png", buffer.getvalue())
    budget = MEDIA_BUDGET - sum(map(len, pictures.values()))
    media = {}
    # Short clips first: what they leave of their share goes to the long ones.
    for left, name in zip(range(len(clips), 0, -1), sorted(clips, key=lambda name: len(clips[name])), strict=True):
        player, played = _audio_data_uri(clips[name], budget // left)
        budget -= len(player)
        media[name] = Media(pictures[name], player, len(clips[name]) / SAMPLE_RATE, played / SAMPLE_RATE)
    return media


def _audio_data_uri(clip: np.ndarray, max_chars: int) -> tuple[str, int]:
    """The clip's start as FLAC in a data URI of at most about `limit` characters, and how many samples it holds."""
    player = _flac(clip)
    while len(player) > max_chars and len(clip) > SAMPLE_RATE // 2:
        clip = clip[: int(len(clip) * 0.95 * max_chars / len(player))]
        player = _flac(clip)
    return player, len(clip)


def _flac(clip: np.ndarray) -> str:
    return _data_uri("audio/flac", encode_flac(clip))


def _data_uri(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
