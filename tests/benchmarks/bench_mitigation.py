"""What contrast is reached with and without mitigation, at full depth, with and without hole pistons.

Simulates the exposures of the full plan for 1516 of one star a filter, at its first dither position, processes them
without mitigation and with the pipeline's step at several thresholds, and prints the bias of V² and of closure phases,
the contrast at 150 mas, which version has the least error, and effective saturation; all calibrated by the shallowest
exposure of the same star. Done before is not done again if a folder is given.

    python tests/benchmarks/bench_mitigation.py [--filters F277W F430M] [--pistons 0 30] [--folder KEEP] [--deep]

With --deep the exposures go on where the plan ends, to peaks of 29,000 to 37,000 ADU and the same photons each.
"""

import argparse
import dataclasses
import logging
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from calami.dataset import Dataset
from calami.migration.mitigation import best_versions, magnitudes, mitigation_scan, standard_versions
from calami.migration.saturation import effective_saturation
from calami.process import references
from calami.simulate.exposures import Instrument, simulate_plan
from calami.simulate.plans import ready_plan

#: Groups with which the peak holds 29,000 to 37,000 ADU, migration and position in the pixel included.
DEEP = {"F277W": (7, 8), "F380M": (4, 5), "F430M": (13, 14, 16), "F480M": (17, 19, 22)}


def deeper(exposures, filter_name):
    """The shallowest exposure, and deep ones of as many photons in the places of the deepest."""
    last = exposures[-len(DEEP[filter_name]) :]
    counts = [round(e.ngroups * e.nints / n) for e, n in zip(last, DEEP[filter_name], strict=True)]
    made = zip(last, DEEP[filter_name], counts, strict=True)
    return [exposures[0], *(dataclasses.replace(e, ngroups=n, nints=k) for e, n, k in made)]


def chosen(filter_name, small, deep=False):
    """Exposures of the plan: one star, first dither position, all depths."""
    plan = ready_plan("1516", "full")
    fit = [e for e in plan.exposures if e.filter == filter_name and e.dither == 1]
    fit = [e for e in fit if e.star.name == fit[0].star.name and (e.x_offset, e.y_offset) == (0, 0)]
    if deep:
        fit = deeper(fit, filter_name)
    if small:
        fit = [dataclasses.replace(e, nints=max(e.nints // 20, 8)) for e in fit[:: max(len(fit) // 2, 1)]]
    return dataclasses.replace(plan, exposures=tuple(fit))


def report(filter_name, scan, seconds):
    print(f"  {len(scan.entries)} comparisons in {seconds:.0f} s; 68 % errors behind ±")
    for e in scan.of(filter_name):
        d = e.departure
        v2, cp = (np.sqrt(max(v, 0)) for v in (d.v2, d.cp))
        print(
            f"  {e.target.level:7.0f} ADU {e.version.name:16s} V² long {100 * d.long_v2:+.3f} "
            f"± {100 * d.long_v2_error:.3f} %"
            f"  rms bias V² {100 * v2:.3f} %, cp {np.degrees(cp):.3f}° (noise {np.degrees(np.sqrt(d.cp_noise)):.3f}°)"
            f"  150 mas: reached {magnitudes(e.reached)[0]:.2f}, noise only {magnitudes(e.limit)[0]:.2f} mag"
        )  # fmt: skip
    for row in best_versions(scan, (1e8, 1e9, 1e10)):
        if row["best"]:
            print(f"  {row['photons']:.0e} photons: best is {row['version']} (chance {row['chance']:.2f})")
    for level in effective_saturation(scan, (1e8, 1e9, 1e10)):
        if level.observable == "both":
            print(f"  effective saturation, {level.photons:.0e} photons, {level.version}: {level}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", nargs="+", default=["F277W", "F430M"])
    parser.add_argument("--pistons", nargs="+", type=float, default=[0.0, 30.0])
    parser.add_argument("--thresholds", nargs="+", type=float, default=[8000.0, 12000.0, 16000.0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--deep", action="store_true")
    told = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    print(f"{os.cpu_count()} processors, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory() as temporary:
        base = told.folder or Path(temporary)
        for piston in told.pistons:
            instrument = Instrument.default(1, "flight", piston_rms=piston)
            cache = references.default_cache(instrument.detector)
            for name in told.filters:
                started = time.perf_counter()
                folder = base / f"{name.lower()}_{piston:.0f}nm"
                simulate_plan(chosen(name, told.small, told.deep), folder / "raw", instrument, seed=1, progress=False)
                scan = mitigation_scan(
                    Dataset(folder / "raw"), folder, standard_versions(told.thresholds, ()), rules=("shallowest",),
                    separations=(150.0,), cache=cache, workers=told.workers, progress=False,
                )  # fmt: skip
                print(f"{name}, pistons of {piston:.0f} nm rms", flush=True)
                report(name, scan, time.perf_counter() - started)


if __name__ == "__main__":
    main()
