"""Errors of a kernel in pixels, V² and closure phases, of one star and of a calibrated one."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from scipy.stats import norm, qmc
from toys import rootname, write_star

from calami.core.problems import CalamiError
from calami.fringes import calibrate, fit
from calami.fringes.calibration import selfcal
from calami.fringes.observables import from_samples, wrap
from calami.fringes.oifits import read_oifits, write_oifits
from calami.instrument import niriss
from calami.instrument.coefficients import KnownMigration, known_preset
from calami.instrument.migration import Migration, light_between
from calami.instrument.optics import fine_psf, within_pixels
from calami.migration.correction import Correct, correct_image, write_kernel
from calami.migration.kernel import Kernel
from calami.migration.kernel_error import fringe_modes, kernel_modes, pixel_modes
from calami.migration.pair_kernel import observed_slope
from calami.process.prep import prep_data

LAW = Migration(0.6e-6, 0.3e-6)
VALUES, SIGMA = np.array([LAW.edge, LAW.diagonal]), np.array([0.06e-6, 0.09e-6])
COVARIANCE = np.outer(SIGMA, SIGMA) * [[1, -0.6], [-0.6, 1]]
KERNEL = Kernel(LAW, ("edge", "diagonal"), VALUES, SIGMA, COVARIANCE, 1.0, 1, "ramps", "F480M")
SHAPE, STEP = (64, 64), niriss.SUB80.frame_time


def seen(peak, center=(32.2, 31.1)):
    fine = peak * fine_psf("F480M", center, SHAPE)
    return observed_slope(within_pixels(fine, 5), LAW, 10, STEP, light_between(fine, 5))


TARGET, REFERENCE = seen(4.4e6), seen(3.4e6)


def observe(image, law):
    corrected = correct_image(image, 10, STEP, law, filter_name="F480M")
    return fit(corrected, error=np.full(SHAPE, 1.0), header={"FILTER": "F480M"})


def test_modes_hold_the_covariance_and_stay_above_zero():
    moved = np.array(
        [[(getattr(a, n) - getattr(b, n)) / width for n in KERNEL.names] for a, b, width in kernel_modes(KERNEL)]
    )
    assert np.allclose(moved.T @ moved, COVARIANCE, rtol=1e-9, atol=0)
    wide = kernel_modes(replace(KERNEL, covariance=COVARIANCE * 400))
    assert all(min(m.edge, m.diagonal) >= 0 for pair in wide for m in pair[:2])
    with pytest.raises(CalamiError, match="has no covariance"):
        kernel_modes(replace(KERNEL, covariance=np.full((2, 2), np.nan)))


def test_intervals_cover_kernels_drawn_from_their_covariance():
    # 64 kernels spread evenly over their distribution: what 68 % holds is known to 2 %, without luck.
    spread = norm.ppf(qmc.Sobol(2, seed=3).random(64)) @ np.linalg.cholesky(COVARIANCE).T
    modes = fringe_modes(KERNEL, lambda law: observe(TARGET, law))
    v2_error, cp_error = (np.sqrt((part**2).sum(axis=0)) for part in (modes.v2, modes.cp))
    inside = {"v2": [], "cp": []}
    for shift in spread:
        one = observe(TARGET, Migration(*np.maximum(VALUES + shift, 0)))
        inside["v2"] += [*(np.abs(one.v2 - modes.center.v2) < v2_error)]
        inside["cp"] += [*(np.abs(wrap(one.cp - modes.center.cp)) < cp_error)]
    shares = {key: np.mean(found) for key, found in inside.items()}
    print(shares)
    assert all(abs(share - 0.68) < 0.08 for share in shares.values()), shares


def test_what_target_and_reference_share_cancels():
    alone = fringe_modes(KERNEL, lambda law: observe(TARGET, law))
    together = fringe_modes(KERNEL, lambda law: calibrate(observe(TARGET, law), observe(REFERENCE, law), floor=False))
    sizes = [one.observables.header["SYS_KERN"] for one in (alone, together)]
    print(sizes)
    assert 0 < sizes[1] < 0.5 * sizes[0]
    own = alone.observables
    assert np.allclose(own.v2_err**2, np.diag(alone.center.full_v2_covariance()) + (alone.v2**2).sum(axis=0))
    assert np.allclose(own.v2_covariance - alone.center.full_v2_covariance(), alone.v2.T @ alone.v2)


def test_pixels_share_the_error_too():
    modes = pixel_modes(KERNEL, lambda law: correct_image(TARGET, 10, STEP, law))
    assert modes.shape == (2, *SHAPE) and np.abs(modes.sum(axis=(1, 2))).max() < 1e-6 * TARGET.sum()
    wrong = replace(LAW, edge=LAW.edge + SIGMA[0])
    change = correct_image(TARGET, 10, STEP, wrong) - correct_image(TARGET, 10, STEP, LAW)
    peak = np.unravel_index(TARGET.argmax(), SHAPE)
    assert 0.3 < np.sqrt((modes[:, peak[0], peak[1]] ** 2).sum()) / abs(change[peak]) < 3


# --- products --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    """Two stars as rate products, bent, with noise."""
    folder, images = tmp_path_factory.mktemp("stars"), ((4.4e6, (40.2, 45.1)), (3.4e6, (40.1, 45.2)))
    paths = []
    for number, (peak, center) in enumerate(images, 1):
        fine = peak * fine_psf("F480M", center, (80, 80))
        image = observed_slope(within_pixels(fine, 5), LAW, 10, STEP, light_between(fine, 5))
        paths.append(write_star(folder / f"{rootname(number)}_rate.fits", 10, electrons_per_s=image, seed=number))
    return paths


def corrected(path, folder, law=LAW, kernel=KERNEL):
    """An exposure, corrected with a kernel that other coefficients may stand for."""
    folder.mkdir(exist_ok=True)
    file = write_kernel(replace(kernel, migration=law), folder / f"pars-{law.edge:.8g}-{law.diagonal:.8g}.asdf")
    return prep_data(path, Correct(file), folder, overwrite=True)[0]


def reduced(paths, folder, law=LAW):
    return [fit(corrected(path, folder, law)) for path in paths]


def test_fringes_of_a_corrected_product_hold_the_error_of_its_kernel(stars, tmp_path):
    product = corrected(stars[0], tmp_path)
    header = fits.getheader(product)
    assert header["MIGCOEF"].startswith("edge 6e-07; diagonal 3e-07") and header["MIGCOV"].startswith("edge 6e-08;")
    one = fit(product)

    def measure(law):
        with fits.open(product) as hdus:
            image = hdus["SCI"].data * niriss.GAIN
            bent = fits.getdata(stars[0], "SCI") * niriss.GAIN
            image = correct_image(bent.astype(float), 10, STEP, law, filter_name="F480M") / niriss.GAIN
            return fit(image, error=hdus["ERR"].data, dq=hdus["DQ"].data, header={"FILTER": "F480M"})

    known = fringe_modes(KERNEL, measure)
    for key, scale in (("v2", 1.0), ("cp", 1.0)):
        mine, theirs = getattr(one, f"{key}_modes"), getattr(known, key)
        both = mine.T @ mine, theirs.T @ theirs
        assert np.abs(both[0] - both[1]).max() < 0.04 * scale * np.abs(both[1]).max(), key
        noise = one.noise_covariance(key)
        assert np.allclose(getattr(one, f"full_{key}_covariance")(), noise + both[0], atol=1e-20)
        assert np.allclose(getattr(one, f"{key}_err") ** 2, np.diag(noise + both[0]))
        assert (np.diag(noise) > 0).all()
    assert one.header["SYS_KERN"] == pytest.approx(known.observables.header["SYS_KERN"], rel=0.05)
    some = one.choose(one.stations[:4])
    assert some.v2_modes.shape == (2, 6) and some.cp_modes.shape == (2, 4)
    assert one.with_errors(v2=0.01).v2_modes is None and one.with_modes(None, None).v2_modes is None


def test_files_hold_it_and_what_is_averaged_again_has_it_too(stars, tmp_path):
    one = fit(corrected(stars[0], tmp_path))
    again = read_oifits(write_oifits(one, tmp_path / "star.fits"))
    for key in ("v2", "cp"):
        assert np.allclose(getattr(again, f"{key}_modes"), getattr(one, f"{key}_modes"), atol=0)
        assert np.allclose(again.noise_covariance(key), one.noise_covariance(key), rtol=1e-6, atol=1e-16)
    assert again.header["MIGCOV"] == one.header["MIGCOV"]
    assert again.header["SYS_KERN"] == pytest.approx(one.header["SYS_KERN"], rel=1e-12)
    rng = np.random.default_rng(1)
    away = {"v2": rng.normal(0, 1e-3, (40, 21)), "cp": rng.normal(0, 1e-3, (40, 35))}
    many = replace(one, samples={key: getattr(one, key) + away[key] for key in away})
    path = write_oifits(many, tmp_path / "star_multi.fits", per_integration=True)
    averaged = read_oifits(path)
    own = one.v2_modes.T @ one.v2_modes
    assert np.allclose(averaged.v2_covariance - from_samples(replace(many, v2_modes=None)).v2_covariance, own)
    with fits.open(path, mode="update") as hdus:
        hdus["CALAMI_V2MOD"].data = hdus["CALAMI_V2MOD"].data[:, :5]
    with pytest.raises(CalamiError, match="CALAMI_V2MOD has shape"):
        read_oifits(path)
    halves = selfcal(averaged)
    assert halves.header["SYS_KERN"] < 0.02 * one.header["SYS_KERN"]


def test_calibrated_products_hold_what_target_and_reference_do_not_share(stars, tmp_path):
    target, reference = reduced(stars, tmp_path)
    one = calibrate(target, reference, floor=False)
    known = fringe_modes(KERNEL, lambda law: calibrate(*reduced(stars, tmp_path / "other", law), floor=False))
    for key in ("v2", "cp"):
        both = [modes.T @ modes for modes in (getattr(one, f"{key}_modes"), getattr(known, key))]
        assert np.abs(both[0] - both[1]).max() < 0.1 * np.abs(both[1]).max(), key
        noise = getattr(one, f"{key}_covariance") - both[0]
        assert np.linalg.eigvalsh(noise).min() > -1e-12
    assert 0 < one.header["SYS_KERN"] < 0.5 * target.header["SYS_KERN"]
    again = read_oifits(write_oifits(one, tmp_path / "cal.fits"))
    assert again.header["SYS_KERN"] == pytest.approx(one.header["SYS_KERN"], rel=1e-12)
    # another kernel's error is another error
    other = replace(reference, header=reference.header | {"MIGKERN": "other"})
    apart = calibrate(target, other, floor=False, allow=True)
    assert len(apart.v2_modes) == 4 and apart.header["SYS_KERN"] > target.header["SYS_KERN"]


def test_calibrated_values_move_with_the_kernel_as_their_errors_say(stars):
    """64 kernels spread evenly over the covariance the noise is the same in all."""
    cards = KnownMigration.of(LAW, KERNEL.names, COVARIANCE).cards | {"S_MIGCOR": "COMPLETE", "BUNIT": "DN/s"}
    cards |= {"FILTER": "F480M", "NGROUPS": 10, "EFFINTTM": 10 * STEP}
    arrays = [[fits.getdata(path, name) for name in ("SCI", "ERR", "DQ")] for path in stars]

    def reduce(rate, error, dq, law):
        image = correct_image(rate * float(niriss.GAIN), 10, STEP, law, dq != 0, "F480M") / niriss.GAIN
        return fit(image, error=error, dq=dq, header=cards)

    def calibrated(law):
        return calibrate(*(reduce(*one, law) for one in arrays), floor=False)

    centre = calibrated(LAW)
    drawn = norm.ppf(qmc.Sobol(2, seed=3).random(8))
    for_all = {"v2": [], "cp": []}
    for shift in drawn:
        found = calibrated(Migration(*np.maximum(VALUES + np.linalg.cholesky(COVARIANCE) @ shift, 0)))
        for_all["v2"].append(found.v2 - centre.v2)
        for_all["cp"].append(wrap(found.cp - centre.cp))
    for key, moved in for_all.items():
        expected = drawn @ getattr(centre, f"{key}_modes")
        slope = np.sum(moved * expected) / np.sum(expected**2)
        rest = np.std(moved - expected) / np.std(expected)
        print(key, slope, rest)
        assert abs(slope - 1) < 0.02 and rest < 0.05


def test_kernels_without_errors_say_so(stars, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        one = fit(prep_data(stars[0], Correct("h4rg"), tmp_path)[0])
    assert one.v2_modes is None and "SYS_KERN" not in one.header
    assert "h4rg, and its header has no errors of the kernel" in caplog.text and any("h4rg" in n for n in one.notes)
    assert fit(stars[0]).v2_modes is None  # not corrected


def test_a_header_brings_coefficients_and_errors_back():
    steep = replace(LAW, growth=2e-5, cubic=-5e-12)
    names = ("edge", "diagonal", "growth", "cubic")
    spread = np.array([1e-8, 3e-8, 4e-6, 1e-12])
    singular = np.outer(spread, spread)  # of rank 1
    for covariance in (np.diag(spread**2), singular, singular * 0.5 + 0.5 * np.diag(spread**2)):
        known = KnownMigration.of(steep, names, covariance)
        again = KnownMigration.of_header(known.cards)
        assert again.migration == steep and again.names == names
        assert np.allclose(again.covariance, covariance, rtol=2e-3, atol=1e-3 * np.sqrt(np.outer(*2 * [spread**2])))
        assert np.allclose(np.triu(again.root, 1), 0)
    with pytest.raises(CalamiError, match="MIGCOV 'edge much'"):
        KnownMigration.of_header({"MIGCOEF": "edge 1e-7", "MIGCOV": "edge much"})
    with pytest.raises(CalamiError, match="sideways"):
        KnownMigration.of_header({"MIGCOEF": "sideways 1e-7"})
    with pytest.raises(CalamiError, match="do not belong"):
        KnownMigration(LAW, ("flux",), np.eye(1))


def test_a_preset_that_was_measured_brings_its_errors(stars, tmp_path):
    one = fit(prep_data(stars[0], Correct("flight"), tmp_path)[0])
    assert len(one.v2_modes) == 4 and 1e-3 < one.header["SYS_KERN"] < 1e-2
    # growth and edge are known much better together than each of them
    alone = replace(known_preset("flight"), root=np.diag(np.sqrt(np.diag(known_preset("flight").covariance))))
    apart = fit(stars[0], header=alone.cards | {"S_MIGCOR": "COMPLETE"})
    assert apart.header["SYS_KERN"] > 1.5 * one.header["SYS_KERN"]
    assert known_preset("h4rg").names == ()
