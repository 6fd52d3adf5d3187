"""Tests of decoding: joined, cut and damaged files, unknown lengths, impossible headers, and segments of files."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from salmonn_jax.audio import containers
from salmonn_jax.audio.files import load_audio
from salmonn_jax.errors import AudioError

LOSSY = {"ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}
PCM = {
    "wav": ("WAV", "PCM_16"),
    "float": ("WAV", "FLOAT"),
    "adpcm": ("WAV", "IMA_ADPCM"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac16": ("FLAC", "PCM_16"),
    "flac24": ("FLAC", "PCM_24"),
    "alac": ("CAF", "ALAC_16"),
}


def stairs(seconds: float, rate: int, first: int = 0) -> np.ndarray:
    """Returns a signal whose second `k` is a tone of 300 + 100 * (first + k) Hz with some noise."""
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * (300 + 100 * (first + np.floor(time))) * time)
    return (tone + np.random.default_rng(first).normal(0, 0.01, len(time))).astype(np.float32)


def encode(samples: np.ndarray, rate: int, kind: str) -> bytes:
    """Encodes samples with libsndfile."""
    out = io.BytesIO()
    container, subtype = (LOSSY | PCM)[kind]
    soundfile.write(out, samples, rate, format=container, subtype=subtype)
    return out.getvalue()


def encode_with_av(path, samples: np.ndarray, rate: int, codec: str, container: str, **options) -> bytes:
    """Encodes samples with PyAV."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=container, options=options) as file:
        # Without noise substitution, which AAC decoders fill with random numbers.
        codec_options = {"aac_pns": "0"} if codec == "aac" else {}
        stream = file.add_stream(codec, rate=rate, layout="mono", options=codec_options)
        is_float = codec == "aac"
        frame_format, data = ("fltp", samples) if is_float else ("s16", np.round(samples * 32767).astype(np.int16))
        size = stream.codec_context.frame_size or 1024
        for start in range(0, len(data), size):
            frame = av.AudioFrame.from_ndarray(data[None, start : start + size], format=frame_format, layout="mono")
            frame.rate, frame.pts = rate, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path.read_bytes()


def tones(pcm: np.ndarray) -> list[int]:
    """Returns the loudest frequency of each second in Hz."""
    seconds = len(pcm) // 16_000
    return [
        int(np.argmax(np.abs(np.fft.rfft(part.astype(float))))) for part in np.split(pcm[: seconds * 16_000], seconds)
    ]


def rejection(source: bytes, **options) -> str:
    """Returns the reason for which an audio file is rejected."""
    with pytest.raises(AudioError) as error:
        load_audio(source, **options)
    assert "\n" not in str(error.value)
    return error.value.reason


@pytest.mark.parametrize(("kind", "rate"), [("ogg", 44_100), ("opus", 48_000), ("mp3", 44_100)])
def test_joined_files_are_read_to_the_end(kind, rate):
    first, second = (encode(stairs(2, rate, k), rate, kind) for k in (0, 2))
    joined = load_audio(first + second)
    assert tones(joined) == [300, 400, 500, 600]
    assert abs(len(joined) - 64_000) < 800
    piece = load_audio(first + second, start_seconds=1.0, end_seconds=3.0)
    assert len(piece) == 32_000 and tones(piece) == [400, 500]
    assert tones(load_audio(first + second, start_seconds=2.0)) == [500, 600]
    three = load_audio(first + second + encode(stairs(1, rate, 5), rate, kind))
    assert tones(three) == [300, 400, 500, 600, 800]


def test_joined_mp3_files_with_tags_or_without_length_are_read_to_the_end():
    first, second = (encode(stairs(2, 44_100, k), 44_100, "mp3") for k in (0, 2))
    tag = b"ID3\x03\0\0\0\0\0\x20" + bytes(32)
    assert tones(load_audio(tag + first + b"TAG" + b"x" * 125 + tag + second)) == [300, 400, 500, 600]
    bare = without_length(second)
    assert tones(load_audio(first + bare)) == [300, 400, 500, 600]
    assert tones(load_audio(without_length(first) + bare)) == [300, 400, 500, 600]


@pytest.mark.parametrize("kind", ["ogg", "mp3"])
def test_joined_files_of_different_rates_are_rejected(kind):
    joined = encode(stairs(1, 44_100), 44_100, kind) + encode(stairs(1, 32_000), 32_000, kind)
    assert rejection(joined) == "undecodable"


@pytest.mark.parametrize("kind", [*LOSSY, *PCM])
def test_a_cut_file_is_rejected(kind):
    rate = {"opus": 48_000, "mp3": 44_100}.get(kind, 16_000)
    data = encode(stairs(4, rate), rate, kind)
    assert abs(len(load_audio(data)) - 64_000) < 800
    for share in (0.1, 0.6, 0.97):
        assert rejection(data[: int(share * len(data))]) in ("incomplete", "undecodable")


@pytest.mark.parametrize("kind", ["ogg", "opus", "mp3", "flac16", "flac24"])
@pytest.mark.parametrize("place", [0.3, 0.5, 0.8])
def test_a_damaged_file_is_rejected(kind, place):
    rate = {"opus": 48_000, "mp3": 44_100}.get(kind, 16_000)
    data = bytearray(encode(stairs(4, rate), rate, kind))
    start = int(place * len(data))
    data[start : start + 1000] = bytes(1000)
    assert rejection(bytes(data)) in ("incomplete", "undecodable")


def without_length(mp3: bytes) -> bytes:
    """Returns an MP3 file without its first frame, which holds the length."""
    (start,) = [match.start() for match in containers._XING.finditer(mp3)]
    return mp3[start + containers._frame_length(mp3, start) :]


def test_an_mp3_stream_that_is_cut_or_damaged_is_rejected():
    """An MP3 file without length is recognised as cut by its last frame."""
    data = without_length(encode(stairs(4, 44_100), 44_100, "mp3"))
    assert tones(load_audio(data)) == [300, 400, 500, 600]
    assert tones(load_audio(data + b"TAG" + b"x" * 125)) == [300, 400, 500, 600]
    assert rejection(data[: int(0.6 * len(data))]) == "incomplete"
    assert rejection(data[:8000] + bytes(1000) + data[9000:]) == "incomplete"


@pytest.mark.parametrize(("codec", "container", "rate"), [("aac", "ipod", 44_100), ("libopus", "webm", 48_000)])
def test_a_cut_container_is_rejected(tmp_path, codec, container, rate):
    options = {"movflags": "faststart"} if container == "ipod" else {}  # the header is at the beginning
    data = encode_with_av(tmp_path / "a", stairs(4, rate), rate, codec, container, **options)
    assert tones(load_audio(data))[:4] == [300, 400, 500, 600]
    assert rejection(data[: int(0.6 * len(data))]) in ("incomplete", "undecodable")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_wav_files_of_unknown_length_are_read(size):
    """ffmpeg and sox declare these sizes when they write to a pipe."""
    data = bytearray(encode(stairs(4, 16_000), 16_000, "wav"))
    data[4:8] = data[40:44] = struct.pack("<I", size)
    assert tones(load_audio(bytes(data))) == [300, 400, 500, 600]


@pytest.mark.parametrize("kind", ["flac16", "flac24"])
def test_flac_files_of_unknown_length_are_read(kind):
    data = encode(stairs(4, 16_000), 16_000, kind)
    stream = containers.with_flac_length(data, 0)
    np.testing.assert_array_equal(load_audio(stream), load_audio(data))
    np.testing.assert_array_equal(
        load_audio(stream, start_seconds=1, end_seconds=2), load_audio(data, start_seconds=1, end_seconds=2)
    )
    assert rejection(stream[: int(0.6 * len(stream))]) == "incomplete"
    assert rejection(stream[:20_000] + bytes(400) + stream[20_400:]) in ("incomplete", "undecodable")


def test_a_flac_header_of_a_huge_length_takes_no_memory():
    data = containers.with_flac_length(encode(stairs(1, 16_000), 16_000, "flac24"), (1 << 36) - 1)
    assert rejection(data) in ("incomplete", "undecodable")


@pytest.mark.parametrize("rate", [0, 1, 10, 999, 768_001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_impossible_sample_rates_are_rejected(rate):
    data = bytearray(encode(stairs(1, 16_000), 16_000, "wav"))
    data[24:28] = struct.pack("<I", rate)
    assert rejection(bytes(data)) == "undecodable"
    assert rejection((np.zeros(16_000, np.int16), rate)) == "undecodable"


@pytest.mark.parametrize("rate", [1_000, 8_000, 192_000, 384_000, 768_000])
def test_unusual_sample_rates_are_read(rate):
    assert len(load_audio(encode(stairs(0.5, rate), rate, "wav"))) == 8_000


@pytest.mark.parametrize("scale", [10, 127, 32_767, 2**23, 2**31])
def test_floats_of_another_scale_are_rejected(scale):
    samples = stairs(1, 16_000) * np.float32(scale)
    assert rejection(encode(samples, 16_000, "float")) == "out of range"
    assert rejection((samples.astype(np.float64), 48_000)) == "out of range"
    assert rejection((-np.abs(samples), 16_000)) == "out of range"


def test_floats_slightly_out_of_range_are_clipped():
    loud = load_audio(encode(stairs(1, 16_000) * 5, 16_000, "float"))
    assert (loud.min(), loud.max()) == (-32768, 32767)


def test_a_segment_may_exceed_the_audio_by_half_a_second():
    """Longer segments are rejected, as the file or the manifest is wrong."""
    data = encode(stairs(2, 16_000), 16_000, "wav")
    assert len(load_audio(data, start_seconds=1.0, end_seconds=2.4)) == 16_000
    assert rejection(data, start_seconds=1.0, end_seconds=2.6) == "incomplete"
    assert rejection((stairs(2, 16_000), 16_000), start_seconds=1.0, end_seconds=2.6) == "incomplete"
    assert rejection(data, start_seconds=2.5, end_seconds=2.6) == "empty"


@pytest.mark.parametrize("kind", ["wav", "flac16", "flac24", "ogg", "mp3", "adpcm", "opus"])
def test_a_segment_equals_the_cut_of_the_whole(kind):
    """Opus decodes the first 80 ms after a seek differently; other formats are exact."""
    rate = {"opus": 48_000, "mp3": 48_000}.get(kind, 16_000)
    data = encode(stairs(8, rate), rate, kind)
    whole, piece = load_audio(data), load_audio(data, start_seconds=5.25, end_seconds=6.75)
    check_piece(whole, piece, exact=rate == 16_000)


@pytest.mark.parametrize(
    ("codec", "container", "rate"), [("aac", "ipod", 48_000), ("libopus", "webm", 48_000), ("aac", "adts", 48_000)]
)
def test_a_segment_of_a_container_equals_the_cut_of_the_whole(tmp_path, codec, container, rate):
    data = encode_with_av(tmp_path / "a", stairs(8, rate), rate, codec, container)
    check_piece(load_audio(data), load_audio(data, start_seconds=5.25, end_seconds=6.75), exact=False)


def check_piece(whole: np.ndarray, piece: np.ndarray, *, exact: bool) -> None:
    """Checks that a piece is from 5.25 s to 6.75 s of the whole. A shift by one sample would change it by over 1000."""
    expected = whole[84_000:108_000]
    assert len(piece) == len(expected)
    if exact:
        np.testing.assert_array_equal(piece, expected)
    else:  # resampling differs at the ends
        np.testing.assert_allclose(piece[1600:-100].astype(int), expected[1600:-100], atol=30)


def test_a_segment_of_a_container_does_not_decode_what_is_before(tmp_path, monkeypatch):
    from salmonn_jax.audio import pyav

    data = encode_with_av(tmp_path / "a", stairs(30, 48_000), 48_000, "libopus", "webm")
    seconds, frames = [], pyav._frames

    def counted(*args):
        for frame in frames(*args):
            seconds.append(len(frame.samples) / frame.rate)
            yield frame

    monkeypatch.setattr(pyav, "_frames", counted)
    load_audio(data, start_seconds=25, end_seconds=26)
    assert 1 < sum(seconds) < 8  # WebM can only be entered at its clusters of up to 5 s
