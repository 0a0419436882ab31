"""The brightest pixel of a star, and when it is not known."""

from functools import lru_cache

import numpy as np
import pytest

from calami.core.images import RateImage, find_peak
from calami.instrument import niriss, optics

FILTERS = ("F277W", "F380M", "F430M", "F480M")


@lru_cache(200)
def star(filt, seed):
    """A star at a random place within a pixel, with pistons of 40 nm rms; its brightest pixel."""
    rng = np.random.default_rng(seed)
    place = 20 + rng.uniform(-0.5, 0.5, 2)
    image = 1e5 * optics.psf(filt, tuple(place), (41, 41), count=3, pupil=optics.Pupil(pistons=rng.normal(0, 40, 7)))
    return image, np.unravel_index(image.argmax(), image.shape)


def peak(image, bad, saturated=None):
    return find_peak(RateImage(image, np.sqrt(image + 1), ~bad, saturated))


@pytest.mark.parametrize("filt", FILTERS)
@pytest.mark.parametrize("side", [1, 3, 5, 7])
def test_where_the_core_is_full_the_peak_is_not_known(filt, side):
    for seed in range(5):
        image, (row, col) = star(filt, seed)
        bad, half = np.zeros(image.shape, bool), side // 2
        bad[row - half : row + half + 1, col - half : col + half + 1] = True
        found = peak(np.where(bad, np.nan, image), bad, bad)
        assert found.lost == "saturated" and np.isnan(found.rate) and np.isnan(found.rate_error)
        assert found.above < image.max() and "saturated" in found.reason and "> " in repr(found)


@pytest.mark.parametrize("filt", FILTERS)
def test_a_flagged_pixel_that_was_the_brightest_is_noticed(filt):
    for seed in range(12):
        image, place = star(filt, seed)
        bad = np.zeros(image.shape, bool)
        bad[place] = True
        found = peak(image, bad)
        assert found.lost == "flagged" or found.rate > 0.85 * image.max()


@pytest.mark.parametrize("filt", FILTERS[1:])
def test_a_flagged_neighbour_seldom_hides_the_peak(filt):
    lost = []
    for seed in range(12):
        image, place = star(filt, seed)
        for shift in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
            bad = np.zeros(image.shape, bool)
            bad[place[0] + shift[0], place[1] + shift[1]] = True
            found = peak(image, bad)
            lost.append(bool(found.lost))
            assert found.lost or found.rate == image.max()
    assert np.mean(lost) < 0.12


def test_bad_pixels_elsewhere_and_rows_of_reference_pixels_hide_nothing():
    image, (row, col) = star("F480M", 1)
    bad = np.random.default_rng(0).random(image.shape) < 0.02
    bad[row - 1 : row + 2, col - 1 : col + 2] = False
    bad[:4] = True
    full = np.zeros(image.shape, bool)
    full[30, 30] = bad[30, 30] = True  # a hot pixel, full in every group
    assert peak(image, bad, full).rate == image.max()
    low = np.roll(image, 6 - row, axis=0)  # the reference pixels are within the image of the star
    assert peak(low, bad & (np.arange(41) < 4)[:, None]).rate == image.max()


def test_partly_full_pixels_that_have_a_rate_are_known():
    image, place = star("F480M", 2)
    full = np.zeros(image.shape, bool)
    full[place] = True  # full in later groups only: flagged SATURATED, not DO_NOT_USE
    assert peak(image, np.zeros(image.shape, bool), full).rate == image.max()
    assert niriss.SATURATED != niriss.DO_NOT_USE
