"""Tests of the report page: its content, that it is self-contained, and that answers are escaped."""

from __future__ import annotations

import base64
import html.parser
import io
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from salmonn_jax.errors import UserError
from salmonn_jax.evaluation import report, scoring
from tests.evaluation.answers import make_prediction

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>"


def make(id: str, prediction: str, *, task: str = "sound", split: str = "test", condition: str = "audio", **fields):
    return make_prediction(task, "rain", prediction, id=id, split=split, condition=condition, **fields)


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
    return np.round(9000 * np.sin(2 * np.pi * hertz * np.arange(int(16000 * seconds)) / 16000)).astype(np.int16)


def decode_audio(uri: str) -> np.ndarray:
    """Decodes the clip in a data URI to int16[samples]."""
    clip, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.partition(",")[2])), dtype="int16")
    assert rate == 16000
    return clip


class Page(html.parser.HTMLParser):
    """Parsed page: its tags with their attributes, and its text."""

    def __init__(self, path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += f" {data} "

    def sources(self, tag: str) -> list[str]:
        """Returns the `src` attributes of all tags with this name."""
        return [attributes["src"] for name, attributes in self.tags if name == tag]


def write(path, predictions, get_audio=lambda id: tone(440), notes=("A note.",)) -> Page:
    report.write_report(path, scoring.score(predictions), predictions, get_audio, title="A & B", notes=notes)
    return Page(path)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    predictions = [
        make("a", "Rain."),
        make("b", HOSTILE),
        make("c", "", split="unheard"),
        make("a", "wind", condition="silence"),
        make("t", "rain", task="instrument", audio_seconds=0.0),
    ]
    clips = {"a": tone(440), "b": tone(3000), "c": tone(100, 1.0), "t": None}
    path = tmp_path_factory.mktemp("report") / "new" / "page.html"
    return write(path, predictions, lambda prediction: clips[prediction.id], ["N 1", "N 2"])


def test_page_shows_title_notes_and_scores_by_split(page):
    assert "A & B" in page.text and "N 1" in page.text and "N 2" in page.text
    test, unheard = page.text.index("Scores: test"), page.text.index("Scores: unheard")
    assert test < unheard
    scores = page.text[test:unheard]
    assert "Sound recognition correct answers, higher is better" in scores
    assert "50.0 % 9.5 to 90.5" in scores  # 1 of 2 with condition "audio"
    assert "0.0 % 0.0 to 79.3" in scores  # 0 of 1 with condition "silence"
    assert "not run" in page.text[unheard:]


def test_page_marks_answers_as_correct_or_wrong(page):
    samples = page.text[page.text.index("Sample clips") :]
    assert "Audio Rain. ✓ correct Silence wind ✗ wrong" in samples
    assert "Audio no answer ✗ wrong" in samples
    assert samples.count("Reference rain") == 4
    assert samples.count("<Speech><SpeechHere></Speech> What makes this sound?") == 4
    assert samples.count("No clip") == 1


def test_html_in_an_answer_is_escaped(page):
    assert HOSTILE in page.text
    assert "<script" not in page.source and "onerror='" not in page.source
    assert {"script", "link", "iframe"}.isdisjoint(name for name, _ in page.tags)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_page_loads_nothing_from_outside(page):
    assert all(uri.startswith("data:") for tag in ("img", "audio") for uri in page.sources(tag))
    assert not re.search(r"https?://|url\(|@import", page.source)
    assert "default-src 'none'" in page.source
    assert "prefers-color-scheme: dark" in page.source


def test_page_embeds_the_clips_and_their_spectrograms(page):
    expected = [tone(440), tone(3000), tone(100, 1.0)]
    embedded = [decode_audio(uri) for uri in page.sources("audio")]
    assert sorted(clip.tobytes() for clip in embedded) == sorted(clip.tobytes() for clip in expected)
    images = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in page.sources("img")]
    assert [image.size for image in images] == [(report.WIDTH, report.HEIGHT)] * 3


def brightness(clip: np.ndarray) -> np.ndarray:
    """Returns the luminance of the spectrogram of a clip, float[HEIGHT, WIDTH] in 0 to 255, top row first."""
    return np.asarray(report.draw_spectrogram(clip).convert("L"), float)


def test_spectrogram_has_high_frequencies_at_the_top_and_time_to_the_right():
    low_then_high = brightness(np.concatenate([tone(300), tone(5000)]))
    left, right = low_then_high[:, 40:120].mean(1), low_then_high[:, 200:280].mean(1)
    assert left.argmax() > report.HEIGHT * 0.7
    assert right.argmax() < report.HEIGHT * 0.3
    loud_then_silent = brightness(np.concatenate([tone(1000), np.zeros(8000, np.int16)]))
    assert loud_then_silent[:, :150].max() > 200 and loud_then_silent[:, 180:].max() < 30


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("samples", [1, 100, 8000])
def test_spectrogram_of_silence_is_dark(samples):
    assert brightness(np.zeros(samples, np.int16)).max() < 30


def test_colour_map_rises_evenly_from_dark_to_bright():
    palette = np.array(report.draw_spectrogram(tone(440)).getpalette()).reshape(-1, 3)
    assert palette.shape == (256, 3)
    luma = palette @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > -0.5).all() and luma[0] < 20 and luma[-1] > 220


def test_long_clips_are_cut_to_the_media_budget_and_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MEDIA_BUDGET", 400_000)
    noise = np.random.default_rng(0).integers(-20000, 20000, (2, 160000)).astype(np.int16)
    clips = {"long": noise[0], "longer": np.concatenate([noise[1], noise[1]]), "short": tone(440)}
    page = write(tmp_path / "p.html", [make(name, "rain") for name in clips], lambda prediction: clips[prediction.id])
    used = sum(len(uri) for tag in ("img", "audio") for uri in page.sources(tag))
    assert 350_000 < used <= 400_000
    embedded = sorted(map(decode_audio, page.sources("audio")), key=len)
    assert len(embedded[0]) == 8000  # the short clip is complete
    for start in embedded[1:]:
        assert any((start == clip[: len(start)]).all() for clip in noise)
        assert f"0.0 s (the player holds the first {len(start) / 16000:.1f} s)" in page.text
    assert page.text.count("the player holds the first") == 2


def test_write_replaces_the_page_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "p.html"
    path.write_text("old")
    write(path, [make("a", "rain")])
    assert [file.name for file in tmp_path.iterdir()] == ["p.html"]
    assert path.read_text().startswith("<!doctype html>")


def test_a_failed_write_keeps_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "p.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write(path, [make("a", "rain")], lambda id: None)
    assert [file.name for file in tmp_path.iterdir()] == ["p.html"]
    assert path.read_text() == "old"


def test_samples_alternate_correct_and_wrong_and_ignore_the_order_of_predictions():
    predictions = [make(f"r{i}", "rain") for i in range(20)] + [make(f"w{i}", "wind") for i in range(4)]
    chosen = report.choose_samples(predictions, per_task=4)
    assert [sample.audio_prediction.id[0] for sample in chosen] == ["r", "w", "r", "w"]
    assert report.choose_samples(predictions[::-1], per_task=4) == chosen
    assert [sample.audio_prediction.id for sample in chosen][::2] != ["r0", "r1"]  # not simply the first ones


def test_samples_are_fewer_if_there_are_too_few_predictions():
    predictions = [make(f"r{i}", "rain") for i in range(5)] + [make("w", "wind")]
    assert sorted(sample.audio_prediction.id[0] for sample in report.choose_samples(predictions)) == ["r", "r", "w"]
    assert len(report.choose_samples(predictions[:2])) == 2
    assert report.choose_samples([make("a", "rain", condition="silence")]) == []


def test_samples_are_chosen_per_task_and_paired_with_silence():
    predictions = [
        make("a", "rain", task="metre"),
        make("a", "rain", task="sound"),
        make("a", "wind", task="sound", condition="silence"),
        make("a", "dog", task="sound", condition="silence", split="unheard"),
    ]
    chosen = report.choose_samples(predictions)
    assert [
        (sample.audio_prediction.task, sample.silence_prediction and sample.silence_prediction.prediction)
        for sample in chosen
    ] == [("metre", None), ("sound", "wind")]


def test_an_unknown_task_raises_user_error():
    with pytest.raises(UserError, match="unknown task 'sounds'"):
        report.choose_samples([make("a", "rain", task="sounds")])


def test_report_does_not_import_jax():
    code = "import sys, salmonn_jax.evaluation.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
