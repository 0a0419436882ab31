"""
How often something is found where nothing is, and what a floor of calibration is made of.

*floor*: stars of program 1093 that calibrate each other (shared data): errors of a fringe on the same pixel and against
distance, as `FLIGHT_WEIGHTED` states them, and blank searches among the 25 places of obs 020.

*blank*: stars without companion behind the mask and on the detector of `foreign_fringes`, fitted without noise at many
places, then with noise, calibrated by one, two or four others on the same or another pixel, and searched in one filter,
or (a fifth as often) in three. Counted is what is claimed at a stated 1 % and at a stated 5 sigma. The search here is
that on the grid, with the law of `FalseAlarm`; `flight` marks data that count as flight data, whose errors include the
floor.

*limits*: how alike the errors of fringes are between baselines, by the probability of what places of obs 020 differ by,
also of places that were left out; and limits against the scatter of best contrasts where nothing is.

*real*: what the stars of program 1093 say: the deep pair of obs 012, AB Dor C by each reference and by both, and a star
by itself on other pixels.

*injected*: limits of stars at other places against what companions that are put into their data support.

*numbers*: limits at 150 mas at equal photons against the number of integrations, fitted, averaged from samples, and by
itself.

    nice python tests/campaigns/contrast.py blank --n 1000      # about half an hour
    nice python tests/campaigns/contrast.py floor
"""

import argparse
import itertools
import logging
import platform
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from foreign_fringes import BANDS, Detector

from calami.fringes import calibration, fitting
from calami.fringes.calibration import FLIGHT_WEIGHTED, calibrate, displacement, selfcal
from calami.fringes.companions import (
    LARGEST_CHI2,
    Prepared,
    SearchOptions,
    _elsewhere,
    _false_alarm,
    _grid_axis,
    _groups,
    _joint_scale,
    add_companion,
    position,
    search_companion,
)
from calami.fringes.limits import contrast_curve
from calami.fringes.observables import add_noise, from_observables, from_samples, wrap

FIVE_SIGMA = np.log(5.733e-7)


class Places:
    """Stars fitted without noise at several places of some pixels, with the errors of so many photons."""

    def __init__(self, seed: int, pixels: int = 8, each: int = 6, photons: float = 1e8) -> None:
        rng, detector = np.random.default_rng(seed), Detector(seed)
        self.seen = {}
        for name, pixel in itertools.product(BANDS, range(pixels)):
            middle = rng.integers(-20, 20, 2) + rng.uniform(-0.3, 0.3, 2)
            for number in range(each):
                cube, error, dq, corner = detector.expose(
                    name, middle + rng.normal(0, 0.06, 2), photons, rng, noise=False
                )
                one = fitting.fit(
                    cube[0], error=error[0], dq=dq[0], filter=name, scale=65.6, fix=False, debias=False,
                    header={"ROLL_REF": 0.0, "V3I_YANG": 0.0, "TARGNAME": f"{pixel}-{number}"},
                )  # fmt: skip
                for key, shift in zip(("STARROW", "STARCOL"), corner, strict=True):
                    one.header[key] += int(shift)
                self.seen[name, pixel, number] = replace(from_observables(one), samples={}, notes=())
        self.pixels, self.each = pixels, each

    def draw(self, filters, references: int, other: bool, flight: bool, rng: np.random.Generator) -> list:
        """Calibrated blank data in some filters."""
        pixel = rng.integers(self.pixels)
        there = rng.choice([p for p in range(self.pixels) if p != pixel]) if other else pixel
        first, *numbers = rng.permutation(self.each)[: references + 1]
        made = []
        for name in filters:
            stars = [(pixel, first), *((there, n) for n in numbers)]
            stars = [add_noise(self.seen[name, p, n], rng) for p, n in stars]
            if flight:
                stars = [replace(s, header=s.header | {"DETECTOR": "NIS"}) for s in stars]
            made.append(calibrate(stars[0], [replace(s, name=f"{n}") for n, s in enumerate(stars[1:])]))
        return made


class Search:
    """A search on a grid, with templates and law made once for all draws of a kind."""

    def __init__(self) -> None:
        self.alarms, self.fringes = {}, {}

    def __call__(self, data: list, kind: tuple) -> tuple[float, float]:
        """Natural logarithm of the false-alarm probability (NaN if not given), and reduced χ²."""
        ready = [Prepared(one) for one in data]
        names = tuple(one.filter for one in data)
        if names not in self.fringes:
            axis = _grid_axis(ready, 335, None)
            x, y = (p.ravel() for p in np.meshgrid(axis, axis))
            inside = (np.hypot(x, y) > 20) & (np.hypot(x, y) < 335)
            self.fringes[names] = [one.fringe(x[inside], y[inside]) for one in ready]
        fringes, groups = self.fringes[names], _groups(ready, "filter")
        if kind not in self.alarms:
            every = np.ones(len(fringes[0][2]), bool)
            self.alarms[kind] = _false_alarm(ready, groups, fringes, every, SearchOptions(trials=20_000))
        alarm, plain, cleared, whole, clear_whole = self.alarms[kind], 0.0, 0.0, 0.0, 0.0
        for one, fringe in zip(ready, fringes, strict=True):
            template, left = one.template(fringe), one.null_residual()
            clear, clear_left = one.without_unknown(template), one.without_unknown(left[:, None])[:, 0]
            plain = plain + np.maximum(left @ template, 0) ** 2 / (template**2).sum(axis=0)
            cleared = cleared + np.maximum(clear_left @ clear, 0) ** 2 / np.maximum((clear**2).sum(axis=0), 1e-30)
            whole, clear_whole = whole + left @ left, clear_whole + clear_left @ clear_left
        best = np.argmax(plain)
        size = sum(one.size for one in ready) - 2 - len(groups)
        reduced = (whole - plain[best]) / size
        if reduced > LARGEST_CHI2 or any(_elsewhere(one) for one in ready):
            return np.nan, reduced
        spread = max(1.0, (clear_whole - cleared[best]) / alarm.freedom)
        return alarm.log_probability(cleared[best] / (spread * _joint_scale(ready))), reduced


def print_blank(count: int, sets: int = 4) -> None:
    """Claims where nothing is."""
    rng, places, total = np.random.default_rng(7), [Places(seed) for seed in range(sets)], 0
    print(f"{count} blank trials a cell, {count // 5} in three filters; claims at 1 %, at 5 sigma; part without any")
    for filters, flight in itertools.product((("F480M",), tuple(BANDS)), (False, True)):
        search, trials = Search(), count if len(filters) == 1 else count // 5
        for references, other in itertools.product((1, 2, 4), (False, True)):
            found = np.array(
                [
                    search(places[n % sets].draw(filters, references, other, flight, rng), (references, other))
                    for n in range(trials)
                ]
            )
            claims, sure = (found[:, 0] < np.log(0.01)).sum(), (found[:, 0] < FIVE_SIGMA).sum()
            total += sure
            print(
                f"{'+'.join(filters):20} {'flight' if flight else 'plain':7} {references} on "
                f"{'another' if other else 'the same':8} pixel: {claims:4d} ({claims / trials:.2%}), {sure}, "
                f"{np.isnan(found[:, 0]).mean():.0%}; reduced chi2 {np.median(found[:, 1]):.2f}",
                flush=True,
            )
    print(f"{total} at 5 sigma in all")


def print_floor(folder: Path) -> None:
    """What stars of 1093 differ by, and blank searches among them."""
    seen = {p.name[7:25]: fitting.fit(p) for p in sorted(folder.glob("*_cal.fits"))}

    def differ(one, two):
        # Error of a fringe from V² and from closure phases beyond noise, and what all V² share
        v, noise = one.v2 / two.v2 - 1, (one.v2_err / one.v2) ** 2 + (two.v2_err / two.v2) ** 2
        cp, cp_noise = wrap(one.cp - two.cp), one.cp_err**2 + two.cp_err**2
        size = 1 / one.v2.clip(0.01)
        square = (
            np.mean((v - v.mean()) ** 2 - noise) / (4 * size.mean()),
            np.mean(cp**2 - cp_noise) / (3 * size.mean()),
        )
        return displacement(one, two), *square, v.mean()

    print("same pixel: distance, fringe error from V2 and CP (1e-3), common V2 (%)")
    for act in ("03102", "03103", "03104"):
        away, v2, cp, common = differ(seen[f"015001_{act}_00001"], seen[f"018001_{act}_00001"])
        errors = 1e3 * np.sqrt(np.maximum((v2, cp), 0))
        print(f"  {act}: {away:.2f} px, {errors[0]:.2f}, {errors[1]:.2f}, {100 * common:.2f}")
    spots = [x for name, x in seen.items() if name.startswith("020")]
    pairs = list(itertools.permutations(spots, 2))
    rows = np.array([differ(a, b) for a, b in pairs])
    print("one star at two places: distance, fringe error from V2 and CP, FLIGHT_WEIGHTED (1e-3)")
    for low, high in itertools.pairwise((0.1, 0.3, 0.45, 0.7, 1.0, 1.3, 2.0)):
        some = rows[(rows[:, 0] >= low) & (rows[:, 0] < high)].mean(axis=0)
        v2, cp = 1e3 * np.sqrt(np.maximum(some[1:3], 0))
        print(f"  {some[0]:.2f} px: {v2:.2f}, {cp:.2f}, {1e3 * FLIGHT_WEIGHTED.of_position(some[0]):.2f}")
    print(f"  common V2: {100 * rows[:, 3].std():.2f} %")
    blanks = [(seen["018001_03102_00001"], x) for x in spots] + [(seen["015001_03102_00001"], x) for x in spots]
    blanks += pairs[::7]
    fits = [search_companion(calibrate(a, b), trials=1000, n_alternatives=0) for a, b in blanks]
    sigmas = np.array([f.significance for f in fits])
    chance = np.array([f.log_false_alarm for f in fits])
    print(
        f"{len(fits)} blank searches of flight data: {(chance < np.log(0.05)).sum()} at 5 %, "
        f"{(chance < np.log(0.01)).sum()} at 1 %, at most {np.nanmax(sigmas):.1f} sigma"
    )


def print_limits(folder: Path) -> None:
    """What correlation of the floor is the most probable, and limits against scatter."""
    seen = [fitting.fit(p) for p in sorted(folder.glob("jw01093020001_*_cal.fits"))]
    pairs = list(itertools.permutations(range(len(seen)), 2))
    some, chances = np.array([p for p in pairs if sum(p) % 2][::3]), {}
    for alike, length in itertools.product((0.0, 0.2, 0.4, 0.5, 0.6, 0.8), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)):
        calibration.FLIGHT_WEIGHTED = replace(FLIGHT_WEIGHTED, alike=alike, length=length)
        chances[alike, length] = np.array([_log_chance(calibrate(seen[a], seen[b])) for a, b in some])
    calibration.FLIGHT_WEIGHTED, white = FLIGHT_WEIGHTED, chances[0.0, 1.0]
    best = max(chances, key=lambda key: chances[key].sum())
    print(f"most probable: {best}, ln P {(chances[best] - white).sum():.0f} above that of no correlation")
    rng = np.random.default_rng(0)
    for _ in range(6):
        left = rng.permutation(len(seen))[: len(seen) // 2]
        known, out = ~np.isin(some, left).any(axis=1), np.isin(some, left).all(axis=1)
        best = max(chances, key=lambda key, own=known: chances[key][own].sum())
        print(f"  half of the places left out: {best}, ln P of theirs {(chances[best] - white)[out].sum():.0f} above")
    angles, separations, rows = np.arange(0, 360, 5.0), (100.0, 150.0, 200.0, 300.0), []
    for one, other in pairs[::4]:
        data = calibrate(seen[one], seen[other])
        ready, contrasts = Prepared(data), []
        for separation in separations:
            template = ready.template(ready.fringe(*position(np.full(len(angles), separation), angles)))
            contrasts.append(np.mean((ready.null_residual() @ template / (template**2).sum(axis=0)) ** 2))
        limits = contrast_curve(data, separations=separations, over=50.0).dmag
        rows.append([displacement(seen[one], seen[other]), *limits, *contrasts])
    rows = np.array(rows)
    for low, high in itertools.pairwise((0.2, 0.45, 0.75, 2.0)):
        own = rows[(rows[:, 0] >= low) & (rows[:, 0] < high)]
        limits, scatter = np.median(own[:, 1:5], axis=0), -2.5 * np.log10(5 * np.sqrt(own[:, 5:].mean(axis=0)))
        words = ", ".join(f"{a:.2f} {b:.2f}" for a, b in zip(limits, scatter, strict=True))
        print(f"  {low} to {high} px ({len(own)} pairs): limit, 5 times the scatter at 100 to 300 mas: {words}")


def _log_chance(data) -> float:
    # Of V² and closure phases of a calibrated point source, but for a constant
    basis, size, _ = np.linalg.svd(data.triangle_matrix, full_matrices=False)
    basis, total = basis[:, size > 1e-8 * size[0]], 0.0
    for values, covariance in (
        (data.v2 - 1, data.v2_covariance),
        (basis.T @ data.cp, basis.T @ data.cp_covariance @ basis),
    ):
        total -= (np.linalg.slogdet(covariance)[1] + values @ np.linalg.solve(covariance, values)) / 2
    return total


def print_injected(folder: Path) -> None:
    """Limits of displaced stars against companions put into their data: what is recovered, and how it scatters."""
    seen = [fitting.fit(p) for p in sorted(folder.glob("jw01093020001_*_cal.fits"))]
    separations, rows = (100.0, 150.0, 200.0, 300.0), []
    for one, other in list(itertools.permutations(range(len(seen)), 2))[::8]:
        data = calibrate(seen[one], seen[other])
        limits = contrast_curve(data, separations=separations, over=50.0).dmag
        for separation, limit in zip(separations, limits, strict=True):
            size = 10 ** (-0.4 * limit)
            for angle in np.arange(0, 360, 30.0):
                ready = Prepared(add_companion(data, separation, angle, size))
                template = ready.template(ready.fringe(*position(np.array([separation]), np.array([angle]))))[:, 0]
                found = ready.null_residual() @ template / (template @ template)
                rows.append([displacement(seen[one], seen[other]), separation, limit, found / size, size])
    rows = np.array(rows)
    for low, high in itertools.pairwise((0.2, 0.45, 0.75, 2.0)):
        words = []
        for separation in separations:
            own = rows[(rows[:, 0] >= low) & (rows[:, 0] < high) & (rows[:, 1] == separation)]
            middle = np.median(own[:, 3])
            supported = -2.5 * np.log10(5 * np.sqrt(np.mean(((own[:, 3] - middle) * own[:, 4]) ** 2)))
            words.append(f"{np.median(own[:, 2]):.2f} {supported:.2f} ({middle:.2f})")
        number = len(own) // 12
        print(f"{low} to {high} px ({number} pairs), limit, what injected ones support (recovered): {', '.join(words)}")


def print_real(folder: Path) -> None:
    """The deep pair of obs 012, AB Dor C by its references, and a star by itself on other pixels."""
    from scipy.stats import chi2

    from calami.dataset import Dataset
    from calami.migration.pair_kernel import fit_kernel
    from calami.migration.pairs import compare_all

    kernel = fit_kernel(compare_all(Dataset(folder))[0][0])
    rows, columns = np.indices(kernel.shallow.shape)
    row, column = np.unravel_index(kernel.shallow.argmax(), kernel.shallow.shape)
    eight = np.maximum(abs(rows - row), abs(columns - column)) == 1
    seen, model = (
        100 * (i[eight].sum() / kernel.shallow[eight].sum() - 1) for i in (kernel.deep_at_rest, kernel.model)
    )
    print(f"pair: {kernel}; {kernel.chi2_core / kernel.n_core:.2f} a pixel; eight neighbours {seen:+.2f} %, predicted "
          f"{model:+.2f}, {(seen - model) / (100 * kernel.floor / np.sqrt(8)):+.1f} sigma")  # fmt: skip
    acts = ("03102", "03103", "03104")
    stars = {
        o: [fitting.fit(folder / f"jw01093{o}001_{a}_00001_nis_cal.fits") for a in acts] for o in ("012", "015", "018")
    }
    found = []
    for references in (("015",), ("018",), ("015", "018")):
        data = [calibrate(t, [stars[r][n] for r in references]) for n, t in enumerate(stars["012"])]
        one = search_companion(data, trials=1000)
        found.append((np.array([one.separation, one.position_angle, *one.contrast.values()]), one.covariance))
        values = zip(found[-1][0], np.sqrt(np.diag(one.covariance)), strict=True)
        words = ", ".join(f"{v:.6g} ± {e:.2g}" for v, e in values)
        print(f"AB Dor C by {references}: {words}; reduced chi2 {one.reduced_chi2:.2f}, {one.significance:.1f} sigma")
    for one, two in itertools.combinations(range(3), 2):
        away, size = found[one][0] - found[two][0], len(found[one][0])
        joint = away @ np.linalg.solve(found[one][1] + found[two][1], away)
        print(f"  {one + 1} and {two + 1}: joint chi2 {joint:.2f} of {size}, p {chi2.sf(joint, size):.2f}")
    fits = []
    for path in sorted(folder.glob("jw01093020001_*_cal.fits")):
        fits.append(search_companion(calibrate(stars["018"][0], fitting.fit(path)), trials=1000, n_alternatives=0))
    worst, sure = max(f.reduced_chi2 for f in fits), [f.significance for f in fits]
    print(f"obs 018 by {len(fits)} places of 020: to {np.nanmax(sure):.1f} sigma, {np.isnan(sure).sum()} without; "
          f"{sum(f.log_false_alarm < np.log(0.01) for f in fits)} at 1 %; reduced chi2 up to {worst:.2f}")  # fmt: skip


def print_numbers(count: int) -> None:
    """Limits at equal photons against the number of integrations."""
    detector, rng = Detector(1, alike=True), np.random.default_rng(3)
    print("limits at 150 mas (mag), median: integrations; two exposures fitted; from samples; by itself")
    for nints in (10, 20, 25, 26, 40, 51, 52, 60, 100):
        rows = []
        for _ in range(count):
            pair = [from_observables(detector.observe("F480M", (0, 0), 3e7, rng, nints=nints)) for _ in range(2)]
            three = calibrate(*pair), calibrate(*map(from_samples, pair)), selfcal(pair[0])
            rows.append([contrast_curve(one, separations=[150], over=50.0).dmag[0] for one in three])
        print(f"  {nints:4d}", *(f"{x:.2f}" for x in np.median(rows, axis=0)), flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=("blank", "floor", "limits", "numbers", "real", "injected"))
    parser.add_argument("--n", type=int, default=1000, help="trials a cell")
    parser.add_argument(
        "--shared", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data", help="shared data"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    packages = ", ".join(f"{p} {version(p)}" for p in ("calami", "numpy", "scipy"))
    print(f"{packages}; Python {platform.python_version()}")
    if options.what == "blank":
        print_blank(options.n)
    elif options.what == "floor":
        print_floor(options.shared / "jw01093")
    elif options.what == "limits":
        print_limits(options.shared / "jw01093")
    elif options.what == "injected":
        print_injected(options.shared / "jw01093")
    elif options.what == "real":
        print_real(options.shared / "jw01093")
    else:
        print_numbers(options.n)


if __name__ == "__main__":
    main()
