"""Errors of calibrated data are honest: few references count as few, other pixels cost, nothing is found in blanks."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from foreign_fringes import Detector
from scipy.stats import binomtest, chi2
from toys import fringe_cube, fringe_images, rootname, variants, write_exposure
from typer.testing import CliRunner

from calami.cli import app
from calami.core.problems import CalamiError
from calami.exposures.steps import keywords_of
from calami.fringes import fitting
from calami.fringes.calibration import FLIGHT, calibrate, displacement, reference_weights, selfcal
from calami.fringes.companions import Prepared, add_companion, position, sample_factor, search_companion
from calami.fringes.limits import contrast_curve
from calami.fringes.observables import add_noise, from_samples, point_source
from calami.fringes.oifits import read_oifits, write_oifits
from calami.fringes.position import fit_position_model
from calami.fringes.products import analyse

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "jw01093"
STAR = point_source("F430M", 1e8)
FLIGHT_STAR = replace(STAR, header={"DETECTOR": "NIS", "STARROW": 40.0, "STARCOL": 45.0})


def moved(data, columns, **header):
    return replace(data, header=data.header | {"STARCOL": 45.0 + columns} | header)


def sampled(count, rng, photons=1e8, spread=1.0):
    """An exposure of so many integrations with the same photons in all, whatever their number."""
    star = point_source("F430M", photons)
    noise = np.geomspace(1 / spread, spread, 21)  # baselines may be noisier than others, unlike what is expected
    phases = rng.normal(size=(count, 21)) * noise * np.sqrt(count / 3) * star.cp_err[0]
    v2 = 1 + rng.normal(size=(count, 21)) * noise * np.sqrt(count) * star.v2_err
    return from_samples(replace(star, samples={"v2": v2, "cp": phases @ star.triangle_matrix.T}))


# ------------------------------------------------------------------------------------------------ few integrations


@pytest.mark.parametrize("shrinkage", [0.05, 0.3, 0.9])
def test_the_factor_of_a_sample_changes_smoothly(shrinkage):
    factors = [sample_factor(n, 21, 3, shrinkage) for n in range(4, 200)]
    assert np.all(np.isfinite(factors)) and min(factors) >= 1
    ratios = np.divide(factors[1:], factors[:-1])
    assert (
        np.all(np.abs(ratios - 1) < 0.15)
        and np.all(np.abs(np.diff(ratios)) < 0.06)
        and abs(sample_factor(10**6, 21, 3, shrinkage) - 1) < 1e-3
    )


def test_limits_at_equal_photons_do_not_depend_on_the_number_of_integrations():
    # At 25 and 26, and by itself at 50 to 53, the errors once changed all at once, by 1.4 mag.
    rng, limits = np.random.default_rng(30), {}
    for count in (10, 20, 25, 26, 40, 51, 52, 100):
        for kind, make in (("alone", lambda x: x), ("itself", selfcal)):
            some = [contrast_curve(make(sampled(count, rng)), separations=[150]).dmag[0] for _ in range(6)]
            limits.setdefault(kind, {})[count] = np.mean(some)
    for found in limits.values():
        values = np.array(list(found.values()))
        assert np.ptp(values[1:]) < 0.15 and abs(values[0] - values[-1]) < 0.25


@pytest.mark.parametrize("count", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (12, 26)), 40])
@pytest.mark.parametrize("spread", [1.0, 1.5])
def test_contrasts_from_few_integrations_have_right_errors(count, spread):
    rng, place, away = np.random.default_rng(31), [np.atleast_1d(p) for p in position(150, 40)], []
    for _ in range(300):
        ready = Prepared(sampled(count, rng, spread=spread))
        template = ready.template(ready.fringe(*place))[:, 0]
        away.append(template @ ready.null_residual() / np.sqrt(template @ template))
    assert abs((np.abs(away) < 1).mean() - 0.683) < 0.08 and abs((np.abs(away) < 2).mean() - 0.954) < 0.05


@pytest.mark.parametrize("count", [2, 3, 6, 20])
def test_phases_of_few_integrations_have_right_errors(count):
    # Once 49, 58 and 63 % were inside for 2, 3 and 6: errors from so few numbers tend to be too small.
    from calami.fringes.average import _average

    rng, away = np.random.default_rng(32), {"fit": [], "file": []}
    typical = np.concatenate(([1.0], np.tile([0.8, 0.1], 21), [0.0]))
    noise = np.diag(np.concatenate(([1e-6], np.full(42, 1e-4), [1e-6])))
    truth = np.arctan2(0.1, 0.8)
    for _ in range(100):
        many = typical + rng.multivariate_normal(np.zeros(44), noise, count)
        found = _average(many, noise, 7, True)
        away["fit"].append((found["visphi"] - truth) / found["visphi_err"])
        phase, size = np.arctan2(many[:, 2:-1:2], many[:, 1:-1:2]), np.hypot(many[:, 2:-1:2], many[:, 1:-1:2])
        samples = {"phase": phase, "amplitude": size, "v2": size**2, "cp": phase @ STAR.triangle_matrix.T}
        found = from_samples(replace(STAR, samples=samples))
        away["file"].append((found.visphi - truth) / found.visphi_err)
    for values in away.values():
        assert abs((np.abs(values) < 1).mean() - 0.683) < 0.05 and abs((np.abs(values) < 1.96).mean() - 0.95) < 0.03


# ------------------------------------------------------------------------------------------- how stars calibrate stars


def test_the_floor_belongs_to_flight_data_and_grows_with_distance():
    plain = calibrate(STAR, STAR)
    assert np.allclose(plain.v2_err, np.sqrt(2) * STAR.v2_err) and plain.header["SYS_V2"] == 0
    near, far = (calibrate(FLIGHT_STAR, moved(FLIGHT_STAR, x)) for x in (0.0, 2.0))
    assert near.v2_err.mean() > 3 * plain.v2_err.mean() and far.cp_err.mean() > 3 * near.cp_err.mean()
    # V² and phases from the same error of a fringe, and what all V² share
    fringe = np.sqrt(FLIGHT.star**2 + FLIGHT.of_position(2.0) ** 2)
    alike = (far.cp_err**2 - plain.cp_err**2) / (3 * fringe**2)  # of three phases, part of which cancels
    assert 0.55 < alike.min() < alike.max() < 0.9
    shared = FLIGHT.common**2 * (1 + (STAR.baseline_length / STAR.baseline_length.max()) ** 4)
    assert np.allclose(far.v2_err**2 - plain.v2_err**2, (2 * fringe) ** 2 + shared)
    assert far.header["SYS_FROM"] == FLIGHT.source and 0.9 < far.header["SYS_PART"] < 1
    assert np.allclose(calibrate(FLIGHT_STAR, FLIGHT_STAR, floor=False).v2_err, plain.v2_err)
    assert calibrate(STAR, STAR, floor=True).v2_err.mean() > plain.v2_err.mean()


def test_fringes_of_neighbouring_baselines_err_alike():
    far, shared = calibrate(FLIGHT_STAR, moved(FLIGHT_STAR, 2.0)), FLIGHT.common**2
    blur = (STAR.baseline_length / STAR.baseline_length.max()) ** 2
    noise = far.v2_covariance - shared * (1 + np.outer(blur, blur)) - np.diag(2 * STAR.v2_err**2)
    likeness = noise / np.sqrt(np.outer(np.diag(noise), np.diag(noise)))
    uv = STAR.v2_uv
    apart = np.minimum(*(np.hypot(*(uv[:, None] - sign * uv).transpose(2, 0, 1)) for sign in (1, -1)))
    near, away = (apart > 0) & (apart < 1.5), apart > 4.5
    assert np.allclose(np.diag(likeness), 1) and likeness[near].min() > 0.3 and np.abs(likeness).max() <= 1.001
    assert away.any() and abs(likeness[away]).max() < FLIGHT.alike / 2 < likeness[near].mean()
    assert np.linalg.eigvalsh(far.v2_covariance).min() > 0
    # Not where only the scatter of the references is known
    rng = np.random.default_rng(3)
    some = calibrate(STAR, [replace(STAR, name=n, v2=1 + 0.05 * rng.normal(size=21)) for n in "abcd"])
    gain = some.v2[:, None] * some.v2
    left = some.v2_covariance / gain - np.diag(np.diag(some.v2_covariance / gain))
    assert np.abs(left).max() < 1e-12


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_limits_between_places_are_what_the_scatter_of_blank_places_says():
    paths = sorted(SHARED.glob("jw01093020001_*_cal.fits"))[::4]
    seen, angles = [fitting.fit(p) for p in paths], np.arange(0, 360, 10.0)
    found = {separation: [] for separation in (100.0, 150.0, 200.0, 300.0)}
    for one, other in itertools.permutations(seen, 2):
        ready = Prepared(calibrate(one, other))
        for separation, values in found.items():
            template = ready.template(ready.fringe(*position(np.full(len(angles), separation), angles)))
            values.append(ready.null_residual() @ template / np.sqrt((template**2).sum(axis=0)))
    wide = {separation: np.sqrt(np.mean(np.square(values))) for separation, values in found.items()}
    assert all(abs(2.5 * np.log10(w)) < 0.3 for w in wide.values()), wide


def test_the_scatter_of_two_references_is_not_believed_more_than_the_floor():
    # Two references that agree by chance do not make the error vanish; four that differ by much make it large.
    agree = calibrate(FLIGHT_STAR, [replace(FLIGHT_STAR, name=n) for n in "ab"])
    shared = 0.75 * FLIGHT.common**2 * (1 + (STAR.baseline_length / STAR.baseline_length.max()) ** 4)
    known = np.sqrt(agree.v2_err**2 - 1.5 * STAR.v2_err**2 - shared)
    assert np.allclose(known, FLIGHT.star * np.sqrt(4 * 4 / 6 * 0.75))  # four parts of six are the floor's
    rng = np.random.default_rng(33)
    some = [replace(FLIGHT_STAR, name=n, v2=1 + 0.05 * rng.normal(size=21)) for n in "abcd"]
    assert calibrate(FLIGHT_STAR, some).header["SYS_V2"] > 0.04


def test_a_reference_on_another_pixel_is_reported_and_weighs_less():
    near, far = replace(FLIGHT_STAR, name="near"), replace(moved(FLIGHT_STAR, 1.5), name="far")
    assert displacement(near, far) == 1.5 and np.isnan(displacement(STAR, near))
    offset = [replace(STAR, header={"XOFFSET": x, "YOFFSET": 0.0}) for x in (0.0, 0.0656)]
    assert np.isclose(displacement(*offset), 1, rtol=0.01)
    assert reference_weights(near, [near, far], "position")[1] < 0.1
    done = calibrate(near, [near, far])
    assert "1.5 pixels" in done.notes[-1] and "on another pixel" in done.notes[-1]
    assert calibrate(near, [near, far], weights="position").cp_err.mean() < done.cp_err.mean()
    assert not calibrate(near, near).notes
    with pytest.raises(CalamiError, match="place on the detector is not known"):
        reference_weights(STAR, [STAR], "position")


@pytest.mark.parametrize(
    ("key", "value"),
    [("CALMODE", "exact"), ("CALFIT", 99), ("CALPIXW", "core"), ("CALPUPIL", "1093"), ("S_MIGCOR", "1093"),
     ("MIGKERN", "abc"), ("S_CHGMIG", "COMPLETE")],
)  # fmt: skip
def test_stars_that_were_not_treated_alike_do_not_calibrate_each_other(key, value):
    one = moved(FLIGHT_STAR, 0, CALMODE="fast", CALFIT=1)
    other = moved(one, 0, **{key: value})
    for pair in ((one, other), (other, one)):
        with pytest.raises(CalamiError, match=rf"differ in what was done to them.*{value}"):
            calibrate(*pair)
        assert calibrate(*pair, allow=True).references == calibrate(*pair, allow=[key]).references
    with pytest.raises(CalamiError, match="what was done"):
        calibrate(one, other, allow=["CALMODE" if key != "CALMODE" else "CALFIT"])


@pytest.mark.parametrize("step", keywords_of("charge_migration"))
def test_what_was_done_to_an_exposure_reaches_its_observables(tmp_path, step):
    images = fringe_images("F480M", seed=3, size=80)
    cube, error, dq = fringe_cube(images, 1, seed=1)
    arrays = {"SCI": cube[0].astype("float32"), "ERR": error[0].astype("float32"), "DQ": dq[0]}
    pair = []
    for number, cards in enumerate(({}, {"S_MIGCOR": "COMPLETE", "MIGKERN": "flight", step: "COMPLETE"})):
        path = tmp_path / f"{rootname(number + 1)}_cal.fits"
        write_exposure(path, arrays, {"ROLL_REF": 0.0, "V3I_YANG": 0.0, "VPARITY": -1}, NINTS=1, **cards)
        oi = write_oifits(fitting.fit(path), tmp_path / f"{number}.fits")
        pair.append(read_oifits(oi))
    with pytest.raises(CalamiError, match=r"correction.*kernel.*none and flight.*charge-migration step"):
        calibrate(*pair)
    assert displacement(*pair) == 0 and calibrate(*pair, allow=True).header["SYS_FROM"] == FLIGHT.source


def test_a_fit_from_before_there_were_levels_of_columns_does_not_calibrate_one_of_today(tmp_path):
    """Files of version 2 say nothing of the background, which was one for all pixels."""
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=61), 6, seed=4)
    today = fitting.fit(cube, error=error, dq=dq, filter="F480M", scale=65.6)
    header = {key: value for key, value in today.header.items() if key != "CALBACKG"} | {"CALFIT": 2}
    old = read_oifits(write_oifits(replace(today, name="old", header=header), tmp_path / "old.fits"))
    for pair in ((today, old), (old, today)):
        with pytest.raises(
            CalamiError, match=r"version of the fit.*background of the fit \((columns and flat|flat and)"
        ):
            calibrate(*pair)
        assert calibrate(*pair, allow=["CALFIT", "CALBACKG"]).references
    flat = fitting.fit(cube, error=error, dq=dq, filter="F480M", scale=65.6, background="flat")
    with pytest.raises(CalamiError, match="differ in what was done to them: background"):
        calibrate(today, flat)
    assert calibrate(flat, old, allow=["CALFIT"]).references


def test_states_that_are_one():
    step = moved(FLIGHT_STAR, 0, S_CHGMIG="SKIPPED")  # as good as a version that had no such step
    assert calibrate(FLIGHT_STAR, step).references and calibrate(STAR, step).references
    for wrong in ({"allow": ["COLOUR"]}, {"systematics": (-1, 0)}, {"weight": "time"}):
        with pytest.raises(CalamiError, match=r"unknown|0 or more|did you mean .weights"):
            calibrate(STAR, STAR, **wrong)


def test_what_was_added_is_kept_in_files(tmp_path):
    done = calibrate(FLIGHT_STAR, moved(FLIGHT_STAR, 0.3))
    back = read_oifits(write_oifits(done, tmp_path / "x.fits"))
    for key in ("DISPLACE", "SYS_V2", "SYS_CP", "SYS_PART", "SYS_FROM", "STARROW", "STARCOL"):
        assert back.header[key] == done.header[key], key
    assert back.shrinkage == done.shrinkage == 1
    some = sampled(12, np.random.default_rng(34))
    assert 0 < some.shrinkage < 1 and some.n_samples == 12
    assert read_oifits(write_oifits(some, tmp_path / "y.fits")).shrinkage == some.shrinkage


# ---------------------------------------------------------------------------------------------------- no false claims


def null_probabilities(count, scale, seed, filters=("F430M",), n_samples=40):
    """Probabilities that searches give for noise whose size is not as stated."""
    rng, found = np.random.default_rng(seed), []
    stars = [replace(point_source(f, 1e8), references=("other",)) for f in filters]
    for number in range(count):
        noise = [add_noise(one, rng) for one in stars]
        noise = [replace(one, v2=1 + scale * (one.v2 - 1), cp=scale * one.cp) for one in noise]
        found.append(search_companion(noise, limit=250, trials=500, n_alternatives=0, seed=number, rescale=scale > 1))
    return found


@pytest.mark.parametrize("scale", [*(pytest.param(x, marks=pytest.mark.slow) for x in (0.5, 1.0)), 5.0])
def test_noise_of_any_size_is_significant_as_rarely_as_stated(scale):
    # By the fall of χ² over the scale alone, a stated 1 % happened in 5 %. Errors are never taken to be too large.
    found = null_probabilities(60, scale, seed=35)
    for probability in (0.5, 0.1):
        hits = sum(fit.log_false_alarm < np.log(probability) for fit in found)
        assert binomtest(hits, 60, probability, "greater").pvalue > 0.01
    assert all(fit.scale >= 1 for fit in found) and max(fit.significance for fit in found) < 4


def test_the_law_of_unknown_errors_is_that_of_its_trials():
    # Beyond what trials show a law is followed: here 20,000 trials are held against that of 2,000.
    data = replace(add_noise(STAR, np.random.default_rng(36)), references=("other",))
    from calami.fringes.companions import SearchOptions, _false_alarm, _grid_axis

    ready = [Prepared(data)]
    axis = _grid_axis(ready, 250, None)
    x, y = (p.ravel() for p in np.meshgrid(axis, axis))
    inside = (np.hypot(x, y) > 20) & (np.hypot(x, y) < 250)
    few, many = (
        _false_alarm(ready, {"F430M": [0]}, [ready[0].fringe(x, y)], inside, SearchOptions(trials=n, seed=s))
        for n, s in ((2000, 1), (20000, 2))
    )
    assert few.freedom == 36 - 2 - 1
    for probability in (0.02, 0.005, 0.001):
        measured = (many.peaks > few.threshold(probability)).mean()
        assert 0.55 < measured / probability < 1.7


def test_known_errors_are_known():
    plain = search_companion(add_companion(STAR, 150, 30, 0.003), limit=330, trials=250)
    unknown = search_companion(
        add_companion(replace(STAR, references=("other",)), 150, 30, 0.003), limit=330, trials=250
    )
    assert plain.significance > 10 and unknown.significance < plain.significance


def test_companions_at_the_limit_are_seen_in_calibrated_data():
    rng, hits = np.random.default_rng(42), 0
    star = calibrate(FLIGHT_STAR, FLIGHT_STAR)
    limit = contrast_curve(star)
    for number in range(20):
        truth = rng.uniform(100, 300), rng.uniform(0, 360)
        data = add_companion(add_noise(star, rng), *truth, limit.at(truth[0]))
        fit = search_companion(data, limit=335, trials=500, n_alternatives=1, seed=number)
        hits += fit.log_false_alarm < np.log(0.01)
    assert hits >= 12


@pytest.mark.slow
def test_a_blurred_star_is_no_companion():
    # V² that fall with the square of the baseline, by 1 %: a larger star, or one whose charge has spread.
    rng, blur = np.random.default_rng(37), 1 - 0.01 * (STAR.baseline_length / STAR.baseline_length.max()) ** 2
    blurred = replace(STAR, v2=0.995 * blur, references=("other",))
    fits = [search_companion(add_noise(blurred, rng), limit=330, trials=500, rescale=True) for _ in range(8)]
    assert max(fit.significance for fit in fits) < 3.5
    known = search_companion(replace(blurred, references=()), limit=330, trials=500, rescale=True)
    assert known.significance > 3.5  # if nothing is unknown, it is close by


def patterned(size, rng):
    """A calibrated star with a pattern that its errors know nothing of: so much on each baseline."""
    v2, phases = 1 + 2 * size * rng.normal(size=21), size * rng.normal(size=21)
    seen = replace(STAR, v2=v2, cp=STAR.triangle_matrix @ phases, references=("other",), target="blank")
    return add_noise(seen, rng)


def test_errors_that_are_too_small_give_no_significance(tmp_path):
    data = patterned(0.005, np.random.default_rng(38))
    fit = analyse(data, tmp_path, limit=250)
    saved = json.loads((tmp_path / "companion.json").read_text(encoding="utf-8"))
    assert fit.errors_too_small and np.isnan(fit.significance) and fit.reduced_chi2 > 2
    assert saved["significance"] is None and saved["log10_false_alarm"] is None and saved["errors_too_small"] is True
    assert saved["reduced_chi2"] > 2 and "--systematics" in saved["definitions"]["errors_too_small"]
    assert "no significance" in fit.report() and "too small" in fit.report()
    for more in ({"systematics": (0.01, 0.009)}, {"rescale": True}):
        given = search_companion(data, limit=250, **more)
        assert not given.errors_too_small and given.significance < 4


@pytest.mark.slow
def test_no_companion_is_removed_if_errors_are_too_small(tmp_path):
    data = add_companion(patterned(0.005, np.random.default_rng(39)), 150, 40, 0.05)
    assert analyse(data, tmp_path / "a", limit=250).errors_too_small
    fit = analyse(data, tmp_path / "b", limit=250, systematics=(0.01, 0.009))
    assert fit.significance > 5
    from astropy.table import QTable

    limits = [QTable.read(tmp_path / x / "contrast_curve.ecsv") for x in "ab"]
    assert limits[0].meta["curve"]["variance_scale"] > 10 and limits[1].meta["curve"]["variance_scale"] < 2
    assert limits[0]["dmag"][10] < limits[1]["dmag"][10] - limits[1]["dmag"].unit * 0.5


def test_limits_under_patterns_are_what_injected_companions_support():
    # Best contrasts in 40 patterned stars scatter as the limits say, whether errors include the pattern or not.
    rng, best, limits = np.random.default_rng(40), [], {"none": [], "given": []}
    x, y = position(150, np.arange(0, 360, 15.0))
    for _ in range(40):
        data = patterned(0.005, rng)
        ready = Prepared(data)
        template = ready.template(ready.fringe(x, y))
        best.append(template.T @ ready.null_residual() / (template**2).sum(axis=0))
        for name, systematics in (("none", (0.0, 0.0)), ("given", (0.01, 0.005 * np.sqrt(3)))):
            limits[name].append(contrast_curve(data, separations=[150], over=50.0, systematics=systematics).dmag[0])
    supported = -2.5 * np.log10(5 * np.sqrt(np.mean(np.square(best))))
    for found in limits.values():
        assert abs(np.mean(found) - supported) < 0.3


def test_exposures_by_the_same_stars_share_their_systematic_errors():
    done = [calibrate(replace(moved(FLIGHT_STAR, 0.0), name=n), moved(FLIGHT_STAR, 0.5)) for n in "abc"]
    one, three = (contrast_curve(d, separations=[150]) for d in (done[0], done))
    assert three.scale > 1.8 and 0 < three.dmag[0] - one.dmag[0] < 1.25 * np.log10(3) - 0.3


@pytest.fixture(scope="module")
def foreign():
    return Detector(5)


@pytest.mark.parametrize("spot", ["same", "other"])
@pytest.mark.parametrize("references", variants(2, 1))
def test_blank_stars_of_another_simulator_have_no_companion(foreign, spot, references):
    rng = np.random.default_rng(41 + references + 10 * (spot == "other"))
    for number in range(5):
        aim = np.array([3.0, -2.0])
        there = aim if spot == "same" else aim + rng.uniform(1, 3, 2)
        target, *others = (
            foreign.observe("F480M", p + rng.normal(0, 0.05, 2), 1e8, rng) for p in (aim, *([there] * references))
        )
        fit = search_companion(calibrate(target, others), limit=330, trials=500, n_alternatives=0, seed=number)
        assert not fit.log_false_alarm < np.log(1e-3)


# --------------------------------------------------------------------------------------------------------- real stars


@pytest.fixture(scope="module")
def flight(request):
    shared = request.getfixturevalue("shared_data") / "jw01093"
    return lambda name, **options: fitting.fit(shared / f"jw01093{name}_nis_cal.fits", **options)


def test_a_star_by_itself_on_another_pixel_has_no_companion(flight):
    star, best, limits, recovered = flight("018001_03102_00001"), [], [], []
    angles = np.arange(0, 360, 15.0)
    x, y = position(150, angles)
    for number in (2, 3, 5, 9, 11, 13, 17, 21):
        data = calibrate(star, flight(f"020001_03102_{number:05d}"))
        fit = search_companion(data, trials=500, n_alternatives=0)
        assert fit.significance < 2.5 and fit.reduced_chi2 < 2
        limits.append(contrast_curve(data, separations=[150], over=50.0).contrast[0])
        ready = Prepared(data)
        template = ready.template(ready.fringe(x, y))
        best.append(template.T @ ready.null_residual() / (template**2).sum(axis=0))
        for angle, one in zip(angles[::3], template.T[::3], strict=True):
            with_it = Prepared(add_companion(data, 150, angle, limits[-1]))
            recovered.append(one @ with_it.null_residual() / (one @ one) / limits[-1])
    supported = 5 * np.sqrt(np.mean(np.square(best)))
    assert abs(2.5 * np.log10(supported / np.sqrt(np.mean(np.square(limits))))) < 0.3
    # As bright as the limit they are recovered as they are, and five times above the scatter, or nearly so.
    assert abs(np.mean(recovered) - 1) < 0.1 and 0.14 < np.std(recovered) < 0.27


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "most"), [("plain", 1.5), ("noise", np.inf)])
def test_ab_dor_c_is_the_same_by_each_reference_and_by_both(flight, weights, most):
    # With the weights of the noise χ² is 1.55 by one reference: errors are multiplied by what it asks for.
    acts, stars = ("03102", "03103", "03104"), {}
    for observation in ("012", "015", "018"):
        stars[observation] = [flight(f"{observation}001_{act}_00001", pixel_weights=weights) for act in acts]
    fits = []
    for references in (("015",), ("018",), ("015", "018")):
        data = [calibrate(t, [stars[r][n] for r in references]) for n, t in enumerate(stars["012"])]
        fits.append(search_companion(data, trials=500))
        assert fits[-1].significance > 10 and fits[-1].reduced_chi2 < most
    found = [np.array([f.separation, f.position_angle, *f.contrast.values()]) for f in fits]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        away = found[one] - found[two]
        assert chi2.sf(away @ np.linalg.solve(fits[one].covariance + fits[two].covariance, away), len(away)) > 0.05


# ------------------------------------------------------------------------------------------------------------ commands


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_commands_take_systematics_weights_and_allow(tmp_path):
    paths = [
        write_oifits(
            replace(moved(FLIGHT_STAR, x, CALFIT=fit), name=f"star{n}", target=f"star{n}"), tmp_path / f"{n}.fits"
        )
        for n, (x, fit) in enumerate(((0.0, 1), (0.1, 1), (1.5, 1), (0.0, 2)))
    ]
    answer = run("calibrate", *paths[:3], "-o", tmp_path / "a.fits", "--weights", "position")
    assert answer.exit_code == 0 and "systematic errors included" in answer.stdout
    answer = run("calibrate", paths[0], paths[2], "-o", tmp_path / "b.fits", "--systematics", "0.05,2", "--no-floor")
    assert answer.exit_code == 0 and "warning: a reference star stands 1.5 pixels" in answer.stderr
    done = read_oifits(tmp_path / "b.fits")
    assert np.isclose(done.header["SYS_V2"], 0.05) and np.isclose(np.degrees(done.header["SYS_CP"]), 2)
    answer = run("calibrate", paths[0], paths[3], "-o", tmp_path / "c.fits")
    assert answer.exit_code == 1 and "version of the fit (1 and 2)" in answer.stderr
    assert run("calibrate", paths[0], paths[3], "-o", tmp_path / "c.fits", "--allow").exit_code == 0
    curves = []
    for more in ([], ["--systematics", "0.1,3"]):
        answer = run("contrast", tmp_path / "c.fits", "-o", tmp_path / "out", "--limit", 100, *more)
        assert answer.exit_code == 0
        curves.append(json.loads((tmp_path / "out" / "companion.json").read_text(encoding="utf-8")))
    assert curves[1]["systematics"] == {"v2": 0.1, "cp_deg": pytest.approx(3)} and curves[0]["systematics"]["v2"] == 0
    answer = run("contrast", tmp_path / "c.fits", "-o", tmp_path / "out", "--systematics", "much")
    assert answer.exit_code == 2 and "V2,DEG" in answer.stderr


def on_places(places, seed=7, **header):
    """Stars whose V² and closure phases depend on the place, as `law` says, with a little noise."""
    rng, star, found = np.random.default_rng(seed), point_source("F480M", 1e10), []
    law = np.random.default_rng(3).normal(0, 0.02, (2, 56))
    for number, (row, column) in enumerate(places):
        change = law[0] * (row - 39.9) + law[1] * (column - 45.3)
        v2 = star.v2 * (1 + change[:21]) + rng.normal(0, 2e-4, 21)
        cp = change[21:] + rng.normal(0, 2e-4, 35)
        facts = {"STARROW": row, "STARCOL": column, "CALMODE": "fast", **header}
        found.append(replace(star, name=f"star {number}", v2=v2, cp=cp, header=facts))
    return found


GRID = [(39.3 + 0.3 * i, 44.7 + 0.3 * j) for i in range(5) for j in range(5)]


def test_a_position_model_takes_off_what_the_place_does():
    model = fit_position_model(on_places(GRID), name="toy")
    target, *others = on_places([(40.1, 45.8), (39.5, 45.0), (39.9, 45.1)], seed=8)
    given = {"floor": False, "scatter": False}
    plain, done = (calibrate(target, others, position=p, **given) for p in (None, model))
    wide = calibrate(target, others, position=model, position_as="covariance", **given)
    for key, rest in (("v2", 1.0), ("cp", 0.0)):
        assert np.abs(getattr(done, key) - rest).max() < 2e-3 < 5e-3 < np.abs(getattr(plain, key) - rest).max()
        assert np.array_equal(getattr(wide, key), getattr(plain, key))
        pulls = (getattr(wide, key) - rest) / getattr(wide, f"{key}_err")
        assert 0.2 < np.sqrt(np.mean(pulls**2)) < 2
        assert np.all(getattr(wide, f"{key}_err") > getattr(done, f"{key}_err"))
    assert (done.header["CALPOSIT"], wide.header["CALPOSIT"]) == ("toy", "toy (covariance)")
    # Beyond the places it was learnt on, it knows no more
    beyond = calibrate(on_places([(39.9, 60.0)], seed=9)[0], others, position=model, **given)
    assert beyond.cp_err.mean() > 5 * done.cp_err.mean()
    assert "knows little" in " ".join(beyond.notes) and "knows little" not in " ".join(done.notes)
    # It says so if it was learnt from another star
    other = calibrate(replace(target, target="AB DOR"), others, position=model, **given)
    assert "is used for AB DOR" in " ".join(other.notes) and "is used for" not in " ".join(done.notes)


@pytest.mark.parametrize("modes", [0, 1])
def test_references_are_compared_where_the_target_stands(modes):
    """What they differ by for their places alone is taken off each of them, and is no error of the mean."""
    model = fit_position_model(on_places(GRID), name="toy")
    target, *others = on_places([(40.1, 45.8), (39.5, 45.0), (39.9, 45.1), (40.4, 44.8), (39.6, 45.7)], seed=8)
    plain, done = (calibrate(target, others, position=p, floor=False, modes=modes) for p in (None, model))
    for key in ("SCAT_V2", "SCAT_CP"):
        assert done.header[key] < 1e-3 < (2e-3 if modes else 8e-3) < plain.header[key]
    assert done.cp_err.mean() < 0.2 * plain.cp_err.mean()
    assert all(np.abs(getattr(done, key) - 1).max() < 2e-3 for key in ["v2"])


def test_a_position_model_stands_in_for_the_floor_of_distance():
    flight = {"DETECTOR": "NIS"}
    model = fit_position_model(on_places(GRID, **flight), name="toy")
    target, other = on_places([(40.1, 45.8), (39.5, 45.0)], seed=8, **flight)
    with_model, without = (calibrate(target, other, position=p) for p in (model, None))
    assert with_model.cp_err.mean() < 0.7 * without.cp_err.mean()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"header": {"CALPUPIL": "flight-1"}}, "CALPUPIL flight-1, not None"),
        ({"filter": "F430M", "wavelength": 4.3e-6}, "filter|F430M|F480M"),
        ({"header": {"STARROW": None}}, "not known"),
    ],
)
def test_a_position_model_is_for_stars_that_were_fitted_alike(change, reason):
    model = fit_position_model(on_places(GRID))
    stars = on_places([(40.1, 45.8), (39.5, 45.0)])
    stars = [replace(s, **change | {"header": s.header | change.get("header", {})}) for s in stars]
    with pytest.raises(CalamiError, match=reason):
        calibrate(*stars, position=model)


def test_unknown_gains_are_marginalised():
    star = point_source("F480M", 1e10)
    rng, station, baseline = np.random.default_rng(4), 0.01, 0.004
    done = calibrate(star, replace(star, name="other"), gains=(station, baseline), floor=False)
    # Against draws of what it stands for
    holes, sides = rng.normal(0, station, (4000, 7)), rng.normal(0, baseline, (4000, 21))
    i, j = (star.v2_stations - 1).T
    v2 = (1 + 2 * (holes[:, i] + holes[:, j] + sides)) * star.v2
    phases = rng.normal(0, baseline, (4000, 21)) @ star.triangle_matrix.T
    assert np.allclose(np.cov(v2.T), done.v2_covariance, atol=0.06 * done.v2_covariance.max())
    assert np.allclose(np.cov(phases.T), done.cp_covariance, atol=0.06 * done.cp_covariance.max())
    # Gains of holes leave closure phases alone, and no one baseline stands out
    alone = calibrate(star, replace(star, name="other"), gains=(station, 0), floor=False)
    assert np.allclose(alone.cp_err, calibrate(star, replace(star, name="other"), floor=False).cp_err)
    assert np.linalg.matrix_rank(alone.v2_covariance, tol=1e-6) == 7
    with pytest.raises(CalamiError, match="0 or more"):
        calibrate(star, star, gains=(-1, 0))


def test_modes_of_many_references_are_marginalised():
    # References differ by one shape with a random amount: a target that differs by it too is no detection
    rng, star = np.random.default_rng(6), point_source("F480M", 1e9)
    shape = {"v2": rng.normal(0, 0.003, 21), "cp": star.triangle_matrix @ rng.normal(0, 0.003, 21)}

    def one(name):
        noisy, amount = add_noise(star, rng), rng.normal()
        return replace(noisy, name=name, v2=noisy.v2 + amount * shape["v2"], cp=noisy.cp + amount * shape["cp"])

    found = {0: [], 1: []}
    for _ in range(60):
        target, references = one("target"), [one(str(k)) for k in range(12)]
        for modes, kept in found.items():
            done = calibrate(target, references, modes=modes, floor=False)
            kept.append((done.v2 - 1) @ np.linalg.solve(done.v2_covariance, done.v2 - 1) / 21)
    assert 0.7 < np.mean(found[1]) < 1.35
    along = shape["v2"] / np.linalg.norm(shape["v2"])
    sizes = [along @ calibrate(target, references, modes=k, floor=False).v2_covariance @ along for k in (0, 1)]
    assert sizes[1] > 2 * sizes[0]
    with pytest.raises(CalamiError, match="take 4 of them"):
        calibrate(target, references[:3], modes=1)
