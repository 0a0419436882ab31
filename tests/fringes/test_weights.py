"""Fits whose pixels count by their noise: near the bound, alike for all stars, right about companions."""

from dataclasses import replace

import numpy as np
import pytest
from foreign_fringes import PIXEL, Detector
from scipy.ndimage import maximum_filter
from toys import fringe_cube, fringe_images

from calami.core.problems import CalamiError
from calami.fringes.average import _jacobian
from calami.fringes.calibration import FLIGHT, FLIGHT_WEIGHTED, calibrate
from calami.fringes.companions import Prepared, search_companion, weighted_response
from calami.fringes.fitting import fit
from calami.fringes.limits import contrast_curve, remove_companion
from calami.fringes.model import (
    FLOOR,
    Setup,
    bands,
    fringe_model,
    noise_floor,
    noise_weights,
    sandwich,
    solve,
    star_image,
)
from calami.fringes.observables import point_source
from calami.fringes.oifits import read_oifits, write_oifits
from calami.instrument import niriss, optics
from calami.instrument.mask import Mask, closure_matrix
from calami.migration.correction import Correct
from calami.process.prep import prep_data

POINTING = {"ROLL_REF": 171.7, "V3I_YANG": 0.6, "VPARITY": -1, "TARGNAME": "toy"}


def made(name, place=(0.1, 0.2), size=69):
    """Pictures of a model, and amounts that make a star of V² 0.9 of 1.5e6 electrons."""
    design = fringe_model(size, place, Setup(Mask(), bands(name), (65.6, 65.6))).reshape(size**2, -1)
    amounts = np.zeros(design.shape[1])
    amounts[0], amounts[1:-1:2], amounts[2:-1:2] = 1, 0.95, 0.03
    return design, 1.5e6 * amounts / (design @ amounts).sum()


def precision(design, amounts, variance, weights, columns=0):
    """Mean errors of V² and of closure phases."""
    derivative = _jacobian(amounts)
    both = derivative @ sandwich(design, np.ones(len(design), bool), variance, weights, columns) @ derivative.T
    errors = np.sqrt(np.diag(both)[:21]), np.sqrt(np.diag(closure_matrix(7) @ both[21:, 21:] @ closure_matrix(7).T))
    return np.array([e.mean() for e in errors])


@pytest.mark.parametrize("name", list(niriss.FILTERS))
@pytest.mark.parametrize("read_noise", [0.0, 10.0, 15.0, 20.0, 60.0])
def test_noise_weights_reach_the_bound(name, read_noise):
    # All terms of the model are free, all pixels good, photons and read noise; the bound: weights of 1 / variance, one
    # background for all pixels. A fit that gives each column a level of its own keeps to it, too.
    design, amounts = made(name)
    variance = np.maximum(design @ amounts, 1e-3) + read_noise**2
    star = design[:, 0] + design[:, 1:-1:2].sum(axis=1)
    weights = noise_weights(star.reshape(69, 69), noise_floor(star, variance)).ravel()
    bound, plain = (precision(design, amounts, variance, w) for w in (1 / variance, None))
    for columns in (0, 69):
        assert (precision(design, amounts, variance, weights, columns) < 1.05 * bound).all()
    if read_noise < 20:
        assert (plain > 1.1 * bound).all()


def test_the_floor_rises_with_read_noise_only_in_shallow_exposures():
    design, amounts = made("F480M")
    image = design @ amounts
    floors = [noise_floor(image, image + s**2) for s in (0, 10, 100, 1000)]
    assert floors[0] == floors[1] == FLOOR < floors[2] < floors[3]
    assert noise_floor(image, np.ones(69**2)) == np.inf
    assert noise_floor(image[image > 1000], image[image > 1000]) == FLOOR  # no faint pixels to measure it by
    assert np.array_equal(noise_weights(image.reshape(69, 69), np.inf), np.ones((69, 69)))


def test_solve_and_sandwich_with_weights_are_those_of_least_squares():
    rng = np.random.default_rng(1)
    design, truth = rng.normal(size=(400, 5)), np.arange(1.0, 6)
    variance, weights = rng.uniform(0.5, 4, 400), rng.uniform(0.1, 1, 400)
    images = design @ truth + np.sqrt(variance) * rng.normal(size=(3000, 400))
    good = rng.random(400) > 0.1
    found = solve(design, images, np.broadcast_to(good, images.shape), weights)
    root = np.sqrt(weights[good])
    assert np.allclose(found[0], np.linalg.lstsq(design[good] * root[:, None], images[0, good] * root, rcond=None)[0])
    assert np.allclose(np.cov(found.T), sandwich(design, good, variance, weights), atol=8e-4)


def test_levels_of_columns_are_those_of_least_squares():
    # As many terms more, one for each column, images with bad pixels of their own, a column that has no good one
    rng = np.random.default_rng(4)
    design, weights = np.column_stack((rng.normal(size=(400, 4)), np.ones(400))), rng.uniform(0.1, 1, 400)
    images, good = rng.normal(size=(3, 400)), rng.random((3, 400)) > 0.1
    good[:, 7::20] = False
    found = solve(design, images, good, weights, columns=20)
    every = np.column_stack((design[:, :-1], np.tile(np.eye(20), (20, 1))))
    for one, flags, image in zip(found, good, images, strict=True):
        root = np.sqrt(weights[flags])
        known = np.linalg.lstsq(every[flags] * root[:, None], image[flags] * root, rcond=None)[0]
        assert np.allclose(one[:-1], known[:4]) and one[-1] == 0
    variance, flags = rng.uniform(0.5, 4, 400), good[0]
    used, weighted = every[flags], every[flags] * weights[flags, None]
    inverse = np.linalg.pinv(used.T @ weighted)
    whole = inverse @ (weighted.T * variance[flags]) @ weighted @ inverse
    errors = sandwich(design, flags, variance, weights, columns=20)
    assert np.allclose(errors[:4, :4], whole[:4, :4]) and not errors[-1].any()


@pytest.mark.parametrize("count", [1, 12])
def test_noise_that_columns_share_does_not_matter(count):
    """Reading makes it: the level wanders slowly along a column, and differs from column to column."""
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=61), 12, seed=4)
    given = {"filter": "F480M", "scale": 65.6, "header": POINTING, "fix": False, "center": (30.2, 30.1)}
    given |= {"error": error[:count], "dq": dq[:count]}
    stripes = np.random.default_rng(8).normal(0, 60, (1, 1, 61))
    quiet, loud = (fit(cube[:count] + more, **given) for more in (0, stripes))
    assert np.allclose(loud.v2, quiet.v2, atol=1e-6) and np.allclose(loud.v2_err, quiet.v2_err, rtol=1e-3)
    assert np.allclose(loud.cp, quiet.cp, atol=1e-6) and np.allclose(loud.cp_err, quiet.cp_err, rtol=1e-3)
    assert loud.chi2 == pytest.approx(quiet.chi2, rel=1e-3)
    flat = [fit(cube[:count] + more, **given, background="flat") for more in (0, stripes)]
    assert np.abs(flat[1].v2 - flat[0].v2).max() > 1e-4
    assert (loud.header["CALBACKG"], flat[0].header["CALBACKG"]) == ("columns", "flat")
    with pytest.raises(CalamiError, match="background of the fit"):
        calibrate(loud, flat[0])


def test_small_images_have_one_background_unless_asked():
    """In 25 rows a level looks like the star: errors would grow by a quarter."""
    image = 1.5e6 * fringe_images("F480M", seed=3, size=61, slopes=False)[0]
    given = {"filter": "F480M", "scale": 65.6, "fix": False}
    for half, usual in ((20, "columns"), (19, "flat"), (12, "flat")):
        part = image[30 - half : 31 + half, 30 - half : 31 + half]
        found = {
            kind: fit(part, **given, error=np.sqrt(np.maximum(part, 0) + 225), background=kind)
            for kind in (None, "flat", "columns")
        }
        assert [found[kind].header["CALBACKG"] for kind in (None, "flat", "columns")] == [usual, "flat", "columns"]
        assert np.array_equal(found[None].v2, found[usual].v2)
        growth = (found["columns"].cp_err / found["flat"].cp_err).mean()
        assert growth < 1.04 if half == 20 else half == 19 or growth > 1.15
    for kind in ("plain", "noise"):
        assert fit(image, **given, pixel_weights=kind).header["CALBACKG"] == ("flat" if kind == "plain" else "columns")


def test_columns_that_are_lost_have_no_level():
    """Columns of which no pixel, or only one, is good, in the wings and next to the core."""
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=61), 8, seed=4)
    given = {"filter": "F480M", "scale": 65.6, "fix": False, "center": (30.2, 30.1)}
    whole = fit(cube, error=error, dq=dq, **given)
    dq = dq.copy()
    dq[:, :, 5] = dq[:, 1:, 44] = dq[3, :, 50] = niriss.DO_NOT_USE
    for kept in (slice(None), slice(0, 1)):
        lost = fit(np.where(dq[kept] & 1, np.nan, cube[kept]), error=error[kept], dq=dq[kept], **given)
        assert np.isfinite(lost.v2_err).all() and lost.chi2 < 1.1 * whole.chi2
        assert np.abs((lost.v2 - whole.v2) / lost.v2_err).max() < 4 and lost.v2_err.mean() < 3.2 * whole.v2_err.mean()


@pytest.fixture(scope="module")
def exposure():
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=61), 12, seed=4)
    return {"data": cube, "error": error, "dq": dq, "filter": "F480M", "scale": 65.6, "header": POINTING}


def test_what_weights_may_be(exposure):
    plain, noise = (fit(**exposure, pixel_weights=w) for w in ("plain", "noise"))
    ones = fit(**exposure, pixel_weights=np.ones((61, 61)), background="flat")
    assert np.allclose(ones.v2, plain.v2, atol=1e-12) and np.allclose(ones.cp, plain.cp, atol=1e-12)
    same = fit(**exposure, pixel_weights=noise.header["CALFLOOR"])
    function = fit(**exposure, pixel_weights=lambda star: noise_weights(star, noise.header["CALFLOOR"]))
    for other in (same, function):
        assert np.allclose(other.v2, noise.v2, atol=1e-12) and np.allclose(other.cp_covariance, noise.cp_covariance)
    assert [x.header["CALPIXW"] for x in (plain, noise, same)] == ["plain", "noise", "noise"]
    assert ones.header["CALPIXW"].startswith("given ") != function.header["CALPIXW"] != ones.header["CALPIXW"]
    assert noise.v2_err.mean() < 0.95 * plain.v2_err.mean() and fit(**exposure).header["CALPIXW"] == "noise"


def test_a_pixel_without_weight_is_a_bad_pixel(exposure):
    weights, dq = np.ones((61, 61)), exposure["dq"].copy()
    weights[20:22, 30], dq[:, 20:22, 30] = 0, niriss.DO_NOT_USE
    chosen = {"fix": False, "center": (30.2, 30.1), "background": "flat"}
    without = fit(**exposure, **chosen, pixel_weights=weights)
    flagged = fit(**exposure | {"dq": dq}, **chosen, pixel_weights="plain")
    assert np.allclose(without.v2, flagged.v2, atol=1e-10) and np.allclose(without.cp, flagged.cp, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"pixel_weights": "heavy"}, "'noise', 'plain'"),
        ({"pixel_weights": -1.0}, "a floor above 0"),
        ({"pixel_weights": np.ones((9, 9))}, "61 by 61"),
        ({"pixel_weights": -np.ones((61, 61))}, "none negative"),
        ({"pixel_weights": lambda star: star * np.nan}, "finite"),
        ({"pixel_weights": lambda star: 1.0}, "finite"),
        ({"pixel_weights": "noise", "mode": "exact"}, "mode='fast'"),
        ({"pixel_weight": "noise"}, "pixel_weights"),
        ({"background": "rows"}, "'flat' is known"),
        ({"background": "columns", "mode": "exact"}, "mode='fast'"),
    ],
)
def test_weights_that_cannot_be_are_refused(exposure, given, reason):
    with pytest.raises(CalamiError, match=reason):
        fit(**exposure, **given)


def test_the_weights_are_in_the_file_and_calibrate_asks_for_equal_ones(exposure, tmp_path):
    noise, plain = (fit(**exposure, pixel_weights=w) for w in ("noise", "plain"))
    back = read_oifits(write_oifits(noise, tmp_path / "a.fits"))
    assert (back.header["CALPIXW"], back.header["CALFLOOR"]) == ("noise", noise.header["CALFLOOR"])
    with pytest.raises(CalamiError, match="pixel weights"):
        calibrate(back, plain)
    assert calibrate(back, plain, allow=["CALPIXW", "CALBACKG"]).references
    old = replace(plain, header={k: v for k, v in plain.header.items() if k != "CALPIXW"})
    assert calibrate(plain, old).references  # before there were weights, all pixels counted alike
    with pytest.raises(CalamiError, match="pixel weights"):
        calibrate(noise, old)


def test_a_hot_pixel_that_no_one_flagged_is_left_out():
    image = 1.5e6 * fringe_images("F480M", seed=3, size=61, slopes=False)[0]
    given = {"filter": "F480M", "scale": 65.6, "fix": False, "error": np.sqrt(np.maximum(image, 0) + 225)}
    clean, spoilt = fit(image, **given), image.copy()
    spoilt[12, 40] += 500
    found = fit(spoilt, **given)
    assert np.isnan(found.image[12, 40]) and np.isnan(found.image).sum() == 1 and "stand out" in found.notes[0]
    assert (
        np.abs(found.v2 - clean.v2).max() < 1e-3 < np.abs(fit(spoilt, **given, pixel_weights=1e9).v2 - clean.v2).max()
    )


@pytest.mark.parametrize("name", ["F380M", "F480M"])
@pytest.mark.parametrize("offset", [(2.3, -1.1), pytest.param((-4.1, 2.2), marks=pytest.mark.slow)])
def test_a_companion_is_as_bright_and_where_it_is(name, offset):
    # No noise: what remains is the response of the fit. Plain weights are right, and weighted ones not worse.
    plain = {"pupil": optics.Pupil().with_errors(30, seed=3), "scale": (65.6, 65.6), "diffusion": 0, "jitter": 0}
    source = optics.Source().with_companion(*offset, 0.02)
    images = [1.5e6 * optics.psf(name, (45.2, 40.1), source=s, **plain) for s in (source, optics.Source())]
    fits = [
        fit(image, filter=name, error=np.sqrt(image + 225), header=POINTING | {"TARGNAME": label}, scale=65.6)
        for image, label in zip(images, ("a", "b"), strict=True)
    ]
    assert not any("stand out" in note for note in fits[0].notes)
    angle = np.radians(172.3)
    east = (-offset[0] * np.cos(angle) + offset[1] * np.sin(angle)) * 65.6
    north = (offset[0] * np.sin(angle) + offset[1] * np.cos(angle)) * 65.6
    found = search_companion(calibrate(*fits, floor=False), trials=1, limit=420)
    assert abs(found.contrast[name] / 0.02 - 1) < 0.01
    assert abs(found.separation - np.hypot(east, north)) < 0.4
    assert abs(found.position_angle - np.degrees(np.arctan2(east, north)) % 360) < 0.25


@pytest.mark.parametrize(("background", "columns"), [("flat", 0), ("columns", 69)])
def test_the_response_is_what_a_fit_finds(background, columns):
    setup, scale = Setup(Mask(), np.array([[1.0, 4.8e-6, 1.0]]), (65.6, 65.6)), float(np.mean(niriss.PIXEL_SCALE_MAS))
    setup = replace(setup, bands=bands("F480M", count=5), scale=(scale, scale))
    star = star_image((69, 69), (0.0, 0.0), setup)
    design, weights = fringe_model(69, (0.0, 0.0), setup).reshape(69**2, -1), noise_weights(star).ravel()
    every = np.ones((1, 69**2), bool)
    rest = solve(design, star.reshape(1, -1), every, weights, columns)[0]
    facts = "F480M", 4.8e-6, FLOOR, "", background
    for place in ((1.3, 2.1), (-3.3, 4.7)):  # rows and columns
        seen = solve(design, star_image((69, 69), place, setup).reshape(1, -1), every, weights, columns)[0]
        light, fringe = weighted_response(np.array([place[::-1]]) * scale, *facts)
        assert abs(light[0] - seen[0] / rest[0]) < 2e-3
        assert np.allclose(np.abs(fringe[:, 0]), np.hypot(seen[1:-1:2], seen[2:-1:2]), atol=5e-3)
    light, fringe = weighted_response(np.zeros((1, 2)), *facts)
    assert np.allclose(light, 1) and np.allclose(fringe, 1)


def test_the_response_knows_which_hole_is_which(exposure):
    # Some of the holes, their pairs in another order: the same companion
    whole = fit(**exposure)
    x, y = np.array([120.0]), np.array([-80.0])
    full = Prepared(whole).fringe(x, y)
    part = Prepared(whole.choose(["B4", "C2", "B5", "C6"])).fringe(x, y)
    for one, other in zip(part, full, strict=True):
        assert all(np.abs(np.abs(other) - abs(value)).min() < 1e-9 for value in one.ravel())
    flat = replace(whole, header=whole.header | {"CALFLOOR": 0.0})
    assert not np.allclose(Prepared(flat).fringe(x, y)[0], full[0], atol=1e-3)


def test_weights_make_a_star_alike_everywhere_on_a_foreign_detector():
    # A pupil, a flat, bad pixels and diffusion of which the model knows nothing: 10 places, same noise
    detector, rng = Detector(3), np.random.default_rng(2)
    places = rng.uniform(-2, 2, (10, 2))
    scatter = {"noise": [], "plain": []}
    for place in places:
        cube, error, dq, _ = detector.expose("F480M", place, 1e8, np.random.default_rng(5))
        for kind, kept in scatter.items():
            given = {"filter": "F480M", "scale": PIXEL, "fix": False, "error": error[0], "dq": dq[0]}
            found = fit(cube[0], **given, pixel_weights=kind)
            kept.append(np.concatenate((found.v2, found.cp)))
    v2, cp = ([np.std(scatter[kind], axis=0)[part].mean() for kind in ("noise", "plain")] for part in np.s_[:21, 21:])
    assert v2[0] < v2[1] and cp[0] < cp[1]


@pytest.mark.slow
def test_weights_halve_the_scatter_of_real_positions(shared_data):
    files = sorted((shared_data / "jw01093").glob("jw01093020001_*_cal.fits"))
    spread = {}
    for kind in ("plain", "noise"):
        seen = [fit(path, pixel_weights=kind) for path in files]
        v2, cp = (np.array([getattr(one, key) for one in seen]) for key in ("v2", "cp"))
        spread[kind] = (v2 / v2.mean(axis=0)).std(ddof=1), np.degrees(np.sqrt(cp.var(axis=0, ddof=1).mean()))
    assert np.allclose(spread["plain"], (0.0084, 0.432), rtol=0.02)
    assert np.allclose(spread["noise"], (0.00462, 0.238), rtol=0.02)


def test_levels_of_columns_make_abdor_agree_with_its_references(shared_data):
    # F480M, 5 groups, no floor of calibration: half of what differed was noise that columns share
    files = [shared_data / "jw01093" / f"jw01093{n}001_03102_00001_nis_cal.fits" for n in ("012", "015", "018")]
    chi2 = {}
    for background in ("flat", "columns"):
        target, *references = (fit(path, background=background) for path in files)
        found = search_companion(calibrate(target, references, floor=False), limit=430, trials=1)
        chi2[background] = found.chi2 / found.n_data
        assert abs(found.separation - 327.5) < 2 and abs(found.dmag["F480M"] - 4.38) < 0.03
    assert chi2["columns"] < 1.2 < 2.0 < chi2["flat"]


@pytest.mark.slow
def test_migrated_abdor_reaches_its_limit_once_corrected_by_documented_arguments(shared_data, tmp_path):
    """13 groups in F480M: 7.1 mag at 100 to 300 mas, errors scaled, by a designed or a measured pupil."""
    names = [f"jw01093{n}001_{v}_00001_nis" for n, v in (("012", "03105"), ("015", "03102"), ("018", "03102"))]
    files = [shared_data / "jw01093" / f"{name}_cal.fits" for name in names]
    paths = [prep_data(path, [Correct("flight")], tmp_path)[0] for path in files]
    for pupil, expected in ((None, 7.19), ("flight", 7.11)):
        target, *references = (fit(path, pupil=pupil) for path in paths)
        data = calibrate(target, references, position="flight", floor=False)
        found = search_companion(data, limit=430, rescale=True, trials=1)
        assert abs(found.separation - 330.8) < 2 and abs(found.dmag["F480M"] - 4.44) < 0.02
        curve = contrast_curve(
            remove_companion(data, found), rescale=found.scale, separations=np.arange(100, 301, 10.0)
        )
        assert np.median(-2.5 * np.log10(curve.contrast)) == pytest.approx(expected, abs=0.01)


def test_weighted_fits_have_a_floor_of_their_own():
    flight = {"DETECTOR": "NIS", "STARROW": 40.0, "STARCOL": 45.0}
    star = point_source("F480M", 1e10)
    errors = {}
    for kind, floor in (("plain", FLIGHT), ("noise", FLIGHT_WEIGHTED)):
        target = replace(star, header=flight | {"CALPIXW": kind})
        other = replace(star, name="other", header=target.header | {"STARCOL": 46.0})
        done = calibrate(target, other)
        errors[kind] = done.cp_err.mean()
        # V² alone: of what neighbouring baselines share, closure phases see less.
        expected = np.hypot(2 * np.hypot(floor.star, floor.of_position(1.0)), floor.common)
        assert np.isclose(done.v2_err.mean(), expected, rtol=0.05)
    assert errors["noise"] < 0.6 * errors["plain"]


def test_what_looks_into_the_neighbours_of_hot_pixels_is_not_fitted():
    """Capacitance puts 0.5 % of a hot pixel's charge into each neighbour: much where the star is faint."""
    design, amounts = made("F480M")
    image = (design @ amounts).reshape(69, 69)
    flags = np.zeros(image.shape, "uint32")
    faint = np.argwhere(maximum_filter(image, 3) < 0.05 * image.max())
    hot = np.random.default_rng(3).choice(faint[((faint > 3) & (faint < 65)).all(axis=1)], 20, replace=False)
    spoiled = image.copy()
    for row, column in hot:
        flags[row, column] |= niriss.DO_NOT_USE | 2048
        for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            spoiled[row + step[0], column + step[1]] += 10
    facts = {"header": {"FILTER": "F480M"}, "error": np.sqrt(image + 100), "fix": False}
    clean, looked = (fit(one, dq=flags, **facts).v2 for one in (image, spoiled))
    assert looked == pytest.approx(clean, rel=1e-5)
    known = fit(spoiled, dq=np.where(flags != 0, niriss.DO_NOT_USE, 0).astype("uint32"), **facts).v2
    assert np.abs(known / clean - 1).max() > 5e-5
