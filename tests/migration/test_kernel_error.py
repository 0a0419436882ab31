"""Errors of a kernel in pixels, V² and closure phases, of one star and of a calibrated one."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, qmc

from calami.core.problems import CalamiError
from calami.fringes import calibrate, fit
from calami.fringes.observables import wrap
from calami.instrument import niriss
from calami.instrument.migration import Migration, light_between
from calami.instrument.optics import fine_psf, within_pixels
from calami.migration.correction import correct_image
from calami.migration.kernel import Kernel
from calami.migration.kernel_error import fringe_modes, kernel_modes, pixel_modes
from calami.migration.pair_kernel import observed_slope

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
