"""What the measurement of the converter is worth: bias, coverage and false claims over many simulated sets of ramps.

    python tests/campaigns/converter.py [--draws 200] [--case wave,absent,harmonics,reads,period] [--photons 3e7]
    python tests/campaigns/converter.py --case full1516

A draw: two exposures (5 and 10 groups) of one star on a detector of new maps with all noise, charge migration `flight`,
nonlinearity, cosmic rays and 1/f; wave of 124 ppm at a random phase (``harmonics``: 40 and 25 ppm in the second and
third; ``reads``: first reads off by 25 e- that decay, and 0.1 % persistence, which the simulator does not have). It
prints mean deviation from the truth in units of the error of that mean, scatter of the pulls, coverage of the 68 and
95 % intervals with the p of a binomial test, the error's median, and how often each harmonic was claimed. ``full1516``
measures the ready plan 1516, scale full.
"""

import argparse
from dataclasses import replace
from time import perf_counter

import numpy as np

from calami.instrument import niriss
from calami.instrument.converter import PERFECT, Converter
from calami.instrument.detector import Detector, simulate_ramps
from calami.instrument.optics import psf
from calami.process.converter import measure_converter, raw_reads

RATE = 4.2e6


def true_wave(case, rng):
    """Coefficients of a random phase."""
    sizes = {"absent": [], "harmonics": [124e-6, 40e-6, 25e-6]}.get(case, [124e-6])
    turns = rng.uniform(0, 2 * np.pi, len(sizes))
    return Converter(tuple(np.ravel([(a * np.sin(t), a * np.cos(t)) for a, t in zip(sizes, turns, strict=True)])))


def reads_of(wave, seed, case, photons, groups=(5, 10)):
    """Means of raw reads of a draw."""
    rng = np.random.default_rng([seed, 5])
    detector = replace(Detector.default(seed, "flight"), adc_wave=PERFECT if case == "reads" else wave)
    band = ("F480M", "F430M", "F380M")[seed % 3]
    place = np.array([45, 40]) + rng.normal(0, 0.2, 2)
    light = RATE * {"F480M": 1, "F430M": 0.85, "F380M": 0.72}[band] * psf(band, tuple(place))
    for n in groups:
        nints = max(2, round(photons / (light.sum() * n * niriss.SUB80.frame_time)))
        raw = simulate_ramps(light, n, nints, detector, [seed, n])
        if case == "reads":
            raw = raw.astype(float) + 25 / niriss.GAIN * np.exp(-np.arange(n) / 1.5)[:, None, None]
            held = light * n * niriss.SUB80.frame_time / niriss.GAIN
            raw = wave.distorted(raw + 1e-3 * held * (1 - np.exp(-np.arange(1, n + 1) / 5))[:, None, None])
            raw = np.rint(raw)
        yield raw_reads(raw, f"{n} groups")


def campaign(case, draws, photons, seed):
    """A line of the table."""
    from scipy.stats import binomtest

    pulls, errors, claims, began = [], [], [], perf_counter()
    for k in range(seed * 10_000, seed * 10_000 + draws):
        wave = true_wave(case, np.random.default_rng([k, 3]))
        found = measure_converter(
            list(reads_of(wave, k, case, photons)), chance=1e-4, **({"period": None} if case == "period" else {})
        )
        claims.append(found.tested[:, 2] < 1e-4)
        errors.append(found.tested[0, 1])
        size = min(len(found.converter.coefficients), len(wave.coefficients))
        if size:
            spread = np.sqrt(np.diag(found.covariance)[:size])
            pulls += ((np.array(found.converter.coefficients[:size]) - wave.coefficients[:size]) / spread).tolist()
        if case == "period" and found.period_error:
            pulls.append((found.converter.period - 1024) / found.period_error)
    pulls = np.array(pulls)
    words = [case, draws, f"{1e6 * np.median(errors):.1f}", "/".join(f"{100 * c:.0f}" for c in np.mean(claims, axis=0))]
    if len(pulls):
        held = [int((np.abs(pulls) <= width).sum()) for width in (1.0, 2.0)]
        words += [f"{pulls.mean() * len(pulls) ** 0.5:+.1f}", f"{pulls.std():.2f}"]
        words += [
            f"{100 * n / len(pulls):.0f} (p {binomtest(n, len(pulls), p).pvalue:.2f})"
            for n, p in zip(held, (0.6827, 0.9545), strict=True)
        ]
    print("| " + " | ".join(map(str, words)) + f" | {perf_counter() - began:.0f} s", flush=True)


def full_1516(seed):
    """The ready plan, every exposure simulated, its reads summed and forgotten."""
    from calami.simulate.exposures import Instrument, exposure_light, exposure_seed
    from calami.simulate.plans import ready_plan

    instrument = Instrument.default(1, "flight")
    wave = Converter((1.25e-4, 0.0))
    detector = replace(instrument.detector, adc_wave=wave)
    reads, total, began = [], 0, perf_counter()
    plan = ready_plan("1516", "full")
    for k, exposure in enumerate(plan):
        if exposure.ngroups < 4:
            continue
        light = exposure_light(exposure, instrument)
        raw = simulate_ramps(
            light[0], exposure.ngroups, exposure.nints, detector, exposure_seed(exposure, seed), light=light[1]
        )
        reads.append(raw_reads(raw, exposure.rootname))
        total += exposure.nints
        if k % 20 == 0 or k == len(plan) - 1:
            found = measure_converter(reads)
            print(k + 1, total, f"{perf_counter() - began:.0f} s", found.sentence, found.tested.tolist(), flush=True)


def main():
    """Run all cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--case", default="wave,absent,harmonics,reads,period")
    parser.add_argument("--photons", type=float, default=3e7)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.case == "full1516":
        return full_1516(asked.seed)
    print("| case | N | error (ppm) | claimed (%), harmonics 1–4 | mean/error | scatter | 68 % | 95 % |")
    print("|---|---|---|---|---|---|---|---|")
    for case in asked.case.split(","):
        campaign(case, asked.draws, asked.photons, asked.seed)
    return None


if __name__ == "__main__":
    main()
