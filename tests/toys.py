"""Small JWST-like files and simulated stars with known truth, for the tests."""

import os
import time
from pathlib import Path

import numpy as np
from astropy.io import fits

from calami import niriss
from calami.detector import DIAGONAL_RATIO, migration_flow

BASE = {
    "TELESCOP": "JWST",
    "INSTRUME": "NIRISS",
    "DETECTOR": "NIS",
    "EXP_TYPE": "NIS_AMI",
    "TARGPROP": "AB-DOR",
    "TARGNAME": "HD 36705",
    "IS_PSF": False,
    "FILTER": "F480M",
    "PUPIL": "NRM",
    "SUBARRAY": "SUB80",
    "NGROUPS": 5,
    "NINTS": 20,
    "TGROUP": 0.07544,
    "PATT_NUM": 1,
}


def rootname(observation=1, activity=1, exposure=1, program=1516, visit=1):
    return f"jw{program:05d}{observation:03d}{visit:03d}_031{activity:02d}_{exposure:05d}_nis"


def write_exposure(path, arrays=None, sci_cards=None, **cards):
    """Write a JWST-like file: an empty primary HDU with `cards`, then the arrays, SCI first."""
    path = Path(path)
    name = path.name.lower()
    primary = fits.PrimaryHDU()
    told = dict(BASE)
    if name.startswith("jw") and name[2:13].isdigit():
        told |= {"PROGRAM": name[2:7], "OBSERVTN": name[7:10], "VISIT": name[10:13], "FILENAME": name}
    told |= cards
    primary.header.update({key: value for key, value in told.items() if value is not None})
    if arrays is None:
        arrays = {
            "SCI": np.zeros((8, 8), "float32"),
            "ERR": np.ones((8, 8), "float32"),
            "DQ": np.zeros((8, 8), "uint32"),
        }
    hdus = [primary] + [fits.ImageHDU(array, name=key) for key, array in arrays.items()]
    if sci_cards:
        hdus[1].header.update(sci_cards)
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def age(folder, seconds=60):
    """Make files look as if written a while ago, so that the index trusts what it reads of them."""
    then = time.time() - seconds
    for path in [folder] if Path(folder).is_file() else Path(folder).rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)


def nrm_psf(filt="F480M", shape=(80, 80), center=(40.1, 45.2), oversample=3):
    """Monochromatic seven-hole image summed over pixels, normalised to a sum of 1."""
    rows, cols = ((np.arange(n * oversample) + 0.5) / oversample - 0.5 for n in shape)
    per_metre = np.radians(65.6e-3 / 3600) / (niriss.FILTERS[filt].pivot * 1e-6)
    y, x = (rows[:, None] - center[0]) * per_metre, (cols[None, :] - center[1]) * per_metre
    fringes = sum(np.exp(2j * np.pi * (x * hx + y * hy)) for hx, hy in niriss.HOLE_CENTERS)
    envelope = (np.sinc(x * niriss.HOLE_FLAT_TO_FLAT) * np.sinc(y * niriss.HOLE_FLAT_TO_FLAT)) ** 2
    fine = np.abs(fringes) ** 2 * envelope
    coarse = fine.reshape(shape[0], oversample, shape[1], oversample).sum(axis=(1, 3))
    return coarse / coarse.sum()


def ramp_rate(current, ngroups, edge=0.0, nonlinear=0.0, substeps=3):
    """Mean rate, e-/s, that a ramp of `ngroups` gives for a photo-current; `nonlinear` is a loss per e- held."""
    charge, step = np.zeros_like(current), niriss.SUB80.frame_time / substeps
    for _ in range(ngroups * substeps):
        gain = current * (1 - nonlinear * charge)
        charge = charge + (gain + migration_flow(charge, current, edge, DIAGONAL_RATIO * edge)) * step
    return charge / niriss.ramp_time(ngroups)


def noisy_rate(rate, ngroups, nints, rng):
    """Add photon and read noise of the mean of `nints` integrations; returns rate and error, e-/s."""
    seconds = niriss.ramp_time(ngroups)
    variance = (rate * seconds + 2 * niriss.READ_NOISE_E**2) / nints / seconds**2
    error = np.sqrt(variance)
    return rate + rng.normal(0, 1, rate.shape) * error, error


def write_star(path, ngroups, electrons_per_s=4.2e6, nints=60, seed=1, shift=0.0, flux=1.0, bad=(), **cards):
    """Write a simulated `rate` file of a star, moved along x by `shift` (pixels); physics: `edge`, `nonlinear`."""
    physics = {key: cards.pop(key) for key in ("edge", "nonlinear") if key in cards}
    filt = cards.get("FILTER", "F480M")
    current = electrons_per_s * flux * nrm_psf(filt, center=(40.1, 45.2 + shift)) + 20.0
    rng = np.random.default_rng(seed)
    rate, error = noisy_rate(ramp_rate(current, ngroups, **physics), ngroups, nints, rng)
    dq = np.zeros(rate.shape, "uint32")
    dq[:4] = niriss.DO_NOT_USE | niriss.REFERENCE_PIXEL
    for row, col in bad:
        dq[row, col], rate[row, col] = niriss.DO_NOT_USE, 1e7
    arrays = {"SCI": (rate / niriss.GAIN).astype("float32"), "ERR": (error / niriss.GAIN).astype("float32"), "DQ": dq}
    pointing = {"BUNIT": "DN/s", "RA_REF": 82.187, "DEC_REF": -65.447} | cards.pop("sci_cards", {})
    cards = {"NGROUPS": ngroups, "NINTS": nints, "EFFINTTM": niriss.ramp_time(ngroups)} | cards
    return write_exposure(path, arrays, pointing, **cards)
