"""How right the errors of fringes are, and how fast they come.

Run it as ``python tests/benchmarks/bench_fringes.py [coverage|speed|agreement] [--n 500]``.

*coverage*: exposures of stars with random pistons, places and companions, with photon and read noise and bad
pixels, are fitted; counted is how often the 68 % and 95 % intervals (1 and 1.96 standard errors) contain the truth, the
fit of the noise-free image with the same model. Beside them stand the errors that jwst.ami computes from the same
samples, by its own code (`RawOifits.average_observables`).

*speed*: the three modes in one process, in turns, on a cube like SUB80. The stock code is timed on a few integrations
and scaled by their number, without its import.

*agreement*: the largest difference of `exact` from the stock code in amplitude and phase (rad) of single integrations,
for all filters and oversamplings, in cubes with bad pixels in different places and in single images; and the rms
difference of `fast` from `exact` in V² and closure phase at 1 mas of jitter.

It prints and does not judge.
"""

import argparse
import logging
import platform
import resource
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from toys import fringe_cube, fringe_images

from calami.fringes import fitting
from calami.instrument import mask, niriss

FILTERS = ("F277W", "F380M", "F430M", "F480M")
LEVELS = {"68 %": 1.0, "95 %": 1.959964}


def stock_errors(samples: dict) -> dict[str, np.ndarray]:
    """Errors of V² and closure phase (radians) that jwst.ami computes from the samples of all integrations."""
    from jwst.ami.leastsqnrm import closure_amplitudes, q4_phases, t3_amplitudes
    from jwst.ami.oifits import RawOifits

    amplitude, phase = samples["amplitude"], samples["phase"]
    told = SimpleNamespace(nslices=len(phase), ctrs_eqt=np.zeros((7, 2)), ctrs_inst=np.zeros((7, 2)))
    stock = RawOifits(told)
    stock.initialize_obsarrays()
    stock.fringe_phases, stock.fringe_amplitudes = phase, amplitude
    stock.closure_phases, stock.pistons = samples["cp"], samples["pistons"]
    stock.t3_amplitudes = np.array([t3_amplitudes(a) for a in amplitude])
    stock.closure_amplitudes = np.array([closure_amplitudes(a) for a in amplitude])
    stock.q4_phases = np.array([q4_phases(p) for p in phase])
    result = stock.average_observables(np.mean)
    return {"v2": result[1], "cp": result[7]}


def one_exposure(seed: int, nints: int, filter_name: str, electrons: float, stock: bool = True) -> dict:
    """Departures from the truth in units of the errors, of V² and closure phase: ours and the stock code's."""
    images = fringe_images(filter_name, seed=seed, size=51, contrast=0.02, slopes=False)
    cube, error, dq = fringe_cube(images, nints, electrons, jitter_mas=0, seed=seed)
    if nints == 1:  # an image: a flag for jumps would be one of a whole exposure, whose pixels are usable
        dq = np.where(dq, np.uint32(niriss.DO_NOT_USE), dq)
    told = {"filter": filter_name, "scale": 65.6, "fix": False}  # all bad pixels are flagged
    truth = fitting.fit(electrons * images[0], error=error[0], dq=dq.min(axis=0), debias=False, **told)
    if nints == 1:
        cube, error, dq = cube[0], error[0], dq[0]
    got = fitting.fit(cube, error=error, dq=dq, **told)
    away = {"v2": got.v2 - truth.v2, "cp": mask.wrap(got.cp - truth.cp)}
    pulls = {("calami", "v2"): away["v2"] / got.v2_error, ("calami", "cp"): away["cp"] / got.cp_error}
    if nints > 1 and stock:
        for what, size in stock_errors(got.samples).items():
            pulls["jwst.ami", what] = away[what] / size
    return pulls


def coverage(count: int, nints: int, filter_name: str, electrons: float, first: int = 0, stock: bool = True) -> dict:
    """Departures of many exposures, {(who, what): shape (exposures, observables)}."""
    found = [one_exposure(first + seed, nints, filter_name, electrons, stock) for seed in range(count)]
    return {key: np.array([f[key] for f in found]) for key in found[0]}


def fractions(pulls: np.ndarray) -> list[float]:
    """Percent of the intervals that contain the truth, by level."""
    return [100 * float(np.mean(np.abs(pulls) < width)) for width in LEVELS.values()]


def print_coverage(total: int, nints: int) -> None:
    """Share the exposures among the filters and print a table."""
    cases = [(f, nints, 1.5e6) for f in FILTERS] + [("F480M", 5, 1.5e6), ("F480M", 1, 3e7), ("F430M", 20, 3e5)]
    each = -(-total // len(cases))
    print(f"{each * len(cases)} exposures; percent of the 68 % and 95 % intervals that contain the truth")
    every: dict[tuple, list] = {}
    for filter_name, n, electrons in cases:
        start = perf_counter()
        pulls = coverage(each, n, filter_name, electrons)
        for key, values in pulls.items():
            every.setdefault(key, []).append(values)
            inside = " ".join(f"{f:5.1f}" for f in fractions(values))
            print(
                f"{filter_name} {n:3d} x {electrons:.1e} e-  {key[0]:9} {key[1]}  {inside}   mean {values.mean():+.3f}"
            )
        print(f"   {perf_counter() - start:.0f} s", flush=True)
    for key, values in every.items():
        inside = " ".join(f"{f:5.1f}" for f in fractions(np.concatenate(values)))
        print(f"all {key[0]:9} {key[1]}  {inside}")


def print_speed(nints: int, few: int) -> None:
    """Time the three modes in turns."""
    images = fringe_images("F480M", seed=1, size=69)
    cube, error, dq = fringe_cube(images, nints, seed=1)
    told = {"filter": "F480M", "scale": 65.6, "oversample": 3}
    parts = {"fast": slice(None), "exact": slice(0, max(few, nints // 5)), "jwst": slice(0, few)}

    def run(mode: str, part: slice) -> float:
        start = perf_counter()
        fitting.fit(cube[part], mode, error=error[part], dq=dq[part], **told)
        return (perf_counter() - start) * nints / len(cube[part])

    for mode in parts:  # imports
        fitting.fit(cube[:1], mode, error=error[:1], dq=dq[:1], **told)
    best = dict.fromkeys(parts, float("inf"))
    for _ in range(3):
        for mode, part in parts.items():
            best[mode] = min(best[mode], run(mode, part))
    print(f"{nints} integrations of 69 x 69 pixels, oversample 3 (jwst: {few} timed, scaled)")
    for mode, seconds in best.items():
        print(f"{mode:6} {seconds:8.2f} s   {best['jwst'] / seconds:7.1f} times as fast as jwst.ami")
    for n in (nints, 4 * nints):
        many = np.concatenate([cube] * (n // nints))
        start = perf_counter()
        fitting.fit(many, error=np.concatenate([error] * (n // nints)), dq=np.concatenate([dq] * (n // nints)), **told)
        print(f"fast, {n} integrations: {perf_counter() - start:.2f} s")
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB resident")


def print_agreement() -> None:
    """Compare the modes."""
    pointing = {"ROLL_REF": 171.765, "V3I_YANG": 0.561, "VPARITY": -1}
    print("exact against jwst.ami 3.0.0, largest difference of amplitude, phase (rad)")
    for name in FILTERS:
        images = fringe_images(name, seed=3, size=69)
        cube, _, dq = fringe_cube(images, 2, seed=3)
        dq[1, 20:22, 10], dq[0, 30, 40] = 1, 4
        shapes = {"cube": (cube, dq), "image": (cube[0], dq[0])}
        for oversample in (1, 3, 5):
            for shape, (data, flags) in shapes.items():
                told = {"filter": name, "dq": flags, "oversample": oversample, "header": pointing, "scale": 65.6}
                a, b = (fitting.fit(data.astype("float32"), mode, **told).samples for mode in ("exact", "jwst"))
                away = (np.abs(a["amplitude"] - b["amplitude"]).max(), np.abs(mask.wrap(a["phase"] - b["phase"])).max())
                print(f"{name} oversample {oversample} {shape:5}  {away[0]:.1e}  {away[1]:.1e}", flush=True)
    print("fast against exact, 1 mas of jitter, rms difference of V², closure phase (deg)")
    for name in FILTERS:
        from calami.instrument import optics

        places = (34.2, 34.1) + np.random.default_rng(1).standard_normal((10, 2)) / 65.6
        pupil = optics.Pupil().with_errors(30, seed=3)
        kw = {"pupil": pupil, "scale": (65.6, 65.6), "shape": (69, 69), "diffusion": 0, "jitter": 0}
        cube = np.array([1e6 * optics.psf(name, tuple(place), **kw) for place in places])
        told = {"filter": name, "scale": 65.6, "weighting": "photons", "debias": False, "reject": False}
        a, b = (fitting.fit(cube, mode, error=np.ones_like(cube), trim=0, **told).samples for mode in ("fast", "exact"))
        rms = [np.sqrt(np.mean(mask.wrap(a[k] - b[k]) ** 2)) for k in ("v2", "cp")]
        print(f"{name}  {rms[0]:.1e}  {np.degrees(rms[1]):.1e}", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("coverage", "speed", "agreement"), help="all if not given")
    parser.add_argument("--n", type=int, default=500, help="exposures for the coverage")
    parser.add_argument("--ints", type=int, default=20, help="integrations in most of them")
    parser.add_argument("--few", type=int, default=3, help="integrations on which the stock code is timed")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    packages = ", ".join(f"{p} {version(p)}" for p in ("calami", "jwst", "numpy"))
    print(f"{packages}; Python {platform.python_version()}, {platform.machine()}")
    if options.what in (None, "coverage"):
        print_coverage(options.n, options.ints)
    if options.what in (None, "speed"):
        print_speed(100, options.few)
    if options.what in (None, "agreement"):
        print_agreement()


if __name__ == "__main__":
    main()
