"""How fast detection maps are, against a plain implementation in the same run.

Run it as ``python tests/benchmarks/bench_contrast.py``. CANDID and virgil are not installed with calami, so the peer is
what a textbook would do, written below: a double loop over the cells, at each a root search in the contrast
(`scipy.optimize.brentq`), each step of which computes the visibilities of all baselines with numpy. Data: one exposure
with V² and closure phases. It prints and does not judge.
"""

import argparse
import resource
from collections.abc import Callable
from time import perf_counter

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2

from calami.contrast import MAS, add_companion, detection_map, search_companion
from calami.oifits import OIData, add_noise, point_source, wrap


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


def best_of(rounds: int, ways: dict[str, Callable]) -> dict[str, float]:
    """Shortest time of each, s; they take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = perf_counter()
            way()
            best[name] = min(best[name], perf_counter() - start)
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=80, help="cells along a side")
    parser.add_argument("--rounds", type=int, default=5, help="turns; the shortest time counts")
    parser.add_argument("--no-peer", action="store_true", help="leave out the slow one")
    options = parser.parse_args()
    data = add_noise(point_source("F430M", 1e8), np.random.default_rng(1))
    axis = np.linspace(-400, 400, options.size)
    ways = {}
    for kind in ("absil", "injection", "delta_chi2", "percentile"):
        for errors in ("auto", "diagonal"):
            ways[f"{kind}, {errors}"] = lambda k=kind, e=errors: detection_map(data, k, size=options.size, covariance=e)
    binaries = [
        add_companion(add_noise(point_source(f, 1e8), np.random.default_rng(2)), 150, 60, 0.01)
        for f in ("F380M", "F430M", "F480M")
    ]
    ways["search, one exposure"] = lambda: search_companion(binaries[0])
    ways["search, three filters"] = lambda: search_companion(binaries)
    best = best_of(options.rounds, ways)
    for size in (40, 80, 160):
        way = {"": lambda s=size: detection_map(data, size=s)}
        best[f"absil, auto, {size} x {size}"] = best_of(options.rounds, way)[""]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if not options.no_peer:
        for kind in ("absil", "injection"):
            start = perf_counter()
            plain = plain_map(data, axis, kind)
            best[f"textbook {kind}"] = seconds = perf_counter() - start
            ours = detection_map(data, kind, size=options.size, covariance="diagonal").contrast
            away = np.abs(2.5 * np.log10(plain / ours)).max()
            ratio = seconds / best[f"{kind}, diagonal"]
            print(f"{kind}: textbook over ours {ratio:.0f} x, largest difference {away:.1e} mag")
    for name, seconds in best.items():
        print(f"{name:32} {seconds:8.3f} s")
    print(f"memory: at most {peak:.0f} MB resident before the textbook ran")


if __name__ == "__main__":
    main()
