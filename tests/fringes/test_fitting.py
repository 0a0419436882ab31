"""Fringes: agreement with jwst.ami, right errors, bad pixels, bad input."""

import gzip
import importlib.util
import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from toys import fringe_cube, fringe_images, variants, write_exposure

from calami.calutil import Data
from calami.core import images
from calami.core.problems import CalamiError, FileProblem
from calami.fringes import average, fitting
from calami.fringes import frames as fringes_frames
from calami.fringes import model as fringes_model
from calami.fringes.fitting import fit
from calami.instrument import mask as instrument_mask
from calami.instrument import niriss, optics
from calami.instrument.fourier import FourierFix, forbidden
from calami.instrument.mask import Mask
from calami.instrument.optics import COMMISSIONING

POINTING = {"ROLL_REF": 171.765, "V3I_YANG": 0.56126717, "VPARITY": -1}


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[1] / "benchmarks" / "bench_fringes.py"
    spec = importlib.util.spec_from_file_location("bench_fringes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def star():
    return fringe_images("F480M", seed=3, size=61)


@pytest.fixture(scope="module")
def exposure(star):
    cube, error, dq = fringe_cube(star, 12, seed=4)
    return {"data": cube, "error": error, "dq": dq, "filter": "F480M", "scale": 65.6, "header": POINTING}


@pytest.fixture
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def both(data, **given):
    """The samples of `exact` and of the stock code."""
    return [fit(data, mode, **given) for mode in ("exact", "jwst")]


def assert_same(exact, stock, within=1e-6):
    assert np.abs(exact.samples["amplitude"] - stock.samples["amplitude"]).max() < within
    assert np.abs(instrument_mask.wrap(exact.samples["phase"] - stock.samples["phase"])).max() < within


CASES = [(f, o) for f in niriss.FILTERS for o in (1, 3, 5)]


@pytest.mark.parametrize(
    ("name", "oversample"), [c if c == ("F430M", 3) else pytest.param(*c, marks=pytest.mark.slow) for c in CASES]
)
def test_exact_is_jwst_on_cubes(name, oversample, quiet):
    cube, _, dq = fringe_cube(fringe_images(name, seed=oversample, size=49), 2, seed=oversample)
    dq[1, 20:22, 10] = 1  # bad in one integration only
    dq[0, 30, 40] = 4
    given = {"filter": name, "dq": dq, "oversample": oversample, "header": POINTING, "scale": 65.6}
    assert_same(*both(cube.astype("float32"), **given))


def test_exact_is_jwst_on_a_real_image(shared_data, quiet):
    exact, stock = both(shared_data / "jw01093" / "jw01093015001_03102_00001_nis_cal.fits", oversample=1)
    assert_same(exact, stock)
    assert np.allclose(exact.pistons, stock.pistons, atol=1e-6)
    assert np.allclose(exact.cp, stock.cp, atol=1e-6)
    assert np.isclose(exact.wavelength, stock.wavelength)
    assert "NaN" in " ".join(stock.notes) and np.isfinite(exact.cp_error).all()


@pytest.mark.parametrize("parity", [-1, 1])
def test_uv_are_those_of_jwst(parity, quiet):
    from types import SimpleNamespace

    from jwst.ami.instrument_data import NIRISS
    from jwst.ami.oifits import RawOifits

    mask = SimpleNamespace(ctrs=Mask().row_col)
    stock = SimpleNamespace(mask=mask, vparity=parity, roll_ref=171.765, v3iyang=0.561)
    sky = NIRISS.mast2sky(stock)
    centers = np.column_stack((-sky[:, 1], -sky[:, 0]))
    given = SimpleNamespace(nslices=1, ctrs_eqt=centers, ctrs_inst=mask.ctrs)
    theirs = RawOifits(given).bls[:, ::-1]
    facts = {"ROLL_REF": 171.765, "V3I_YANG": 0.561, "VPARITY": parity}
    frames = fringes_frames._read(np.ones((80, 80)), None, None, facts)
    assert np.allclose(fringes_frames._uv(Mask(), frames), theirs)


def test_rotation_search_is_that_of_jwst(star, quiet):
    from jwst.ami.find_affine2d_parameters import find_rotation
    from stdatamodels.jwst.datamodels import NRMModel

    nrm = NRMModel()
    nrm.flat_to_flat, nrm.diameter, nrm.pupil_circumscribed = 0.8, 6.559348, 6.603464
    for number, (x, y) in enumerate(niriss.HOLE_CENTERS, 1):
        setattr(nrm, f"x_a{number}", float(x))
        setattr(nrm, f"y_a{number}", float(y))
    band = np.array([[0.5, 4.7e-6], [0.5, 4.9e-6]])
    image, angles = star[0] * 1e6, np.arange(-2.0, 2.1, 1.0)
    theirs = find_rotation(image, nrm, (0, 0), angles, 65.6 * optics.MAS, 61, band, 1, "hex")
    samples = fringes_model._weighted(band[:, 0], band[:, 1], "peaks")
    setup = fringes_model.Setup(Mask(), samples, (65.6, 65.6), optics.Distortion(), oversample=1)
    assert np.isclose(fringes_model.search_rotation(image, setup, (-2.0, 2.0)), np.degrees(theirs.rotradccw), atol=2e-4)


@pytest.mark.parametrize("name", ["F277W", "F480M"])
def test_fast_is_nearly_exact(name):
    images = fringe_images(name, seed=5, size=49)
    moves = np.random.default_rng(1).standard_normal((6, 2, 1, 1)) / 65.6
    cube = 1e6 * (images[0] + moves[:, 0] * images[1] + moves[:, 1] * images[2])
    given = {"filter": name, "error": np.ones_like(cube), "trim": 0, "weighting": "photons", "debias": False}
    given["background"] = "flat"  # as in exact
    fast, exact = (fit(cube, mode, scale=65.6, **given) for mode in ("fast", "exact"))
    assert np.sqrt(np.mean((fast.samples["v2"] - exact.samples["v2"]) ** 2)) < 1e-5
    assert np.degrees(np.sqrt(np.mean((fast.samples["cp"] - exact.samples["cp"]) ** 2))) < 0.003
    assert np.allclose(np.ptp(fast.samples["center"], axis=0), np.ptp(exact.samples["center"], axis=0), rtol=0.05)


def test_errors_cover_the_truth(bench, quiet):
    found = [bench.coverage(8, 20, "F430M", 1.5e6), bench.coverage(16, 8, "F480M", 1.5e6, first=100, stock=False)]
    found.append(bench.coverage(16, 1, "F480M", 2e7, first=200, stock=False))
    for what in ("v2", "cp"):
        pulls = np.concatenate([f["calami", what] for f in found])
        one, two = bench.fractions(pulls)
        assert 60 < one < 76 and 91 < two < 98.5
        assert abs(pulls.mean()) < 0.3
        stock = np.concatenate([f["jwst.ami", what] for f in found if ("jwst.ami", what) in f])
        assert bench.fractions(stock)[0] < 55  # what is said about the stock errors


@pytest.mark.slow
def test_errors_cover_the_truth_where_columns_share_noise(bench, quiet, monkeypatch):
    """Stripes of 12 e-, read noise 15 e-: with one background errors are a seventh too small."""
    plain, rng = bench.fringe_cube, np.random.default_rng(6)

    def striped(*args, **given):
        cube, error, dq = plain(*args, **given)
        return cube + rng.normal(0, 12, (len(cube), 1, cube.shape[2])), error, dq

    monkeypatch.setattr(bench, "fringe_cube", striped)
    found = bench.coverage(32, 1, "F480M", 1.5e6, first=300, stock=False)
    for what in ("v2", "cp"):
        one, two = bench.fractions(found["calami", what])
        assert 64 < one < 73 and 93 < two < 97.5
        assert abs(found["calami", what].std() - 1) < 0.08


@pytest.fixture(scope="module")
def small():
    """A star in 31 by 31 pixels, which is fitted in a hundredth of a second, and what its fits have in common."""
    image = 1.5e6 * fringe_images("F480M", seed=3, size=31, slopes=False)[0]
    return image, {"filter": "F480M", "scale": 65.6, "fix": False, "trim": 0, "oversample": 1, "header": POINTING}


def departures(got, truth):
    """All that a fit gives with errors, less its truth, in units of the errors."""
    pairs = {"v2": got.v2_error, "cp": got.cp_error, "amplitude": got.amplitude_error, "phase": got.phase_error}
    pairs["t3_amplitude"] = got.t3_amplitude_error
    away = {key: getattr(got, key) - getattr(truth, key) for key in pairs}
    return {
        key: (instrument_mask.wrap(away[key]) if key in ("cp", "phase") else away[key]) / pairs[key] for key in pairs
    }


def squared_distance(away, covariance):
    """Of a vector from 0 by its covariance, where that has an inverse."""
    return away @ np.linalg.pinv(covariance, rcond=1e-9, hermitian=True) @ away


@pytest.mark.parametrize("mode", ["fast", pytest.param("exact", marks=pytest.mark.slow)])
def test_the_covariance_of_a_single_image_is_that_of_its_pixels(small, mode):
    # 200 draws of pixel noise. By the whole covariance they lie as far from the truth as 21 V² and 15 independent
    # combinations of closure phases should: the square of the distance is that number on average.
    image, given = small
    error, rng = np.sqrt(image + 25**2), np.random.default_rng(20)
    truth = fit(image, mode, error=error, debias=False, **given)
    distance, away = [], []
    for _ in range(200):
        got = fit(image + error * rng.standard_normal(image.shape), mode, error=error, debias=False, **given)
        cp = instrument_mask.wrap(got.cp - truth.cp)
        distance.append(
            [squared_distance(got.v2 - truth.v2, got.v2_covariance), squared_distance(cp, got.cp_covariance)]
        )
        away.append(departures(got, truth))
    assert np.allclose(np.mean(distance, axis=0), [21, 15], rtol=0.1)
    for key in ("v2", "cp", "amplitude", "t3_amplitude"):
        assert abs((np.abs([a[key] for a in away]) < 1).mean() - 0.683) < 0.08, key


@pytest.mark.slow
def test_all_errors_of_integrations_contain_the_truth(small):
    # 200 exposures of 6 integrations; the triple product of amplitudes has an error, too. The centre is given: phases
    # are counted from it, and one that is found anew in each exposure would tilt them.
    image, given = small
    error, rng = np.broadcast_to(np.sqrt(image + 25**2), (6, *image.shape)), np.random.default_rng(21)
    given = given | {"center": tuple(fit(image, error=error[0], **given).samples["center"][0])}
    truth = fit(image, error=error[0], debias=False, **given)
    away = []
    for _ in range(200):
        cube = image + error * rng.standard_normal(error.shape)
        away.append(departures(fit(cube, error=error, **given), truth))
    for key in away[0]:
        pulls = np.array([a[key] for a in away])
        assert abs((np.abs(pulls) < 1).mean() - 0.683) < 0.08, key
        assert abs(pulls.std() - 1) < 0.1, key


def test_errors_of_means_are_the_scatter_of_integrations(small):
    # One exposure of 300 integrations: standard deviation over √300, to the 4 % that so many give, in the median.
    image, given = small
    error, rng = np.broadcast_to(np.sqrt(image + 25**2), (300, *image.shape)), np.random.default_rng(22)
    got = fit(image + error * rng.standard_normal(error.shape), error=error, **given)
    kept, sides = got.samples["kept"], np.abs(instrument_mask.closure_matrix(7)).astype(bool)
    samples = {key: got.samples[key][kept] for key in ("v2", "cp", "amplitude", "phase")}
    samples["t3_amplitude"] = np.array([[a[s].prod() for s in sides] for a in samples["amplitude"]])
    stated = {"v2": got.v2_error, "cp": got.cp_error, "amplitude": got.amplitude_error, "phase": got.phase_error}
    stated["t3_amplitude"] = got.t3_amplitude_error
    for key, values in samples.items():
        ratio = stated[key] / (values.std(axis=0, ddof=1) / np.sqrt(len(values)))
        assert abs(np.median(ratio) - 1) < 0.04 and np.all(np.abs(ratio - 1) < 0.2), key


def test_noise_does_not_raise_v2(star):
    star = [part[10:51, 10:51] for part in star]
    cube, error, dq = fringe_cube(star, 600, electrons=1e4, jitter_mas=0, read_noise=2, bad=0, seed=2)
    given = {"filter": "F480M", "scale": 65.6, "fix": False, "reject": False}
    truth = fit(1e4 * star[0], error=error[0], debias=False, **given).v2
    raw, clean = (fit(cube, error=error, dq=dq, debias=d, **given) for d in (False, True))
    excess = raw.v2 - clean.v2
    assert (excess > 0).all() and excess.mean() > 0.001
    assert abs((clean.v2 - truth).mean()) < 0.4 * (raw.v2 - truth).mean()


def test_covariance_of_closure_phases_is_whole(exposure):
    got = fit(**exposure)
    values = np.linalg.eigvalsh(got.cp_covariance)
    assert (values > 1e-6 * values[-1]).sum() == 15 and values[0] > -1e-9 * values[-1]
    assert np.linalg.cond(got.v2_covariance) < 1e6
    assert got.n_integrations == 12 and got.error_source == "integrations"
    shared_side = got.cp_covariance[0, 1] / got.cp_error[0] / got.cp_error[1]
    assert shared_side > 0.1  # (0, 1, 2) and (0, 1, 3)


def test_phases_that_wrap_have_a_mean():
    rng = np.random.default_rng(3)
    phases = np.pi + 0.1 * rng.standard_normal((50, 4))
    mean, away = average.circular_mean(instrument_mask.wrap(phases))
    assert np.allclose(instrument_mask.wrap(mean - phases.mean(axis=0)), 0, atol=1e-12)
    assert np.allclose(away.std(axis=0), phases.std(axis=0))


@given(st.integers(3, 8))
def test_closure_phases_ignore_pistons(n):
    pistons = np.random.default_rng(n).standard_normal(n)
    assert np.allclose(instrument_mask.closure_matrix(n) @ instrument_mask.piston_matrix(n) @ pistons, 0)
    assert len(average.independent_phases(n)) == (n - 1) * (n - 2) // 2


def test_any_choice_of_holes(exposure):
    whole = fit(**exposure)
    for names in (("B4", "C2", "B5"), ("B4", "C2", "B5", "C6"), niriss.HOLE_NAMES[1:]):
        part = fit(**exposure, holes=names)
        n = len(names)
        assert part.v2.shape == (n * (n - 1) // 2,) and part.cp_covariance.shape == (len(part.cp),) * 2
        first = [tuple(part.hole_names[i] for i in pair) for pair in part.baselines]
        place = [tuple(whole.hole_names[i] for i in pair) for pair in whole.baselines].index(first[-1])
        assert part.v2[-1] == whole.v2[place]
        assert np.allclose(part.triangle_uv[0][0], part.uv[0])
    with pytest.raises(CalamiError, match="at least three"):
        fit(**exposure, holes=("B4", "C2"))
    closed = fit(**exposure, mask=Mask().choose(("B4", "C2", "B5", "C6")))
    assert closed.v2.shape == (6,)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_an_image_turned_about_is_reported(mode):
    image, _, _ = fringe_images("F480M", seed=3, size=80, slopes=False)
    assert not any("does the mask lie" in note for note in fit(image, mode, filter="F480M").notes)
    assert any("does the mask lie" in note for note in fit(image[::-1], mode, filter="F480M", trim=0).notes)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_an_empty_frame_is_left_out(mode):
    cube, _, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 5, seed=1)
    cube[2] = 0
    seen = fit(cube, mode, filter="F480M", dq=dq)
    assert seen.samples["kept"].tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("wrong", [{"scale": 0.0656}, {"scale": 0}, {"center": (np.nan, 40)}])
def test_scales_and_centers_that_cannot_be(wrong):
    image, _, _ = fringe_images("F480M", seed=3, size=80, slopes=False)
    with pytest.raises(CalamiError, match=r"in mas|cannot be centred"):
        fit(image, filter="F480M", **wrong)


def test_outlying_integrations_are_left_out(star):
    cube, error, dq = fringe_cube(star, 20, seed=6)
    given = {"filter": "F480M", "error": error, "dq": dq, "scale": 65.6}
    assert fit(cube, **given).samples["kept"].all()
    cube[3] *= 0.7
    cube[8, 28:33, 25:30] += 0.3 * cube[8].max() * np.random.default_rng(0).random((5, 5))
    got = fit(cube, **given)
    assert set(np.flatnonzero(~got.samples["kept"])) == {3, 8} or set(np.flatnonzero(~got.samples["kept"])) == {3}
    assert got.n_integrations == got.samples["kept"].sum() and any("excluded" in n for n in got.notes)
    assert fit(cube, reject=False, **given).n_integrations == 20


def test_dead_frames_are_flagged(exposure):
    dq = exposure["dq"].copy()
    dq[2] = 1
    cube = exposure["data"].copy()
    cube[5] = np.nan
    got = fit(**exposure | {"data": cube, "dq": dq})
    assert np.flatnonzero(~got.samples["kept"]).tolist() == [2, 5]
    assert got.n_integrations == 10 and np.isfinite(got.v2).all() and np.isfinite(got.cp_covariance).all()
    assert any("no usable pixels" in note for note in got.notes)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_single_image(exposure, mode):
    given = {"filter": "F480M", "scale": 65.6}
    image, error, dq = (exposure[k][0] for k in ("data", "error", "dq"))
    got = fit(image, mode, error=error, dq=dq, **given)
    assert got.error_source == "ERR" and got.n_integrations == 1 and any("single" in n for n in got.notes)
    bare = fit(image, mode, dq=dq, **given)
    assert bare.error_source == "residual" and np.isnan(bare.chi2)
    for result in (got, bare):
        for value in (result.v2_error, result.cp_error, result.phase_error, result.t3_amplitude_error):
            assert (value > 0).all()
    assert 0.5 < np.median(bare.v2_error / got.v2_error) < 2


def test_two_integrations(exposure):
    got = fit(exposure["data"][:2], error=exposure["error"][:2], dq=exposure["dq"][:2], filter="F480M", scale=65.6)
    assert (got.v2_error > 0).all() and np.linalg.cond(got.v2_covariance) < 1e8


def test_bad_input_is_reported(star):
    image = 1e6 * star[0]
    error, given = np.sqrt(image + 400), {"filter": "F480M", "scale": 65.6}
    dead, core = np.ones(image.shape, "uint32"), np.zeros(image.shape, "uint32")
    core[28:33, 28:33] = 1
    wrong = [
        ({"dq": dead}, "flagged or not finite"),
        ({"dq": core}, "saturated"),
        ({"data": np.roll(image, 25, axis=0)}, "from the edge"),
        ({"data": np.full(image.shape, np.nan)}, "not finite"),
        ({"data": np.zeros(image.shape)}, "no good pixel with signal"),
        ({"data": image[0], "error": None}, "shape"),
        ({"data": np.ones((2, 3, 61, 61)), "error": None}, "shape"),
        ({"error": error[:5]}, "must agree"),
        ({"filter": "F444W"}, "AMI filters"),
        ({"filter": None}, "no filter"),
        ({"header": {"FILTER": "F430M"}}, "F430M"),
        ({"mode": "slow"}, "known"),
        ({"oversample": 0}, "whole number"),
        ({"weighting": "none"}, "known"),
        ({"bandpass": [[1.0, 4.8]]}, "in m"),
        ({"distortion": "guess"}, "search"),
    ]
    for change, words in wrong:
        with pytest.raises(CalamiError, match=words):
            fit(**{"data": image, "error": error} | given | change)


def test_files(tmp_path, star):
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 4, seed=1)
    arrays = {"SCI": cube.astype("float32"), "ERR": error.astype("float32"), "DQ": dq}
    path = tmp_path / "jw01093012001_03102_00001_nis_calints.fits"
    write_exposure(path, arrays, POINTING, NINTS=4)
    got = fit(path)
    assert got.filter == "F480M" and got.target == "HD 36705" and got.header["NINTS"] == 4
    assert got.name == "jw01093012001_03102_00001_nis" and repr(fit(Data(path))) == repr(got)
    write_exposure(path, arrays, POINTING, PUPIL="CLEARP")
    with pytest.raises(FileProblem, match="NRM"):
        fit(path)
    write_exposure(path, {"SCI": arrays["SCI"][None]}, POINTING)
    with pytest.raises(FileProblem, match="shape"):
        fit(path)


def test_mask_of_a_reference_file(tmp_path, shared_data):
    from calami.process.references import _nrm

    path = tmp_path / "nrm.fits"
    with _nrm(0.79) as model:
        model.save(path)
    mask = Mask.from_reference(path)
    assert mask.flat_to_flat == 0.79 and np.allclose(mask.centers, niriss.HOLE_CENTERS)
    assert mask.picture.shape == (1024, 1024)
    with pytest.raises(FileProblem, match="nrm"):
        Mask.from_reference(shared_data / "jw01093" / "jw01093015001_03102_00001_nis_cal.fits")


def test_real_images(shared_data):
    folder = shared_data / "jw01093"
    for root, low, high in (("jw01093012001_03102_00001", 1.1, 1.25), ("jw01093015001_03102_00001", 0.25, 0.45)):
        got = fit(folder / f"{root}_nis_cal.fits")
        assert low < np.degrees(got.cp.std()) < high and 0.5 < got.v2.min() < got.v2.max() < 1
        assert got.error_source == "ERR" and got.header["TARG_RA"] > 80


def test_refined_rotation(star):
    image = 1e6 * star[0]
    got = fit(image, filter="F480M", error=np.sqrt(image + 400), scale=65.6, distortion="refine", oversample=1)
    assert np.degrees(got.cp.std()) < 0.2
    turned = fringes_model.rotated(COMMISSIONING, 0.3)
    assert np.isclose(turned.determinant, COMMISSIONING.determinant)


def test_a_jump_in_a_whole_exposure_leaves_its_pixel_usable(exposure):
    image = np.nan_to_num(exposure["data"][0])
    peak = np.unravel_index(np.argmax(image), image.shape)
    dq = np.zeros(image.shape, "uint32")
    plain = fit(image, filter="F480M", dq=dq)
    dq[peak] = niriss.JUMP_DET
    assert np.array_equal(fit(image, filter="F480M", dq=dq).v2, plain.v2)
    assert not np.allclose(
        fit(image, filter="F480M", dq=dq, mode="exact").v2, fit(image, filter="F480M", mode="exact").v2
    )
    dq[peak] = niriss.DO_NOT_USE
    assert not np.allclose(fit(image, filter="F480M", dq=dq).v2, plain.v2, atol=1e-6)


def test_jumps_in_many_integrations_are_a_bent_ramp(exposure):
    cube = np.where(exposure["dq"] & niriss.DO_NOT_USE, 0, exposure["data"])
    peak = np.unravel_index(np.argmax(np.median(cube, axis=0)), cube.shape[1:])
    given = {key: exposure[key] for key in ("error", "filter", "scale", "header")}
    plain = fit(cube, dq=exposure["dq"], **given)
    for count, used in ((1, False), (3, True), (len(cube), True)):
        dq = exposure["dq"].copy()
        dq[:count, peak[0], peak[1]] |= niriss.JUMP_DET
        assert np.allclose(fit(cube, dq=dq, **given).v2, plain.v2, rtol=0, atol=1e-12) == used
        assert not np.allclose(fit(cube, dq=dq, mode="exact", **given).v2, plain.v2, rtol=0, atol=1e-12)


def test_a_peak_that_lost_charge_is_not_a_bad_pixel():
    image = 1e7 * fringe_images("F480M", seed=3, size=80, slopes=False)[0]
    noisy = image + np.random.default_rng(1).normal(size=image.shape) * np.sqrt(image + 100)
    peak = np.unravel_index(np.argmax(noisy), noisy.shape)
    migrated = noisy.copy()
    migrated[peak] *= 0.92
    fixer = FourierFix(forbidden("F480M", 80, 65.6, Mask()))
    assert fixer.fix(migrated, np.zeros((80, 80), bool))[1][peak]
    found = fit(migrated, filter="F480M")
    assert not np.isnan(found.image).any() and np.array_equal(found.v2, fit(migrated, filter="F480M", fix=False).v2)
    hot = noisy.copy()
    hot[peak] *= 1.6
    assert np.isnan(fit(hot, filter="F480M").image).sum() == 1


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_star_that_moved_is_left_out_even_of_five(star, mode):
    cube, error, dq = fringe_cube(star, 5, seed=8)
    given = {"filter": "F480M", "error": error, "dq": dq, "scale": 65.6}
    assert fit(cube, mode, **given).samples["kept"].all()
    cube[3] = np.roll(cube[3], 9, axis=0)
    moved = fit(cube, mode, **given)
    assert moved.samples["kept"].tolist() == [True, True, True, False, True]
    assert any("1 of 5 integrations do not belong" in note for note in moved.notes)
    four = {**given, "error": np.delete(error, 3, axis=0), "dq": np.delete(dq, 3, axis=0)}
    assert np.allclose(moved.v2, fit(np.delete(cube, 3, axis=0), mode, **four).v2, rtol=0, atol=1e-12)


def test_a_cube_in_the_primary_hdu_is_read_as_the_array_is(tmp_path):
    cube = fringe_cube(fringe_images("F480M", seed=3, size=80), 4, seed=1)[0]
    facts = {"FILTER": "F480M", "ROLL_REF": 30.0, "V3I_YANG": 0.5, "VPARITY": -1, "CDELT1": 1.82e-5, "CDELT2": 1.82e-5}
    fits.PrimaryHDU(cube, fits.Header(facts)).writeto(tmp_path / "star.fits")
    seen, same = fit(tmp_path / "star.fits"), fit(cube, header=facts)
    assert np.array_equal(seen.v2, same.v2) and np.array_equal(seen.cp, same.cp) and seen.name == "star"
    assert any("without flags" in note for note in seen.notes)
    fits.PrimaryHDU().writeto(tmp_path / "none.fits")
    with pytest.raises(FileProblem, match=r"none\.fits: has no SCI extension"):
        fit(tmp_path / "none.fits")


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """A calints file with all extensions of a real one, its parts in segments, and packed."""
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 40, seed=1)
    dq[20:] |= np.where(np.random.default_rng(1).random(dq[20:].shape) < 0.001, niriss.JUMP_DET, 0).astype("uint32")
    dq[7] = 1  # an integration without a usable pixel
    flat = (0.002 * np.clip(cube, 0, None)) ** 2
    arrays = {"SCI": cube, "ERR": np.sqrt(error**2 + flat), "VAR_FLAT": flat}
    arrays = {key: values.astype("float32") for key, values in arrays.items()} | {"DQ": dq}
    folder = tmp_path_factory.mktemp("long")
    name = "jw01093012001_03102_00001-seg00{}_nis_calints.fits"
    whole = write_exposure(folder / name.replace("-seg00{}", ""), arrays, POINTING, NINTS=40)
    parts = [
        write_exposure(folder / name.format(n + 1), {k: a[16 * n : 16 * n + 16] for k, a in arrays.items()}, POINTING)
        for n in range(3)
    ]
    packed = folder / (whole.name + ".gz")
    packed.write_bytes(gzip.compress(whole.read_bytes(), 1))
    return {"arrays": arrays, "whole": whole, "segments": parts, "packed": packed}


@pytest.mark.parametrize("kind", ["whole", "segments", "packed"])
@pytest.mark.parametrize("weights", variants("noise", "plain"))
def test_a_cube_in_pieces_is_fitted_as_the_whole(long_file, kind, weights, monkeypatch):
    arrays, facts = long_file["arrays"], {"filter": "F480M", "header": POINTING, "pixel_weights": weights}
    error = np.sqrt(np.square(arrays["ERR"], dtype=float) - arrays["VAR_FLAT"])
    whole = fit(arrays["SCI"], dq=arrays["DQ"], error=error, **facts)
    monkeypatch.setattr(images, "PIECE", 7 * 6400)  # integrations at once
    got = fit(long_file[kind], pixel_weights=weights)
    for name in ("v2", "cp", "v2_covariance", "cp_covariance", "visphi", "visphi_err", "t3amp_err", "residual", "chi2"):
        ours, theirs = getattr(got, name), getattr(whole, name)
        assert np.allclose(ours, theirs, rtol=1e-6, atol=1e-7 * np.nanmax(np.abs(theirs)), equal_nan=True), name
    for name in whole.samples:
        assert np.allclose(got.samples[name], whole.samples[name], rtol=1e-7, atol=1e-7, equal_nan=True), name
    assert np.flatnonzero(~got.samples["kept"]).tolist() == [7]


def test_a_long_file_is_never_read_as_a_whole(long_file, monkeypatch):
    monkeypatch.setattr(images, "PIECE", 7 * 6400)
    data = Data(long_file["segments"])
    sizes = [len(science) for science, _ in data.pieces("SCI", "DQ")]
    assert sizes == [7, 7, 2, 7, 7, 2, 7, 1] and data.stated_shape == (40, 80, 80)
    monkeypatch.setattr(Data, "array", lambda *_: pytest.fail("an extension was read as a whole"))
    flags = np.concatenate([dq for _, dq in data.pieces("SCI", "DQ")])
    assert flags.dtype == np.uint32 and np.array_equal(flags, long_file["arrays"]["DQ"])
    assert fit(data).n_integrations == 39


@pytest.mark.slow
def test_memory_of_a_long_fit(tmp_path, monkeypatch):
    # Bytes a pixel that a fit of a file holds at most: 4 of the cube, 4 of its variance, flags, and little else
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 600, seed=1)
    arrays = {"SCI": cube.astype("float32"), "ERR": error.astype("float32"), "DQ": dq, "VAR_FLAT": 0 * dq.astype("f4")}
    path = write_exposure(tmp_path / "jw01093012001_03102_00001_nis_calints.fits", arrays, POINTING, NINTS=600)
    monkeypatch.setattr(images, "PIECE", 10 * 6400)
    fit(path, pixel_weights="plain")
    tracemalloc.start()
    got = fit(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got.n_integrations == 600 and peak < 16 * dq.size


def test_forbidden_frequencies_are_found_once_and_only_read(monkeypatch):
    outside = fitting._usual_forbidden("F430M", 68, 65.6)
    assert np.array_equal(outside, forbidden("F430M", 68, 65.6, Mask())) and not outside.flags.writeable
    monkeypatch.setattr(fitting, "forbidden", None)
    assert fitting._usual_forbidden("F430M", 68, 65.6) is outside
