"""How fast exposures are simulated, beside what the same machine does at the same time.

Measures, best of several rounds with the contenders taking turns:

- `simulate_ramps`: 100 integrations × 10 groups of SUB80 with every effect on, and its memory
- `simulate_exposure`: the same with light, truth and the file
- `simulate_plan`: ten such exposures with one worker and with two
- `psf` against `jwst.ami.lg_model.LgModel.simulate`, the same filter, wavelengths, field and oversampling

    python tests/benchmarks/bench_simulate.py [--rounds 3] [--nints 100] [--ngroups 10] [--exposures 10] [--quick]

It prints; it judges nothing. Linear algebra and FFTs are held to one thread, so that a worker is a core. The load of
the machine stands beside the figures: where others use its cores too, they say little.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from calami.instrument import niriss, optics
from calami.instrument.converter import ADC_WAVE
from calami.instrument.detector import Detector, simulate_ramps
from calami.simulate.exposures import Instrument, photo_current, simulate_exposure, simulate_plan
from calami.simulate.plans import ExposurePlan, Plan
from calami.simulate.stars import Star

STAR = Star("SIM-X", 88.0, -66.5, 20.0, -35.0, spectral_type="K0V", magnitude=5.3)
ALL_ON = replace(Detector.default(migration="flight"), adc_wave=ADC_WAVE)
INSTRUMENT = Instrument(detector=ALL_ON)


def exposure(ngroups, nints, number=1):
    start = f"2026-01-{number:02d}T00:00:00.000"
    return ExposurePlan(
        1516, number, 1, 3, 2, 1, "Simulated: speed", "speed", STAR, False, "F480M", ngroups, nints, start=start
    )


def seconds(what, *args, **kwargs):
    began = time.perf_counter()
    what(*args, **kwargs)
    return time.perf_counter() - began


def load():
    return os.getloadavg()[0]


def show(label, took, note=""):
    print(f"{label:52s} {took:8.3f} s   load {load():4.1f}   {note}", flush=True)


def memory(ngroups, nints):
    """Peak of what `simulate_ramps` allocates, its result included, and the peak of a new process that runs it; MB."""
    code = (
        "import resource, sys, tracemalloc; sys.path.insert(0, sys.argv[1]); import bench_simulate as b, scipy.fft\n"
        "current = b.photo_current(b.exposure(2, 1), b.INSTRUMENT)\n"
        "if sys.argv[4] == 'traced': tracemalloc.start()\n"
        "b.simulate_ramps(current, *map(int, sys.argv[2:4]), b.ALL_ON, seed=1)\n"
        "unit = 2**20 if sys.platform == 'darwin' else 1024  # what ru_maxrss counts in\n"
        "whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit\n"
        "print(tracemalloc.get_traced_memory()[1] / 2**20 if sys.argv[4] == 'traced' else whole)"
    )
    here = [str(Path(__file__).resolve().parent), str(ngroups), str(nints)]
    for how in ("traced", "whole"):
        told = subprocess.run([sys.executable, "-c", code, *here, how], capture_output=True, text=True, check=True)
        yield float(told.stdout)


def in_new_folder(what, *args, **kwargs):
    with tempfile.TemporaryDirectory() as folder:
        return seconds(what, *args, folder, **kwargs)


def program(plan, workers):
    return in_new_folder(lambda folder: simulate_plan(plan, folder, INSTRUMENT, workers=workers, progress=False))


def their_model(field, oversample, bandpass):
    """Return a call that makes the pipeline's own model image of a point source."""
    from types import SimpleNamespace

    from jwst.ami.lg_model import LgModel
    from jwst.ami.utils import Affine2d

    nrm = SimpleNamespace(flat_to_flat=niriss.HOLE_FLAT_TO_FLAT, diameter=6.603464, pupil_circumscribed=6.6)
    for number, (x, y) in enumerate(niriss.HOLE_CENTERS, 1):
        vars(nrm).update({f"x_a{number}": x, f"y_a{number}": y})
    affine = Affine2d(mx=0.99282, my=0.99854, sx=6.18605e-3, sy=-7.27008e-3, xo=0.0, yo=0.0)
    pixel = niriss.PIXEL_SCALE_MAS[0] * optics.MAS
    model = LgModel(nrm, pixel, bandpass, affine2d=affine, over=oversample)
    return lambda: model.simulate(field)


def main():
    if "OMP_NUM_THREADS" not in os.environ:  # numpy asks when it is imported, so begin again
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        os.execv(sys.executable, [sys.executable, *sys.argv])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nints", type=int, default=100)
    parser.add_argument("--ngroups", type=int, default=10)
    parser.add_argument("--exposures", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="leave the program of many exposures out")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} cores, load {load():.1f}")
    one_exposure(options)
    if not options.quick:
        whole_program(options)
    images(options.rounds)


def one_exposure(options):
    size = (options.ngroups, options.nints)
    told = f"{options.nints} integrations × {options.ngroups} groups"
    current = photo_current(exposure(*size), INSTRUMENT)
    best = dict.fromkeys(("ramps", "exposure"), np.inf)
    for _ in range(options.rounds):
        best["ramps"] = min(best["ramps"], seconds(simulate_ramps, current, *size, ALL_ON, seed=1))
        took = in_new_folder(lambda folder: simulate_exposure(exposure(*size), folder, INSTRUMENT))
        best["exposure"] = min(best["exposure"], took)
    show(f"simulate_ramps, {told}", best["ramps"], "allowed: 2 s")
    show(f"simulate_exposure, {told}", best["exposure"], f"{best['exposure'] / best['ramps']:.2f} × the ramps")
    own, whole = memory(*size)
    print(f"{'memory of simulate_ramps':52s} {own:8.0f} MB; {whole:.0f} MB with everything imported (allowed: 1024)")


def whole_program(options):
    plan = Plan("speed", "Simulated: speed", tuple(
        exposure(options.ngroups, options.nints, n + 1) for n in range(options.exposures)
    ))  # fmt: skip
    best = {1: np.inf, 2: np.inf}
    for _ in range(max(options.rounds // 2, 1)):
        for workers in best:
            best[workers] = min(best[workers], program(plan, workers))
    show(f"simulate_plan, {len(plan)} exposures, 1 worker", best[1])
    show(f"simulate_plan, {len(plan)} exposures, 2 workers", best[2], f"{best[1] / best[2]:.2f} × faster (wanted: 1.7)")


def images(rounds):
    field, oversample, count = 79, 3, 12
    wavelength, weight = optics.sample_passband("F480M", count=count)
    theirs = their_model(field, oversample, np.column_stack((weight, wavelength * 1e-6)))
    kinds = {
        "psf, 79 × 79, F480M, 12 wavelengths, 3 points": {"oversample": oversample},
        "psf, the same, 5 points (default)": {},
        "psf, the same, no diffusion and no jitter": {"oversample": oversample, "diffusion": 0.0, "jitter": 0.0},
    }
    best = dict.fromkeys((*kinds, "jwst.ami LgModel.simulate, the same, 3 points"), np.inf)
    for _ in range(rounds):
        for label, given in kinds.items():
            best[label] = min(best[label], seconds(optics.psf, "F480M", None, (field, field), count=count, **given))
        best[[*best][-1]] = min(best[[*best][-1]], seconds(theirs))
    for label, took in best.items():
        show(label, took, f"{best[[*best][-1]] / took:.1f} × as fast as jwst.ami")


if __name__ == "__main__":
    main()
