"""How right companions and limits are, and how fast they come.

Run it as ``python tests/benchmarks/bench_contrast.py [coverage|limits|speed] [--n 504]``.

*coverage*: binaries with known truth are searched; counted is how often the 68 % and 95 % intervals (1 and 1.96
standard errors) of separation, position angle and contrast contain the truth. ``known``, ``bars`` and ``samples`` are
V² and closure phases with noise of a known covariance, with error bars only, and with a covariance estimated from 60
integrations. ``images`` are simulated cubes of a binary and a reference star behind the same wavefront, fitted,
calibrated and searched. Beside the latter two stand the errors that jwst.ami computes from the same integrations, by
its own code, and `ami_normalize` combines; every closure phase is then taken for independent.

*limits*: noise alone is searched, and noise with a companion at the stated 5 sigma contrast, for one filter and for
three together. A companion is *found* if the false-alarm probability of the search is below 1 %, and its place, to
λ/2B, is the best one, or (second count) the best one or one of the alternatives within a rise of 9 in χ².

*speed*: detection maps against virgil, where that is installed, and against what a textbook would do, written below: a
double loop over the cells, at each a root search in the contrast (`scipy.optimize.brentq`), each step of which computes
the visibilities of all baselines with numpy. Data: one exposure with V² and closure phases.

It prints and does not judge.
"""

import argparse
import logging
import platform
import resource
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2

sys.path.insert(0, str(Path(__file__).resolve().parent))  # bench_fringes, which adds the folder of the toys
from bench_fringes import stock_errors
from toys import fringe_cube

from calami.fringes import fitting
from calami.fringes.calibration import calibrate
from calami.fringes.companions import MAS, add_companion, position, search_companion
from calami.fringes.limits import contrast_curve, detection_map
from calami.fringes.observables import OIData, add_noise, from_observables, from_samples, point_source, wrap
from calami.fringes.oifits import write_oifits
from calami.instrument import optics

LEVELS = {"68 %": 1.0, "95 %": 1.959964}
FILTERS = ("F380M", "F430M", "F480M")
#: Pixel scale of the simulated images, mas.
SCALE = 65.6


def made_binary(rng: np.random.Generator, errors: str, stock: bool = True) -> tuple[list[tuple[str, OIData]], tuple]:
    """Data of a random binary by whose errors, and its truth: separation, position angle, contrast."""
    star = point_source(FILTERS[rng.integers(3)], 1e8, rng.uniform(0, 360))
    truth = rng.uniform(100, 300), rng.uniform(0, 360), rng.uniform(0.006, 0.02)
    data = add_companion(star, *truth)
    if errors != "samples":
        data = add_noise(data, rng)
        return [("calami", data if errors == "known" else replace(data, cp_covariance=None, v2_covariance=None))], truth
    phase = rng.normal(size=(60, 21)) * np.sqrt(60 / 3) * star.cp_err[0]
    v2 = data.v2 + rng.normal(size=(60, 21)) * np.sqrt(60) * star.v2_err
    samples = {"v2": v2, "cp": wrap(data.cp + phase @ star.triangle_matrix.T)}
    data = from_samples(replace(data, samples=samples))
    if not stock:
        return [("calami", data)], truth
    given = stock_errors({"amplitude": np.sqrt(v2), "phase": phase, "cp": samples["cp"], "pistons": np.zeros((60, 7))})
    return [("calami", data), ("jwst.ami", data.with_errors(**given))], truth


def imaged_binary(
    rng: np.random.Generator, stock: bool = True, nints: int = 20
) -> tuple[list[tuple[str, OIData]], tuple]:
    """Cubes of a binary and a reference star, fitted and calibrated, by whose errors, and the binary's truth."""
    name = FILTERS[rng.integers(3)]
    truth = rng.uniform(100, 300), rng.uniform(0, 360), rng.uniform(0.01, 0.03)
    east, north = (p / SCALE for p in position(*truth[:2]))
    pupil, size, seen = optics.Pupil().with_errors(30, seed=rng), 51, []
    for source in (optics.Source().with_companion(-east, north, truth[2]), optics.Source()):
        place = np.array([25.0, 25.0]) + rng.uniform(-0.1, 0.1, 2)
        told = {"pupil": pupil, "source": source, "scale": (SCALE, SCALE), "shape": (size, size)}
        image = optics.psf(name, tuple(place), **told, diffusion=0, jitter=0)
        none = np.zeros_like(image)
        cube, error, dq = fringe_cube((image, none, none), nints, jitter_mas=0, seed=rng.integers(2**31))
        told = {"filter": name, "scale": SCALE, "fix": False, "error": error, "dq": dq}
        seen.append(fitting.fit(cube, header={"ROLL_REF": 0.0, "V3I_YANG": 0.0}, **told))
    data = calibrate(*(from_observables(o) for o in seen))
    if not stock:
        return [("calami", data)], truth
    given = [stock_errors(o.samples) for o in seen]
    cp = np.hypot(given[0]["cp"], given[1]["cp"])
    v2 = data.v2 * np.hypot(given[1]["v2"] / seen[0].v2, given[0]["v2"] / seen[1].v2)  # exchanged, as in jwst 3.0.0
    return [("calami", data), ("jwst.ami", data.with_errors(v2=v2, cp=cp))], truth


def coverage(count: int, errors: str, seed: int, stock: bool = True) -> dict[str, np.ndarray]:
    """Distances from the truth in units of the errors, {who: shape (binaries, 3)}."""
    rng = np.random.default_rng(seed)
    away: dict[str, list] = {}
    for _ in range(count):
        kinds, truth = imaged_binary(rng, stock) if errors == "images" else made_binary(rng, errors, stock)
        for who, data in kinds:
            options = {"covariance": "diagonal"} if who == "jwst.ami" else {}
            fit = search_companion(data, limit=335, trials=250, n_alternatives=1, **options)
            difference = np.array([fit.separation, fit.position_angle, *fit.contrast.values()]) - truth
            difference[1] = (difference[1] + 180) % 360 - 180
            away.setdefault(who, []).append(difference / fit.errors)
    return {who: np.array(values) for who, values in away.items()}


def print_coverage(total: int) -> None:
    """Tables of how often intervals contain the truth."""
    print(f"{total} binaries each; percent of the 68 % and 95 % intervals that contain the truth")
    print("errors   by         separation   pos. angle    contrast")
    for number, errors in enumerate(("known", "bars", "samples", "images")):
        start = perf_counter()
        for who, away in coverage(total, errors, seed=60 + number).items():
            inside = [100 * (np.abs(away) < width).mean(axis=0) for width in LEVELS.values()]
            print(f"{errors:8} {who:9}", *(f"{a:6.1f} {b:5.1f}" for a, b in zip(*inside, strict=True)), flush=True)
        print(f"   {perf_counter() - start:.0f} s", flush=True)


def trial(count: int, seed: int, filters: tuple[str, ...] = ("F430M",), kind: str | float = 95.0) -> np.ndarray:
    """
    Search noise, and noise with a companion at the 5 sigma limit.

    Gives for each: false-alarm probability in noise; that with the companion; whether the best place is right; whether
    the best or an alternative within a rise of 9 is. Shape (count, 4).
    """
    rng, stars = np.random.default_rng(seed), [point_source(name, 1e8) for name in filters]
    curve, rows = contrast_curve(stars, over=kind), []
    near = 0.5 * min(s.wavelength / s.baseline_length.max() for s in stars) / MAS
    for number in range(count):
        noise = [add_noise(star, rng) for star in stars]
        told = {"limit": 335, "trials": 1000, "seed": number, "contrast_by": "all"}
        blank = search_companion(noise, n_alternatives=1, **told).log_false_alarm
        truth = rng.uniform(60, 300), rng.uniform(0, 360)
        fit = search_companion([add_companion(one, *truth, curve.at(truth[0])) for one in noise], **told)
        right = [np.hypot(*np.subtract(place, position(*truth))) < near for place in fit.places(9)]
        rows.append((np.exp(blank), np.exp(fit.log_false_alarm), right[0], any(right)))
    return np.array(rows, float)


def print_limits(total: int) -> None:
    """Tables of false alarms and of what is found."""
    print(f"{total} times noise, and noise with a companion at the 5 sigma contrast, 60 to 300 mas")
    for filters in (("F430M",), FILTERS):
        for kind in (95.0, "mean"):
            start = perf_counter()
            rows = trial(total, 80, filters, kind)
            detected = rows[:, 1] < 0.01
            print(f"{'+'.join(filters)}, curve over angles: {kind if kind == 'mean' else '95 %'}")
            stated = (0.5, 0.2, 0.1, 0.05, 0.01)
            print("  false alarms:", ", ".join(f"{100 * (rows[:, 0] < p).mean():.1f} % at {p:.0%}" for p in stated))
            print(
                f"  detected {100 * detected.mean():.1f} %; found at the best place "
                f"{100 * (detected & (rows[:, 2] > 0)).mean():.1f} %, at the best place or a listed alternative "
                f"{100 * (detected & (rows[:, 3] > 0)).mean():.1f} %   ({perf_counter() - start:.0f} s)",
                flush=True,
            )


def plain_map(data: OIData, axis: np.ndarray, kind: str, sigma: float = 3.0) -> np.ndarray:
    """Limits in all cells by the textbook: one cell after the other, error bars only."""
    sides = (data.cp_uv1, data.cp_uv2, -(data.cp_uv1 + data.cp_uv2))

    def visibility(uv, x, y, f):
        turns = (uv[:, 0] * x + uv[:, 1] * y) * MAS / data.wavelength
        fringe = np.sinc(turns * data.bandwidth / data.wavelength) * np.exp(-2j * np.pi * turns)
        return (1 + f * fringe) / (1 + f)

    def chi2_of(x, y, f, v2, cp):
        model = np.abs(visibility(data.v2_uv, x, y, f)) ** 2
        phase = np.angle(np.prod([visibility(s, x, y, f) for s in sides], axis=0))
        return (((v2 - model) / data.v2_err) ** 2).sum() + ((wrap(cp - phase) / data.cp_err) ** 2).sum()

    n = len(data.v2) + len(data.cp)
    null = chi2_of(0, 0, 0, data.v2, data.cp)
    target = null * chi2.isf(chi2.sf(sigma**2, 1), n) / n
    limits = np.ones((len(axis), len(axis)))
    for row, y in enumerate(axis):
        for col, x in enumerate(axis):
            if kind == "absil":

                def excess(f, x=x, y=y):
                    return chi2_of(x, y, f, data.v2, data.cp) - target
            else:

                def excess(f, x=x, y=y):
                    v2 = data.v2 + np.abs(visibility(data.v2_uv, x, y, f)) ** 2 - 1
                    cp = data.cp + np.angle(np.prod([visibility(s, x, y, f) for s in sides], axis=0))
                    return chi2_of(0, 0, 0, v2, cp) - target

            if excess(1.0) > 0:
                limits[row, col] = brentq(excess, 0, 1, rtol=1e-6)
    return limits


def virgil_map(data: OIData, axis: np.ndarray) -> Callable | None:
    """A way to make virgil's map of the same cells, or None where virgil-astro is not installed."""
    try:
        from virgil.limits import absil_limits
        from virgil.models import PointSource, System
        from virgil.oidata import OIData as VirgilData
        from virgil.oifits import read_oifits
    except ImportError:
        return None
    with TemporaryDirectory() as folder:
        seen = VirgilData(dict(read_oifits([str(write_oifits(data, Path(folder) / "x.fits"))])))
    model = System(primary=PointSource(), companion=PointSource(flux=0.0, dra=0.0, ddec=0.0))
    samples = {"companion.dra": axis, "companion.ddec": axis, "companion.flux": np.geomspace(1e-4, 1, 21)}
    return lambda: np.asarray(absil_limits(seen, model, samples, sigma=3.0))


def best_of(rounds: int, ways: dict[str, Callable]) -> dict[str, float]:
    """Shortest time of each, s; they take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = perf_counter()
            way()
            best[name] = min(best[name], perf_counter() - start)
    return best


def print_speed(size: int, rounds: int, peer: bool) -> None:
    """Time maps and searches in turns."""
    data = add_noise(point_source("F430M", 1e8), np.random.default_rng(1))
    axis = np.linspace(-400, 400, size)
    ways = {}
    for kind in ("absil", "injection", "delta_chi2", "percentile"):
        for errors in ("auto", "diagonal"):
            ways[f"{kind}, {errors}"] = lambda k=kind, e=errors: detection_map(data, k, size=size, covariance=e)
    binaries = [
        add_companion(add_noise(point_source(f, 1e8), np.random.default_rng(2)), 150, 60, 0.01)
        for f in ("F380M", "F430M", "F480M")
    ]
    ways["search, one exposure"] = lambda: search_companion(binaries[0])
    ways["search, three filters"] = lambda: search_companion(binaries)
    best_of(1, ways)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # before a peer takes its own
    theirs = virgil_map(data, axis)
    if theirs is None:
        print("virgil-astro is not installed: not timed")
    else:
        seen = theirs()  # compiles
        for errors in ("auto", "diagonal"):
            away = np.abs(2.5 * np.log10(seen.T / detection_map(data, size=size, covariance=errors).contrast))
            print(f"virgil and absil, {errors}: {np.median(away):.1e} mag in the median, at most {away.max():.1e}")
        ways["virgil, absil, warm"] = theirs
    best = best_of(rounds, ways)
    for cells in (40, 80, 160):
        way = {"": lambda s=cells: detection_map(data, size=s)}
        best[f"absil, auto, {cells} x {cells}"] = best_of(rounds, way)[""]
    if peer:
        for kind in ("absil", "injection"):
            start = perf_counter()
            plain = plain_map(data, axis, kind)
            best[f"textbook {kind}"] = seconds = perf_counter() - start
            ours = detection_map(data, kind, size=size, covariance="diagonal").contrast
            away = np.abs(2.5 * np.log10(plain / ours)).max()
            ratio = seconds / best[f"{kind}, diagonal"]
            print(f"{kind}: textbook over ours {ratio:.0f} x, largest difference {away:.1e} mag")
    for name, seconds in best.items():
        print(f"{name:32} {seconds:8.3f} s")
    print(f"memory: at most {peak:.0f} MB resident before peers ran")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("coverage", "limits", "speed"), help="all if not given")
    parser.add_argument("--n", type=int, default=504, help="binaries, or companions, of each kind")
    parser.add_argument("--size", type=int, default=80, help="cells along a side")
    parser.add_argument("--rounds", type=int, default=5, help="turns; the shortest time counts")
    parser.add_argument("--no-peer", action="store_true", help="leave out the slow ones")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    packages = ", ".join(f"{p} {version(p)}" for p in ("calami", "jwst", "numpy", "scipy"))
    print(f"{packages}; Python {platform.python_version()}, {platform.machine()}")
    if options.what in (None, "speed"):
        print_speed(options.size, options.rounds, not options.no_peer)
    if options.what in (None, "coverage"):
        print_coverage(options.n)
    if options.what in (None, "limits"):
        print_limits(options.n)


if __name__ == "__main__":
    main()
