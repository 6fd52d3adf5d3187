"""`launch.generate` on a debug run, whose window has one second."""

from __future__ import annotations

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
import soundfile

from launch import cli, generate
from salmonn_jax import api


@pytest.fixture
def folder(tmp_path):
    """Recordings of half a second, three of 3.2 s, and a stereo recording whose left channel is silent."""
    for name, hertz, seconds in (
        ("a.wav", 220, 0.5),
        ("b.flac", 1980, 0.5),
        ("c.wav", 660, 0.5),
        ("long.wav", 660, 3.2),
    ):
        soundfile.write(tmp_path / name, tone(hertz, seconds), 44_100)
    soundfile.write(tmp_path / "right.wav", np.stack([0 * tone(220, 0.5), tone(220, 0.5)], axis=1), 44_100)
    (tmp_path / "text.wav").write_text("this is no recording")
    (tmp_path / "empty.wav").write_bytes(b"")
    return tmp_path


def tone(hertz: float, seconds: float) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(44_100 * seconds)) / 44_100)


@pytest.fixture
def ask(debug_run, folder, monkeypatch, capsys):
    """Returns a function that runs the command on files and returns the exit code and the lines of both streams."""

    def run(*arguments: object, model: object = debug_run) -> tuple[int, list[str], list[str]]:
        fixed = ["launch.generate", "--model", str(model), "--prompt", "Which tone is this?", "--max-new-tokens", "4"]
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [*fixed, *map(str, arguments)])
        try:
            cli.run(generate.main)
            code = 0
        except SystemExit as stopped:
            code = stopped.code
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err.splitlines()

    return run


def test_each_file_is_answered(ask):
    code, lines, errors = ask("a.wav", "b.flac", "c.wav")
    assert (code, errors) == (0, [])
    assert [line.split("\t")[0] for line in lines] == ["a.wav", "b.flac", "c.wav"]
    assert all(line.split("\t")[1].strip() for line in lines)
    assert ask("--batch-size", "2", "a.wav", "b.flac", "c.wav") == (0, lines, [])


@pytest.mark.parametrize(("name", "message"), [("empty.wav", "is empty"), ("text.wav", "not audio")])
def test_a_file_that_cannot_be_read_is_reported_before_the_model_is_loaded(ask, name, message):
    code, lines, errors = ask(name, model="no model")
    assert (code, lines) == (2, [])
    assert len(errors) == 1
    assert name in errors[0] and message in errors[0]


def test_missing_files_are_reported_before_anything_is_answered(ask):
    code, lines, errors = ask("a.wav", "gone.wav", "gone too.wav", model="no model")
    assert (code, lines, errors) == (2, [], ["error: no audio file gone.wav, and 1 more are missing"])


def test_files_that_cannot_be_used_do_not_lose_the_answers_to_the_others(ask, folder):
    code, lines, errors = ask(
        "--batch-size",
        "2",
        "--output",
        "answers.jsonl",
        "a.wav",
        "text.wav",
        "empty.wav",
        "text.wav",
        "long.wav",
        "c.wav",
    )
    assert code == 2
    assert [line.split("\t")[0] for line in lines] == ["a.wav", "c.wav"]
    assert [line.split()[1] for line in errors] == ["text.wav", "empty.wav", "text.wav", "long.wav"]
    assert errors[3] == (
        "error: long.wav is 3.2 s, the window 1 s; choose too_long (--too-long) truncate, chunk or chunk_answers"
    )
    written = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["path"] for line in written] == ["a.wav", "c.wav"]
    assert written[0]["windows"] == [{"start_seconds": 0.0, "end_seconds": 0.5, "answer": None}]
    for line, fields in zip(lines, written, strict=True):
        assert line.split("\t")[1].removesuffix(" [cut at --max-new-tokens]") == fields["answer"]
        assert fields["finish_reason"] == ("length" if line.endswith("]") else "stop")


def test_an_answer_with_line_breaks_is_one_line(ask, folder, monkeypatch):
    answer, text = api.Model.answer, "1. rain\n\n2. a\tdog\r\n"
    monkeypatch.setattr(
        api.Model, "answer", lambda *a, **k: [dataclasses.replace(x, text=text) for x in answer(*a, **k)]
    )
    code, lines, _ = ask("--output", "answers.jsonl", "a.wav", "b.flac")
    assert code == 0
    assert [line.removesuffix(" [cut at --max-new-tokens]") for line in lines] == [
        "a.wav\t1. rain 2. a dog",
        "b.flac\t1. rain 2. a dog",
    ]
    assert [json.loads(line)["answer"] for line in (folder / "answers.jsonl").read_text().splitlines()] == [text, text]


def test_output_is_not_overwritten(ask, folder):
    (folder / "old.jsonl").write_text("old")
    code, lines, errors = ask("--output", "old.jsonl", "a.wav", model="no model")
    assert (code, lines) == (2, [])
    assert errors == ["error: old.jsonl already exists; choose another file with --output"]
    assert (folder / "old.jsonl").read_text() == "old"


def test_numbers_must_be_positive(ask):
    code, lines, errors = ask("--batch-size", "0", "a.wav", model="no model")
    assert (code, lines, len(errors)) == (2, [], 1)
    assert "--batch-size" in errors[0]
    for option, value in (("--max-new-tokens", "0"), ("--num-beams", "1.5"), ("--length-penalty", "x")):
        code, lines, errors = ask(option, value, "a.wav", model="no model")
        assert (code, lines, len(errors)) == (2, [], 1)
        assert f"{option[2:].replace('-', '_')}=" in errors[0]


def test_settings_of_decoding_reach_the_decoder(ask, folder):
    """Beams are the default; another search gives another score, and a minimum length lengthens the answer."""
    fields = []
    for i, options in enumerate(([], ["--num-beams", "1"], ["--num-beams", "1", "--do-sample", "--seed", "3"])):
        code, _, errors = ask(*options, "--output", f"{i}.jsonl", "a.wav")
        assert (code, errors) == (0, [])
        fields.append(json.loads((folder / f"{i}.jsonl").read_text()))
    assert fields[0]["score"] >= fields[1]["score"]
    assert fields[2]["score"] < fields[1]["score"]
    assert all(1 <= one["num_tokens"] <= 4 for one in fields)
    assert ask("--do-sample", "a.wav")[2] == ["error: num_beams=4: must be 1 with do_sample=true"]


@pytest.mark.slow
def test_long_recordings(ask, folder):
    times = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 3.2)]
    expected = {"truncate": times[:1], "chunk": times, "chunk_answers": times}
    for policy, windows in expected.items():
        code, lines, errors = ask("--too-long", policy, "--output", f"{policy}.jsonl", "long.wav")
        assert code == 0
        assert errors == (["warning: long.wav is 3.2 s; the model gets the first 1 s"] if policy == "truncate" else [])
        (fields,) = [json.loads(line) for line in (folder / f"{policy}.jsonl").read_text().splitlines()]
        assert fields["too_long"] == policy
        assert [(window["start_seconds"], window["end_seconds"]) for window in fields["windows"]] == windows
        for window in fields["windows"]:
            assert (window["answer"] is not None) == (policy == "chunk_answers")
        if policy == "chunk_answers":
            assert "[3.0-3.2 s]" in lines[0]
            assert fields["answer"] == " ".join(window["answer"] for window in fields["windows"] if window["answer"])


def test_a_prompt_of_too_many_windows_is_one_line(ask, folder):
    soundfile.write(folder / "hour.wav", tone(220, 30), 44_100)
    code, lines, errors = ask("--too-long", "chunk", "hour.wav", "a.wav")
    assert code == 2
    assert [line.split("\t")[0] for line in lines] == ["a.wav"]
    assert len(errors) == 1
    assert "hour.wav has 30 windows" in errors[0]
    assert "more than the 64 tokens of the language model's context; choose too_long" in errors[0]


def test_a_silent_channel_is_reported(ask):
    first = ask("right.wav")
    assert first[0] == 0
    assert first[2] == [
        "warning: the first channel of right.wav is silent, channel 2 of 2 is not; "
        "channels=mean (--channels mean) may hear it"
    ]
    assert ask("--channels", "mean", "right.wav")[::2] == (0, [])


@pytest.mark.parametrize(("encoding", "expected"), [("ascii", b"caf\\xe9 \\u4f60\n"), ("utf-8", "café 你\n".encode())])
def test_text_that_the_terminal_cannot_encode_is_escaped(monkeypatch, encoding, expected):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def main():
        print("café 你")
        print("café 你", file=sys.stderr)

    cli.run(main)
    for stream in streams.values():
        stream.flush()
        assert stream.buffer.getvalue() == expected
