"""Simulated exposures: the light where the headers say, a truth that is true, and nothing half done on the disk."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import rootname, write_exposure

from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.instrument.detector import Detector
from calami.instrument.migration import MIGRATION_PRESETS, Migration
from calami.instrument.optics import Pupil, pixel_response, psf, star_spectrum
from calami.simulate import exposures, level1b
from calami.simulate import exposures as simulate_exposures
from calami.simulate.exposures import (
    Instrument,
    expected_files,
    exposure_light,
    exposure_seed,
    photo_current,
    read_truth,
    simulate_exposure,
    simulate_plan,
    simulated_cache,
    truth,
    truth_path,
)
from calami.simulate.level1b import MAX_BYTES, level1b_keywords, pointing, sky_to_detector
from calami.simulate.plans import ExposurePlan, Plan, ready_plan
from calami.simulate.stars import Companion, PlanProblem, Star, total_rate

STAR = Star("SIM-X", 88.0, -66.5, 20.0, -35.0, spectral_type="K0V", magnitude=5.3)
ONE = ExposurePlan(1516, 1, 1, 3, 2, 1, "Simulated: a title", "a label", STAR, False, "F480M", 3, 4)
TWO = replace(ONE, activity=3, start="2026-01-01T01:00:00.000")
INSTRUMENT = Instrument.default()
SEGMENTED = 2 * 80 * 80 * 24  # bytes: two integrations in each file


def plan(*exposures):
    return Plan("a plan", "a title", exposures or (ONE, TWO))


def pixels(path):
    from astropy.io import fits

    with fits.open(path) as hdus:
        return hdus["SCI"].data.copy()


def contents(folder):
    """Every file with its bytes."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())} if folder.exists() else {}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one simulated exposure, not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    (path,) = simulate_exposure(ONE, folder, INSTRUMENT)
    return path


# --- the light -------------------------------------------------------------------------------------------------------


def world(exposure, exact):
    """The coordinates of the header, as FITS has them or exactly.

    With CDELT and a rotation PC, as flight headers have them, FITS turns first and scales then. The pixels are
    0.55 % longer along y, so places that are d pixels from the reference point come out up to 0.0055 d wrong.
    """
    from astropy.wcs import WCS

    sci = level1b_keywords(exposure).sci
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.crval = ([sci[f"{key}{i}"] for i in (1, 2)] for key in ("CRPIX", "CRVAL"))
    wcs.wcs.ctype = [sci["CTYPE1"], sci["CTYPE2"]]
    scale, turn = (sci["CDELT1"], sci["CDELT2"]), np.array([[sci[f"PC{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
    wcs.wcs.cd = turn * scale if exact else turn * np.reshape(scale, (2, 1))
    return wcs


@given(
    st.floats(0, 1500), st.floats(0, 360), st.floats(-180, 180), st.floats(-80, 80), st.floats(0, 359.9),
    st.floats(-1.2, 1.2), st.floats(-1.2, 1.2),
)  # fmt: skip
def test_star_and_companion_have_the_coordinates_of_the_header(separation, angle, v3_pa, dec, ra, dx, dy):
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    exposure = replace(ONE, star=replace(STAR, ra=ra, dec=dec), v3_pa=v3_pa, x_offset=dx, y_offset=dy)
    primary = level1b_keywords(exposure).primary
    star = SkyCoord(primary["TARG_RA"], primary["TARG_DEC"], unit="deg")
    other = star.directional_offset_by(angle * u.deg, separation * u.mas)
    step = sky_to_detector(separation, angle, pointing(exposure).pa_aper)
    for place, expected in ((star, np.array(exposure.pixel)), (other, np.add(exposure.pixel, step))):
        assert np.allclose(world(exposure, True).world_to_pixel(place), expected, atol=0.003)
        away = np.hypot(*(expected - (45, 40)))
        assert np.allclose(world(exposure, False).world_to_pixel(place), expected, atol=0.003 + 0.006 * away)


@pytest.mark.parametrize(
    ("filt", "separation", "angle", "v3_pa", "offset"),
    [
        ("F480M", 326.0, 281.0, 171.9, (0, 0)),
        ("F380M", 900.0, 75.0, 20.0, (0.4, -0.3)),
        ("F430M", 0.0, 0.0, 0.0, (0, 0)),
    ],
)
def test_the_light_of_a_companion_falls_where_the_coordinates_say(filt, separation, angle, v3_pa, offset):
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    alone = replace(ONE, filter=filt, v3_pa=v3_pa, x_offset=offset[0], y_offset=offset[1])
    double = replace(alone, star=replace(STAR, companions=(Companion(separation, angle, 0.5),)))
    light = photo_current(double, INSTRUMENT) - photo_current(alone, INSTRUMENT)
    primary = level1b_keywords(double).primary
    star = SkyCoord(primary["TARG_RA"], primary["TARG_DEC"], unit="deg")
    x, y = world(double, True).world_to_pixel(star.directional_offset_by(angle * u.deg, separation * u.mas))
    given_as = {"pupil": INSTRUMENT.pupil, "spectrum": star_spectrum("K0V"), "oversample": 3}
    expected = psf(filt, (float(x), float(y)), **given_as)
    expected *= 0.5 * total_rate(STAR, filt) / psf(filt, (45.0, 40.0), oversample=3).sum()
    assert np.abs(light - expected).max() < 0.003 * expected.max()  # 0.003 pixel


def test_the_brightness_is_that_of_the_star():
    for filt in ("F277W", "F430M"):
        exposure = replace(ONE, filter=filt)
        current = photo_current(exposure, Instrument())
        assert current.shape == (80, 80) and (current >= 0).all()
        assert current.sum() == pytest.approx(total_rate(STAR, filt), rel=0.01)
    fainter = replace(STAR, magnitude=STAR.magnitude + 2.5)
    assert np.allclose(photo_current(replace(exposure, star=fainter), Instrument()) * 10, current, rtol=1e-9)


def test_errors_of_placement_move_the_star_and_not_the_headers():
    moved = replace(ONE, x_error=0.02, y_error=-0.03)
    assert level1b_keywords(moved).sci == level1b_keywords(ONE).sci
    told = replace(ONE, x_offset=0.02, y_offset=-0.03)
    assert np.allclose(photo_current(moved, INSTRUMENT), photo_current(told, INSTRUMENT), rtol=1e-9)


def test_optics_of_the_instrument_are_used():
    plain = photo_current(ONE, INSTRUMENT)
    for change in ({"pupil": Pupil()}, {"diffusion": 0.0}, {"jitter": 30.0}, {"response": pixel_response(0.3, 4)}):
        other = photo_current(ONE, replace(INSTRUMENT, **change))
        assert 1e-4 < np.abs(other - plain).max() / plain.max() < 0.5, change


# --- the truth -------------------------------------------------------------------------------------------------------


def test_truth_of_an_exposure(made):
    facts = read_truth(made.parent, ONE.rootname)
    current, between = exposure_light(ONE, INSTRUMENT)
    expected = truth(ONE, INSTRUMENT, 1, (current, between))
    assert facts["simulated"] is True and facts["seed"] == 1 and facts["rootname"] == ONE.rootname
    rate = facts.pop("rate")
    lit = np.where(INSTRUMENT.detector.reference, 0, current * INSTRUMENT.detector.flat)
    assert rate.shape == (80, 80) and np.allclose(rate, lit, rtol=1e-5)
    light = facts.pop("light")
    assert all(np.allclose(light[step], between[step], rtol=1e-5) for step in between)
    expected.pop("rate")
    expected.pop("light")
    assert facts == json.loads(json.dumps(expected))
    assert (facts["peak"]["row"], facts["peak"]["column"]) == np.unravel_index(rate.argmax(), (80, 80))
    assert facts["peak"]["charge"] == pytest.approx(facts["peak"]["rate"] * 3 * niriss.SUB80.frame_time)
    # Star, plan and coefficients can be made again from it.
    told = dict(facts["exposure"])
    star = told.pop("star")
    star["companions"] = tuple(Companion(**c) for c in star["companions"])
    assert ExposurePlan(star=Star(**star), **told) == ONE
    assert Migration(**facts["instrument"]["detector"]["migration"]) == MIGRATION_PRESETS["flight"]
    assert np.allclose(facts["instrument"]["pupil"]["pistons"], INSTRUMENT.pupil.pistons)


def test_crossings_are_those_of_the_ramp():
    facts = truth(replace(ONE, filter="F380M"), Instrument.default(migration="h4rg"), 1)
    charge, seen = (facts["crossings"][k]["instantaneous"] for k in ("charge", "seen"))
    values = list(charge.values())
    assert list(charge) == ["0.005", "0.01", "0.02", "0.03"] and values == sorted(values)
    assert values[1] == pytest.approx(10_800, rel=0.05)  # as the page on migration has it for F380M, star on the centre
    assert all(seen[k] == pytest.approx(charge[k], rel=0.1) and seen[k] != charge[k] for k in charge)


def test_crossings_that_are_not_reached():
    still = truth(ONE, INSTRUMENT.without("migration"), 1)["crossings"]
    assert {v for kind in still.values() for found in kind.values() for v in found.values()} == {None}
    weak = truth(ONE, Instrument.default(migration="h4rg_weak"), 1)["crossings"]["charge"]
    assert weak["half"]["0.03"] is None and weak["instantaneous"]["0.005"] > 0


WRONG_TRUTHS = ["", "{", "[]", "null", "[" * 100_000, '{"rate": "x"}', '{"seed": 1}', '{"rate": [[1], [1, 2]]}']


@pytest.mark.parametrize("text", WRONG_TRUTHS)
def test_damaged_truth(tmp_path, text):
    with pytest.raises(FileProblem, match="is not there"):
        read_truth(tmp_path, ONE.rootname)
    truth_path(tmp_path, ONE.rootname).write_text(text)
    with pytest.raises(FileProblem, match=r"is not JSON|is no truth of this version"):
        read_truth(tmp_path, ONE.rootname)


def test_any_instrument_can_be_written_down():
    for instrument in (
        Instrument(),
        Instrument.default(seed=3, migration="none"),
        INSTRUMENT.without("saturation", "ipc", "noise"),
        replace(INSTRUMENT, response=pixel_response(0.1)),
    ):
        facts = json.loads(json.dumps(instrument.facts))
        assert facts == json.loads(json.dumps(instrument.facts))
    assert Instrument.default(2).facts != INSTRUMENT.facts == Instrument.default().facts
    assert INSTRUMENT.without("dark").facts != INSTRUMENT.facts


# --- one exposure ----------------------------------------------------------------------------------------------------


def test_the_file_is_whole_and_says_what_it_is(made):
    from astropy.io import fits

    assert {p.name for p in made.parent.iterdir()} == {made.name, truth_path(".", ONE.rootname).name}
    with fits.open(made) as hdus:
        hdus.verify("exception")
        header = hdus[0].header
        assert header["SIMULATD"] is True and "imulated" in header["TITLE"]
        history = "".join(header["HISTORY"])
        assert "seed 1" in history and f"{ONE.rootname}_truth.json" in history
        assert hdus["SCI"].data.shape == (4, 3, 80, 80) and hdus["SCI"].data.dtype == np.uint16
    files = Dataset(made.parent)
    assert len(files) == 1 and not files.problems  # and no warning, which would be an error here


def test_the_pixels_show_the_truth(made):
    facts = read_truth(made.parent, ONE.rootname)
    raw = pixels(made).astype(float)
    rate = (raw[:, 1] - raw[:, 0]).mean(axis=0) * niriss.GAIN / niriss.SUB80.frame_time
    near = np.s_[30:51, 35:56]
    assert rate[near].sum() == pytest.approx(facts["rate"][near].sum(), rel=0.02)
    assert np.unravel_index(rate[near].argmax(), (21, 21)) == (10, 10)


def test_the_same_again_is_the_same_and_costs_nothing(made, tmp_path, monkeypatch):
    (again,) = simulate_exposure(ONE, tmp_path)  # the default instrument is the default instrument
    assert np.array_equal(pixels(again), pixels(made))
    before = contents(tmp_path)
    monkeypatch.setattr(simulate_exposures, "photo_current", None)  # nothing may be computed
    assert simulate_exposure(ONE, tmp_path, INSTRUMENT) == [again]
    assert simulate_plan(plan(ONE), tmp_path, progress=False) == [again]
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("exposure", "change"),
    [
        (ONE, {"seed": 2}),
        (ONE, {"instrument": Instrument.default(migration="h4rg")}),
        (ONE, {"instrument": INSTRUMENT.without("read_noise")}),
        (replace(ONE, nints=5), {}),
        (replace(ONE, star=replace(STAR, magnitude=5.0)), {}),
        (ONE, {"max_bytes": SEGMENTED}),
        (ONE, {"seed": 2, "max_bytes": SEGMENTED}),
    ],
)
def test_what_was_made_otherwise_is_refused_and_left_alone(made, tmp_path, exposure, change):
    for path in made.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = contents(tmp_path)
    with pytest.raises(FileProblem, match="not made with this plan") as caught:
        simulate_exposure(exposure, tmp_path, **change)
    assert made.name in str(caught.value) and "overwrite" in str(caught.value)
    assert contents(tmp_path) == before
    # A plan is refused as a whole, before its first exposure is made.
    other = replace(TWO, star=exposure.star)
    with pytest.raises(FileProblem, match="not made with this plan"):
        simulate_plan(plan(replace(other, activity=1, start="2025-12-31T00:00:00.000"), exposure), tmp_path, **change)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("truth_too", [None, "", '{"rate": [[1.0]], "seed": 1}'])
def test_files_of_others_are_refused_and_left_alone(tmp_path, truth_too):
    (name,) = expected_files(ONE, tmp_path)
    name.write_bytes(b"somebody's data")
    if truth_too is not None:
        truth_path(tmp_path, ONE.rootname).write_text(truth_too)
    before = contents(tmp_path)
    for make in (lambda: simulate_exposure(ONE, tmp_path), lambda: simulate_plan(plan(TWO, ONE), tmp_path)):
        with pytest.raises(FileProblem, match="overwrite"):
            make()
        assert contents(tmp_path) == before


def test_overwriting(tmp_path):
    old = simulate_exposure(ONE, tmp_path, max_bytes=SEGMENTED)
    (new,) = simulate_exposure(ONE, tmp_path, seed=2, overwrite=True)
    assert len(old) == 2 and not any(path.exists() for path in old)  # nothing of the old one is left
    assert read_truth(tmp_path, ONE.rootname)["seed"] == 2 and "seed 2" in str(_history(new))
    assert simulate_exposure(ONE, tmp_path, seed=2) == [new]


def _history(path):
    from astropy.io import fits

    return fits.getheader(path)["HISTORY"]


class Killed(BaseException):
    """Like a KeyboardInterrupt: nobody catches it."""


def killed(*args, **kwargs):
    raise Killed


def test_a_run_killed_before_the_pixels_resumes(tmp_path, monkeypatch, made):
    with monkeypatch.context() as patch:
        patch.setattr(simulate_exposures, "write_level1b", killed)
        with pytest.raises(Killed):
            simulate_exposure(ONE, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [truth_path(tmp_path, ONE.rootname).name]
    (path,) = simulate_exposure(ONE, tmp_path)
    assert np.array_equal(pixels(path), pixels(made))


def test_a_run_killed_before_the_pixels_may_be_followed_by_another(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(simulate_exposures, "write_level1b", killed)
        with pytest.raises(Killed):
            simulate_exposure(ONE, tmp_path, seed=5)
    simulate_exposure(ONE, tmp_path, seed=6)
    assert read_truth(tmp_path, ONE.rootname)["seed"] == 6


@pytest.mark.parametrize("where", ["write_level1b", "write_atomically"])
def test_overwriting_that_is_killed_never_leaves_old_pixels_beside_a_new_truth(tmp_path, monkeypatch, where):
    simulate_exposure(ONE, tmp_path, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(exposures, where, killed)
        with pytest.raises(Killed):
            simulate_exposure(ONE, tmp_path, seed=2, overwrite=True)
    (path,) = simulate_exposure(ONE, tmp_path, seed=2)
    assert "seed 2" in str(_history(path)) and read_truth(tmp_path, ONE.rootname)["seed"] == 2
    fresh = tmp_path / "fresh"
    assert np.array_equal(pixels(path), pixels(simulate_exposure(ONE, fresh, seed=2)[0]))


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    from astropy.io import fits

    def full(self, name, *args, **kwargs):
        with open(name, "wb") as file:  # noqa: PTH123  a name as astropy gets it
            file.write(b"SIMPLE  =")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fits.HDUList, "writeto", full)
        with pytest.raises(FileProblem, match="No space left"):
            simulate_exposure(ONE, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [truth_path(tmp_path, ONE.rootname).name]
    assert len(simulate_exposure(ONE, tmp_path)) == 1


def test_segments(tmp_path, made):
    paths = simulate_exposure(ONE, tmp_path, max_bytes=SEGMENTED)
    assert paths == expected_files(ONE, tmp_path, SEGMENTED) and len(paths) == 2
    assert np.array_equal(np.concatenate([pixels(p) for p in paths]), pixels(made))
    files = Dataset(tmp_path)
    assert len(files) == 1 and not files.problems
    before = contents(tmp_path)
    paths[1].unlink()  # a run killed between two segments
    assert simulate_exposure(ONE, tmp_path, max_bytes=SEGMENTED) == paths
    assert np.array_equal(np.concatenate([pixels(p) for p in paths]), pixels(made))
    assert contents(tmp_path).keys() == before.keys()
    with pytest.raises(FileProblem):
        simulate_exposure(ONE, tmp_path)  # as one piece
    with pytest.raises(CalamiError, match="cannot be cut"):
        simulate_exposure(TWO, tmp_path, max_bytes=1000)


# --- plans -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**64), st.integers(1, 999), st.integers(1, 1295), st.integers(1, 99_999))
def test_every_exposure_has_random_numbers_of_its_own(seed, observation, activity, number):
    one = replace(ONE, observation=observation, activity=activity, exposure=number)
    state = exposure_seed(one, seed).generate_state(4).tolist()
    assert state == exposure_seed(replace(one, nints=99, filter="F277W"), seed).generate_state(4).tolist()
    for other in ({"observation": observation % 999 + 1}, {"exposure": number % 99_999 + 1}):
        assert state != exposure_seed(replace(one, **other), seed).generate_state(4).tolist()
    assert state != exposure_seed(one, seed + 1).generate_state(4).tolist()


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None])
def test_seeds_that_are_none(tmp_path, seed):
    for make in (lambda: simulate_exposure(ONE, tmp_path / "new", seed=seed),
                 lambda: simulate_plan(plan(), tmp_path / "new", seed=seed)):  # fmt: skip
        with pytest.raises(CalamiError, match="whole number from 0 up"):
            make()
    assert not (tmp_path / "new").exists()


def test_a_program(tmp_path):
    third = replace(TWO, activity=4, start="2026-01-01T02:00:00.000")
    paths = simulate_plan(plan(ONE, TWO, third), tmp_path, INSTRUMENT, progress=False)
    assert [p.name for p in paths] == [f"{e.rootname}_uncal.fits" for e in (ONE, TWO, third)]
    # Same star, same set-up: the same picture, but none of the noise.
    one, two, three = (pixels(p).astype(float) for p in paths)
    noise = one - one.mean(axis=0), two - two.mean(axis=0), three - three.mean(axis=0)
    faint = np.s_[:, :, 60:, 60:]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(noise[a][faint].ravel(), noise[b][faint].ravel())[0, 1]) < 0.03
    files = Dataset(tmp_path)
    assert len(files) == 3 and not files.problems
    # Alone, in another order or by other hands, each exposure is the same.
    (alone,) = simulate_exposure(TWO, tmp_path / "alone", INSTRUMENT)
    assert np.array_equal(pixels(alone), two)
    with ThreadPoolExecutor(2) as pool:
        others = simulate_plan(plan(third, ONE), tmp_path / "pool", INSTRUMENT, executor=pool, progress=False)
    assert np.array_equal(pixels(others[0]), three) and np.array_equal(pixels(others[1]), one)


def test_a_program_that_was_killed_resumes(tmp_path, monkeypatch):
    real, calls = level1b.write_level1b, []

    def second_kills(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs) if len(calls) == 1 else killed()

    with monkeypatch.context() as patch:
        patch.setattr(simulate_exposures, "write_level1b", second_kills)
        with pytest.raises(Killed):
            simulate_plan(plan(), tmp_path, progress=False)
    (first,) = tmp_path.glob("*_uncal.fits")
    before = first.stat().st_mtime_ns
    assert len(simulate_plan(plan(), tmp_path, progress=False)) == 2
    assert first.stat().st_mtime_ns == before and len(Dataset(tmp_path)) == 2


@pytest.mark.slow  # about 10 s: two new processes import everything
def test_two_workers_make_the_same_pixels(tmp_path):
    one, two = (simulate_plan(plan(), tmp_path / str(n), workers=n, progress=False) for n in (1, 2))
    assert [p.name for p in one] == [p.name for p in two]
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(one, two, strict=True))
    names = [p.name for p in (tmp_path / "1").glob("*.json")]
    assert all((tmp_path / "1" / n).read_bytes() == (tmp_path / "2" / n).read_bytes() for n in names)


# --- what is refused -------------------------------------------------------------------------------------------------

TOO_BRIGHT = replace(TWO, star=replace(STAR, name="SIM-Y", magnitude=1.0))
BAD_TYPE = replace(TWO, star=replace(STAR, name="SIM-Y", spectral_type="L5"))
NOT_ASCII = replace(TWO, label="étoile")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("last", "given_too", "words"),
    [
        (TOO_BRIGHT, {}, "fills its brightest pixel in the first group"),
        (BAD_TYPE, {}, "spectral type 'L5' is not understood"),
        (NOT_ASCII, {}, "plain ASCII"),
        (TWO, {"max_bytes": 100}, "cannot be cut"),
        (TWO, {"seed": -3}, "the seed is -3"),
    ],
)
def test_impossible_plans_are_refused_before_anything_is_written(tmp_path, last, given_too, words, overwrite):
    folder = tmp_path / "new"
    with pytest.raises(CalamiError, match=words) as caught:
        simulate_plan(plan(ONE, last), folder, overwrite=overwrite, progress=False, **given_too)
    assert not folder.exists()
    if last is not TWO:
        assert last.rootname in str(caught.value) and isinstance(caught.value, PlanProblem)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"ngroups": 0}, "ngroups is 0"), ({"filter": "F200W"}, "F277W, F380M"), ({"x_offset": 2.6}, "puts the star on")],
)
def test_exposures_that_cannot_be_are_not_even_planned(change, words):
    with pytest.raises(PlanProblem, match=words):
        replace(ONE, **change)


def test_a_folder_that_cannot_be(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    for folder in (in_the_way, in_the_way / "below"):
        with pytest.raises(CalamiError, match="another"):
            simulate_plan(plan(), folder, progress=False)
    assert in_the_way.read_text() == "mine"


def test_full_wells_are_told_and_not_refused(tmp_path, caplog):
    deep = replace(ONE, ngroups=30, nints=1)
    simulate_plan(plan(deep), tmp_path, progress=False)
    assert "the brightest pixel is full after group" in caplog.text
    assert expected_files(deep, tmp_path, MAX_BYTES)[0].exists()


def test_a_folder_may_be_given_as_text(tmp_path):
    folder = str(tmp_path / "made")
    (path,) = simulate_plan(plan(ONE), folder)
    assert path.parent == tmp_path / "made" and simulate_plan(plan(ONE), folder) == [path]


def test_the_references_are_those_of_the_detector_that_made_the_exposures(tmp_path, monkeypatch, caplog):
    caches = {s: SimpleNamespace(fingerprint=str(s), bias=Detector.default(s).bias) for s in (1, 2)}

    def cache_of(detector=None):
        same = [c for c in caches.values() if detector is None or np.array_equal(c.bias, detector.bias)]
        return same[0]

    monkeypatch.setattr(simulate_exposures, "default_cache", cache_of)
    plan = ready_plan("1516", "demo").exposures[0]
    paths = {}
    for seed in (1, 2):
        paths[seed] = tmp_path / str(seed) / f"{plan.rootname}_uncal.fits"
        paths[seed].parent.mkdir()
        facts = {"seed": seed, "instrument": Instrument.default(seed).facts}
        truth_path(paths[seed].parent, plan.rootname).write_text(json.dumps(facts))
    assert simulated_cache([paths[1], paths[1]]) is caches[1] and simulated_cache([paths[2]]) is caches[2]
    assert simulated_cache([]) is caches[1] and not caplog.text
    with pytest.raises(CalamiError, match="different detectors; process them separately"):
        simulated_cache(paths.values())
    facts["instrument"]["detector"]["bias"]["sha256"] = "0" * 64
    truth_path(paths[2].parent, plan.rootname).write_text(json.dumps(facts))
    assert simulated_cache([paths[2]]) is caches[1] and "its detector is not known" in caplog.text


def test_products_without_their_truth_go_on_with_the_references_of_before(tmp_path, monkeypatch):
    usual, other = (SimpleNamespace(fingerprint=name) for name in "ab")
    monkeypatch.setattr(simulate_exposures, "default_cache", lambda: usual)
    monkeypatch.setattr(simulate_exposures, "known_cache", {"jwst_calami12345678.pmap": other}.get)
    made = [
        write_exposure(tmp_path / f"{rootname(activity=k)}_rate.fits", CRDS_CTX=context)
        for k, context in enumerate(("jwst_calami12345678.pmap", "jwst_1584.pmap"), 1)
    ]
    assert simulated_cache(made[:1]) is other and simulated_cache(made[1:]) is usual
    with pytest.raises(CalamiError, match="different detectors"):
        simulated_cache(made)
