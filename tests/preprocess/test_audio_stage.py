"""Recordings become the features that Kaldi makes of them."""

from __future__ import annotations

import io
from contextlib import suppress

import kaldi_native_fbank
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from support.media import chirp, recorded
from tessera_core.api.preprocess import AudioPreprocess
from tessera_runtime.preprocess.audio import AudioStage
from tessera_runtime.preprocess.errors import MediaRefused

PLAIN = AudioPreprocess(normalise=False)


def reference(spec: AudioPreprocess, data: bytes) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = spec.sample_rate
    options.frame_opts.frame_length_ms = 1e3 * spec.window_s
    options.frame_opts.frame_shift_ms = 1e3 * spec.step_s
    options.mel_opts.num_bins = spec.mel_bands
    options.mel_opts.high_freq = 0
    options.energy_floor = 0.0
    bank = kaldi_native_fbank.OnlineFbank(options)
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == spec.sample_rate
    bank.accept_waveform(rate, samples)
    bank.input_finished()
    return np.stack([bank.get_frame(frame) for frame in range(bank.num_frames_ready)])


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
@pytest.mark.parametrize(
    "spec",
    [
        PLAIN,
        AudioPreprocess(sample_rate=8000, mel_bands=40, normalise=False),
        AudioPreprocess(sample_rate=22050, window_s=0.032, step_s=0.016, normalise=False),
    ],
    ids=["16 kHz", "8 kHz", "22.05 kHz"],
)
def test_features_are_those_of_kaldi(spec: AudioPreprocess, form: str) -> None:
    data = recorded(chirp(5, spec.sample_rate), spec.sample_rate, form)
    found, wanted = AudioStage(spec).features(data), reference(spec, data)
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 0.01
    assert np.abs(found - wanted).mean() <= 2e-5


def test_a_long_recording_is_the_same_in_parts() -> None:
    data = recorded(chirp(25, 16_000), 16_000)  # 2498 frames, more than are worked out at once
    assert np.abs(AudioStage(PLAIN).features(data) - reference(PLAIN, data)).mean() <= 2e-5


def test_another_sample_rate_gives_nearly_the_same_features() -> None:
    """Up to the band that the lower rate has."""
    t = np.arange(3 * 48_000) / 48_000
    sound = sum(0.1 * np.sin(2 * np.pi * hz * t) for hz in (310.0, 950.0, 2900.0))
    stage = AudioStage(PLAIN)
    low = stage.features(recorded(sound[::3].astype(np.float32), 16_000, subtype="FLOAT"))
    high = stage.features(recorded(sound.astype(np.float32), 48_000, subtype="FLOAT"))
    assert low.shape == high.shape
    loud = low > low.max() - 7  # 30 dB: what lies beneath is the rounding of silence
    assert np.abs(low - high)[loud].max() <= 0.02


def test_channels_are_averaged() -> None:
    left = chirp(1, 16_000)
    both = np.stack([left, -0.5 * left], axis=1)
    stage = AudioStage(PLAIN)
    mono = stage.features(recorded(0.25 * left, 16_000, subtype="FLOAT"))
    np.testing.assert_allclose(
        stage.features(recorded(both, 16_000, subtype="FLOAT")), mono, atol=1e-3
    )


def test_normalised_bands_have_mean_0_and_variance_1() -> None:
    found = AudioStage(AudioPreprocess()).features(recorded(chirp(4, 16_000), 16_000))
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=0), 1.0, atol=1e-4)


def test_silence_is_finite() -> None:
    found = AudioStage(AudioPreprocess()).features(recorded(np.zeros(16_000, np.float32), 16_000))
    np.testing.assert_array_equal(found, np.zeros_like(found))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40_000))
def test_frames_are_counted_before_they_are_made(samples: int) -> None:
    stage = AudioStage(PLAIN)
    data = recorded(chirp(samples / 16_000, 16_000), 16_000)
    exact = soundfile.info(io.BytesIO(data)).frames
    if stage.frames(exact) == 0:
        with pytest.raises(MediaRefused, match="shorter than one window of 25 ms"):
            stage.features(data)
    else:
        assert len(stage.features(data)) == stage.frames(exact) <= stage.most_frames


def test_a_longer_recording_than_allowed_is_refused_before_it_is_decoded() -> None:
    stage = AudioStage(AudioPreprocess(max_length_s=1.0))
    with pytest.raises(MediaRefused, match=r"2\.0 s long, at most 1 s are taken: cut it"):
        stage.features(recorded(chirp(2, 16_000), 16_000))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "WAV or FLAC is expected"),
        (b"no sound at all", "WAV or FLAC is expected"),
        (recorded(chirp(1, 16_000), 16_000, "AIFF"), "the recording is AIFF"),
        (recorded(np.zeros((800, 9), np.float32), 16_000), "9 channels, at most 8"),
        (recorded(np.zeros(800, np.float32), 500), "500 samples per second"),
        (
            recorded(np.full(800, np.nan, np.float32), 16_000, subtype="FLOAT"),
            "samples that are no numbers",
        ),
    ],
    ids=["empty", "text", "another format", "channels", "rate", "not a number"],
)
def test_what_cannot_be_used_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(MediaRefused, match=message):
        AudioStage(PLAIN).features(data)


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_recordings_are_refused_or_decoded_and_nothing_else(
    form: str, data: st.DataObject
) -> None:
    whole = bytearray(recorded(chirp(0.2, 16_000), 16_000, form))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[at:]
    else:
        whole[at] ^= data.draw(st.integers(1, 255))
    with suppress(MediaRefused):
        assert np.isfinite(AudioStage(PLAIN).features(bytes(whole))).all()


def test_a_window_of_no_samples_is_refused_when_the_stage_is_made() -> None:
    with pytest.raises(ValueError, match="window and step: 1 and 1 samples at 1000 Hz"):
        AudioStage(AudioPreprocess(sample_rate=1000, window_s=0.001, step_s=0.001))
