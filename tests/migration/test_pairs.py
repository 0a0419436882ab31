import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits as astropy_fits
from hypothesis import given
from hypothesis import strategies as st
from toys import noisy_rate, nrm_psf, ramp_rate, rootname, write_exposure, write_star

from calami.calutil import Data
from calami.core import images as core_images
from calami.core.images import RateImage
from calami.core.problems import CalamiError
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.instrument.migration import Migration, find_migration, slope_weights
from calami.instrument.optics import psf
from calami.migration import pair_kernel
from calami.migration import pairs as migration_pairs


def pair(folder, shallow=None, deep=None, ngroups=(5, 13), **both):
    """Write a shallow and a deep exposure; what differs is given for each."""
    first = write_star(folder / f"{rootname(1, 2)}_rate.fits", ngroups[0], seed=2, **both | (shallow or {}))
    second = write_star(folder / f"{rootname(1, 5)}_rate.fits", ngroups[1], seed=5, **both | (deep or {}))
    return Data(first), Data(second)


# --- numbers ---------------------------------------------------------------------------------------------------------


def rate_image(rate, ngroups, rng):
    """A noisy image in ADU/s of a noiseless one in e-/s."""
    value, error = noisy_rate(rate, ngroups, 60, rng)
    return RateImage(value / niriss.GAIN, error / niriss.GAIN, np.ones(rate.shape, bool))


def simulated_changes(n, edge=0.0, seed=7):
    """Changes of peak, ring and sum of many noisy pairs, with their truth."""
    rng, current = np.random.default_rng(seed), 4.2e6 * nrm_psf() + 20
    rates = [ramp_rate(current, g, edge=edge) for g in (5, 13)]
    distance = core_images._squares(current.shape, 40, 45)
    regions = [distance == 0, distance == 1, distance == 2, distance <= 10]
    truth = [rates[1][r].sum() / rates[0][r].sum() - 1 for r in regions]
    results = []
    for _ in range(n):
        images = [rate_image(r, g, rng) for r, g in zip(rates, (5, 13), strict=True)]
        results.append([migration_pairs.region_change(*images, region) for region in regions])
    return results, truth


@pytest.mark.parametrize("edge", [0.0, 1.2e-6])
def test_errors_of_changes_are_right(edge):
    n = 400
    results, truth = simulated_changes(n, edge)
    for k, expected in enumerate(truth):
        pulls = np.array([(r[k].value - expected) / r[k].error for r in results])
        assert abs(pulls.mean()) < 4 / np.sqrt(n)
        assert abs(pulls.std() - 1) < 4 / np.sqrt(2 * n)
        assert abs((np.abs(pulls) < 1).mean() - 0.683) < 4 * np.sqrt(0.683 * 0.317 / n)


def fits(n, seed=11, edge=0.0, shift=0.0, flux=1.0):
    """Pattern fits of many noisy pairs."""
    rng = np.random.default_rng(seed)
    currents = [4.2e6 * f * nrm_psf(center=(40.1, 45.2 + s)) + 20 for s, f in ((0, 1), (shift, flux))]
    rates = [ramp_rate(c, g, edge=edge) for c, g in zip(currents, (5, 13), strict=True)]
    distance = core_images._squares(rates[0].shape, 40, 45)
    rows, cols = np.ogrid[:80, :80]
    near = np.hypot(rows - 40, cols - 45) <= migration_pairs.FIT_RADIUS
    times = tuple(map(niriss.ramp_time, (5, 13)))
    for _ in range(n):
        images = [rate_image(r, g, rng) for r, g in zip(rates, (5, 13), strict=True)]
        yield migration_pairs.fit_patterns(*images, times, near, distance == 0, distance == 2)


def test_errors_of_the_fit_are_right_without_migration():
    n = 300
    done = list(fits(n, shift=0.01, flux=1.002))
    expected = {"edge": 0.0, "flux": 0.002, "x": 0.01 * niriss.PIXEL_SCALE_MAS[0], "y": 0.0}
    told = {
        "edge": [(f.edge, f.edge_error) for f in done],
        "flux": [(f.flux.value, f.flux.error) for f in done],
        "x": [(f.shift_mas[0], f.shift_error_mas[0]) for f in done],
        "y": [(f.shift_mas[1], f.shift_error_mas[1]) for f in done],
    }
    for key, pairs in told.items():
        value, error = np.array(pairs).T
        pulls = (value - expected[key]) / error
        assert abs(pulls.mean()) < 4 / np.sqrt(n), key
        assert abs(pulls.std() - 1) < 4 / np.sqrt(2 * n), key


@pytest.mark.parametrize("edge", [0.4e-6, 1.2e-6])
def test_the_coefficient_is_found_back(edge):
    found = np.array([f.edge for f in fits(20, edge=edge)])
    # The pattern is of first order in the effect; at 1.2e-6 the deep peak is 4 % down.
    assert abs(found.mean() / edge - 1) < 0.02 + 3 * found.std() / edge / np.sqrt(20)


def test_bad_pixels_hardly_change_the_coefficient(tmp_path):
    clean = migration_pairs.compare(*pair(tmp_path, edge=1e-6)).fit.edge
    spoilt = migration_pairs.compare(*pair(tmp_path, edge=1e-6, bad=[(39, 44), (42, 45), (40, 47)])).fit.edge
    assert abs(spoilt / clean - 1) < 0.1


# --- the kernel ------------------------------------------------------------------------------------------------------

FRAME = niriss.SUB80.frame_time
GROUPS = (5, 13)


def star_current(place, flux=1.0):
    """AB Dor as it is in program 1093: 63,000 e-/s at the peak in F480M."""
    return flux * 4.2e6 * psf("F480M", place, count=4, oversample=3) + 20


def kernel_pair(folder, slopes, groups=GROUPS, nints=60, seed=1):
    """A comparison of two images made of noiseless slopes, e-/s."""
    rng, paths = np.random.default_rng(seed), []
    for k, (slope, ngroups) in enumerate(zip(slopes, groups, strict=True)):
        rate, error = noisy_rate(slope, ngroups, nints, rng)
        arrays = {"SCI": rate / niriss.GAIN, "ERR": error / niriss.GAIN, "DQ": np.zeros(rate.shape, "uint32")}
        cards = {"NGROUPS": ngroups, "NINTS": nints, "EFFINTTM": niriss.ramp_time(ngroups)}
        path = folder / f"{rootname(1, k + 2)}_rate.fits"
        paths.append(write_exposure(path, arrays, {"BUNIT": "DN/s", "RA_REF": 82.187, "DEC_REF": -65.447}, **cards))
    return migration_pairs.compare(*paths)


def kernel_fits(folder, name, free, n, nints=60, start=None):
    """Fits to many noisy pairs with the star at several places within its pixel; pulls, and the last fit."""
    rng, migration, pulls = np.random.default_rng(1), find_migration(name), []
    truth = [getattr(migration, parameter) for parameter in free] + [0.0] * len(pair_kernel.NUISANCES)
    for k in range(n):
        if k % 5 == 0:
            current = star_current(np.array((45, 40)) + rng.uniform(-0.4, 0.4, 2))
            slopes = [pair_kernel.observed_slope(current, migration, g, FRAME) for g in GROUPS]
            result = kernel_pair(folder, slopes, nints=nints)
        noisy = [noisy_rate(s, g, nints, rng) for s, g in zip(slopes, GROUPS, strict=True)]
        images = [RateImage(r / niriss.GAIN, e / niriss.GAIN, np.ones(r.shape, bool)) for r, e in noisy]
        fit = pair_kernel.fit_kernel(replace(result, images=tuple(images)), start or name, free)
        pulls.append((fit.values - truth) / fit.errors)
    return np.array(pulls), fit, truth


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "free"), [("h4rg", ("edge", "diagonal")), ("flight", ("edge", "growth")), ("flight", ("edge", "cubic"))]
)
def test_kernels_and_their_errors_come_back(tmp_path, name, free):
    n = 15
    pulls, fit, _ = kernel_fits(tmp_path, name, free, n)
    assert (np.abs(pulls.mean(axis=0)) < 4 / np.sqrt(n)).all(), pulls.mean(axis=0)
    assert (np.abs(pulls.std(axis=0, ddof=1) - 1) < 4 / np.sqrt(2 * n)).all(), pulls.std(axis=0, ddof=1)
    assert fit.free == (*free, *pair_kernel.NUISANCES) and 0.6 < fit.chi2 / (fit.n_pixels - 7) < 1.5
    fixed = {"edge", "diagonal", "growth", "power"} - set(free)
    assert all(getattr(fit.migration, key) == getattr(find_migration(name), key) for key in fixed)
    assert np.allclose(np.sqrt(np.diag(fit.covariance)), fit.errors) and free[0] in str(fit)


@pytest.mark.parametrize(
    ("name", "free"),
    [("h4rg", ("edge", "diagonal")), pytest.param("flight", ("edge", "growth"), marks=pytest.mark.slow)],
)
def test_kernels_have_no_bias_below_the_noise_of_one_exposure(tmp_path, name, free):
    # 100 times the integrations: the errors are a tenth, and what is found is still within them.
    far = replace(find_migration(name), **{key: 3 * getattr(find_migration(name), key) for key in free})
    pulls, fit, truth = kernel_fits(tmp_path, name, free, 4, nints=6000, start=far)
    assert (np.abs(pulls.mean(axis=0)) < 4 / 2).all()
    assert fit.errors[0] < 0.03 * truth[0]


def test_flux_and_place_are_fitted_with_the_kernel(tmp_path):
    places, fluxes = ((45.1, 39.8), (45.11, 39.785)), (1.0, 1.004)
    currents = [star_current(place, flux) for place, flux in zip(places, fluxes, strict=True)]
    slopes = [
        pair_kernel.observed_slope(c, find_migration("h4rg"), g, FRAME) for c, g in zip(currents, GROUPS, strict=True)
    ]
    fit = pair_kernel.fit_kernel(kernel_pair(tmp_path, slopes, nints=6000), "h4rg", ("edge",))
    found = dict(zip(fit.free, zip(fit.values, fit.errors, strict=True), strict=True))
    for key, expected in {"edge": 0.39e-6, "flux": 0.004, "dx": 0.01, "dy": -0.015}.items():
        value, error = found[key]
        assert abs(value - expected) < 4 * error + 0.04 * abs(expected), key


def test_the_photo_current_is_what_was_put_in(tmp_path):
    current, migration = star_current((45.2, 39.9)), find_migration("flight")
    slopes = [pair_kernel.observed_slope(current, migration, g, FRAME) for g in GROUPS]
    fit = pair_kernel.fit_kernel(kernel_pair(tmp_path, slopes, nints=10**7), "flight", ())
    part = current[20:61, 25:66]
    middle = (np.array(fit.rate.shape) - 13) // 2
    inner = fit.rate[middle[0] : middle[0] + 13, middle[1] : middle[1] + 13]
    assert np.abs(inner / part[14:27, 14:27] - 1).max() < 2e-3
    # The deep image follows from the shallow one.
    assert np.abs((fit.model - fit.deep)[fit.used] / fit.deep.max()).max() < 1e-4


@given(st.integers(2, 60), st.floats(0, 20), st.floats(-1e5, 1e5), st.floats(-1e4, 1e4))
def test_weights_give_the_slope_of_a_straight_ramp(ngroups, power, slope, start):
    weights = slope_weights(ngroups, FRAME, power)
    ramp = start + slope * FRAME * np.arange(ngroups)
    assert abs(weights @ ramp - slope) < 1e-9 * (abs(slope) + abs(start) / FRAME + 1)
    assert abs(weights.sum()) < 1e-9 / FRAME and np.allclose(weights, -weights[::-1])


@given(st.sampled_from(["none", "h4rg", "flight", "flight_linear"]), st.integers(2, 13))
def test_the_current_behind_a_slope(name, ngroups):
    current = 63_000 * nrm_psf()[30:51, 35:56] / nrm_psf().max() + 20
    slope = pair_kernel.observed_slope(current, find_migration(name), ngroups, FRAME)
    back = pair_kernel.current_behind(slope, find_migration(name), ngroups, FRAME)
    assert np.abs(back - current).max() < 2e-4 * current.max()


@pytest.mark.parametrize(
    ("groups", "given_too", "words"),
    [
        ((5, 5), {}, r"here 5 and 5"),
        ((1, 5), {}, r"here 1 and 5"),
        ((5, 13), {"free": ("edge", "power")}, "not fitted: power"),
        ((5, 13), {"free": ("corner",)}, "edge, diagonal, growth"),
        ((5, 13), {"start": "h5rg"}, "no migration coefficients called 'h5rg'"),
    ],
)
def test_kernels_that_cannot_be_fitted(tmp_path, groups, given_too, words):
    result = kernel_pair(tmp_path, [star_current((45, 40))] * 2, groups)
    with pytest.raises(CalamiError, match=words):
        pair_kernel.fit_kernel(result, **given_too)


# --- the verdict -----------------------------------------------------------------------------------------------------

STORIES = {
    "migration": ({"edge": 1.2e-6}, {}, migration_pairs.MIGRATION),
    "weak migration": ({"edge": 0.5e-6}, {}, migration_pairs.MIGRATION),
    "nothing": ({}, {}, migration_pairs.NOTHING),
    "brighter": ({}, {"flux": 1.01}, migration_pairs.FLUX),
    "fainter": ({}, {"flux": 0.99}, migration_pairs.FLUX),
    "moved by 3 mas": ({}, {"shift": 0.046}, migration_pairs.NOTHING),
    "moved, with migration": ({"edge": 1.2e-6}, {"shift": 0.03}, migration_pairs.MIGRATION),
}


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("filt", ["F480M", "F380M"])
def test_verdicts(tmp_path, story, filt):
    both, deep, verdict = STORIES[story]
    first, second = pair(tmp_path, deep=deep, FILTER=filt, **both)
    assert migration_pairs.compare(first, second).verdict == verdict
    assert migration_pairs.compare(second, first).verdict == verdict


def test_nonlinearity_is_not_called_migration(tmp_path):
    # A pixel that merely counts less when full loses charge: nothing arrives in the ring.
    result = migration_pairs.compare(*pair(tmp_path, nonlinear=1.2e-6))
    assert result.peak.value < -0.01 and result.verdict != migration_pairs.MIGRATION


def test_migration_together_with_a_flux_change_is_not_glossed_over(tmp_path):
    result = migration_pairs.compare(*pair(tmp_path, deep={"flux": 1.03}, edge=1.2e-6))
    assert result.verdict == migration_pairs.UNCLEAR
    assert abs(result.fit.flux.value - 0.03) < 0.003 and abs(result.fit.edge / 1.2e-6 - 1) < 0.1


def test_false_alarms():
    rng, current = np.random.default_rng(5), 4.2e6 * nrm_psf() + 20
    distance, rows = core_images._squares((80, 80), 40, 45), np.arange(80)
    near = np.hypot(rows[:, None] - 40, rows - 45) <= migration_pairs.FIT_RADIUS
    verdicts, times = [], tuple(map(niriss.ramp_time, (5, 13)))
    for _ in range(150):
        a, b = (rate_image(ramp_rate(current, g), g, rng) for g in (5, 13))
        fit = migration_pairs.fit_patterns(a, b, times, near, distance == 0, distance == 2)
        peak, ring = (migration_pairs.region_change(a, b, distance == k) for k in (0, 2))
        still = migration_pairs._without(peak, fit.peak_by_shift), migration_pairs._without(ring, fit.ring_by_shift)
        total = migration_pairs.region_change(a, b, distance <= 10)
        verdicts.append(migration_pairs.judge(*still, total, fit.edge / fit.edge_error, 1))
    assert migration_pairs.MIGRATION not in verdicts and migration_pairs.FLUX not in verdicts
    assert verdicts.count(migration_pairs.NOTHING) > 145


changes = st.builds(migration_pairs.Change, st.floats(-0.2, 0.2), st.floats(1e-5, 0.05))


@given(changes, changes, changes, st.floats(-50, 50), st.sampled_from([-1, 0, 1]))
def test_swapping_never_changes_the_verdict(peak, ring, total, migration, direction):
    def mirrored(change):
        return migration_pairs.Change(-change.value, change.error)

    swapped = (mirrored(peak), mirrored(ring), mirrored(total))
    assert migration_pairs.judge(peak, ring, total, migration, direction) == migration_pairs.judge(
        *swapped, migration, -direction
    )


def test_equal_depth_is_never_called_migration(tmp_path):
    result = migration_pairs.compare(*pair(tmp_path, ngroups=(9, 9)))
    assert result.verdict == migration_pairs.NOTHING and result.fit.edge == 0 and np.isinf(result.fit.edge_error)
    assert np.isinf(migration_pairs.comparison_table([result])["edge_err"][0].value)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other, match",
    [
        ({"TARGNAME": "HD 37093"}, r"not the same target \(HD 36705 and HD 37093\)"),
        ({"FILTER": "F430M"}, "not the same filter"),
        ({"PUPIL": "CLEARP"}, "not the same mask"),
        ({"SUBARRAY": "FULL"}, "not the same subarray"),
        ({"PATT_NUM": 2}, "not the same dither position"),
        ({"sci_cards": {"RA_REF": 82.187 + 6e-6}}, "not the same pointing"),
    ],
)
def test_exposures_that_differ_in_more_than_depth(tmp_path, other, match):
    first, second = pair(tmp_path, deep=other)
    with pytest.raises(migration_pairs.NotComparable, match=match) as caught:
        migration_pairs.compare(first, second)
    assert first.name in str(caught.value) and second.name in str(caught.value)


def test_a_star_that_moved_though_the_headers_say_not(tmp_path):
    with pytest.raises(migration_pairs.NotComparable, match="whatever the headers say"):
        migration_pairs.compare(*pair(tmp_path, deep={"shift": 0.15}))


def test_products_of_different_kind_and_shape(tmp_path):
    first, second = pair(tmp_path)
    cal = second.paths[0].rename(tmp_path / f"{rootname(1, 5)}_cal.fits")
    with pytest.raises(migration_pairs.NotComparable, match=r"not the same kind of product \(rate and cal\)"):
        migration_pairs.compare(first, cal)
    small = write_exposure(tmp_path / f"{rootname(2)}_rate.fits", {"SCI": np.ones((8, 8)), "ERR": np.ones((8, 8))})
    with pytest.raises(migration_pairs.NotComparable, match="not the same shape"):
        migration_pairs.compare(first, small)


def test_ramps_are_refused(tmp_path):
    paths = [write_exposure(tmp_path / f"{rootname(k)}_uncal.fits", {"SCI": np.ones((2, 3, 8, 8))}) for k in (1, 2)]
    with pytest.raises(migration_pairs.NotComparable, match="holds ramps, not mean count rates"):
        migration_pairs.compare(*paths)


def test_one_exposure_twice_is_no_pair(tmp_path):
    first, _ = pair(tmp_path)
    with pytest.raises(migration_pairs.NotComparable, match="one and the same exposure"):
        migration_pairs.compare(first, first.paths[0])


@pytest.mark.parametrize("which", ["shallow", "deep", "both"])
@pytest.mark.parametrize("size", [0, 1])
def test_a_lost_core_is_not_replaced_by_a_neighbour(tmp_path, which, size):
    core = [(40 + i, 45 + j) for i in range(-size, size + 1) for j in range(-size, size + 1)]
    first, second = pair(tmp_path, **({which: {"bad": core}} if which != "both" else {"bad": core}), edge=1e-6)
    with pytest.raises(migration_pairs.NotComparable, match="core of the star"):
        migration_pairs.compare(first, second)


def test_an_undersampled_filter_gets_no_verdict_of_migration(tmp_path):
    moved = migration_pairs.compare(*pair(tmp_path, deep={"shift": 0.03}, FILTER="F277W"))
    assert moved.verdict != migration_pairs.MIGRATION and np.isnan(moved.fit.edge) and "undersampled" in moved.sentence
    migrated = migration_pairs.compare(*pair(tmp_path, FILTER="F277W", edge=1.2e-6))
    assert migrated.verdict == migration_pairs.UNCLEAR and migrated.peak.value < -0.02
    still = migration_pairs.compare(*pair(tmp_path, FILTER="F277W"))
    assert still.verdict == migration_pairs.NOTHING and np.isnan(
        migration_pairs.comparison_table([still])["shift_x"][0]
    )
    from matplotlib.figure import Figure

    migration_pairs.plot_pixels(migrated, Figure().subplots())


@pytest.mark.parametrize("filt", ["F380M", "F430M", "F480M"])
@pytest.mark.parametrize("mas", [0.5, 2, 4])
def test_shifts_are_measured_right(tmp_path, filt, mas):
    result = migration_pairs.compare(*pair(tmp_path, deep={"shift": mas / niriss.PIXEL_SCALE_MAS[0]}, FILTER=filt))
    assert abs(result.fit.shift_mas[0] - mas) < 0.03 * mas + 4 * result.fit.shift_error_mas[0]
    assert abs(result.fit.shift_mas[1]) < 4 * result.fit.shift_error_mas[1]
    left = result.peak.value - result.fit.peak_by_shift.value
    assert abs(left) < 5 * result.peak.error + 0.05 * abs(result.peak.value)


def test_undersampling_by_filter():
    assert [f for f in niriss.FILTERS if migration_pairs.undersampled(f)] == [
        "F277W"
    ] and not migration_pairs.undersampled(None)


def test_different_processing_is_told(tmp_path):
    result = migration_pairs.compare(*pair(tmp_path, deep={"S_CHGMIG": "COMPLETE", "R_FLAT": "crds://other.fits"}))
    assert "S_CHGMIG (nothing and COMPLETE)" in result.sentence and "R_FLAT" in result.sentence
    then = migration_pairs.compare(*pair(tmp_path, S_UNDSMP="COMPLETE"))  # what jwst 1.11 called it
    assert "charge_migration step was applied to both" in then.sentence
    both = migration_pairs.compare(*pair(tmp_path, S_CHGMIG="COMPLETE"))
    assert "charge_migration step was applied to both" in both.sentence
    assert migration_pairs.comparison_table([both])["notes"][0]


def test_a_deep_exposure_without_signal_is_refused(tmp_path):
    first, second = pair(tmp_path, ngroups=(5, 13))
    for factor in (0.0, -1.0):
        arrays = {k: np.array(second.array(k)) for k in ("SCI", "ERR", "DQ")}
        arrays["SCI"] = arrays["SCI"] * np.float32(factor)
        facts = {k: second.facts[k] for k in ("NGROUPS", "EFFINTTM")}
        path = write_exposure(tmp_path / f"{rootname(3)}_rate.fits", arrays, {"BUNIT": "DN/s"}, **facts)
        with pytest.raises(CalamiError):
            migration_pairs.compare(first, path)


def test_zero_errors_and_unreadable_cards_do_not_stop_a_comparison(tmp_path):
    first, second = pair(tmp_path, edge=1e-6)
    for exposure in (first, second):
        path = exposure.paths[0]
        arrays = {k: np.array(exposure.array(k)) for k in ("SCI", "ERR", "DQ")}
        arrays["ERR"][44, 47] = 0
        facts = {k: exposure.facts[k] for k in ("EFFINTTM",)} | {"NGROUPS": "five", "TARGNAME": None}
        write_exposure(path, arrays, {"BUNIT": "DN/s"}, **facts)
    result = migration_pairs.compare(*(e.paths[0] for e in (first, second)))
    assert result.verdict == migration_pairs.MIGRATION
    assert migration_pairs.comparison_table([result])["ngroups_deep"][0] == 0


def test_pointing_across_the_meridian_and_from_offsets():
    one, other = {"RA_REF": 359.9999999, "DEC_REF": 0.0}, {"RA_REF": 0.0000001, "DEC_REF": 0.0}
    assert migration_pairs.pointing_difference(one, other) == pytest.approx(0.72, rel=1e-3)
    assert (
        migration_pairs.pointing_difference({"XOFFSET": 0.0, "YOFFSET": 0.0}, {"XOFFSET": 0.003, "YOFFSET": 0.004}) == 5
    )
    assert migration_pairs.pointing_difference({}, {}) is None


def test_no_signal():
    dark = RateImage(np.zeros((9, 9)), np.ones((9, 9)), np.ones((9, 9), bool))
    with pytest.raises(CalamiError, match="no good pixel with signal"):
        migration_pairs.region_change(dark, dark, np.ones((9, 9), bool))


def test_a_pair_without_a_star_shows_nothing(tmp_path):
    assert migration_pairs.compare(*pair(tmp_path, electrons_per_s=0.0, nints=1)).verdict == migration_pairs.NOTHING


# --- pairs and tables ------------------------------------------------------------------------------------------------


def test_pairs_find_themselves(tmp_path):
    pair(tmp_path)
    write_star(tmp_path / f"{rootname(1, 6)}_rate.fits", 13, PATT_NUM=2, sci_cards={"RA_REF": 82.19})
    write_star(tmp_path / f"{rootname(1, 7)}_rate.fits", 13, FILTER="F430M")
    write_star(tmp_path / f"{rootname(2, 2)}_rate.fits", 9)
    write_exposure(tmp_path / f"{rootname(1, 8)}_uncal.fits", NGROUPS=20)
    ds = Dataset(tmp_path)
    (found,) = migration_pairs.find_pairs(ds)
    assert ds[found.shallow].rootname == rootname(1, 2) and ds[found.deep].rootname == rootname(1, 5)
    assert found.same_visit and found.apart_mas == 0
    across = migration_pairs.find_pairs(ds, across_visits=True)
    assert [p.same_visit for p in across] == [True, False, False]
    depths = [(ds.facts(p.shallow)["NGROUPS"], ds.facts(p.deep)["NGROUPS"]) for p in across]
    assert depths == [(5, 13), (5, 9), (9, 13)]


def test_compare_all_collects_what_cannot_be_done(tmp_path):
    pair(tmp_path, edge=1e-6)
    write_star(tmp_path / f"{rootname(1, 7)}_rate.fits", 13, FILTER="F430M")
    write_exposure(tmp_path / f"{rootname(1, 8)}_uncal.fits", NGROUPS=20)
    ds = Dataset(tmp_path)
    asked = [(rootname(1, 2), rootname(1, k)) for k in (5, 7, 8)]
    results, refused = migration_pairs.compare_all(ds, asked)
    assert len(results) == 1 and len(refused) == 2
    assert "not the same filter" in refused[0] and "no product of mean count rates" in refused[1]


def test_the_table_has_the_promised_columns(tmp_path):
    promised = (
        "shallow deep targname filter ngroups_shallow ngroups_deep peak_row peak_col peak_adu_shallow peak_adu_deep "
        "peak_change peak_change_err ring_change ring_change_err sum_change sum_change_err verdict"
    ).split()
    result = migration_pairs.compare(*pair(tmp_path, edge=1e-6))
    for rows in ([result], []):
        table = migration_pairs.comparison_table(rows)
        assert set(promised) <= set(table.colnames) and len(table) == len(rows)
    assert table["peak_adu_deep"].unit == "adu"


def test_three_dimensional_products_give_the_same_answer(tmp_path):
    first, second = pair(tmp_path, edge=1e-6)
    flat = migration_pairs.compare(first, second)
    for exposure in (first, second):
        arrays = {k: exposure.array(k) for k in ("SCI", "ERR", "DQ")}
        cube = {"SCI": np.repeat(arrays["SCI"][None], 4, 0), "ERR": np.repeat(2 * arrays["ERR"][None], 4, 0)}
        cube["DQ"] = np.repeat(arrays["DQ"][None], 4, 0)
        facts = {k: exposure.header[k] for k in ("NGROUPS", "EFFINTTM")}
        pointing = {k: exposure.sci_header[k] for k in ("RA_REF", "DEC_REF", "BUNIT")}
        write_exposure(tmp_path / f"{exposure.rootname}_rateints.fits", cube, pointing, **facts)
    ints = migration_pairs.compare(*(tmp_path / f"{e.rootname}_rateints.fits" for e in (first, second)))
    assert np.isclose(ints.peak.value, flat.peak.value) and np.isclose(ints.peak.error, flat.peak.error, rtol=1e-4)


def test_plots_return_their_axes(tmp_path):
    from matplotlib.figure import Figure

    result = migration_pairs.compare(*pair(tmp_path, edge=1e-6, bad=[(41, 46)]))
    axes = Figure().subplots(1, 3)
    for draw, ax in zip(
        (migration_pairs.plot_change, migration_pairs.plot_profile, migration_pairs.plot_pixels), axes, strict=True
    ):
        assert draw(result, ax) is ax and "[" in ax.get_xlabel() and "[" in ax.get_ylabel(), "units are named"
        assert ax.has_data()


# --- flight data -----------------------------------------------------------------------------------------------------


def test_the_pair_of_program_1093(shared_data):
    ds = Dataset(shared_data / "jw01093")
    files = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in (shared_data / "jw01093").iterdir()}
    (found,) = migration_pairs.find_pairs(ds)
    assert (ds.facts(found.shallow)["NGROUPS"], ds.facts(found.deep)["NGROUPS"]) == (5, 13)
    result = migration_pairs.compare(ds[found.shallow], ds[found.deep])
    assert (result.peak_row, result.peak_col) == (40, 45)
    assert abs(result.peak.value + 0.043) < 0.004 and result.peak.error < 0.004
    assert result.ring.value > 0.01 and result.ring.significance > 10
    assert abs(result.total.value) < 0.002 and result.verdict == migration_pairs.MIGRATION
    assert np.allclose(result.peak_adu, (14643, 36430), rtol=1e-3)
    back = migration_pairs.compare(ds[found.deep], ds[found.shallow])
    assert np.isclose(1 + back.peak.value, 1 / (1 + result.peak.value)) and back.ring.value < 0
    assert back.verdict == migration_pairs.MIGRATION
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files} == files


def test_subpixel_positions_are_refused(shared_data):
    ds = Dataset(shared_data / "jw01093")
    for k in (2, 3, 25):
        with pytest.raises(migration_pairs.NotComparable, match="not the same pointing"):
            migration_pairs.compare(ds["jw01093020001_03102_00001_nis"], ds[f"jw01093020001_03102_{k:05d}_nis"])


def test_one_star_at_one_depth_in_two_visits_shows_no_migration(shared_data):
    ds = Dataset(shared_data / "jw01093")
    result = migration_pairs.compare(ds["jw01093018001_03102_00001_nis"], ds["jw01093020001_03102_00001_nis"])
    assert result.verdict != migration_pairs.MIGRATION and result.fit.shift_mas[1] > 2


CONTRADICTIONS = {
    "more than full well": ({"EFFINTTM": 8.98072, "NGROUPS": 119, "TGROUP": 0.07544}, r"{FULL} \(8.98072 s\) is wrong"),
    "another number of groups": (
        {"EFFINTTM": 0.3772, "NGROUPS": 500, "TGROUP": 0.07544},
        r"EFFINTTM is 0.3772 s, but .* 500",
    ),
    "no number of groups": ({"EFFINTTM": 0.3772, "NGROUPS": -5}, "NGROUPS is -5"),
    "another time": ({"EFFINTTM": 8.98072, "NGROUPS": 5, "TGROUP": 0.07544}, "EFFINTTM is 8.98072 s, but"),
}
FULL = r"the peak would hold \d\.\d\d times full well: it saturates, or EFFINTTM"


@pytest.mark.parametrize("case", CONTRADICTIONS)
@pytest.mark.parametrize("which", ["shallow", "deep"])
def test_contradictory_numbers_get_no_verdict(tmp_path, case, which):
    cards, words = CONTRADICTIONS[case]
    both = pair(tmp_path, edge=1e-6)
    assert migration_pairs.compare(*both).verdict == migration_pairs.MIGRATION
    wrong = both[which == "deep"]
    with astropy_fits.open(wrong.paths[0], mode="update") as hdus:
        hdus[0].header.update(cards)
    result = migration_pairs.compare(*(Data(e.paths) for e in both))
    assert not result.judged and result.verdict.startswith(f"{migration_pairs.NO_VERDICT}: ")
    words = words.replace("{FULL}", FULL)
    assert re.search(words, result.verdict) and re.search(words, result.notes[0]) and wrong.name in result.notes[0]
    assert "consistent" not in result.sentence and result.sentence.count(result.notes[0]) == 1
    assert np.isnan(result.fit.edge) and np.isfinite(result.peak.value), "what rests on rates alone is kept"
    table = migration_pairs.comparison_table([result])
    assert table["verdict"][0] == result.verdict and table["notes"][0].startswith(result.notes[0])
    with pytest.raises(CalamiError, match="no kernel, as there is no verdict"):
        pair_kernel.fit_kernel(result)


def test_a_verdict_says_how_far_it_reaches(tmp_path):
    plain = migration_pairs.compare(*pair(tmp_path, edge=1.2e-6))
    assert plain.verdict == migration_pairs.MIGRATION and "not all of it" not in plain.sentence
    poor = replace(plain, fit=replace(plain.fit, chi2=6.4 * (plain.fit.n_pixels - 4)))
    assert "but not all of it: χ² is 6.4 for each degree of freedom" in poor.sentence
    nothing = replace(plain, verdict=migration_pairs.NOTHING, peak=migration_pairs.Change(-0.001, 0.002))
    assert "by more than 0.4 % is excluded (95 %)" in nothing.sentence
    unclear = replace(plain, verdict=migration_pairs.UNCLEAR)
    assert "cannot be told apart from nonlinearity" in unclear.sentence and "would decide" in unclear.sentence
    coarse = replace(unclear, facts=tuple(f | {"FILTER": "F277W"} for f in plain.facts))
    assert "cannot be told apart from a shift of the star" in coarse.sentence


def test_a_piece_of_an_exposure_is_no_partner_of_the_whole(tmp_path):
    write_star(tmp_path / f"{rootname(1, 5)}_rate.fits", 13)
    write_star(tmp_path / f"{rootname(1, 5)}_5groups_chunk1_rate.fits", 5)
    ds = Dataset(tmp_path)
    assert len(ds) == 2 and not migration_pairs.find_pairs(ds)


@pytest.mark.slow
def test_a_coefficient_at_its_least_is_a_limit(tmp_path):
    current = star_current((45.1, 39.9))
    slopes = [pair_kernel.observed_slope(current, Migration(0.4e-6, 0.0), g, FRAME) for g in GROUPS]
    fit = pair_kernel.fit_kernel(kernel_pair(tmp_path, slopes, nints=40), "h4rg", ("edge", "growth"))
    sure = replace(fit, values=np.where([n == "growth" for n in fit.free], 0.0, fit.values))
    assert sure.at_bound == ("growth",) and "growth < " in str(sure) and "edge (" in str(sure)


def test_the_floor_is_what_pixels_far_from_the_peak_scatter(tmp_path):
    current, rng = star_current((45.1, 39.9)), np.random.default_rng(4)
    slopes = [pair_kernel.observed_slope(current, find_migration("h4rg"), g, FRAME) for g in GROUPS]
    clean = kernel_pair(tmp_path, slopes, nints=3000)
    shallow, deep = clean.images
    rough = replace(deep, value=deep.value * rng.normal(1, 0.005, deep.value.shape))
    fit = pair_kernel.fit_kernel(replace(clean, images=(shallow, rough)), "h4rg", ("edge", "diagonal"))
    assert fit.floor == pytest.approx(0.005, rel=0.25) and fit.chi2_core / fit.n_core < 2
    assert pair_kernel.fit_kernel(clean, "h4rg", ("edge",)).floor < 0.001


def test_a_bad_pixel_between_fringes_is_filled_by_its_fourier_plane(tmp_path):
    current = star_current((45.1, 39.9))
    slopes = [pair_kernel.observed_slope(current, find_migration("h4rg"), g, FRAME) for g in GROUPS]
    whole = kernel_pair(tmp_path, slopes, nints=10**6)
    good = np.ones(whole.images[0].value.shape, bool)
    good[40, 43] = False
    holed = replace(whole, images=tuple(replace(i, good=good) for i in whole.images))
    one, other = (pair_kernel.fit_kernel(pair, "h4rg", ("edge", "diagonal")) for pair in (whole, holed))
    middle = np.array(one.shallow.shape) // 2
    place = tuple(np.array((40, 43)) - (np.array((whole.peak_row, whole.peak_col)) - middle))
    assert other.shallow[place] == pytest.approx(one.shallow[place], rel=0.03)
    assert not other.used[place] and other.migration.edge == pytest.approx(0.39e-6, rel=0.02)


@pytest.mark.shared
def test_the_flight_preset_describes_the_real_pair(shared_data):
    pair = migration_pairs.compare_all(Dataset(shared_data / "jw01093"))[0][0]
    fit = pair_kernel.fit_kernel(pair)
    assert fit.chi2_core / fit.n_core <= 1.3 and 0.003 < fit.floor < 0.006
    flight = find_migration("flight")
    assert all(
        getattr(fit.migration, n) == pytest.approx(getattr(flight, n), rel=0.05)
        for n in ("edge", "diagonal", "growth", "cubic")
    )
    rows, columns = np.indices(fit.shallow.shape)
    row, column = np.unravel_index(fit.shallow.argmax(), fit.shallow.shape)
    eight = np.maximum(abs(rows - row), abs(columns - column)) == 1
    seen, expected = (i[eight].sum() / fit.shallow[eight].sum() - 1 for i in (fit.deep_at_rest, fit.model))
    assert abs(seen - expected) < 2 * fit.floor / np.sqrt(8) and expected > 0.006
