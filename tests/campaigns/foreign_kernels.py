"""What a kernel measured in ramps of another law takes away, and whether the check doubts it.

    python tests/campaigns/foreign_kernels.py [--laws linear,growing,threshold,own,long] [--draws 20] [--photons 1]

A draw: a program of the second simulator (`tests/foreign.py`; two pointings, four depths to 48 ke-, 1e8 photons an
exposure times ``--photons``). The kernel is measured with its ramps, and corrects the deepest ramp of the first
pointing, without noise. Removed: one less the root mean square that is left over that of the effect, pixels within 6 of
the peak, last group. A draw holds if 80 % is removed, or the check says that the kernel does not fit.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import foreign

from calami.core.problems import CalamiError
from calami.instrument import niriss
from calami.migration.check import check_kernel
from calami.migration.correction import correct_ramp
from calami.migration.kernel import kernel_from_ramps
from calami.migration.ramps import statistics_of


def draw(law, seed, photons, band="F480M"):
    """Part of the effect removed in all pixels and in the peak, and whether the check lets the kernel pass."""
    physics = foreign.LAWS[law]
    made = foreign.program_of(seed, physics, band, photons=photons)
    stats = [statistics_of(r, **f) for r, f in zip(made.ramps, made.facts, strict=True)]
    kernel = kernel_from_ramps(stats)
    pure = [
        niriss.GAIN * foreign.program_of(seed, replace(one, noise=False), band, depths=(16,), pointings=1).ramps[0][:1]
        for one in (physics, foreign.LAWS["none"])
    ]
    seen, straight = (one.astype(float) for one in pure)
    back = correct_ramp(seen, kernel.migration, filter_name=band)
    peak = np.unravel_index(straight[0, -1].argmax(), straight.shape[-2:])
    rows, columns = np.indices(straight.shape[-2:])
    near = np.hypot(rows - peak[0], columns - peak[1]) <= 6
    left, effect = ((one - straight)[0, -1] for one in (back, seen))
    removed = 1 - np.linalg.norm(left[near]) / np.linalg.norm(effect[near])
    return removed, 1 - abs(left[peak] / effect[peak]), check_kernel(stats, kernel).fits


def main():
    """Print a line of the table for each law."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", default="linear,growing,threshold,own,long")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--photons", type=float, default=1.0)
    options = parser.parse_args()
    print(
        "| law | draws | removed: median, least | in the peak | 80 % removed | doubted | holds |\n" + "|---" * 7 + "|"
    )
    for law in options.laws.split(","):
        began, found, failed = perf_counter(), [], 0
        for seed in range(options.draws):
            try:
                found.append(draw(law, 5000 + seed, options.photons))
            except CalamiError as error:
                print(error)
                failed += 1
        removed, peak, fits = np.array(found).T
        enough = removed >= 0.8
        print(
            f"| {law} | {len(found)} | {np.median(removed):.3f}, {removed.min():.3f} | {np.median(peak):.3f} | "
            f"{enough.sum()} | {(fits == 0).sum()} | {(enough | (fits == 0)).sum()} | {failed} failed, "
            f"{perf_counter() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
