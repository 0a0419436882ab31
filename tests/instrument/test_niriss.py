import numpy as np
import pytest
from astropy import units as u
from hypothesis import given
from hypothesis import strategies as st

from calami.instrument import niriss


@given(st.floats(-1e9, 1e9), st.floats(0.1, 10))
def test_electrons_and_back(adu, gain):
    assert np.isclose(niriss.to_adu(niriss.to_electrons(adu, gain), gain), adu, rtol=1e-12, atol=1e-12)


def test_units_agree_with_the_plain_functions():
    quantity = (1000 * u.adu).to_value(u.electron, equivalencies=niriss.adu_per_electron())
    assert quantity == niriss.to_electrons(1000)
    back = (quantity * u.electron).to_value(u.adu, equivalencies=niriss.adu_per_electron())
    assert np.isclose(back, 1000)


@pytest.mark.parametrize("ngroups", [0, -1])
def test_a_ramp_has_a_group(ngroups):
    with pytest.raises(ValueError, match="at least 1 group"):
        niriss.ramp_time(ngroups)


def test_constants_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        niriss.HOLE_CENTERS[0, 0] = 1.0


def test_every_level_has_a_source():
    assert all(level.source and level.meaning and level.electrons > 0 for level in niriss.SIGNAL_LEVELS)


def test_frame_time_of_the_full_frame_through_one_output():
    assert niriss.Subarray("X", (64, 64), (1, 1), 4).frame_time == pytest.approx(76 * 66 * 1e-5)
