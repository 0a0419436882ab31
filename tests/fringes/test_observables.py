"""What photons alone allow, against photons that are drawn."""

import numpy as np
import pytest

from calami.fringes.observables import photon_errors


@pytest.mark.parametrize("holes", [(0, 1, 3), (0, 1, 4, 9, 11)])
def test_the_ideal_error_of_a_phase_is_the_scatter_of_drawn_photons(holes):
    """A line of holes with every distance once, 2,000 images of 50,000 photons each."""
    rng = np.random.default_rng(5)
    x = 2 * np.pi * np.arange(64) / 64
    light = np.abs(np.exp(1j * np.outer(holes, x)).sum(axis=0)) ** 2
    counts = rng.poisson(50_000 * light / light.sum(), (2000, x.size))
    fringe = counts @ np.exp(-1j * (holes[-1] - holes[0]) * x)  # twice this distance is no distance of the line
    v2_error, phase_error = photon_errors(50_000, len(holes))
    assert np.angle(fringe).std() == pytest.approx(phase_error, rel=0.06)
    v2 = np.abs(fringe) ** 2
    assert (v2 / v2.mean()).std() == pytest.approx(v2_error, rel=0.06)
