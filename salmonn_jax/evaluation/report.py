"""HTML report of an evaluation: the score table and sample clips with their answers. Used by `launch.evaluate`.

`launch.score` replaces the score table of the page and keeps the clips, which it does not have.

The page is one self-contained file. It loads nothing from the network or from other files and runs no script.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import pathlib
from collections.abc import Callable, Sequence

import jinja2
import numpy as np
from PIL import Image

from salmonn_jax.audio.files import encode_flac
from salmonn_jax.evaluation.predictions import Prediction
from salmonn_jax.evaluation.scoring import FailureCounts, ScoreRow, table
from salmonn_jax.evaluation.scoring.rows import SPLITS, task_title
from salmonn_jax.evaluation.tasks import check_task, get_scorer
from salmonn_jax.evaluation.text.normalizers import is_exact_match
from salmonn_jax.files import atomic_write
from salmonn_jax.paths import Path, PathLike, as_path

SAMPLE_RATE = 16_000
# Maximum number of characters of all embedded audio and images; it keeps the page under 4 MB.
MEDIA_BUDGET = 3_600_000
WIDTH, HEIGHT = 320, 96  # size of a spectrogram in pixels
N_FFT = 1024  # samples
RANGE_DB = 70.0  # level difference between the brightest colour and the darkest one
# Lower limit of the mel power that is drawn in the brightest colour. It keeps the spectrogram of a silent clip dark.
MIN_REFERENCE_POWER = 1e-4
# RGB colours from dark to bright in even steps of lightness, similar to matplotlib's "magma".
COLOURS = ((4, 4, 18), (74, 18, 110), (172, 50, 116), (246, 122, 92), (252, 240, 190))

# Comments in the page around the score table.
BEGIN_SCORES, END_SCORES = "<!-- scores: begin -->", "<!-- scores: end -->"

AudioLookup = Callable[[Prediction], np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Answer with condition "audio", paired with the answer to the same example with condition "silence", if any."""

    audio_prediction: Prediction
    silence_prediction: Prediction | None


@dataclasses.dataclass(frozen=True)
class Media:
    """Embedded spectrogram and audio of a clip.

    Attributes:
      spectrogram_uri: data URI of a PNG image.
      audio_uri: data URI of the clip as FLAC.
      seconds: length of the clip.
      embedded_seconds: length of the embedded audio. It is less than `seconds` if the clip was cut to keep the page
        small.
    """

    spectrogram_uri: str
    audio_uri: str
    seconds: float
    embedded_seconds: float


def write_report(
    path: PathLike,
    rows: Sequence[ScoreRow],
    predictions: Sequence[Prediction],
    get_audio: AudioLookup,
    *,
    title: str,
    notes: Sequence[str],
    failures: Sequence[FailureCounts] = (),
) -> None:
    """Writes the report page. The file is replaced atomically.

    Args:
      path: path of the HTML file.
      rows: scores from `scoring.score`.
      predictions: predictions from which the samples are chosen.
      get_audio: returns the clip of a prediction as int16[samples] at 16 kHz, or None if there is none.
      title: heading of the page.
      notes: paragraphs below the heading, such as a description of the held-out data.
      failures: failure counts from `scoring.count_failures`.

    Raises:
      UserError: a prediction has an unknown task.
    """
    samples = choose_samples(predictions)
    media = _media({sample.audio_prediction.key: get_audio(sample.audio_prediction) for sample in samples})
    page = (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            notes=notes,
            samples=[
                (task, list(group))
                for task, group in itertools.groupby(samples, key=lambda sample: sample.audio_prediction.task)
            ],
            media=media,
            is_correct=is_correct,
            is_closed=_is_closed,
            **_score_variables(rows, failures),
        )
    )
    _replace(as_path(path), page)


def refresh_scores(
    path: PathLike, new_path: PathLike, rows: Sequence[ScoreRow], failures: Sequence[FailureCounts]
) -> bool:
    """Writes a report page with other scores. The rest of the page, such as the clips, stays the same.

    Args:
      path: path of the HTML file.
      new_path: path of the HTML file to write; it may be `path`.
      rows: scores from `scoring.score`.
      failures: failure counts from `scoring.count_failures`.

    Returns:
      Whether the file exists and has a score table. Otherwise nothing is written.
    """
    path = as_path(path)
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = page.partition(BEGIN_SCORES)
    _, end, after = rest.partition(END_SCORES)
    if not end:
        return False
    scores = _environment().get_template("scores.html").render(**_score_variables(rows, failures))
    _replace(as_path(new_path), f"{before}{begin}\n{scores}\n{end}{after}")
    return True


def choose_samples(predictions: Sequence[Prediction], per_task: int = 3) -> list[Sample]:
    """Chooses up to `per_task` predictions with condition "audio" of each task.

    Correct and wrong answers alternate as long as there are both. The choice depends on the ids and on which answers
    are correct, but not on the order of `predictions`, so the pages of two checkpoints show mostly the same clips. The
    tasks are in alphabetical order.

    Raises:
      UserError: a prediction has an unknown task.
    """
    for prediction in predictions:
        check_task(prediction.task, prediction.metric)
    with_silence = {_example_key(p): p for p in predictions if p.condition == "silence"}
    with_audio = sorted((p for p in predictions if p.condition == "audio"), key=_shuffle_key)
    samples = []
    for task in sorted({p.task for p in with_audio}):
        of_task = [p for p in with_audio if p.task == task]
        correct = [p for p in of_task if is_correct(p)]
        wrong = [p for p in of_task if not is_correct(p)]
        interleaved = [p for pair in itertools.zip_longest(correct, wrong) for p in pair if p]
        samples += [Sample(p, with_silence.get(_example_key(p))) for p in interleaved[:per_task]]
    return samples


def is_correct(prediction: Prediction) -> bool:
    """Returns whether an answer equals a reference in lower case and without punctuation."""
    return any(is_exact_match(reference, prediction.prediction) for reference in prediction.references)


def draw_spectrogram(audio: np.ndarray) -> Image.Image:
    """Draws the log-mel spectrogram of a clip.

    Args:
      audio: int16[samples] at 16 kHz.

    Returns:
      A palette image of `WIDTH` x `HEIGHT` pixels. Time runs to the right, frequency (0 to 8 kHz) upwards.
    """
    import librosa  # imported here because it takes seconds to load and only this function needs it

    padded = np.pad(audio, (0, max(0, N_FFT - len(audio))))
    power = librosa.feature.melspectrogram(
        y=padded.astype(np.float32) / 32768.0,
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
    image = Image.fromarray(indices).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    # A palette image is a third of the size of an RGB image.
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(_palette().tobytes())
    return image


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _score_variables(rows: Sequence[ScoreRow], failures: Sequence[FailureCounts]) -> dict[str, object]:
    """Returns the variables of the template of the score tables."""
    return {
        "splits": [(split, list(group)) for split, group in itertools.groupby(rows, key=lambda row: row.split)],
        "all_rows": rows,
        "failures": failures,
        "known_splits": SPLITS,
        "notes_of_scores": table.format_notes(rows),
        "task_title": task_title,
        "table": table,
    }


def _replace(path: Path, page: str) -> None:
    with atomic_write(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _is_closed(prediction: Prediction) -> bool:
    """Returns whether an answer that equals no reference is wrong, as the main metric of its task sees it."""
    _, protocol = get_scorer(prediction.task, prediction.metric)
    return protocol.metrics[0].name in ("wer", "cer", "per", "accuracy")


def _example_key(prediction: Prediction) -> tuple[str, str, str, str]:
    """Returns a key that is the same for both conditions of an example."""
    return (prediction.source, prediction.split, prediction.task, prediction.id)


def _shuffle_key(prediction: Prediction) -> str:
    """Returns a sort key that puts predictions into a pseudo-random order, which is the same in every run."""
    return hashlib.sha256("\n".join(_example_key(prediction)).encode()).hexdigest()


def _palette() -> np.ndarray:
    """Returns the RGB palette from dark to bright, uint8[256, 3]."""
    stops = np.linspace(0, 255, len(COLOURS))
    channels = [np.interp(np.arange(256), stops, channel) for channel in zip(*COLOURS, strict=True)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def _media(clips: dict[str, np.ndarray | None]) -> dict[str, Media]:
    """Returns the spectrograms and audio of the non-empty clips, by key, within `MEDIA_BUDGET` characters."""
    clips = {key: clip for key, clip in clips.items() if clip is not None and len(clip)}
    spectrograms = {}
    for key, clip in clips.items():
        buffer = io.BytesIO()
        draw_spectrogram(clip).save(buffer, "PNG", optimize=True)
        spectrograms[key] = _data_uri("image/png", buffer.getvalue())
    budget = MEDIA_BUDGET - sum(map(len, spectrograms.values()))
    media = {}
    # Short clips come first, so that long clips can use the part of the budget that short clips do not need.
    by_length = sorted(clips, key=lambda key: len(clips[key]))
    for num_remaining, key in zip(range(len(clips), 0, -1), by_length, strict=True):
        audio_uri, num_samples = _audio_data_uri(clips[key], budget // num_remaining)
        budget -= len(audio_uri)
        media[key] = Media(spectrograms[key], audio_uri, len(clips[key]) / SAMPLE_RATE, num_samples / SAMPLE_RATE)
    return media


def _audio_data_uri(clip: np.ndarray, max_chars: int) -> tuple[str, int]:
    """Encodes the start of a clip as FLAC in a data URI of about `max_chars` characters at most.

    Returns:
      The data URI and the number of samples in it.
    """
    player = _flac(clip)
    while len(player) > max_chars and len(clip) > SAMPLE_RATE // 2:
        clip = clip[: int(len(clip) * 0.95 * max_chars / len(player))]
        player = _flac(clip)
    return player, len(clip)


def _flac(clip: np.ndarray) -> str:
    return _data_uri("audio/flac", encode_flac(clip))


def _data_uri(mime_type: str, content: bytes) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"
