"""Companions: the model is exact, error bars and limits keep their word, and what cannot be used is said."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp
from scipy.stats import chi2, norm
from toys import variants

from calami.core.problems import CalamiError, FileProblem
from calami.fringes import companions, fitting
from calami.fringes.calibration import calibrate
from calami.fringes.companions import (
    MAS,
    Options,
    Prepared,
    add_companion,
    companion_fringe,
    disc,
    position,
    prepare,
    sample_factor,
    search_companion,
    sigma_of,
    spot_response,
)
from calami.fringes.limits import (
    DEFINITIONS,
    chi2_ratio,
    chi2_sigma,
    contrast_curve,
    detection_map,
    photon_curve,
    remove_companion,
    systematic_curve,
)
from calami.fringes.observables import OIFITSWarning, add_noise, from_observables, from_samples, point_source, wrap
from calami.fringes.oifits import read_oifits, write_oifits
from calami.fringes.plots import plot_chi2, plot_curves, plot_map
from calami.fringes.products import analyse, curve_table, write_companion, write_curves, write_map
from calami.instrument import optics

STAR = point_source("F430M", 1e8)


def away_of(fit, separation, angle):
    return float(np.hypot(*np.subtract(position(fit.separation, fit.position_angle), position(separation, angle))))


# ---------------------------------------------------------------------------------------------------------- the model


@settings(max_examples=25)
@given(st.floats(20, 500), st.floats(0, 360), st.floats(1e-4, 1.0))
def test_the_model_is_the_fourier_transform(separation, angle, contrast):
    x, y = position(separation, angle)
    ready = Prepared(STAR)
    steps = (np.arange(4000) + 0.5) / 4000 - 0.5
    waves = STAR.wavelength / (1 + steps * STAR.bandwidth / STAR.wavelength)  # a box in frequency
    turns = (ready.uv @ [x, y])[:, None] * MAS / waves
    true = (1 + contrast * np.exp(-2j * np.pi * turns).mean(axis=1)) / (1 + contrast)
    v2, phase = ready.change(ready.fringe(np.array([x]), np.array([y])), np.array([contrast]))
    assert np.allclose(v2[:, 0], np.abs(true[ready.v2_index]) ** 2 - 1, atol=1e-6)
    # At equal brightness the star's phase is lost where the sum vanishes.
    strong = np.abs(true) > 1e-3
    assert np.allclose(wrap(phase[:, 0] - np.angle(true))[strong], 0, atol=1e-4)


def test_closure_phases_of_the_model_are_those_of_the_triangles():
    data = add_companion(STAR, 180, 75, 0.2)
    x, y = position(180, 75)
    sides = (data.cp_uv1, data.cp_uv2, -(data.cp_uv1 + data.cp_uv2))
    fringes = [companion_fringe(s, np.array([x]), np.array([y]), data.wavelength, data.bandwidth)[:, 0] for s in sides]
    assert np.allclose(data.cp, np.angle(np.prod([1 + 0.2 * f for f in fringes], axis=0)))


@settings(max_examples=15)
@given(st.floats(0, 360), st.floats(40, 250), st.floats(0, 360))
def test_turning_the_sky_turns_the_companion(turn, separation, angle):
    one = add_companion(STAR, separation, angle, 0.01)
    turned = add_companion(point_source("F430M", 1e8, turn), separation, angle + turn, 0.01)
    assert np.allclose(one.v2, turned.v2, atol=1e-9) and np.allclose(one.cp, turned.cp, atol=1e-9)


def test_discs():
    x = np.array([0.0, 1e6])
    assert np.allclose(disc(x, "gaussian", 0), 1) and disc(x, "uniform", 30)[0] == 1
    first_null = 1.21967 / (30 * MAS)
    assert abs(disc(np.array([first_null]), "uniform", 30)[0]) < 1e-4
    assert np.isclose(disc(np.array([2 * np.log(2) / np.pi / (30 * MAS)]), "gaussian", 30)[0], 0.5)
    for wrong in (("square", 3), ("uniform", -1), ("uniform", np.nan)):
        with pytest.raises(CalamiError, match="disc"):
            disc(x, *wrong)


def test_a_resolved_star_is_not_taken_for_a_companion():
    spatial = STAR.baseline_length / STAR.wavelength
    round_star = replace(STAR, v2=disc(spatial, "uniform", 20) ** 2)
    plain, right = (Prepared(round_star, Options(star=s)) for s in (None, ("uniform", 20)))
    assert (plain.null_residual() ** 2).sum() > 100 and np.allclose(right.null_residual(), 0)
    data = add_companion(round_star, 200, 30, 0.01, star=("uniform", 20))
    fit = search_companion(data, star=("uniform", 20), limit=330, trials=250)
    assert away_of(fit, 200, 30) < 0.1 and np.isclose(fit.contrast["F430M"], 0.01, rtol=1e-3)


def test_a_companion_can_be_taken_out_again():
    noisy = add_noise(STAR, np.random.default_rng(1))
    data = add_companion(noisy, 200, 30, 0.02)
    fit = search_companion(data, limit=330, trials=250)
    left = remove_companion(data, fit)
    assert np.abs(left.v2 - noisy.v2).max() < 5 * noisy.v2_err.max()
    assert Prepared(left).null_residual() @ Prepared(left).null_residual() < 60
    with pytest.raises(CalamiError, match="no contrast for F480M"):
        remove_companion(point_source("F480M"), fit)


# ---------------------------------------------------------------------------------------------------------- whitening


def test_whitened_noise_has_unit_variance_and_no_correlation():
    rng, ready = np.random.default_rng(2), Prepared(STAR)
    many = [add_noise(STAR, rng) for _ in range(1000)]
    found = np.array([np.concatenate((ready.w_v2 @ (one.v2 - 1), ready.w_cp @ one.cp)) for one in many])
    assert np.allclose(found[0], Prepared(many[0]).null_residual())
    assert found.shape[1] == 36 and np.abs(np.cov(found.T) - np.eye(36)).max() < 0.25


def test_error_bars_alone_give_the_same_as_the_covariance_of_independent_baselines():
    noisy = add_noise(STAR, np.random.default_rng(3))
    plain = replace(noisy, cp_covariance=None, v2_covariance=None)
    one, two = (np.sum(Prepared(d).null_residual() ** 2) for d in (noisy, plain))
    assert np.isclose(one, two, rtol=1e-6)
    diagonal = Prepared(noisy, Options(covariance="diagonal", observables="cp"))
    assert diagonal.size == 35


def test_sample_factor():
    assert sample_factor(10, 15) == np.inf and np.isclose(sample_factor(10**7, 15), 1, atol=1e-4)
    assert sample_factor(40, 15) > sample_factor(100, 15) > 1


def test_too_few_integrations_for_a_covariance_fall_back(caplog):
    rng = np.random.default_rng(4)
    samples = {"v2": 1 + 0.01 * rng.normal(size=(8, 21)), "cp": 0.01 * rng.normal(size=(8, 35))}
    data = from_samples(replace(STAR, samples=samples))
    assert Prepared(data).size == 36 and not caplog.text  # shrunk towards a known shape it has an inverse
    assert Prepared(replace(data, shrinkage=0.0)).size == 36 and "has no inverse (8 integrations" in caplog.text


def test_systematics_make_limits_worse():
    plain, floor = (contrast_curve(STAR, separations=[150], systematics=s).contrast[0] for s in ((0, 0), (0.01, 0.01)))
    assert floor > 3 * plain


@pytest.mark.parametrize("covariance", ["auto", "diagonal"])
def test_systematic_errors_are_those_of_every_value(covariance):
    # 200 draws of data whose errors are nearly all systematic: 0.02 in each V², 0.01 rad in each closure phase, which
    # come from the three baselines of its triangle. Whitened by what was said about them they have variance 1.
    rng, deep = np.random.default_rng(20), point_source("F430M", 1e12)
    ready = Prepared(deep, Options(covariance=covariance, systematics=(0.02, 0.01)))
    phases = 0.01 / np.sqrt(3) * rng.normal(size=(200, 21))
    closures = phases @ deep.triangle_matrix.T
    assert np.allclose(closures.std(axis=0), 0.01, rtol=0.2)
    assert np.isclose(np.mean((ready.w_v2 @ (0.02 * rng.normal(size=(21, 200)))) ** 2), 1, rtol=0.08)
    assert np.isclose(np.mean((ready.w_cp @ closures.T) ** 2), 1, rtol=0.08)


# --------------------------------------------------------------------------------------------------------- the search


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[1] / "benchmarks" / "bench_contrast.py"
    spec = importlib.util.spec_from_file_location("bench_contrast", path)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def within(away):
    # Three standard deviations of the binomial distribution
    fraction, allowed = (away < 1).mean(), 3 * np.sqrt(0.683 * 0.317 / away.size)
    return abs(fraction - 0.683) < allowed and (away < 1.96).mean() > 0.95 - 3 * np.sqrt(0.0475 / away.size)


@pytest.mark.parametrize("errors", ["known", "bars"])
def test_error_bars_contain_the_truth(bench, errors):
    away = np.abs(bench.coverage(20, errors, seed=5)["calami"])
    assert within(away) and away.max() < 5


def test_error_bars_from_samples_contain_the_truth_and_those_of_jwst_do_not(bench):
    both = bench.coverage(8, "samples", seed=6)
    assert within(np.abs(both["calami"])) and (np.abs(both["jwst.ami"]) < 1.96).mean() < 0.4


def test_binaries_in_images_are_where_they_were_put(bench):
    away = np.abs(bench.coverage(4, "images", seed=7, stock=False)["calami"])
    assert away.max() < 4 and (away < 1.96).mean() > 0.75


def changes_by(data, truth):
    """Numerical Jacobian of V² and closure phases by separation (mas), position angle (degrees) and contrast."""
    columns = []
    for place, step in enumerate((1e-3, 1e-3, 1e-6)):
        moved = [add_companion(data, *(np.array(truth) + sign * step * (np.arange(3) == place))) for sign in (1, -1)]
        both = [np.concatenate((one.v2, one.cp)) for one in moved]
        columns.append((both[0] - both[1]) / (2 * step))
    return np.array(columns).T


def information(data, truth):
    """What data say about a companion, by their covariances and a numerical Jacobian: the inverse of a covariance."""
    jacobian, n = changes_by(data, truth), len(data.v2)
    v2, cp = jacobian[:n], jacobian[n:]
    closures = np.linalg.pinv(data.full_cp_covariance(), rcond=1e-9, hermitian=True)
    return v2.T @ np.linalg.inv(data.full_v2_covariance()) @ v2 + cp.T @ closures @ cp


@pytest.mark.parametrize("angle", [20, 70, 130, 200, 290])
def test_errors_of_a_companion_follow_from_those_of_the_data(angle):
    # Separation, position angle and contrast with their correlations, wherever the companion stands. The star is made
    # less sharp in one direction, so that an error in which east and north change places shows.
    clumsy = np.where(np.abs(STAR.v2_uv[:, 0]) > np.abs(STAR.v2_uv[:, 1]), 10.0, 1.0)
    covariance = STAR.triangle_matrix @ np.diag((clumsy * STAR.cp_err[0]) ** 2 / 3) @ STAR.triangle_matrix.T
    data = replace(STAR, cp_covariance=covariance, cp_err=np.sqrt(np.diag(covariance)))
    data = replace(data, v2_covariance=np.diag((clumsy * STAR.v2_err) ** 2), v2_err=clumsy * STAR.v2_err)
    truth = (150, angle, 0.01)
    fit = search_companion(add_companion(data, *truth), limit=330, trials=250)
    expected = np.linalg.inv(information(data, truth))
    errors = np.sqrt(np.diag(expected))
    assert np.allclose(fit.errors, errors, rtol=0.01)
    assert np.abs((fit.covariance - expected) / np.outer(errors, errors)).max() < 0.01


def test_errors_of_a_joint_fit_follow_from_those_of_the_data():
    # The place is shared by two filters, and each has its own contrast.
    stars, truth = [point_source(f, n) for f, n in (("F380M", 1e8), ("F480M", 3e7))], (0.01, 0.02)
    data = [add_companion(star, 150, 70, contrast) for star, contrast in zip(stars, truth, strict=True)]
    fit = search_companion(data, limit=330, trials=250)
    whole = np.zeros((4, 4))
    for number, (star, contrast) in enumerate(zip(stars, truth, strict=True)):
        rows = np.ix_([0, 1, 2 + number], [0, 1, 2 + number])
        whole[rows] += information(star, (150, 70, contrast))
    expected = np.linalg.inv(whole)
    errors = np.sqrt(np.diag(expected))
    assert np.abs((fit.covariance - expected) / np.outer(errors, errors)).max() < 0.01
    assert np.allclose(list(fit.dmag_error.values()), 2.5 / np.log(10) * errors[2:] / truth, rtol=0.01)


def test_slopes_of_a_search_are_those_of_its_residuals():
    truth = (150.0, 70.0, 0.01)
    ready = [Prepared(add_companion(point_source(f, 1e8), *truth)) for f in ("F430M", "F480M", "F480M")]
    members = [(ready[0], 2), (ready[1], 3), (ready[2], 3)]
    for place in ([141.0, 51.0, 0.012, 0.02], [-60.0, 33.0, 0.15, 0.4]):
        place = np.array(place)
        residual, slopes = companions._misfit(members, 1e-4 * np.abs(place))
        moves, found = np.diag(3e-4 * np.abs(place)), slopes(place)
        numerical = np.stack([(residual(place + m) - residual(place - m)) / (2 * m.sum()) for m in moves], axis=1)
        assert found.shape == (sum(one.size for one in ready), 4)
        assert np.abs(found - numerical).max(axis=0) / np.abs(numerical).max(axis=0) == pytest.approx(0, abs=1e-6)


def test_the_errors_of_200_searches_are_right():
    # 200 draws of one binary. The square of the distance from the truth, correlations included, is 3 on average.
    rng, truth = np.random.default_rng(21), np.array((150, 40, 0.01))
    data, away, distance = add_companion(STAR, *truth), [], []
    for _ in range(200):
        fit = search_companion(add_noise(data, rng), limit=200, trials=1, n_alternatives=0)
        difference = np.array([fit.separation, fit.position_angle, fit.contrast["F430M"]]) - truth
        away.append(difference / fit.errors)
        distance.append(difference @ np.linalg.inv(fit.covariance) @ difference)
    assert np.all(np.abs((np.abs(away) < 1).mean(axis=0) - 0.683) < 0.08)
    assert np.all(np.abs(np.mean(away, axis=0)) < 0.25) and np.isclose(np.mean(distance), 3, rtol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("errors", ["known", "bars", "samples", "images"])
def test_error_bars_contain_the_truth_as_often_as_they_say(bench, errors):
    away = np.abs(bench.coverage(1000, errors, seed=6, stock=False)["calami"])
    assert np.all(np.abs((away < 1).mean(axis=0) - 0.683) < 0.04)
    assert np.all(np.abs((away < 1.96).mean(axis=0) - 0.95) < 0.02)


def test_false_alarms_and_completeness(bench):
    blank, alarm, best, listed = bench.trial(16, seed=7).T
    assert (blank < 0.2).mean() < 0.55 and (blank < 0.6).mean() > 0.2
    assert ((alarm < 0.01) & (listed > 0)).mean() > 0.75 and (listed >= best).all()


@pytest.mark.slow
def test_with_three_filters_the_best_place_is_the_right_one(bench):
    _, alarm, best, listed = bench.trial(6, seed=8, filters=("F380M", "F430M", "F480M")).T
    assert ((alarm < 0.01) & (listed > 0)).sum() >= 5 and best.sum() >= 4


@pytest.mark.slow
@pytest.mark.parametrize("filters", [("F430M",), ("F380M", "F430M", "F480M")])
def test_false_alarms_and_completeness_are_as_stated(bench, filters):
    blank, alarm, _, listed = bench.trial(600, seed=8, filters=filters).T
    for probability in (0.5, 0.2, 0.1, 0.05):
        allowed = 3.5 * np.sqrt(probability * (1 - probability) / len(blank))
        assert abs((blank < probability).mean() - probability) < allowed
    assert ((alarm < 0.01) & (listed > 0)).mean() >= 0.9


# ------------------------------------------------------------------------------------------ what a fit in an image sees


@pytest.fixture(scope="module")
def imaged():
    """A binary of 1 % at 280 mas, 100 deg, without noise: fitted in the image, calibrated by the star alone."""
    east, north = (p / 65.6 for p in position(280, 100))
    given = {"pupil": optics.Pupil(), "scale": (65.6, 65.6), "shape": (69, 69), "diffusion": 0, "jitter": 0}
    seen = []
    for source in (optics.Source().with_companion(-east, north, 0.01), optics.Source()):
        image = 3e7 * optics.psf("F380M", (34.0, 34.0), source=source, **given)
        header = {"ROLL_REF": 0.0, "V3I_YANG": 0.0}
        got = fitting.fit(image, error=np.sqrt(image + 1), filter="F380M", scale=65.6, debias=False, header=header)
        seen.append(from_observables(got))
    return calibrate(*seen)


def test_light_beside_the_star_is_made_up_for(imaged):
    right, plain = (search_companion(imaged, limit=335, trials=250, spot=s) for s in (True, False))
    assert np.isclose(right.contrast["F380M"], 0.01, rtol=0.015)
    assert 0.9 < plain.contrast["F380M"] / 0.01 < 0.95
    assert abs(right.separation - 280) < 0.5 and abs(right.position_angle - 100) < 0.1  # with the distortion in u and v


def test_the_response_falls_off_smoothly():
    light, fringe, stretch = spot_response(np.linspace(0, 900, 60), 4.3e-6)
    assert light[0] == fringe[0] == 1 and np.all(np.diff(light) < 0) and np.all(np.diff(fringe) < 0)
    assert np.all(np.abs(stretch - 1) < 0.01)
    shorter = spot_response(np.array([300.0]), 3.8e-6)
    assert shorter[1][0] < spot_response(np.array([300.0]), 4.8e-6)[1][0]


def test_limits_know_what_counts_less():
    here, there = (contrast_curve(replace(STAR, spot=s), separations=[300], over=50.0) for s in (0.8, 0.0))
    assert 0.05 < there.dmag[0] - here.dmag[0] < 0.2
    assert spot_response(np.array([300.0]), STAR.wavelength)[1][0] > 0.85


def test_it_is_kept_in_files(tmp_path, imaged, shared_data):
    assert imaged.spot == read_oifits(write_oifits(imaged, tmp_path / "x.fits")).spot == 0.8
    assert read_oifits(write_oifits(STAR, tmp_path / "y.fits")).spot == 0
    with pytest.warns(OIFITSWarning):
        assert read_oifits(next((shared_data / "oifits").glob("jw01349*"))).spot == 0.8
    assert read_oifits(shared_data / "oifits" / "amical_fake_binary_F430M.oifits").spot == 0


def test_the_simulated_binary_of_implaneia(shared_data):
    # Its position angle is measured in the image as stored, from the direction in which columns are counted towards
    # that of the rows. The mask lies the other way round than in flight, so that the rows are flipped; there is
    # no distortion, and a pixel is 65 mas wide.
    from astropy.io import fits

    given, seen = {"filter": "F480M", "scale": 65.0, "distortion": optics.Distortion()}, []
    for kind in ("t", "c"):
        cube = fits.getdata(next((shared_data / "simulated").glob(f"{kind}_binary*")))
        seen.append(from_observables(fitting.fit(cube[:, ::-1], **given)))
    fit = search_companion(calibrate(*seen), limit=330, trials=250)
    angle = (270 - fit.position_angle) % 360
    assert abs(fit.separation - 198.3) < 2 * fit.errors[0] < 3
    assert abs(angle - 143.9) < 2 * fit.errors[1] < 1
    assert abs(fit.contrast["F480M"] - 0.01) < 2 * fit.errors[2] < 0.0005


def test_bright_companions_are_found():
    for contrast in (0.2, 0.6, 0.95):
        fit = search_companion(add_companion(STAR, 150, 200, contrast), limit=330, trials=250)
        assert away_of(fit, 150, 200) < 0.5 and np.isclose(fit.contrast["F430M"], contrast, rtol=0.01)


def test_a_joint_search_has_a_contrast_for_each_filter():
    rng = np.random.default_rng(9)
    truth = {"F380M": 0.01, "F430M": 0.015, "F480M": 0.02}
    data = [add_noise(add_companion(point_source(f, 1e8), 320, 100, c), rng) for f, c in truth.items()]
    fit = search_companion(data, trials=250)
    assert away_of(fit, 320, 100) < 4 and list(fit.contrast) == list(truth)
    assert np.all(np.abs(np.array(list(fit.contrast.values())) - list(truth.values())) < 4 * fit.errors[2:])
    grey = search_companion(data, trials=250, contrast_by="all")
    assert list(grey.contrast) == ["all"] and grey.chi2 > fit.chi2
    by_file = search_companion([data[0], data[0]], trials=250, contrast_by="file", limit=340)
    assert len(by_file.contrast) == 2
    with pytest.raises(CalamiError, match="contrast_by"):
        search_companion(data, contrast_by="star")


@pytest.mark.parametrize("seed", variants(*range(4)))
def test_nothing_is_looked_for_outside_the_field(seed):
    noise = add_noise(STAR, np.random.default_rng(seed))
    for star, inner, limit in ((("uniform", 10.0), 20, 500), (("uniform", 100.0), 20, 200), (None, 20, 30)):
        found = search_companion(noise, star=star, inner=inner, limit=limit, trials=250)
        places = [found.separation, *(a["sep_mas"] for a in found.alternatives)]
        assert inner - 1e-6 <= min(places) and max(places) <= limit + 1e-6
        assert np.isfinite(found.covariance).all()


def test_too_few_data_for_a_companion_are_reported():
    few = replace(STAR, cp_flag=np.arange(35) > 1)
    with pytest.raises(CalamiError, match="2 independent numbers, a companion in 1 bands has 3"):
        search_companion(few, observables="cp")
    for wrong in ({"trials": 0}, {"max_contrast": 0}):
        with pytest.raises(CalamiError, match="max_contrast and trials must be above 0"):
            search_companion(STAR, **wrong)


def test_aliases_are_reported():
    rng = np.random.default_rng(10)
    single = search_companion(add_noise(add_companion(point_source("F430M", 1e8), 326, 281, 0.016), rng), trials=250)
    near = [a for a in single.alternatives if a["delta_chi2"] < 30]
    assert near and all(a["delta_chi2"] >= 0 for a in single.alternatives)
    places = [(single.separation, single.position_angle), *((a["sep_mas"], a["pa_deg"]) for a in near)]
    distances = [np.hypot(*np.subtract(position(*p), position(326, 281))) for p in places]
    assert min(distances) < 10 and max(distances) > 500  # the lattice of holes repeats itself


def test_noise_is_not_significant_and_more_light_is_more_significant():
    rng = np.random.default_rng(11)
    assert search_companion(add_noise(STAR, rng), limit=330, trials=500).significance < 4
    sigmas = [search_companion(add_companion(STAR, 200, 30, c), limit=330).significance for c in (5e-4, 2e-3, 2e-2)]
    assert sigmas == sorted(sigmas) and sigmas[-1] > 40  # and no ceiling


def test_rescaled_errors_do_not_depend_on_the_errors_given():
    noisy = add_noise(add_companion(STAR, 200, 30, 0.02), np.random.default_rng(12))
    one, two = (
        search_companion(noisy.with_errors(v2=k * 2e-5, cp=k * 1e-5), rescale=True, limit=330, trials=250)
        for k in (1, 10)
    )
    assert np.allclose(one.errors, two.errors, rtol=1e-3) and np.isclose(one.significance, two.significance, rtol=1e-2)
    assert np.isclose(two.scale * 100, one.scale, rtol=1e-3)


def test_the_fake_binary_of_amical(shared_data):
    data = read_oifits(shared_data / "oifits" / "amical_fake_binary_F430M.oifits")
    for observables in ("both", "cp", "v2"):
        fit = search_companion(data, trials=250, observables=observables)
        mirrored = away_of(fit, 147.1, 227) if observables == "v2" else np.inf  # V² cannot distinguish the sides
        assert min(away_of(fit, 147.7, 46.6), mirrored) < 4 and abs(fit.dmag["F430M"] - 6) < 0.1


AB_DOR = {"F480M": "03102", "F430M": "03103", "F380M": "03104"}


@pytest.fixture(scope="module")
def ab_dor(request):
    shared = request.getfixturevalue("shared_data")

    def take(observation, activity):
        name = f"jw01093{observation}001_{activity}_00001_nis_cal.fits"
        return from_observables(fitting.fit(shared / "jw01093" / name))

    return {o: {f: take(o, a) for f, a in AB_DOR.items()} for o in ("012", "015", "018")}


@pytest.fixture(scope="module")
def ab_dor_fits(ab_dor):
    fits_ = {}
    for references in (("015",), ("018",), ("015", "018")):
        data = [calibrate(ab_dor["012"][f], [ab_dor[r][f] for r in references]) for f in AB_DOR]
        fits_[references] = search_companion(data, rescale=True, trials=250)
    return fits_


def test_ab_dor_c_is_where_it_is(ab_dor_fits):
    for fit in ab_dor_fits.values():
        assert away_of(fit, 326, 281) < 5 and fit.significance > 10
        assert all(abs(m - 4.31) < 0.12 for m in fit.dmag.values())


def test_without_the_response_of_the_spot_ab_dor_c_seems_fainter(ab_dor):
    # The earlier result, of a plain joint search on a grid: 326 mas, 281 deg, 4.45 mag
    data = [calibrate(ab_dor["012"][f], [ab_dor[r][f] for r in ("015", "018")]) for f in AB_DOR]
    plain = search_companion(data, rescale=True, trials=250, contrast_by="all", spot=False)
    assert abs(plain.dmag["all"] - 4.45) < 0.06 and away_of(plain, 326, 281) < 5


def test_both_reference_stars_say_the_same(ab_dor_fits):
    one, two = ab_dor_fits[("015",)], ab_dor_fits[("018",)]
    errors = np.hypot(one.errors, two.errors)
    assert abs(one.separation - two.separation) < 2 * errors[0]
    assert abs(one.position_angle - two.position_angle) < 2 * errors[1]
    for name in AB_DOR:
        assert abs(one.dmag[name] - two.dmag[name]) < 2 * np.hypot(one.dmag_error[name], two.dmag_error[name])


def test_single_filters_of_ab_dor_have_their_aliases_listed(ab_dor):
    for name in ("F430M", "F380M"):
        data = calibrate(ab_dor["012"][name], ab_dor["015"][name])
        fit = search_companion(data, rescale=True, trials=250)
        near = [(a["sep_mas"], a["pa_deg"]) for a in fit.alternatives if a["delta_chi2"] < 9]
        places = [(fit.separation, fit.position_angle), *near]
        assert any(np.hypot(*np.subtract(position(*p), position(327, 281))) < 15 for p in places)
        assert len(places) >= 2 and any(p[0] > 380 for p in places)


# ---------------------------------------------------------------------------------------------------------- the limits


def textbook(data, x, y, kind, sigma=3.0):
    """The limit in one cell, by the definition of Absil et al. and Gallenne et al., with error bars only."""
    sides = (data.cp_uv1, data.cp_uv2, -(data.cp_uv1 + data.cp_uv2))

    def model(f):
        def fringe(uv):
            place = np.array([x]), np.array([y])
            return (1 + f * companion_fringe(uv, *place, data.wavelength, data.bandwidth)[:, 0]) / (1 + f)

        return np.abs(fringe(data.v2_uv)) ** 2, np.angle(np.prod([fringe(s) for s in sides], axis=0))

    def chi2_of(v2, cp):
        return ((v2 / data.v2_err) ** 2).sum() + ((wrap(cp) / data.cp_err) ** 2).sum()

    n = len(data.v2) + len(data.cp)
    null = chi2_of(data.v2 - 1, data.cp)

    def sigmas_less(f):
        v2, cp = model(f)
        differences = (data.v2 - v2, data.cp - cp) if kind == "absil" else (data.v2 + v2 - 2, data.cp + cp)
        test = chi2_of(*differences)
        return np.sqrt(chi2.ppf(chi2.cdf(n * test / null, n), 1)) - sigma

    return brentq(sigmas_less, 1e-7, 0.02)


@pytest.mark.parametrize("kind", ["absil", "injection"])
def test_maps_equal_the_definition(kind):
    data = add_noise(STAR, np.random.default_rng(13))
    made = detection_map(data, kind, size=12, extent=300, covariance="diagonal")
    for row, col in ((0, 0), (3, 7), (5, 6), (8, 2), (11, 11), (6, 10)):
        true = textbook(data, made.axis[col], made.axis[row], kind)
        assert abs(2.5 * np.log10(true / made.contrast[row, col])) < 1e-3


def test_sigmas_do_not_saturate():
    for ratio in (1.0, 1.5, 2.0):
        plain = np.sqrt(chi2.ppf(chi2.cdf(56 * ratio, 56), 1))
        assert np.isclose(chi2_sigma(ratio, 1, 56), plain, rtol=1e-6)
    # For even N the tail is a finite sum: exact however small.
    for ratio in (5.0, 30.0, 300.0):
        n, x = 36, 36 * ratio / 2
        k = np.arange(n // 2)
        log_tail = -x + logsumexp(k * np.log(x) - gammaln(k + 1))
        assert np.isclose(chi2_sigma(ratio, 1, n), sigma_of(log_tail), rtol=1e-10)
    many = chi2_sigma(np.geomspace(0.1, 1e4, 400), 1.0, 36)
    assert np.all(np.diff(many) >= 0) and np.isfinite(many).all()


@settings(max_examples=30)
@given(st.floats(0.5, 30), st.integers(1, 200))
def test_ratio_and_sigma_are_inverse(sigma, n):
    assert np.isclose(chi2_sigma(chi2_ratio(sigma, n), 1.0, n), sigma, rtol=1e-6)


def test_delta_chi2_is_what_it_says():
    curve = contrast_curve(STAR, separations=[120, 240], over="mean", n_angles=24)
    ready = Prepared(STAR)
    for separation, contrast in zip(curve.separation, curve.contrast, strict=True):
        x, y = position(separation, np.arange(24) * 15.0)
        rise = (ready.residual(ready.fringe(x, y), np.full(24, contrast), 0) ** 2).sum(axis=0)
        assert np.isclose(rise.mean(), 25, rtol=1e-3)


def test_upper_limits_hold_as_often_as_they_say():
    rng = np.random.default_rng(14)
    x, y = (np.atleast_1d(p) for p in position(150, 40))
    from calami.fringes.limits import _limits

    count, above = 400, 0
    for _ in range(count):
        # The true contrast is taken from the flat prior that the definition assumes, up to far beyond the error.
        truth = rng.uniform(0, 2e-3)
        data = add_noise(add_companion(STAR, 150, 40, truth), rng)
        above += _limits(prepare(data), (x, y), "percentile", 1.2816)[0][0] < truth
    assert abs(above / count - norm.sf(1.2816)) < 0.055


@pytest.mark.parametrize("count", [40, 60])
def test_errors_from_few_integrations_are_right(count):
    # 300 draws of exposures whose covariance is estimated from few integrations. At the known place of a companion the
    # whitened data give its contrast by a straight line. Without a factor for the sample a half would be inside.
    rng, place = np.random.default_rng(23), [np.atleast_1d(p) for p in position(150, 40)]
    matrix, away = STAR.triangle_matrix, []
    for _ in range(300):
        phases = rng.normal(size=(count, 21)) * np.sqrt(count / 3) * STAR.cp_err[0]
        v2 = 1 + rng.normal(size=(count, 21)) * np.sqrt(count) * STAR.v2_err
        ready = Prepared(from_samples(replace(STAR, samples={"v2": v2, "cp": phases @ matrix.T})))
        template = ready.template(ready.fringe(*place))[:, 0]
        away.append(template @ ready.null_residual() / np.sqrt(template @ template))
    assert abs((np.abs(away) < 1).mean() - 0.683) < 0.08 and abs(np.mean(away)) < 0.2


@pytest.mark.parametrize("sigma", [1.0, 3.0])
@pytest.mark.parametrize("best", [-2.0, 0.0, 2.0])
def test_an_upper_limit_leaves_the_stated_part_of_what_is_possible_beyond_it(best, sigma):
    # There is no negative light. Where noise looks like some, by two standard deviations here, the limit is that of
    # contrasts above 0, each equally likely beforehand, and is itself above 0. Found by summing over 20,000 contrasts.
    one_sigma = contrast_curve(STAR, separations=[150], n_angles=1, sigma=1.0).contrast[0]
    data = add_companion(STAR, 150, 0, best * one_sigma) if best else STAR
    limit = contrast_curve(data, "percentile", sigma=sigma, separations=[150], n_angles=1).contrast[0]
    ready = Prepared(data)
    contrast = (np.arange(20_000) + 0.5) * 1e-3 * one_sigma
    place = (np.full(len(contrast), p) for p in position(150, 0))
    weight = np.exp(-(ready.residual(ready.fringe(*place), contrast) ** 2).sum(axis=0) / 2)
    beyond = weight[contrast > limit].sum() / weight.sum()
    assert limit > 0 and np.isclose(beyond, norm.sf(sigma), rtol=0.05)


def test_a_companion_at_the_limit_is_seen_at_the_stated_sigmas():
    # 200 draws of noise with a companion as bright as the limit of 5 sigma: with it the data are 25 worse in χ² for a
    # single star than for the truth, on average.
    rng, rise = np.random.default_rng(22), []
    limit = contrast_curve(STAR, separations=[150], n_angles=1).contrast
    for _ in range(200):
        ready = Prepared(add_noise(add_companion(STAR, 150, 0, limit[0]), rng))
        truth = ready.residual(ready.fringe(*(np.atleast_1d(p) for p in position(150, 0))), limit)[:, 0]
        rise.append((ready.null_residual() ** 2).sum() - (truth**2).sum())
    assert abs(np.mean(rise) - 25) < 2.5 and abs(np.std(rise) - 10) < 1.5


def test_limits_in_all_ways_agree_for_quiet_data():
    noisy = add_noise(STAR, np.random.default_rng(15))
    five = contrast_curve(noisy, "delta_chi2", over=50.0)
    for kind in DEFINITIONS:
        curve = contrast_curve(noisy, kind, over=50.0)
        assert curve.reached.all() and np.all(np.abs(curve.dmag - five.dmag) < 2)
        assert np.all(contrast_curve(noisy, kind, over=95.0).contrast >= curve.contrast)
    deeper = contrast_curve(noisy, over=50.0, sigma=2.5)
    assert np.allclose(deeper.dmag - five.dmag, 2.5 * np.log10(2), atol=0.02)


def test_where_nothing_can_be_seen_is_said():
    poor = add_noise(point_source("F430M", 300), np.random.default_rng(16))
    curve = contrast_curve(poor, separations=[5, 20])
    assert not curve.reached.any() and np.all(curve.contrast == 1)
    centre = detection_map(STAR, "delta_chi2", size=3, extent=100)
    assert not centre.reached[1, 1] and centre.contrast[1, 1] == 1 and np.isfinite(centre.contrast).all()


def test_photons_and_floors():
    data = [photon_curve(STAR, n, over=50.0) for n in (1e8, 1e10)]
    assert np.allclose(data[1].dmag - data[0].dmag, 2.5, atol=0.02)
    # 5 × 1.8/√N, the order of magnitude for closure phases alone (7.6 mag at 1e8 photons)
    phases = photon_curve(STAR, 1e8, over=50.0, observables="cp")
    assert abs(phases.dmag[10:30].mean() - 7.6) < 0.6 and np.all(phases.dmag < data[0].dmag)
    floor = systematic_curve(STAR, 0.01, 0.005)
    assert floor.dmag.mean() < data[0].dmag.mean() and floor.label.startswith("systematic")
    for wrong in (lambda: photon_curve(STAR, 0), lambda: systematic_curve(STAR, 0, 1)):
        with pytest.raises(CalamiError, match="above 0"):
            wrong()


def test_several_exposures_go_deeper():
    one = contrast_curve(STAR, over=50.0)
    four = contrast_curve([STAR] * 4, over=50.0)
    assert np.allclose(four.dmag - one.dmag, 2.5 * np.log10(2), atol=0.02)
    assert np.allclose(contrast_curve(STAR, over=50.0, rescale=4.0).dmag, one.dmag - 2.5 * np.log10(2), atol=0.02)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_data_without_closure_phases():
    none = {k: getattr(STAR, k)[:0] for k in "cp cp_err cp_uv1 cp_uv2 cp_stations cp_flag".split()}
    bare = replace(STAR, **none, cp_covariance=None)
    for function in (search_companion, detection_map, contrast_curve):
        with pytest.raises(CalamiError, match="has no closure phases; ask for observables='v2'"):
            function(bare)
    data = add_noise(add_companion(bare, 150, 30, 0.02), np.random.default_rng(17))
    fit = search_companion(data, observables="v2", limit=330, trials=250)
    assert min(away_of(fit, 150, 30), away_of(fit, 150, 210)) < 5


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_data_without_errors(value):
    bad = STAR.with_errors(cp=value)
    for function in (search_companion, detection_map, contrast_curve):
        with pytest.raises(CalamiError, match=r"none of its 35 closure phases can be used.*with_errors"):
            function(bad)


def test_one_integration_only(tmp_path):
    one = from_samples(replace(STAR, samples={"v2": STAR.v2[None], "cp": STAR.cp[None]}))
    path = write_oifits(one, tmp_path / "x_amimulti-oi.fits", per_integration=True)
    with pytest.warns(OIFITSWarning, match="21 of 21 squared visibilities have no error"):
        back = read_oifits(path)
    with pytest.raises(CalamiError, match=r"can be used .none has a finite error above 0.*with_errors"):
        contrast_curve(back)
    assert contrast_curve(back.with_errors(v2=0.01, cp=0.01), separations=[150]).reached.all()


def test_all_flagged():
    bad = replace(STAR, v2_flag=np.ones(21, bool))
    with pytest.raises(CalamiError, match=r"none of its 21 squared visibilities can be used .all are flagged"):
        contrast_curve(bad)
    assert contrast_curve(bad, observables="cp", separations=[150]).reached.all()


def test_flagged_values_have_no_say():
    rng = np.random.default_rng(18)
    data = add_noise(add_companion(STAR, 200, 30, 0.01), rng)
    v2, cp = np.arange(21) < 3, np.arange(35) < 5
    data = replace(data, v2_flag=v2, cp_flag=cp)
    spoilt = replace(data, v2=np.where(v2, np.nan, data.v2), cp=np.where(cp, 2.0, data.cp))
    one, two = (search_companion(d, limit=330, trials=250) for d in (data, spoilt))
    assert one.to_dict() == two.to_dict() and away_of(one, 200, 30) < 5
    curve = contrast_curve(spoilt, "absil")
    assert np.isfinite(curve.contrast).all() and curve.reached.all()


def test_perfect_data_have_no_absil_limit():
    for kind in ("absil", "injection"):
        with pytest.raises(CalamiError, match="without any residual"):
            detection_map(STAR, kind, size=4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: search_companion([]), "no data given"),
        (lambda: search_companion(STAR, limit=-1), "limit > inner"),
        (lambda: search_companion(STAR, step=600), "limit > step > 0"),
        (lambda: search_companion(STAR, observables="phases"), "observables"),
        (lambda: search_companion(STAR, covariance="no"), "covariance"),
        (lambda: detection_map(STAR, "best"), "no definition"),
        (lambda: detection_map(STAR, "absil", sigma=0), "sigma must be"),
        (lambda: detection_map(STAR, size=0), "cannot be"),
        (lambda: contrast_curve(STAR, over="median"), "over is 'mean'"),
        (lambda: contrast_curve(STAR, over=101), "over is 'mean'"),
        (lambda: contrast_curve(STAR, "percentile", over="mean"), "no mean"),
        (lambda: contrast_curve(STAR, separations=[0, 10]), "above 0 mas"),
        (lambda: contrast_curve(STAR, rescale=0), "rescale"),
        (lambda: contrast_curve(STAR).at(1e4), "says nothing about"),
        (lambda: chi2_ratio(50, 36), "below 37"),
        (lambda: plot_map(detection_map(STAR, "delta_chi2", size=3), unit="dB"), "unit"),
        (lambda: plot_curves(contrast_curve(STAR), axis="pc"), "axis"),
        (lambda: curve_table([contrast_curve(STAR), contrast_curve(STAR, separations=[10])]), "same separations"),
    ],
)
def test_wrong_arguments(call, match):
    with pytest.raises(CalamiError, match=match):
        call()


def test_real_dust_gives_no_nan(shared_data):
    paths = sorted((shared_data / "oifits").glob("jw01349*"))
    with pytest.warns(OIFITSWarning):
        data = [read_oifits(p) for p in paths]
    fit = search_companion(data, trials=250, rescale=True)
    json.dumps(fit.to_dict(), allow_nan=False)
    for kind in DEFINITIONS:
        curve = contrast_curve(data, kind, separations=np.arange(50, 400, 50.0))
        assert np.isfinite(curve.contrast).all()


# -------------------------------------------------------------------------------------------------- files and pictures


@pytest.fixture(scope="module")
def fit():
    data = [
        add_noise(add_companion(point_source(f, 1e8), 150, 70, 0.01), np.random.default_rng(19))
        for f in ("F380M", "F480M")
    ]
    return search_companion(data, trials=250, limit=330)


def test_companion_json(tmp_path, fit):
    given = json.loads(write_companion(fit, tmp_path / "companion.json").read_text(encoding="utf-8"))
    assert abs(given["sep_mas"] - 150) < 3 and abs(given["pa_deg"] - 70) < 1 and given["sep_err_mas"] > 0
    assert set(given["dmag"]) == set(given["dmag_err"]) == {"F380M", "F480M"} and given["significance"] > 5
    assert {"sep_mas", "pa_deg", "dmag", "delta_chi2"} == set(given["alternatives"][0])
    assert [p.name for p in tmp_path.iterdir()] == ["companion.json"]
    with pytest.raises(FileProblem, match="cannot be written"):
        write_companion(fit, tmp_path / "companion.json" / "companion.json")


def test_curves_as_ecsv(tmp_path):
    from astropy.table import QTable

    curves = [contrast_curve(STAR), photon_curve(STAR, 1e9)]
    back = QTable.read(write_curves(curves, tmp_path / "contrast_curve.ecsv"))
    assert np.allclose(back["separation"].to_value("mas"), curves[0].separation)
    assert np.allclose(back["dmag_1"].to_value("mag"), curves[1].dmag) and back["reached"].all()
    assert back.meta["curve"]["definition"] == "delta_chi2" and back.meta["curve_1"]["label"].startswith("photon")


def test_map_as_fits(tmp_path):
    from astropy.io import fits

    made = detection_map(STAR, "delta_chi2", size=7, extent=90)
    with fits.open(write_map(made, tmp_path / "detection_map.fits")) as hdus:
        hdus.verify("exception")
        assert np.array_equal(hdus["CONTRAST"].data, made.contrast) and hdus["REACHED"].data[3, 3] == 0
        header = hdus["CONTRAST"].header
        assert header["CRVAL1"] == -90 and header["CDELT1"] == 30 and hdus[0].header["LIMIT"] == "delta_chi2"


def test_plots_take_and_give_axes(fit):
    import matplotlib.pyplot as plt

    made = detection_map(STAR, "delta_chi2", size=9)
    for plot, argument in ((plot_chi2, fit), (plot_map, made), (plot_curves, contrast_curve(STAR))):
        _, ax = plt.subplots()
        assert plot(argument, ax) is ax and ax.get_xlabel() and ax.get_ylabel()
        assert plot(argument) is not ax
    plot_map(made, unit="ratio")
    ax = plot_curves([contrast_curve(STAR), photon_curve(STAR, 1e9)], unit="ratio", axis="lambda/B")
    assert ax.get_yscale() == "log" and "λ/B" in ax.get_xlabel()
    _, ax = plt.subplots()
    plot_chi2(fit, ax)
    low, high = ax.get_xlim()
    assert low > high  # east is left
    plt.close("all")


def test_pictures_show_the_companion_where_it_is(fit):
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    plot_chi2(fit, ax)
    image = ax.get_images()[0]
    left, right, bottom, top = image.get_extent()
    rows, cols = image.get_array().shape
    row, col = np.unravel_index(np.argmin(image.get_array()), (rows, cols))
    x = left + (col + 0.5) * (right - left) / cols
    y = bottom + (row + 0.5) * (top - bottom) / rows
    assert np.hypot(*np.subtract((x, y), position(150, 70))) < 30
    plt.close("all")


def test_data_without_residuals_have_the_limits_that_mean_something(tmp_path):
    analyse(STAR, tmp_path, limit=100)
    table = (tmp_path / "contrast_curve.ecsv").read_text()
    kinds = {kind for kind in DEFINITIONS if kind in table}
    assert "delta_chi2" in kinds and "absil" not in kinds
    with pytest.raises(CalamiError, match="absil has no meaning"):
        analyse(STAR, tmp_path / "other", kind="absil", limit=100)


def test_systematics_are_no_negative_numbers():
    with pytest.raises(CalamiError, match="0 or more"):
        search_companion(STAR, systematics=(-0.01, 0.0))


def test_a_companion_as_bright_as_allowed_is_reported():
    found = search_companion(add_companion(STAR, 150, 200, 0.5), limit=330, trials=250)
    assert "at its bound" not in found.report()
    assert "at its bound, 1:" in replace(found, contrast={"F430M": 0.9999}).report()
    short = search_companion(add_companion(STAR, 150, 200, 0.5), limit=330, trials=250, max_contrast=0.2)
    assert "at its bound, 0.2:" in short.report()


def test_a_table_of_responses_is_made_once(monkeypatch):
    made = []
    short = np.arange(24.0).reshape(2, 4, 3) + 1j
    monkeypatch.setattr(companions, "_make_weighted_table", lambda *facts: made.append(facts) or short)
    facts = ("F480M", 4.8e-6, 0.003, "", "flat")
    for _ in range(2):  # as in a second kernel
        companions._weighted_table.cache_clear()
        assert np.array_equal(companions._weighted_table(*facts), short)
    assert made == [facts]
    for other in (("F430M", *facts[1:]), (*facts[:2], 0.007, "", "flat"), (*facts[:3], "flight", "flat")):
        companions._weighted_table(*other)
        assert made[-1] == other
    assert len(made) == 4
    companions._weighted_table.cache_clear()
