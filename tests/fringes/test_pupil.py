"""A pupil measured in flight: recovered from images, better on stars that it was not measured on, never mixed."""

from dataclasses import replace

import numpy as np
import pytest
from toys import fringe_images

from calami.core.problems import CalamiError
from calami.fringes.calibration import calibrate
from calami.fringes.companions import weighted_response
from calami.fringes.fitting import fit
from calami.fringes.model import FLOOR, Setup, bands, fringe_model, noise_weights, solve, star_image
from calami.fringes.oifits import read_oifits, write_oifits
from calami.fringes.pupil import PARTS, join_pupils, measure_pupil
from calami.instrument import niriss
from calami.instrument.mask import Mask
from calami.instrument.optics import MAS, Distortion, Pupil, psf
from calami.instrument.pupils import FilterPupil, MeasuredPupil, find_pupil, known_pupils

PLACES = ((25.1, 25.2), (24.8, 25.4), (25.4, 24.9))
TRUTH = FilterPupil(
    Distortion(0.996, 1.001, 0.0068, -0.0064), 0.806, (0.0, 0.0), np.random.default_rng(2).normal(0, 25, (7, 2))
)


def stars(name, truth=TRUTH, places=PLACES):
    pistons = Pupil(distortion=truth.distortion, flat_to_flat=truth.flat_to_flat).with_errors(30, seed=3)
    pupil = replace(pistons, tilts=truth.tilts)
    for place in places:
        image = 1e6 * psf(name, place, (51, 51), pupil=pupil, scale=(65.6, 65.6), diffusion=0, jitter=0, oversample=3)
        yield image, {"error": np.sqrt(image + 200), "filter": name}


@pytest.mark.parametrize("name", ["F430M"])
def test_a_known_pupil_is_recovered(name):
    found = measure_pupil(list(stars(name)), scale=65.6)
    away = found.pupil.values - TRUTH.values
    away[7:21] -= np.tile(away[7:21].reshape(7, 2).mean(axis=0), 7)  # all spots together: the place of the star
    assert np.abs(away[:4]).max() < 2e-4 and abs(away[4]) < 5e-4
    assert np.allclose(away[5:7], 0.005, atol=1e-3)  # by three points along a side of a pixel
    assert np.abs(away[7:21]).max() < 1.0 and np.abs(found.pupil.bends).max() < 1.0
    before, after = found.misfit(FilterPupil())[:, 0], found.leave_one_out()[:, 0]
    assert (after < 0.1 * before).all()


def bent_image(wavelength, bends, pistons, place=(25.1, 25.2), size=51, over=5):
    """A star through holes with bent wavefronts: the field as a sum over many points of each hole, no transform."""
    y, x = np.mgrid[-1:1:41j, -1:1:41j]
    inside = (np.abs(y) < np.sqrt(3) / 2) & (np.abs(x) + np.abs(y) / np.sqrt(3) < 1)
    y, x = y[inside], x[inside]
    modes = np.array([x**2 + y**2, x**2 - y**2, 2 * x * y])
    modes -= modes.mean(axis=1, keepdims=True)
    modes /= modes.std(axis=1, keepdims=True)
    mask, matrix = Mask(), FilterPupil().distortion.matrix
    inner = np.column_stack((x, y)) @ matrix.T * mask.flat_to_flat / np.sqrt(3)
    fine = (np.arange(size * over) + 0.5) / over - 0.5
    total = 0
    for hole, centre in enumerate(mask.row_col[:, ::-1] @ matrix.T):
        phase = np.exp(2e-9j * np.pi / wavelength * (bends[hole] @ modes + pistons[hole]))
        turns = 2j * np.pi * 65.6 * MAS / wavelength * (centre + inner)
        down, across = (np.exp(np.outer(fine - place[1 - k], turns[:, k])) for k in (1, 0))
        total = total + (down * phase) @ across.T
    image = (np.abs(total) ** 2).reshape(size, over, size, over).sum(axis=(1, 3))
    return 1e6 * image / image.sum()


def test_known_bends_are_recovered():
    rng = np.random.default_rng(6)
    bends, pistons = rng.normal(0, 15, (7, 3)), rng.normal(0, 30, 7)
    bends -= bends.mean(axis=0)
    image = bent_image(4.8e-6, bends, pistons)
    given = {"error": np.sqrt(image + 200), "filter": "F480M"}
    options = {"scale": 65.6, "bandpass": np.array([[1.0, 4.8e-6]]), "oversample": 5}
    found, straight = (
        measure_pupil([(image, given)], ["holes", "tilts", *more], **options) for more in (["bends"], [])
    )
    assert np.abs(found.pupil.bends - bends).max() < 1.0 and not straight.pupil.bends.any()
    assert found.misfit()[0, 0] < 0.4 * straight.misfit()[0, 0]  # the sum has no perfect hexagon


def test_a_file_from_before_there_were_bends_has_none(tmp_path):
    bent = MeasuredPupil("mine", {"F480M": replace(TRUTH, bends=np.random.default_rng(1).normal(0, 10, (7, 3)))})
    lines = bent.save(tmp_path / "mine.csv").read_text().splitlines()
    again = find_pupil(tmp_path / "mine.csv").of("F480M")
    assert np.allclose(again.values, bent.of("F480M").values, rtol=1e-5) and again.bends.any()
    old = tmp_path / "old.csv"
    old.write_text("\n".join([lines[0], *(",".join(line.split(",")[:22]) for line in lines[1:])]) + "\n")
    assert not find_pupil(old).of("F480M").bends.any()
    assert np.allclose(find_pupil(old).of("F480M").values[:21], again.values[:21])
    assert all(one.bends.any() for one in find_pupil("flight").filters.values())


def test_a_designed_pupil_is_found_as_designed():
    found = (
        measure_pupil(list(stars("F480M", FilterPupil(), PLACES[:1])), scale=65.6).pupil.values - FilterPupil().values
    )
    found[7:21] -= np.tile(found[7:21].reshape(7, 2).mean(axis=0), 7)
    assert np.abs(found[:4]).max() < 2e-4 and abs(found[4]) < 2e-4 and np.abs(found[7:]).max() < 0.5
    assert np.allclose(found[5:7], 0.005, atol=2e-3)


def test_parts_are_measured_alone():
    seen = list(stars("F480M", places=PLACES[:2]))
    only = measure_pupil(seen, ["tilts"], scale=65.6).pupil
    assert np.array_equal(only.values[:7], FilterPupil().values[:7]) and only.tilts.any()
    with pytest.raises(CalamiError, match="distortion, holes, smoothing, tilts"):
        measure_pupil(seen, ["shear"], scale=65.6)
    with pytest.raises(CalamiError, match="one filter"):
        measure_pupil([*seen, *stars("F380M", places=PLACES[:1])], scale=65.6)
    assert sum(map(len, PARTS.values())) == 42


def test_bad_pixels_have_no_part_in_the_pupil():
    image, given = next(stars("F480M", places=PLACES[:1]))
    flags, spoilt = np.zeros(image.shape, int), image.copy()
    flags[25, 23], flags[20, 30] = niriss.DO_NOT_USE, niriss.DO_NOT_USE
    spoilt[flags > 0] = 1e5
    found = [measure_pupil([(one, given | {"dq": flags})], ["tilts"], scale=65.6).pupil for one in (image, spoilt)]
    assert np.allclose(found[0].tilts, found[1].tilts, atol=1e-6)


def test_visibilities_are_right_with_the_pupil_that_the_image_has():
    image, given = next(stars("F480M"))
    # Three points along a side of a pixel in place of all: they lack this much smoothing
    known = MeasuredPupil("toy", {"F480M": replace(TRUTH, smoothing=(0.0053, 0.0053))})
    with_it, without = (fit(image, scale=65.6, pupil=pupil, **given) for pupil in (known, None))
    assert np.abs(with_it.v2 - 1).max() < 0.007 < 0.04 < np.abs(without.v2 - 1).max()
    assert with_it.chi2 < 0.4 * without.chi2
    assert (with_it.header["CALPUPIL"], without.header.get("CALPUPIL")) == ("toy", None)


def test_the_pupil_is_in_the_file_and_calibrate_asks_for_the_same(tmp_path):
    image = fringe_images("F480M", seed=3, size=61, slopes=False)[0] * 1e6
    given = {"filter": "F480M", "scale": 65.6, "error": np.sqrt(np.maximum(image, 0) + 200)}
    plain, flight = (fit(image, **given, pupil=pupil) for pupil in (None, "flight"))
    back = read_oifits(write_oifits(flight, tmp_path / "a.fits"))
    assert back.header["CALPUPIL"] == known_pupils()[-1]
    with pytest.raises(CalamiError, match="pupil"):
        calibrate(back, plain)
    assert calibrate(back, plain, allow=["CALPUPIL"]).references
    again = fit(image, **given, header={"CALPUPIL": "an old one"})
    assert "CALPUPIL" not in again.header
    for header in ({"SIMULATD": True}, {"TITLE": "Simulated 1093"}):
        notes = fit(image, **given, pupil="flight", header=header).notes
        assert [note for note in notes if "as designed" in note] and not [n for n in flight.notes if "as designed" in n]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"mode": "exact", "pupil": "flight"}, "mode='fast'"),
        ({"pupil": "flight", "distortion": "search"}, "own distortion"),
        ({"pupil": "flight-1999"}, "unknown"),
        ({"pupil": "flight", "filter": "F277W"}, "not in F277W"),
    ],
)
def test_pupils_that_cannot_be_are_refused(given, reason):
    with pytest.raises(CalamiError, match=reason):
        fit(np.ones((61, 61)), **{"filter": "F480M", "scale": 65.6, **given})


def test_the_response_to_a_companion_is_that_of_the_pupil():
    scale = float(np.mean(niriss.PIXEL_SCALE_MAS))
    designed = Setup(Mask(), bands("F430M", count=5), (scale, scale))
    setup = designed.with_pupil(find_pupil("flight").of("F430M"))
    star = star_image((69, 69), (0.0, 0.0), setup)
    design, weights = fringe_model(69, (0.0, 0.0), setup).reshape(69**2, -1), noise_weights(star).ravel()
    every = np.ones((1, 69**2), bool)
    rest, place = solve(design, star.reshape(1, -1), every, weights, 69)[0], (-3.3, 4.7)
    seen = solve(design, star_image((69, 69), place, setup).reshape(1, -1), every, weights, 69)[0]
    away = {}
    for pupil in ("", known_pupils()[-1]):
        light, fringe = weighted_response(np.array([place[::-1]]) * scale, "F430M", 4.28e-6, FLOOR, pupil)
        amplitudes = np.hypot(seen[1:-1:2], seen[2:-1:2])
        away[pupil] = abs(light[0] - seen[0] / rest[0]), np.abs(np.abs(fringe[:, 0]) - amplitudes).max()
    assert away.pop("")[1] > 0.1
    assert all(light < 2e-3 and fringe < 5e-3 for light, fringe in away.values())
    with pytest.raises(CalamiError, match="a measured pupil is of"):
        replace(designed, mask=Mask(("A", "B", "C"), np.eye(3)[:, :2])).with_pupil(FilterPupil())


def test_fits_of_filters_join_under_one_name(tmp_path):
    found = [measure_pupil(list(stars(name, places=PLACES[:1])), ["tilts"], scale=65.6) for name in ("F380M", "F480M")]
    joined = join_pupils("mine", found, "two stars")
    again = find_pupil(joined.save(tmp_path / "mine.csv"))
    assert (again.name, again.source, list(again.filters)) == ("mine", "two stars", ["F380M", "F480M"])
    assert np.allclose(again.of("F480M").values, found[1].pupil.values, rtol=1e-5, atol=1e-9)
    assert found[0].groups == ["array 1"]
    with pytest.raises(CalamiError, match="none is left"):
        found[0].without("array 1")


def files_of(shared_data, pattern):
    return sorted((shared_data / "jw01093").glob(f"jw01093{pattern}_nis_cal.fits"))


@pytest.mark.slow
def test_a_pupil_halves_what_is_left_of_real_stars_it_was_not_measured_on(shared_data):
    found = measure_pupil(files_of(shared_data, "01[258]001_03104_00001"))
    assert found.filter == "F380M" and len(set(found.groups)) == 3
    before, after = found.misfit(FilterPupil()), found.leave_one_out()
    assert (after[:, 0] < 0.5 * before[:, 0]).all() and (after[:, 1] < 0.43 * before[:, 1]).all()
    stored = find_pupil("flight-2026-11-27").of("F380M")
    assert np.allclose(stored.values, found.pupil.values, rtol=1e-3, atol=2e-3)


@pytest.mark.slow
def test_a_pupil_of_other_observations_steadies_real_positions(shared_data):
    others = measure_pupil(files_of(shared_data, "01[258]001_03102_00001"))
    pupil = join_pupils("others", [others])
    seen = [fit(path, pupil=pupil) for path in files_of(shared_data, "020001_03102_000??")]
    v2, cp = (np.array([getattr(one, key) for one in seen]) for key in ("v2", "cp"))
    scatter = (v2 / v2.mean(axis=0)).std(ddof=1), np.degrees(np.sqrt(cp.var(axis=0, ddof=1).mean()))
    assert scatter[0] < 0.0045 and scatter[1] < 0.20
    assert np.allclose(scatter, (0.00408, 0.1990), rtol=0.02)
