"""The wave of the converter, in both directions."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calami.core.problems import CalamiError
from calami.instrument.converter import ADC_WAVE, PERFECT, Converter, convert


def test_the_converter():
    values = np.array([-5.0, 0.4, 0.6, 1.5, 65_534.6, 65_536.0, 1e9])
    assert convert(values).tolist() == [0, 0, 1, 2, 65_535, 65_535, 65_535] and convert(values).dtype == np.uint16
    assert np.array_equal(convert(values, PERFECT), convert(values))


def test_the_wave_is_in_proportion_to_the_signal():
    for level in (2048, 40 * 1024):
        ramp = np.arange(level, level + 8 * 1024, 0.37)
        seen = convert(ramp, ADC_WAVE)
        share = (seen - ramp) / ramp
        # A sine of 124 millionths in the raw number and nothing else: fit it.
        phase = 2 * np.pi * seen / 1024
        amplitudes = [2 * np.mean(share * f(phase)) for f in (np.sin, np.cos)]
        assert np.allclose(amplitudes, (1.24e-4, 0), atol=2e-6)
    assert np.isclose(ADC_WAVE.corrected(20_736.0), 20_736 / (1 + 1.24e-4))


@given(st.lists(st.floats(-2e-4, 2e-4), min_size=4, max_size=4), st.floats(900, 1100), st.floats(0, 6e4))
@example([2e-4, 2e-4, 0.0, -1.7928359932058236e-4], 900.0, 57_849.0)  # steep: three rounds leave 0.1 ADU
def test_both_directions_undo_each_other(coefficients, period, signal):
    wave = Converter(tuple(coefficients), period)
    signal = np.array([signal])
    assert abs(wave.corrected(wave.distorted(signal)) - signal) < 0.01
    assert wave.wave(signal) == pytest.approx(
        sum(
            a * np.sin(k * 2 * np.pi * signal / period) + b * np.cos(k * 2 * np.pi * signal / period)
            for k, a, b in ((1, *coefficients[:2]), (2, *coefficients[2:]))
        ),
        abs=1e-12,
    )
    assert wave.amplitudes == pytest.approx(np.hypot(coefficients[::2], coefficients[1::2]))


def test_single_precision_stays_single():
    raw = np.linspace(1e4, 6e4, 1001, dtype=np.float32)
    assert ADC_WAVE.distorted(raw).dtype == ADC_WAVE.corrected(raw).dtype == np.float32
    assert np.abs(ADC_WAVE.wave(raw) - ADC_WAVE.wave(raw.astype(float))).max() < 1e-8


@pytest.mark.parametrize("coefficients", [(1e-4,), (0.02, 0.0), (np.nan, 0.0), ((1e-4, 0.0),)])
def test_impossible_waves_are_refused(coefficients):
    with pytest.raises(CalamiError, match="sine and cosine"):
        Converter(coefficients)
    with pytest.raises(CalamiError, match="period"):
        Converter((1e-4, 0.0), 0.0)


def test_a_constant_wave_is_refused_by_its_new_name():
    with pytest.raises(CalamiError, match="Converter of fractions"):
        convert(np.array([256.0]), (2.0, 1024.0))
