import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import examples, fringe_cube, fringe_images, rootname, write_exposure, write_star

from calami.core.problems import CalamiError
from calami.dataset import Dataset
from calami.exposures.exposure import Exposure
from calami.fringes.observables import from_samples, point_source
from calami.instrument import niriss
from calami.migration import mitigation
from calami.migration.mitigation import ScanExposure, Version, choose_reference, equivalent_contrast, fringe_departure
from calami.process import references
from calami.process.engine import Engine
from calami.process.pipeline import Outcome, Run
from calami.process.recipes import Slice
from calami.simulate.exposures import Instrument, simulate_exposure
from calami.simulate.plans import ready_plan


def cube(rng, count, v2=1.0, cp=0.0, photons=1e6):
    star = point_source("F430M", photons)
    matrix = star.triangle_matrix
    phases = rng.normal(size=(count, matrix.shape[1])) * star.cp_err[0] / np.sqrt(3)
    values = 1 + star.v2_err * rng.normal(size=(count, len(star.v2)))
    samples = {"v2": v2 * values, "cp": cp + phases @ matrix.T}
    return from_samples(replace(star, samples=samples))


@pytest.mark.parametrize("name", ["", "…", "--"])
def test_a_version_needs_a_name(name):
    with pytest.raises(CalamiError, match="needs a name"):
        Version(name)


@pytest.mark.parametrize("level", [0, -5, math.nan, math.inf])
def test_a_threshold_is_a_number_of_adu(level):
    with pytest.raises(CalamiError, match="ADU above 0"):
        mitigation.whole_frames(level) if level else mitigation.with_step(level)


def test_bias_and_its_error_are_right():
    # 150 pairs: the pulls of bias and of the signed departure must have mean 0 and width 1 within their sampling.
    rng = np.random.default_rng(8)
    pulls = []
    for _ in range(150):
        found = fringe_departure(cube(rng, 40, 0.99, 0.01), cube(rng, 60), 150, seed=rng.integers(1 << 30))
        pulls.append(
            [
                (found.long_v2 + 0.01) / found.long_v2_error,
                (found.v2 - 1e-4) / found.v2_draws.std(),
                (found.cp - 1e-4) / found.cp_draws.std(),
            ]
        )
    pulls = np.array(pulls)
    assert (np.abs(pulls.mean(axis=0)) < 4 / np.sqrt(len(pulls)) + 0.1).all(), pulls.mean(axis=0)
    assert (np.abs(pulls.std(axis=0) - 1) < 0.25).all(), pulls.std(axis=0)


def test_intervals_of_the_bias_hold_the_truth():
    # 400 draws: the signed departure by its standard error, both mean squares by the 16 to 84 % of their resamples.
    rng = np.random.default_rng(10)
    inside = []
    for seed in range(400):
        found = fringe_departure(cube(rng, 40, 0.99, 0.01), cube(rng, 60), 150, seed)
        ends = [np.quantile(draws, [0.16, 0.84]) for draws in (found.v2_draws, found.cp_draws)]
        squares = [low <= 1e-4 <= high for low, high in ends]
        inside.append([abs(found.long_v2 + 0.01) <= found.long_v2_error, *squares])
    assert np.abs(np.mean(inside, axis=0) - 0.68).max() < 0.08, np.mean(inside, axis=0)


@pytest.mark.parametrize("count", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))])
def test_few_integrations_have_errors_that_are_not_too_small(count):
    # Scatter of the signed departure over the rms of its standard errors, 400 pairs; without the correction for the
    # mean it is √(n / (n - 1)): 1.41, 1.22 and 1.12.
    rng = np.random.default_rng(12)
    found = [fringe_departure(cube(rng, count), cube(rng, count), 100, seed) for seed in range(400)]
    scatter = np.std([one.long_v2 for one in found])
    assert abs(scatter / np.sqrt(np.mean([one.long_v2_error**2 for one in found])) - 1) < 0.09


def test_errors_of_the_bias_agree_with_a_numerical_jacobian():
    # Covariance of the means of the integrations, taken through calibration and mean squares by moving one value after
    # the other. The bias is far above the noise, so that mean squares are nearly linear in what is moved.
    rng = np.random.default_rng(11)
    pair = [cube(rng, 200, 0.9, 0.1, 1e7), cube(rng, 150, 1.0, 0.0, 1e7)]
    kinds, variance = ("long_v2", "v2", "cp"), np.zeros(3)
    for one in pair:
        for name in ("v2", "cp"):
            slopes = []
            for k in range(len(getattr(one, name))):
                ends = []
                for move in (-1e-5, 1e-5):
                    value = getattr(one, name).copy()
                    value[k] += move
                    moved = [replace(other, **{name: value}) if other is one else other for other in pair]
                    found = fringe_departure(*moved, 2)
                    ends.append([found.long_v2, found.v2 + found.v2_noise, found.cp + found.cp_noise])
                slopes.append(np.subtract(*ends[::-1]) / 2e-5)
            samples = one.samples[name]
            covariance = np.cov(samples.T) / len(samples)
            variance += np.einsum("ka,kl,la->a", slopes, covariance, slopes)
    found = fringe_departure(*pair, 4000, seed=1)
    seen = [found.long_v2_error, found.v2_draws.std(), found.cp_draws.std()]
    assert seen == pytest.approx(np.sqrt(variance), rel=0.05), dict(zip(kinds, seen / np.sqrt(variance), strict=True))


def test_resamples_scatter_about_what_is_found():
    # A resample holds the noise twice, of the data and of the draw: both come off, or intervals would lie too high.
    rng = np.random.default_rng(12)
    for _ in range(5):
        found = fringe_departure(cube(rng, 100), cube(rng, 100), 2000)
        assert abs(found.v2_draws.mean() - found.v2) < 0.1 * found.v2_noise
        assert abs(found.cp_draws.mean() - found.cp) < 0.1 * found.cp_noise


def test_the_signed_departure_is_that_of_the_longest_third():
    length = point_source("F430M", 1e6).baseline_length
    longest = np.argsort(length)[-len(length) // 3 :]
    v2 = np.ones(len(length))
    v2[longest] = 0.98
    found = fringe_departure(cube(np.random.default_rng(13), 100, v2), cube(np.random.default_rng(14), 100))
    assert abs(found.long_v2 + 0.02) < 4 * found.long_v2_error < 0.003


def test_without_bias_none_is_found():
    rng = np.random.default_rng(9)
    found = [fringe_departure(cube(rng, 30), cube(rng, 30), 100, seed=n) for n in range(60)]
    v2, cp = (np.array([getattr(f, k) for f in found]) for k in ("v2", "cp"))
    for values, noise in ((v2, found[0].v2_noise), (cp, found[0].cp_noise)):
        assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values)) + 0.05 * noise
    counted = [mitigation._floor(f.v2, f.v2_draws) > 0 for f in found]
    assert np.mean(counted) < 0.15


def test_a_ramp_too_short_for_the_step_calibrates_one_that_went_through_it():
    rng = np.random.default_rng(2)
    target = replace(cube(rng, 20), header={"S_CHGMIG": "COMPLETE"})
    reference = replace(cube(rng, 20), header={"S_CHGMIG": "SKIPPED"})
    assert np.isfinite(fringe_departure(target, reference).v2)
    with pytest.raises(CalamiError, match="differ in what was done"):
        fringe_departure(target, replace(reference, header={"S_MIGCOR": "COMPLETE"}))


def test_a_single_integration_has_no_noise_of_its_own():
    rng = np.random.default_rng(1)
    with pytest.raises(CalamiError, match="two integrations"):
        fringe_departure(cube(rng, 1), cube(rng, 5))


@given(st.floats(1e-9, 1e-3), st.floats(1e-9, 1e-3), st.floats(1e-9, 1e-3), st.floats(1e-9, 1e-3))
@settings(max_examples=examples(50))
def test_equivalent_contrast_rises_with_bias_and_lies_between(v2, cp, v2_noise, cp_noise):
    plain = equivalent_contrast(0.0, 0.0, v2_noise, cp_noise)
    assert np.isclose(plain, 1 / np.sqrt(6 / v2_noise + 1.5 / cp_noise))
    assert plain <= equivalent_contrast(v2, cp, v2_noise, cp_noise)
    assert equivalent_contrast(v2, cp, v2_noise, cp_noise) <= equivalent_contrast(2 * v2, 2 * cp, v2_noise, cp_noise)


def test_references_have_the_same_filter_and_position():
    def at(root, star, level, filter="F430M", position="1"):
        return ScanExposure(root, root, star, filter, level, 1e8, position)

    target = at("t", "A", 3e4)
    others = [target, at("a", "A", 9e3), at("b", "A", 8e3, "F480M"), at("c", "A", 7e3, position="2"), at("d", "B", 5e3)]
    assert choose_reference(target, others, "shallowest").rootname == "a"
    assert choose_reference(target, others, "matched").rootname == "d"
    assert choose_reference(at("x", "A", 9.2e3), others, "shallowest") is None  # hardly deeper: nothing to compare
    two, three = replace(at("e", "A", 4e3), groups=2), replace(at("f", "A", 9e3), groups=3)
    assert choose_reference(target, [target, two, three], "shallowest") is three
    assert choose_reference(at("g", "A", 1e4), [two, three], "shallowest") is two
    with pytest.raises(CalamiError, match="shallowest, matched, different"):
        choose_reference(target, others, "nearest")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    exposures = ready_plan("1516", "demo").exposures[:2]
    instrument = Instrument.default(1, "flight")
    for exposure in exposures:
        simulate_exposure(replace(exposure, nints=8), folder, instrument)
    return Dataset(folder)


@pytest.fixture(scope="module")
def options():
    cache = references.default_cache(Instrument.default(1, "flight").detector)
    return {"cache": cache, "workers": 1, "progress": False}


@pytest.fixture(scope="module")
def plain(raw, options, tmp_path_factory):
    """A folder with the first version, which each scan below goes on from."""
    folder = tmp_path_factory.mktemp("plain")
    mitigation.mitigation_scan(raw, folder, [mitigation.without_step()], n_bootstrap=50, **options)
    return folder


@pytest.mark.slow  # the demo does the same in the ordinary run
def test_a_scan_with_the_pipeline_is_done_once(raw, options, tmp_path, caplog):
    even = Version("even integrations", {"charge_migration.skip": True}, recipes=(Slice(alternate=2),))
    versions = (*mitigation.standard_versions((9000,), (16000,))[:3], even)
    found = mitigation.mitigation_scan(raw, tmp_path, versions[:3], n_bootstrap=50, **options)
    assert not found.failures and [e.version.name for e in found.entries] == [v.name for v in versions[:3]]
    none, step, frames = found.entries
    assert none.target.level > 20_000 > none.reference.level
    assert none.departure.long_v2 < step.departure.long_v2  # the step takes bias away
    assert step.departure.v2_noise > none.departure.v2_noise  # and signal
    assert frames.departure.v2_noise > none.departure.v2_noise

    def times():
        return {p: p.stat().st_mtime_ns for pattern in ("*.fits", "*.npz") for p in tmp_path.rglob(pattern)}

    before = times()
    assert sum(p.name.startswith("entry_") for p in before) == 3
    again = mitigation.mitigation_scan(raw, tmp_path, versions[:3], n_bootstrap=50, **options)
    assert times() == before
    assert again.table["v2_bias"].tolist() == found.table["v2_bias"].tolist()
    alone = Dataset(raw[raw.names[0]].paths)
    with pytest.raises(CalamiError, match="two depths"):
        mitigation.mitigation_scan(alone, tmp_path, versions[:1], **options)
    steps = found.table["exposure"], found.table["dmag_reached_150mas"]
    assert len(steps[0]) == 3 and (np.array(steps[1]) > 0).all()


@pytest.mark.slow
def test_a_corrected_version_keeps_all_groups_and_takes_the_bias_away(raw, options, plain):
    versions = (mitigation.without_step(), mitigation.corrected(), mitigation.corrected("flight_linear"))
    found = mitigation.mitigation_scan(raw, plain, versions, n_bootstrap=50, **options)
    none, own, known = found.entries
    assert not found.failures and [e.version.name for e in found.entries][1:] == [
        "corrected",
        "corrected, flight_linear",
    ]
    for entry in (own, known):
        assert abs(entry.departure.long_v2) < 0.5 * abs(none.departure.long_v2)
        assert entry.departure.v2_noise < 1.15 * none.departure.v2_noise  # no group is lost
    (check,) = found.checks
    assert check.fits and check.filter == own.target.filter
    (kernel,) = (plain / "kernels").glob("*/*.asdf")
    times = {p: p.stat().st_mtime_ns for p in plain.rglob("*_calints.fits")}
    again = mitigation.mitigation_scan(raw, plain, versions, n_bootstrap=50, **options)
    assert times == {p: p.stat().st_mtime_ns for p in plain.rglob("*_calints.fits")}
    assert again.table["v2_bias"].tolist() == found.table["v2_bias"].tolist()
    places = [p for p in plain.glob("corrected_*") if p.name != "corrected_flight_linear"]
    (place,) = places
    for path in place.glob("*_calints.fits"):
        header = fits.getheader(path)
        assert (header["S_MIGCOR"], header["MIGKERN"], header["S_CHGMIG"]) == ("COMPLETE", kernel.name, "SKIPPED")


@pytest.mark.slow
def test_without_a_kernel_the_other_versions_are_made(raw, options, plain, monkeypatch):
    def none(data):
        raise CalamiError("no kernel can be measured: no ramps")

    monkeypatch.setattr(mitigation, "measure_kernels", none)
    shutil.rmtree(plain / ".kept")  # where it is from the test before
    versions = (mitigation.without_step(), mitigation.corrected())
    found = mitigation.mitigation_scan(raw, plain, versions, n_bootstrap=50, **options)
    assert [v.name for v in found.versions] == ["none"] and found.checks == ()
    assert "version corrected could not be made" in found.failures[0]


def test_versions_with_one_name_are_refused(raw, tmp_path):
    with pytest.raises(CalamiError, match="different names"):
        mitigation.process_versions(raw, [Version("A b"), Version("a-b")], tmp_path)


def test_a_fit_is_made_again_when_the_code_of_fits_has_changed(tmp_path, monkeypatch):
    images, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 3, seed=1)
    product, target = tmp_path / f"{rootname(1)}_calints.fits", tmp_path / f"{rootname(1)}_ami-oi.fits"
    arrays = {"SCI": images.astype("float32"), "ERR": error.astype("float32"), "DQ": dq}
    write_exposure(product, arrays, {"CDELT1": 65.6 / 3.6e6, "CDELT2": 65.6 / 3.6e6}, NINTS=3)
    mitigation._fringe_job(("none", [str(product)], str(target), {}))
    first = target.stat().st_mtime_ns
    mitigation._fringe_job(("none", [str(product)], str(target), {}))
    assert target.stat().st_mtime_ns == first
    monkeypatch.setattr(mitigation, "_code_of_fits", lambda: "another")
    mitigation._fringe_job(("none", [str(product)], str(target), {}))
    assert target.stat().st_mtime_ns > first


def test_fits_of_what_was_made_now_are_begun_before_all_is_made(tmp_path):
    root = "jw01516001001_03102_00001_nis"
    paths = [tmp_path / root.replace("3102", f"310{k}") for k in range(2)]
    paths = [path.with_name(f"{path.name}_calints.fits") for path in paths]
    for path in paths:
        fits.PrimaryHDU().writeto(path)
    status = ("made", "already there")
    outcomes = tuple(Outcome("x", p, s, (p,)) for p, s in zip(paths, status, strict=True))
    run = Run(("calwebb_image2",), {}, tmp_path, outcomes, 0.0)
    done = []

    class Executor:
        def submit(self, *what):
            done.append(what)
            return what

    begun = mitigation._begin_fits({"none": run}, tmp_path, Engine(executor=Executor()), {"fix": False})
    assert begun == done and len(done) == 1
    (_, what, (key, products, target, options)) = done[0]
    assert what.endswith(":_fringe_file") and products == [str(paths[0])] and options == {"fix": False}
    assert key[0] == "none" and target == str(tmp_path / "fringes" / f"{key[1]}_none_ami-oi.fits")


def test_a_saturated_exposure_is_excluded_with_its_reason(tmp_path):
    made = [write_star(tmp_path / f"{rootname(n)}_rate.fits", 5, flux=n) for n in (1, 2)]
    with fits.open(made[1], mode="update") as hdus:
        hdus["SCI"].data[39:42, 44:47] = np.nan
        hdus["DQ"].data[39:42, 44:47] |= niriss.DO_NOT_USE | niriss.SATURATED
    failures = []
    (left,) = mitigation._exposures(Dataset(tmp_path), SimpleNamespace(paths=made), failures)
    assert left.rootname == rootname(1) and len(failures) == 1
    assert "is excluded" in failures[0] and "the core of the star is saturated" in failures[0]


def test_more_than_full_well_is_no_level(tmp_path):
    path = write_star(tmp_path / f"{rootname()}_rate.fits", 5)
    level, photons = mitigation._peak_level(Exposure(path))
    assert level > 0 and photons > 0
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["NGROUPS"], hdus[0].header["EFFINTTM"] = 100, 7.544
    with pytest.raises(CalamiError, match=r"times full well: .* use fewer groups, or fix its header"):
        mitigation._peak_level(Exposure(path))


def test_segments_are_one_exposure(tmp_path):
    names = [f"jw01516001001_03101_00001-seg00{k}_nis_{kind}.fits" for kind in ("calints", "rate") for k in (2, 1)]
    whole, error, flags = fringe_cube(fringe_images("F480M"), 8)
    paths = []
    for name in names:
        which = (slice(4, 8) if "seg002" in name else slice(4)) if "calints" in name else 0
        arrays = {"SCI": whole[which], "ERR": np.array(error[which]), "DQ": flags[which]}
        paths.append(write_exposure(tmp_path / name, arrays, {"BUNIT": "DN/s"}, NINTS=8))
    run = SimpleNamespace(paths=paths)
    ((root, product),) = mitigation._products(run, "calints").items()
    assert root == rootname() and product.shape[0] == 8 and "seg001" in product.paths[0].name
    assert len(mitigation._products(run, "rate")[root].paths) == 2
    ((key, fitted),) = mitigation.fit_versions({"none": run}, tmp_path / "out", workers=1, progress=False).items()
    assert key == ("none", root) and len(fitted.samples["v2"]) == 8
