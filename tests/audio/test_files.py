"""Tests of audio decoding: exactness, resampling, formats and error messages."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import soundfile

from salmonn_jax.audio.decoding import decode_flac
from salmonn_jax.audio.files import load_audio
from salmonn_jax.errors import AudioWarning, UserError

PCM = np.random.default_rng(0).integers(-32768, 32768, 4000, dtype=np.int16)


def wav(samples: np.ndarray, rate: int, **options) -> bytes:
    """Returns the contents of a WAV file."""
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV", **options)
    return out.getvalue()


def test_16_bit_wav_at_16_khz_is_exact(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav(PCM, 16_000, subtype="PCM_16"))
    for source in (path, str(path), path.read_bytes(), (PCM, 16_000)):
        np.testing.assert_array_equal(load_audio(source), PCM)
    assert load_audio(path).dtype == np.int16


def test_the_first_channel_is_used():
    stereo = np.stack([PCM, PCM[::-1]], axis=1)
    np.testing.assert_array_equal(load_audio(wav(stereo, 16_000, subtype="PCM_16")), PCM)
    np.testing.assert_array_equal(load_audio((stereo, 16_000)), PCM)


def test_16_bit_values_survive_wider_formats():
    np.testing.assert_array_equal(load_audio(wav(PCM.astype(np.int32) << 16, 16_000, subtype="PCM_24")), PCM)
    np.testing.assert_array_equal(load_audio((PCM.astype(np.float32) / 32768, 16_000)), PCM)
    np.testing.assert_array_equal(load_audio((PCM.astype(np.int32) << 16, 16_000)), PCM)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_preserves_a_tone(rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    samples = load_audio((tone, rate))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(samples) == 16_000
    np.testing.assert_allclose(samples[400:-400] / 32768, expected[400:-400], atol=2e-3)


def test_samples_out_of_range_are_clipped():
    np.testing.assert_array_equal(load_audio((np.array([2.0, -2.0, 0.0]), 16_000)), [32767, -32768, 0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "is empty"),
        (b"this is a text, no sound at all " * 20, "not audio"),
        (wav(PCM, 16_000)[:30], "not audio"),
        (wav(np.zeros(0), 16_000), "no samples"),
        ((np.zeros((0, 2)), 16_000), "no samples"),
        ((np.array([0.0, np.nan]), 16_000), "not finite"),
        ((np.array([0.0, np.inf]), 16_000), "not finite"),
        ((np.zeros(4), 0), "rate of 0"),
        ((np.array(["a"]), 16_000), "type <U1"),
    ],
)
def test_error_for_bad_audio_is_one_line(source, message):
    with pytest.raises(UserError, match=message) as error:
        load_audio(source)
    assert "\n" not in str(error.value)


def test_error_for_a_missing_or_empty_file_names_it(tmp_path):
    with pytest.raises(UserError, match=r"no audio file .*gone\.wav"):
        load_audio(tmp_path / "gone.wav")
    with pytest.raises(UserError, match="no audio file"):
        load_audio(tmp_path)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(UserError, match=r"empty\.wav is empty"):
        load_audio(tmp_path / "empty.wav")


def test_pyav_decodes_formats_that_libsndfile_lacks(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.g722"
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.int16)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    samples = load_audio(path)
    assert samples.dtype == np.int16
    assert abs(len(samples) - 16_000) < 200
    spectrum = np.abs(np.fft.rfft(samples[:8_000]))
    assert np.argmax(spectrum) == 220


def test_error_without_pyav_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'salmonn-jax\[minicorpus\]'"):
        load_audio(b"not audio either, but it might have been" * 10)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_flac_decodes_exactly(channels, subtype, tmp_path):
    """Covers both decoders: miniaudio for whole 16-bit files, libsndfile for segments and files with more bits."""
    path = tmp_path / "a.flac"
    samples = np.random.default_rng(0).integers(-9000, 9000, (16_000, channels)).astype(np.int16)
    soundfile.write(path, samples, 16_000, subtype=subtype)
    assert (decode_flac(path.read_bytes()) is None) == (subtype == "PCM_24")
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(load_audio(source), samples[:, 0])
        np.testing.assert_array_equal(load_audio(source, start_seconds=0.25, end_seconds=0.5), samples[4000:8000, 0])


@pytest.mark.parametrize("cut", [0.99, 0.5, 0.01])
def test_decode_flac_rejects_a_truncated_file(cut, tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).integers(-9000, 9000, 16_000).astype(np.int16), 16_000)
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    assert decode_flac(path.read_bytes()) is None


def test_decode_flac_rejects_a_damaged_frame(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).integers(-9000, 9000, 48_000).astype(np.int16), 16_000)
    data = bytearray(path.read_bytes())
    data[20_000:20_100] = bytes(100)
    assert decode_flac(bytes(data)) is None


def flac_with(rate: int, bits: int) -> bytes:
    """Returns a 16-bit FLAC file at 16 kHz with another rate and number of bits in its header."""
    out = io.BytesIO()
    soundfile.write(out, PCM, 16_000, format="FLAC", subtype="PCM_16")
    data = bytearray(out.getvalue())
    num_samples = int.from_bytes(data[18:26], "big") & (1 << 36) - 1  # the header keeps the number of samples
    data[18:26] = (rate << 44 | (bits - 1) << 36 | num_samples).to_bytes(8, "big")
    return bytes(data)


def test_decode_flac_rejects_unexpected_headers():
    np.testing.assert_array_equal(decode_flac(flac_with(16_000, 16))[0][:, 0], PCM)
    assert decode_flac(flac_with(0, 16)) is None
    assert decode_flac(flac_with(16_000, 20)) is None
    assert decode_flac(flac_with(16_000, 16)[:60]) is None


def test_libsndfile_reads_a_flac_file_if_read_bytes_fails(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    soundfile.write(tmp_path / "a.flac", PCM, 16_000, subtype="PCM_16")
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.flac"), PCM)


SILENT, LOUD = np.zeros(1600, np.float32), np.linspace(-0.5, 0.5, 1600, dtype=np.float32)


@pytest.mark.parametrize(
    ("channels", "columns", "message"),
    [
        ("first", [SILENT, LOUD], "the first channel of the audio is silent, channel 2 of 2 is not; channels=mean"),
        ("first", [SILENT + 2**-15, SILENT, LOUD], "first channel of the audio is silent, channel 3 of 3"),
        ("mean", [LOUD, -LOUD], "the mean of the channels of the audio is silent, channel 1 of 2 is not"),
        ("first", [LOUD, SILENT], None),
        ("first", [LOUD, -LOUD], None),
        ("mean", [SILENT, LOUD], None),
        ("first", [SILENT, SILENT], None),
        ("first", [SILENT], None),
        ("first", [SILENT, SILENT + 2**-12], None),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_silent_channel_beside_one_that_is_not_is_reported(channels, columns, message, dtype):
    samples = np.stack(columns, axis=1)
    samples = samples if dtype == np.float32 else (samples * 32768).astype(dtype)
    reported = []
    pcm = load_audio((samples, 16_000), channels=channels, on_warning=reported.append)
    assert pcm.shape == (1600,)
    assert len(reported) == (message is not None)
    if message:
        assert message in reported[0]
        with pytest.warns(AudioWarning, match=message):
            load_audio((samples, 16_000), channels=channels)


def test_channels_of_formats_that_libsndfile_lacks(tmp_path):
    """Checks that the mean hears a channel that the first does not, in packed and planar formats."""
    av = pytest.importorskip("av")
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)
    for name, codec, sample_format in (("a.m4a", "aac", "fltp"), ("a.mka", "pcm_s16le", "s16")):
        samples = np.stack([np.zeros_like(tone), tone])
        if sample_format == "s16":
            samples = (samples * 32767).astype(np.int16).T.reshape(1, -1)
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=16_000, layout="stereo")
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=sample_format, layout="stereo")
            frame.rate = 16_000
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
        with pytest.warns(AudioWarning, match="first channel"):
            assert np.abs(load_audio(tmp_path / name)).max() <= 3
        mean = load_audio(tmp_path / name, channels="mean")
        assert abs(np.abs(mean).max() - 0.15 * 32768) < 1000


def test_channels_must_be_known():
    with pytest.raises(UserError, match="channels='left': must be one of first, mean"):
        load_audio((PCM, 16_000), channels="left")
