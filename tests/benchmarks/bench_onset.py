"""How true and how fast the onset of charge migration is measured.

    python tests/benchmarks/bench_onset.py [--programs 240] [--only truth|speed] [--seed 1]

**Truth.** Simulated programs of one filter: two stars, each at two dither positions with a placement scatter of 0.03
pixels and at depths of 8 to 48 ke- at the peak, about 1e8 photons an exposure, as in `ready_plan("1516")`. The mean
ramps are those of `charge_ramp` seen through the capacitance between pixels, with a flat of 2.1 % rms;
photon noise (through the capacitance, too) and read noise are added to the sums over each block of integrations, which
is what summing ramps one by one gives. Some programs have nonlinearity left by the correction: up to 3e-7 per e- with
13 % scatter from pixel to pixel.

What is called true: the departure of each pointing's peak pixel, computed on a fine grid of time from the same light,
then averaged over pointings with the weights that the result names (`FilterOnset.weights`); the crossing of that mean.
Where nonlinearity is left, it is part of the departure.

**Speed.** Of `quantify` against reading the same files and summing them once; of resampling; of other thresholds;
memory.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
from astropy.io import fits

from calami.instrument import niriss
from calami.instrument.migration import IPC_KERNEL, MIGRATION_PRESETS, charge_ramp, crossings, interpixel_capacitance
from calami.instrument.optics import Pupil, psf
from calami.migration.kernel import kernel_from_ramps, migration_or_nonlinearity
from calami.migration.onset import DEPARTURES, quantify
from calami.migration.ramps import RampStatistics

THRESHOLDS = (0.005, 0.01, 0.02, 0.03)
PEAKS = (8e3, 16e3, 24e3, 32e3, 48e3)
HALF = 12
IMAGES = 12
TAU = niriss.SUB80.frame_time
READ = niriss.READ_NOISE_E


def seen(charge):
    """Signals through the capacitance between pixels."""
    return interpixel_capacitance(charge, IPC_KERNEL)


@cache
def image_of(filter_name, number):
    """One of a set of images with pistons of their own, placed with scatter; every other a quarter pixel off."""
    rng = np.random.default_rng([number, 7])
    where = (45.0 + rng.normal(0, 0.03) + 0.25 * (number % 2), 40.0 + rng.normal(0, 0.03))
    pupil = Pupil().with_errors(30.0, seed=number)
    return psf(filter_name, where, pupil=pupil)[40 - HALF : 41 + HALF, 45 - HALF : 46 + HALF]


def light_of(rng, filter_name, peak_rate):
    """Photo-current around a star, e-/s."""
    image = image_of(filter_name, int(rng.integers(IMAGES)))
    image = image * rng.normal(1, 0.021, image.shape)
    return image * peak_rate / image.max()


def truth_of(light, migration, loss):
    """Departures of the peak pixel by all definitions, as `departure` gives them; and its place."""
    row, col = np.unravel_index(np.argmax(seen(light)), light.shape)
    full, points = niriss.SATURATION_E, 150
    rate = seen(light)[row, col]
    times = np.arange(1, 2 * points + 1) * (1.2 * full / rate / (2 * points))
    signal = seen(charge_ramp(light, times, migration, steps=1))[:, row, col]
    signal = signal - loss[row, col] * signal**2
    whole, halfway = signal[1::2], signal[:points]
    slope = np.gradient(signal, times, edge_order=2)[1::2]
    found = {"signal": whole, "instantaneous": slope / rate - 1, "cumulative": whole / (rate * times[1::2]) - 1}
    return found | {"half": (whole - halfway) / halfway - 1}


def exposure_of(rng, name, pointing, filter_name, ramp, loss, nints):
    """Sufficient statistics of `nints` integrations of a noise-free ramp of charges, e-, shape (groups, H, W)."""
    blocks = min(24, nints)
    sizes = np.diff(np.linspace(0, nints, blocks + 1).round().astype(int))
    step = np.diff(ramp, axis=0, prepend=0.0)
    n = sizes[:, None, None, None].astype(float)
    noise = np.sqrt(n * np.maximum(step, 0)) * rng.standard_normal((blocks, *step.shape))
    signal = seen(ramp)
    reads = signal - loss * signal**2
    steps = n * np.diff(reads, axis=0, prepend=0.0) + seen(noise)
    read = np.sqrt(n) * READ * rng.standard_normal((blocks, *step.shape))
    total = (steps[:, 1:] + np.diff(read, axis=1)) / niriss.GAIN
    first = (steps[:, 0] + read[:, 0]) / niriss.GAIN
    count = np.broadcast_to(n.astype(np.int32), total.shape)
    variance = (seen(np.maximum(step, 0))[1:] + 2 * READ**2) / niriss.GAIN**2
    square = total.sum(axis=0) ** 2 / nints + variance * rng.chisquare(nints - 1, variance.shape)
    row, col = np.unravel_index(np.argmax(seen(step[0])), step[0].shape)
    return RampStatistics(
        name, filter_name, "star", pointing, TAU, (28, 33), (int(row), int(col)), int(nints), count[:, 0], first,
        count, total, square, np.ones(total.shape[1:], bool),
    )  # fmt: skip


def program_of(seed, filter_name, migration, loss, photons=1e8, flat_loss=0.13):
    """Statistics of a program, and for each pointing its true departures."""
    rng = np.random.default_rng([seed, 99])
    share = float(image_of(filter_name, 0).max())
    stats, truths = [], {}
    for star, groups in enumerate((12, 17)):
        for dither in range(2):
            pointing = f"star {star}, dither {dither}"
            light = light_of(rng, filter_name, PEAKS[-1] / groups / TAU)
            own = loss * rng.normal(1, flat_loss, light.shape)
            ramp = charge_ramp(light, TAU * np.arange(1, groups + 1), migration, steps=6)
            truths[pointing] = truth_of(light, migration, own)
            for peak in PEAKS:
                depth = max(2, round(groups * peak / PEAKS[-1]))
                nints = max(4, round(photons * share / (light.max() * TAU * depth)))
                name = f"{pointing}, {depth} groups"
                stats.append(exposure_of(rng, name, pointing, filter_name, ramp[:depth], own, nints))
    return stats, truths


def mean_truth(truths, weights):
    """Crossings of the weighted mean of the pointings' departures, e-."""
    grid = np.linspace(100, 0.98 * niriss.SATURATION_E, 2000)
    mean = {"signal": grid}
    for definition in DEPARTURES:
        mean[definition] = np.zeros(len(grid))
        for name, weight in weights.items():
            own = truths[name.split(" (")[0]]  # "pointing (exposure)" where each exposure has a rate of its own
            mean[definition] += weight * np.interp(grid, own["signal"], own[definition])
    return crossings(mean, THRESHOLDS)


def check_program(seed, filter_name, preset, loss, n_bootstrap=1000, with_kernel=True):
    """Rows of (definition, threshold, ratio, in 68, in 95, measured, inside) of a program, its verdict and kernel."""
    migration = MIGRATION_PRESETS[preset]
    stats, truths = program_of(seed, filter_name, migration, loss)
    onset = quantify(stats, thresholds=THRESHOLDS, n_bootstrap=n_bootstrap, seed=seed)
    result = onset.filters[filter_name]
    true = mean_truth(truths, result.weights)
    rows = []
    for c in onset.crossings():
        level = true[c.definition][c.threshold] / niriss.GAIN
        inside = bool(level < result.reach_adu)
        if c.limit:
            rows.append((c.definition, c.threshold, np.nan, False, not c.level_adu > level, False, inside))
            continue
        in68, in95 = c.lo68_adu <= level <= c.hi68_adu, c.lo95_adu <= level <= c.hi95_adu
        rows.append((c.definition, c.threshold, c.level_adu / level, in68, in95, True, inside))
    if not with_kernel:
        return rows, None, None, result
    verdict = migration_or_nonlinearity(stats, n_bootstrap=100)
    free = ["edge", "diagonal"] + ["growth"] * (migration.growth > 0) + ["nonlinearity"] * (loss > 0)
    kernel = kernel_from_ramps(stats, free=free, n_bootstrap=100) if migration.edge else None
    return rows, verdict, kernel, result


CASES = (
    ("h4rg", 0.0), ("h4rg", 2e-7), ("h4rg_weak", 0.0), ("h4rg_weak", 2e-7), ("flight", 0.0), ("flight", 3e-7),
    ("flight_linear", 0.0), ("flight_steep", 0.0), ("none", 0.0), ("none", 1e-7), ("none", 3e-7),
)  # fmt: skip


def truth_table(programs, seed):
    """Print what the simulated programs say."""
    filters = list(niriss.FILTERS)
    held = {}
    started = perf_counter()
    for k in range(programs):
        preset, loss = CASES[k % len(CASES)]
        filter_name = filters[(k // len(CASES)) % len(filters)]
        held.setdefault((preset, loss), []).append(check_program(1000 * seed + k, filter_name, preset, loss))
    print(f"{programs} programs of 20 exposures in {perf_counter() - started:.0f} s\n")
    every = [r for (preset, _), runs in held.items() for rows, *_ in runs for r in rows]
    print("| definition | threshold | inside | measured | median level/truth | in 68 % | in 95 % | limits that hold |")
    print("|---|---|---|---|---|---|---|---|")
    for definition in (*DEPARTURES, "all"):
        for threshold in (*THRESHOLDS, "all"):
            if definition == "all" and threshold != "all":
                continue
            print(_line(definition, threshold, every))
    heads = (
        "kernel, left loss [1e-7/e-], programs, neither, nonlinearity, migration, both, median level/truth, in 68 %, "
    )
    heads += "in 95 %, laws, superlinear, edge/truth, diagonal/truth, growth/truth, loss/truth"
    print("\n| " + " | ".join(heads.split(", ")) + " |")
    print("|" + "---|" * 16)
    for (preset, loss), runs in held.items():
        print(_case_line(preset, loss, runs))


def _share(values):
    values = list(values)
    return f"{100 * np.mean(values):.0f} %" if values else "-"


def _line(definition, threshold, rows):
    own = [r for r in rows if definition in (r[0], "all") and threshold in (r[1], "all")]
    inside = [r for r in own if r[6]]
    measured = [r for r in inside if r[5]]
    ratio = f"{np.median([r[2] for r in measured]):.3f}" if measured else "-"
    limits = [r[4] for r in own if not r[5]]
    told = [definition, threshold, len(inside), len(measured), ratio, _share(r[3] for r in measured)]
    told += [_share(r[4] for r in measured), f"{_share(limits)} of {len(limits)}"]
    return "| " + " | ".join(map(str, told)) + " |"


def _case_line(preset, loss, runs):
    migration = MIGRATION_PRESETS[preset]
    answers = [v.answer for _, v, *_ in runs]
    measured = [r for rows, *_ in runs for r in rows if r[5] and r[6]]
    outside = [r for rows, *_ in runs for r in rows if r[5] and not r[6]]
    told = [
        preset,
        f"{1e7 * loss:g}",
        len(runs),
        *(answers.count(a) for a in ("neither", "nonlinearity", "migration", "both")),
    ]
    told.append(f"{np.median([r[2] for r in measured]):.3f}" if measured else f"none; {len(outside)} outside")
    told += [_share(r[3] for r in measured), _share(r[4] for r in measured)]
    laws = [result.law for *_, result in runs]
    told.append(" ".join(f"{law}:{laws.count(law)}" for law in sorted(set(laws))))
    told.append(sum(v.superlinear for _, v, *_ in runs))
    for name, true in (("edge", migration.edge), ("diagonal", migration.diagonal), ("growth", migration.growth),
                       ("nonlinearity", loss)):  # fmt: skip
        found = [k.value(name)[0] / true for _, _, k, _ in runs if k is not None and true and name in k.names]
        told.append(f"{np.median(found):.3f} ± {np.std(found) / np.sqrt(len(found)):.3f}" if found else "-")
    return "| " + " | ".join(map(str, told)) + " |"


def write_ramp(path, nints, ngroups, seed=0):
    """A `ramp` product of a star, float32, with flags and errors as the pipeline writes it."""
    rng = np.random.default_rng(seed)
    image = psf("F480M", (45.0, 40.0)) * 48e3 / niriss.GAIN / psf("F480M", (45.0, 40.0)).max() / ngroups
    step = (image + rng.normal(0, 15, (nints, ngroups, 80, 80))).astype("f4")
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.cumsum(step, axis=1, dtype="f4"), name="SCI")]
    hdus += [fits.ImageHDU(np.zeros((80, 80), "u4"), name="PIXELDQ")]
    hdus += [fits.ImageHDU(np.zeros(step.shape, "u1"), name="GROUPDQ"), fits.ImageHDU(np.ones_like(step), name="ERR")]
    hdus[0].header.update(
        TELESCOP="JWST", INSTRUME="NIRISS", EXP_TYPE="NIS_AMI", FILTER="F480M", PUPIL="NRM", SUBARRAY="SUB80",
        TARGNAME="STAR", NINTS=nints, NGROUPS=ngroups, TGROUP=TAU, PATT_NUM=1, FILENAME=path.name,
    )  # fmt: skip
    fits.HDUList(hdus).writeto(path, overwrite=True)


def read_and_sum(paths):
    """Read files and sum them once."""
    for path in paths:
        with fits.open(path, memmap=False) as hdus:
            hdus["SCI"].data.sum(dtype=float)
            hdus["GROUPDQ"].data.sum()


def speed():
    """Print times and memory."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"jw01516001001_{3102 + k:05d}_00001_nis_ramp.fits" for k in range(3)]
        for k, path in enumerate(paths):
            write_ramp(path, 400, 8 + 2 * k, seed=k)
        one = fits.getheader(paths[-1], "SCI")
        one = 4 * one["NAXIS4"] * one["NAXIS3"] * 6400
        best = {"read and sum": np.inf, "quantify": np.inf}
        for _ in range(4):
            for name, way in (("read and sum", read_and_sum), ("quantify", lambda p: quantify(p, n_bootstrap=1000))):
                began = perf_counter()
                way(paths)
                best[name] = min(best[name], perf_counter() - began)
        size = sum(p.stat().st_size for p in paths) / 1e6
        print(f"\n3 files of 400 integrations, {size:.0f} MB: read SCI and GROUPDQ and sum them "
              f"{best['read and sum']:.2f} s, quantify with 1,000 resamples {best['quantify']:.2f} s: ratio "
              f"{best['quantify'] / best['read and sum']:.2f}")  # fmt: skip
        peaks = [_memory(code, paths[-1]) for code in ("pass", "quantify(path)")]
        print(f"largest memory of a process beyond its imports: {(peaks[1] - peaks[0]) / 1e6:.0f} MB, "
              f"{(peaks[1] - peaks[0]) / one:.2f} of the SCI array of an exposure")  # fmt: skip
    stats, _ = program_of(1, "F480M", MIGRATION_PRESETS["h4rg"], 0.0)
    began = perf_counter()
    onset = quantify(stats, n_bootstrap=1000)
    told = perf_counter()
    onset.crossings()
    after = perf_counter()
    onset.with_thresholds(0.015).table()
    print(f"20 exposures: all fits and 1,000 resamples {told - began:.2f} s, their crossings {after - told:.2f} s; "
          f"another threshold {perf_counter() - after:.2f} s")  # fmt: skip
    began = perf_counter()
    migration_or_nonlinearity(stats)
    print(f"verdict and kernel of 20 exposures {perf_counter() - began:.2f} s")


def _memory(code, path):
    program = (
        "import sys; import calami.migration.onset; from astropy.io import fits; import scipy.optimize;"
        "from calami.migration.onset import quantify; path = sys.argv[1];"
        f"{code}; print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
    )
    return 1024 * int(
        subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True).stdout
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=242)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("truth", "speed"))
    asked = parser.parse_args()
    if asked.only != "speed":
        truth_table(asked.programs, asked.seed)
    if asked.only != "truth":
        speed()
    print(f"largest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
