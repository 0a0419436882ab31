"""Small JWST-like files and simulated stars with known truth, for the tests."""

import os
import time
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from calami.instrument import niriss, optics
from calami.instrument.migration import DIAGONAL_RATIO, migration_flow

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


def examples(most):
    """How many examples a property is tried with: all of them with --run-slow, a quarter of them otherwise."""
    return most if os.environ.get("CALAMI_RUN_SLOW") else most // 4


def variants(first, *others):
    """Values of a parameter of which the first is always tried, the others with --run-slow."""
    others = [other if isinstance(other, tuple) else (other,) for other in others]
    return [first, *(pytest.param(*other, marks=pytest.mark.slow) for other in others)]


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


@lru_cache(maxsize=32)
def nrm_psf(filt="F480M", shape=(80, 80), center=(40.1, 45.2), oversample=3):
    """Monochromatic seven-hole image summed over pixels, normalised to a sum of 1."""
    rows, cols = ((np.arange(n * oversample) + 0.5) / oversample - 0.5 for n in shape)
    per_metre = np.radians(65.6e-3 / 3600) / (niriss.FILTERS[filt].pivot * 1e-6)
    y, x = (rows[:, None] - center[0]) * per_metre, (cols[None, :] - center[1]) * per_metre
    fringes = sum(np.exp(2j * np.pi * (x * hx + y * hy)) for hx, hy in niriss.HOLE_CENTERS)
    envelope = (np.sinc(x * niriss.HOLE_FLAT_TO_FLAT) * np.sinc(y * niriss.HOLE_FLAT_TO_FLAT)) ** 2
    fine = np.abs(fringes) ** 2 * envelope
    coarse = fine.reshape(shape[0], oversample, shape[1], oversample).sum(axis=(1, 3))
    coarse /= coarse.sum()
    coarse.flags.writeable = False  # it is kept
    return coarse


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


#: Stars whose peak takes 13 groups to 65 ke-, e-/s.
BRIGHT = {"F277W": 1.45e6, "F380M": 2.35e6, "F430M": 2.85e6}


def write_star(path, ngroups, electrons_per_s=None, nints=60, seed=1, shift=0.0, flux=1.0, bad=(), **cards):
    """Write a simulated `rate` file of a star, moved along x by `shift` (pixels); physics: `edge`, `nonlinear`.

    `electrons_per_s` is of the whole star, or an image."""
    physics = {key: cards.pop(key) for key in ("edge", "nonlinear") if key in cards}
    filt = cards.get("FILTER", "F480M")
    light = BRIGHT.get(filt, 3.4e6) if electrons_per_s is None else electrons_per_s
    current = light if np.ndim(light) else light * flux * nrm_psf(filt, center=(40.1, 45.2 + shift)) + 20.0
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


# What the pipeline reads of an uncal file, with the values of jw01093012001_03102_00001_nis (program 1093, MAST).
UNCAL = {
    "DATAMODL": "Level1bModel",
    "TEMPLATE": "NIRISS Aperture Masking Interferometry",
    "APERNAME": "NIS_AMI1",
    "PPS_APER": "NIS_AMI1",
    "DATE-OBS": "2022-06-05",
    "TIME-OBS": "13:40:57.785",
    "DATE-BEG": "2022-06-05T13:40:57.785",
    "DATE-END": "2022-06-05T13:41:29.017",
    "EXPSTART": 59735.57011325046,
    "EXPMID": 59735.57029399213,
    "EXPEND": 59735.57047473379,
    "TARG_RA": 82.18735041666667,
    "TARG_DEC": -65.44798333333335,
    "VISITYPE": "PRIME_TARGETED_FIXED",
    "VSTSTART": "2022-06-05 12:15:41.5020000",
    "PI_NAME": "Thatte, Deepashri",
    "MU_RA": 0.02914965139708291,
    "MU_DEC": 0.1644210871070447,
    "TSOVISIT": False,
    "READPATT": "NISRAPID",
    "NOUTPUTS": 1,
    "NFRAMES": 1,
    "FRMDIVSR": 1,
    "GROUPGAP": 0,
    "NSAMPLES": 1,
    "TSAMPLE": 10.0,
    "TFRAME": 0.07544,
    "TGROUP": 0.07544,
    "NRSTSTRT": 1,
    "NRESETS": 1,
    "DRPFRMS1": 0,
    "DRPFRMS3": 0,
    "ZEROFRAM": False,
    "SUBSTRT1": 1045,
    "SUBSTRT2": 1,
    "SUBSIZE1": 80,
    "SUBSIZE2": 80,
    "FASTAXIS": -2,
    "SLOWAXIS": -1,
    "PATTTYPE": "NONE",
    "NUMDTHPT": 1,
    "XOFFSET": 0.0,
    "YOFFSET": 0.0,
}
UNCAL_SCI = {
    "BUNIT": "DN",
    "RADESYS": "ICRS",
    "RA_V1": 82.06345797849094,
    "DEC_V1": -65.66895204689341,
    "PA_V3": 171.8779402984971,
    "PA_APER": 172.3262577770351,
    "V2_REF": -296.072739,
    "V3_REF": -762.714999,
    "VPARITY": -1,
    "V3I_YANG": 0.56126717,
    "RA_REF": 82.18735912166036,
    "DEC_REF": -65.44754179969318,
    "ROLL_REF": 171.7649906070351,
    "VA_SCALE": 1.00000537343187,
    "WCSAXES": 2,
    "CRPIX1": 46.0,
    "CRPIX2": 41.0,
    "CRVAL1": 82.18739906571901,
    "CRVAL2": -65.447517431745,
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CUNIT1": "deg",
    "CUNIT2": "deg",
    "CDELT1": 1.8e-05,
    "CDELT2": 1.8e-05,
    "PC1_1": 0.99,
    "PC1_2": 0.13,
    "PC2_1": 0.13,
    "PC2_2": -0.99,
}


def plain_detector(seed=1, **maps):
    """Maps of a simulated detector (see calami.process.references); each can be given instead."""
    from types import SimpleNamespace

    rng, shape = np.random.default_rng(seed), niriss.SUB80.shape
    flags = np.zeros(shape, "uint32")
    flags[:4] = niriss.REFERENCE_PIXEL
    flags[rng.integers(4, 80, 20), rng.integers(0, 80, 20)] = niriss.DO_NOT_USE
    own = {"gain": niriss.GAIN * rng.normal(1, 0.005, shape), "bias": rng.normal(11_500, 200, shape), "flags": flags}
    own |= {"nonlinearity": rng.uniform(6e-7, 1.4e-6, shape), "saturation": rng.normal(72_000, 1000, shape)}
    own |= {"flat": rng.normal(1, 0.021, shape), "dark": rng.uniform(0.02, 0.04, shape)}
    return SimpleNamespace(**own | {"read_noise": rng.normal(16.3, 1, shape)} | maps)


def raw_ramps(detector, rate, ngroups, nints, seed=1):
    """Counts as read, uint16, shape (nints, ngroups, 80, 80), of a photo-current `rate`, e-/s."""
    rng, rows = np.random.default_rng(seed), niriss.SUB80.reference_rows
    step = (rate * detector.flat + detector.dark) * niriss.SUB80.frame_time
    step[:rows] = 0
    charge = np.cumsum(rng.poisson(step, (nints, ngroups, *step.shape)), axis=1).astype(float)
    charge = np.minimum(charge, detector.saturation)
    seen = charge - detector.nonlinearity * charge**2 + rng.normal(0, 1, charge.shape) * detector.read_noise
    return np.clip(np.rint(detector.bias + seen / detector.gain), 0, 65_535).astype("uint16")


def write_uncal(folder, detector, rate, ngroups=6, nints=5, seed=1, activity=2, **cards):
    """Write an uncal file that the jwst pipeline processes; see `raw_ramps`."""
    path = Path(folder) / f"{rootname(12, activity, program=1093)}_uncal.fits"
    seconds = ngroups * niriss.SUB80.frame_time
    told = UNCAL | {"NGROUPS": ngroups, "NINTS": nints, "EFFINTTM": seconds, "EFFEXPTM": nints * seconds}
    write_exposure(path, {"SCI": raw_ramps(detector, rate, ngroups, nints, seed)}, UNCAL_SCI, **told | cards)
    from stdatamodels.jwst.datamodels import Level1bModel

    with Level1bModel(path) as model:  # adds the ASDF extension, without which jwst 3 reads no parameters
        model.save(path)
    return path


def visibilities(image, filt, center):
    """Complex visibilities of the 21 baselines at the pivot wavelength: (hole, hole) → value, 1 at zero spacing."""
    holes = optics.Pupil().centers @ optics.Pupil().distortion.matrix.T
    pairs = list(combinations(range(7), 2))
    per_mas = np.array([holes[i] - holes[j] for i, j in pairs]) / (niriss.FILTERS[filt].pivot * 1e-6) * optics.MAS
    x, y = (np.arange(n) - at for n, at in zip(image.shape[::-1], center, strict=True))
    x, y = x * niriss.PIXEL_SCALE_MAS[0], y * niriss.PIXEL_SCALE_MAS[1]
    along_x, along_y = (np.exp(-2j * np.pi * np.outer(at, f)) for at, f in zip((x, y), per_mas.T, strict=True))
    return dict(zip(pairs, np.einsum("yx,yk,xk->k", image, along_y, along_x) / image.sum(), strict=True))


def closure_phases(values):
    """The 35 closure phases of `visibilities`, degrees."""
    triples = combinations(range(7), 3)
    return np.degrees([np.angle(values[a, b] * values[b, c] * values[a, c].conj()) for a, b, c in triples])


def fringe_images(filt="F480M", seed=1, size=64, piston_rms=30.0, contrast=0.0, slopes=True):
    """A star through the mask with random pistons and place; returns its image (share of the light) and its slopes
    along x and y, per pixel (0 if they are not wanted)."""
    from calami.instrument import optics

    rng = np.random.default_rng(seed)
    column, row = (size - 1) // 2 + rng.uniform(-0.3, 0.3, 2)
    pupil = optics.Pupil().with_errors(piston_rms, seed=rng)
    source = optics.Source()
    if contrast:
        source = source.with_companion(*rng.uniform(-3, 3, 2), contrast)
    kw = {"pupil": pupil, "source": source, "scale": (65.6, 65.6), "shape": (size, size)}
    if not slopes:
        image = optics.psf(filt, (column, row), **kw)
        return image, np.zeros_like(image), np.zeros_like(image)
    step = 0.05
    image, right, up = (optics.psf(filt, p, **kw) for p in ((column, row), (column + step, row), (column, row + step)))
    return image, (right - image) / step, (up - image) / step


def fringe_cube(images, nints=20, electrons=1.5e6, jitter_mas=1.0, read_noise=25.0, bad=0.005, seed=1):
    """Integrations with photon and read noise, jitter and bad pixels; returns cube and errors (e-), and flags."""
    image, right, up = (electrons * i for i in images)
    rng = np.random.default_rng(seed)
    moves = jitter_mas / 65.6 * rng.standard_normal((nints, 2, 1, 1))
    light = np.maximum(image + moves[:, 0] * right + moves[:, 1] * up, 0)
    cube = rng.poisson(light) + read_noise * rng.standard_normal(light.shape)
    error = np.broadcast_to(np.sqrt(image + read_noise**2), cube.shape)
    dq = np.zeros(cube.shape, "uint32")
    dq[:, rng.random(image.shape) < bad] = niriss.DO_NOT_USE
    dq[rng.random(cube.shape) < bad / 10] = 4  # jumps
    middle = np.unravel_index(image.argmax(), image.shape)
    dq[:, middle[0] - 2 : middle[0] + 3, middle[1] - 2 : middle[1] + 3] = 0
    cube[dq != 0] = rng.normal(0, 0.05 * image.max(), np.count_nonzero(dq))
    return cube, error, dq


def mean_of_two(image):
    """Light between pixels as the science notes of the project took it."""
    halves = {(0, 1): (np.s_[:, 1:], np.s_[:, :-1]), (1, 0): (np.s_[1:], np.s_[:-1])}
    halves |= {(1, 1): (np.s_[1:, 1:], np.s_[:-1, :-1]), (1, -1): (np.s_[1:, :-1], np.s_[:-1, 1:])}
    return {step: (image[here] + image[there]) / 2 for step, (here, there) in halves.items()}
