"""Speed and memory of the correction of ramps: python tests/benchmarks/bench_correction.py."""

import time
import tracemalloc

import numpy as np

from calami.instrument import niriss
from calami.instrument.migration import charge_ramp, find_migration, interpixel_capacitance, light_between
from calami.instrument.optics import fine_psf, within_pixels
from calami.migration.correction import correct_ramp


def straightforward(reads, migration):
    """Every integration by itself, over the whole image, in double precision."""
    return np.stack([correct_ramp(one[None].astype(float), migration)[0] for one in reads])


def main():
    """Print seconds of processor and memory (in units of the ramp), for 100 × 12 × 80 × 80."""
    fine = 4.4e6 * fine_psf("F480M", (40.2, 45.1), (80, 80))
    times, flight = niriss.SUB80.frame_time * np.arange(1, 13), find_migration("flight")
    ramp = interpixel_capacitance(charge_ramp(within_pixels(fine, 5), times, flight, light=light_between(fine, 5)))
    reads = (ramp + np.random.default_rng(0).normal(0, 16, (100, *ramp.shape))).astype(np.float32)
    runs = {m: lambda m=m: correct_ramp(reads, flight, mode=m) for m in ("mean", "each")}
    for name, run in (runs | {"loop": lambda: straightforward(reads, flight)}).items():
        begun = time.process_time()
        run()
        seconds = time.process_time() - begun
        tracemalloc.start()
        _ = runs.get(name, lambda: None)()
        memory = 1 + tracemalloc.get_traced_memory()[1] / reads.nbytes
        tracemalloc.stop()
        print(f"{name:5s} {seconds:6.2f} s" + (f", {memory:.2f} times the ramp" if name in runs else ""))


if __name__ == "__main__":
    main()
