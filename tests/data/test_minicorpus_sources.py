"""Tests of the readers behind the mini-corpus: Qt resource files, prompt texts, tunes, FLAC and apt. No network."""

from __future__ import annotations

import struct
import types
import zlib

import numpy as np
import pytest

from data_pipelines import signals
from data_pipelines.examples import BadExample
from data_pipelines.minicorpus import packages, recordings, tunes
from data_pipelines.minicorpus.qt_resources import read_rcc
from data_pipelines.sources import records
from salmonn_jax.audio.files import encode_flac
from salmonn_jax.errors import UserError
from tests.data.test_minicorpus import abc, tone


def make_rcc(files: dict[str, bytes], *, zipped: str) -> bytes:
    """Returns a Qt resource file of version 1 with the files in a folder `sounds`; compresses the file `zipped`."""
    names, name_offsets = b"", {}
    for name in ("sounds", *files):
        name_offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    data, offsets = b"", {}
    for name, content in files.items():
        offsets[name] = len(data)
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if name == zipped else content
        data += struct.pack(">I", len(stored)) + stored
    tree = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", name_offsets["sounds"], 2, len(files), 2)
    for name in files:
        tree += struct.pack(">IHHHI", name_offsets[name], int(name == zipped), 0, 0, offsets[name])
    start = 20
    header = b"qres" + struct.pack(">IIII", 1, start, start + len(tree), start + len(tree) + len(data))
    return header + tree + data + names


def test_resource_files_are_unpacked():
    files = {"dog.ogg": b"wuff", "größe.ogg": b"x" * 1000, "empty.ogg": b""}
    assert dict(read_rcc(make_rcc(files, zipped="größe.ogg"))) == {
        f"sounds/{name}": data for name, data in files.items()
    }
    with pytest.raises(ValueError, match="not a Qt resource file"):
        list(read_rcc(b"RIFF"))


def test_flac_is_lossless():
    pcm = np.random.default_rng(0).integers(-32768, 32768, 5000, dtype=np.int16)
    pcm[:2] = [-32768, 32767]
    decoded = records.decode_record_flac(encode_flac(pcm))
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(decoded, pcm)


def test_truncated_flac_is_rejected():
    data = encode_flac(np.random.default_rng(1).integers(-32768, 32768, 8_000).astype(np.int16))
    with pytest.raises(BadExample, match="undecodable"):
        records.decode_record_flac(data[: len(data) // 2])


def test_trimming_removes_silence_at_both_ends():
    silence = np.zeros(16_000, np.float32)
    sound = tone(300, 0.5) / np.float32(32768)
    trimmed = signals.trim(np.concatenate([silence, sound, silence]))
    assert 0.5 * 16_000 <= len(trimmed) <= 0.6 * 16_000
    assert len(signals.trim(silence)) == len(silence)


def test_titles_are_compared_without_articles_accents_and_case():
    assert tunes.normalise_title("The Ténth of March") == tunes.normalise_title("tenth of march -- Reel")
    tune = tunes.parse_tune(abc(0))
    assert (tune.title, tune.metre, tune.type) == ("tune of 0", "six eight", "jig")
    assert tunes.parse_tune(abc(3)).type == ""


def test_prompt_texts_are_cleaned(tmp_path):
    import gzip

    path = tmp_path / "core-sounds-es.txt.gz"
    lines = "; a note\nbeep: [tone]\nhello: ¡Hola, Señor! (friendly)\ndigits/0: cero\ndigits/0: diez\nempty: ...\n"
    path.write_bytes(gzip.compress(lines.encode()))
    assert recordings.asterisk_texts(path) == {"hello": "hola señor", "digits/0": "cero"}


def test_espeak_synthesises_words():
    pytest.importorskip("espeakng_loader")
    from data_pipelines.minicorpus import synthetic_recordings

    seven, eight = (synthetic_recordings.speak(word, "en-us", "m1") for word in ("seven", "eight"))
    for audio in (seven, eight):
        assert audio.dtype == np.int16
        assert 0.15 < len(audio) / 16_000 < 1.5
    assert len(seven) != len(eight)


def test_errors_of_apt_and_pip_are_classified(monkeypatch, tmp_path):
    def fake_run(stderr):
        def run(command, **options):
            return types.SimpleNamespace(returncode=100, stderr=stderr)

        return run

    monkeypatch.setattr(packages.subprocess, "run", fake_run("W: x\nE: Unable to locate package klettres\n"))
    with pytest.raises(packages.NotInDebian, match="Unable to locate package klettres"):
        packages.unpack_debian(tmp_path)
    monkeypatch.setattr(packages.subprocess, "run", fake_run("E: Failed to fetch http://deb.debian.org\n"))
    with pytest.raises(UserError, match="Failed to fetch"):
        packages.unpack_debian(tmp_path)
    monkeypatch.setattr(packages.subprocess, "run", fake_run("ERROR: no route to PyPI\n"))
    with pytest.raises(UserError, match="no route to PyPI"):
        packages.unpack_wheels(tmp_path)
