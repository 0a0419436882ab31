"""What the studies measure, over many simulated programs: bias, and coverage of their errors.

    python tests/campaigns/studies.py [--draws 200] [--what depth,pipeline,flat,peak,pairs,step]

``depth``: depths of the response within pixels of 0, 5 and 10 %, nine flown places, images with photon noise of 2e8
electrons in all; ``--flat 0.01`` adds sensitivities of single pixels that no one knows, and fits them. ``pipeline``:
the same, and the flat of the core, through ramps and the unmodified pipeline (plan of 1504, demo scale, no migration,
every program another detector and pupil). ``flat``: the core flat of images, for flats of 0, 0.5 and 1 %. ``peak``:
what 1509 asks, a nonlinearity of 2e-7 per e- and a persistence of 0.1 %, alone and together, in ramps of
`tests/foreign.py` of four depths at two places. ``pairs``: what 4480 asks, mismatches of four stars of three types that
scatter by 0.05 pixels on pixels of 1 %, images of 5e7 electrons in two filters, every other program with a companion of
one of them, which is searched. ``step``: what 4481 asks, differences between unseen places 5 to 40 mas apart by a model
of position that has learnt from 25 places, on pixels of 1 %, and by its widening if nothing is taken off. Each line:
how many draws, mean, scatter, mean error, coverage of one and two standard errors with the p of a binomial test against
68.3 and 95.4 %.
"""

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from calami.fringes.fitting import fit
from calami.fringes.observables import wrap
from calami.fringes.position import fit_position_model
from calami.instrument import niriss
from calami.instrument.detector import Detector
from calami.instrument.optics import DIFFUSION_MAS, JITTER_MAS, fine_psf, pixel_response, star_spectrum, within_pixels
from calami.migration.kernel import migration_or_nonlinearity
from calami.migration.ramps import read_pattern, statistics_of
from calami.simulate.exposures import Instrument, simulate_plan
from calami.simulate.plans import SUBPIXEL_DITHERS, ready_plan
from calami.studies import intrapixel
from calami.studies.calibrators import BINARY, mismatches, search_stars
from calami.studies.reading import Reading, Seen, fit_alike, places, read_study

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import foreign
from campaigns.foreign_physics import disturbed

PHOTONS, FILTER = 2e8, "F480M"
# Pixels are square, as the fit takes them: the distortion of commissioning was measured with such and holds the rest.
# With both, V² change by 0.1 % with the place within a pixel, which places 0.4 pixels apart cannot show.
SQUARE = (float(np.mean(niriss.PIXEL_SCALE_MAS)),) * 2
STEPS = np.array(SUBPIXEL_DITHERS[25][:9])[:, ::-1] * 1e3 / np.mean(niriss.PIXEL_SCALE_MAS)
SPOTS = STEPS + np.array((niriss.AIM_PIXEL[1] + 0.03, niriss.AIM_PIXEL[0] + 0.19))


def light(depth):
    """Images of the nine places without noise, electrons."""
    response = pixel_response(depth, 5) if depth else None
    images = []
    for row, column in SPOTS:
        fine = fine_psf(FILTER, (column, row), oversample=5, diffusion=DIFFUSION_MAS, jitter=JITTER_MAS)
        image = within_pixels(fine, 5, response) * PHOTONS / len(SPOTS)
        image[: niriss.SUB80.reference_rows] = 0
        images.append(image)
    return images


class Picture:
    """As much of an exposure as the study of 1504 asks of one."""

    def __init__(self, image, error):
        self.science, self.error = image, error
        self.dq = np.zeros(image.shape, "uint32")

    def has(self, name):
        """Only what is known."""
        return name == "DQ"


def observed(images, flat, rng):
    """The exposures of a draw."""
    made = []
    for k, image in enumerate(images):
        seen = image * flat
        error = np.sqrt(np.maximum(image, 0) + 200.0)
        noisy = seen + error * rng.normal(size=image.shape)
        data = fit(noisy, header={"FILTER": FILTER}, error=error)
        made.append(Seen(f"e{k}", "r", "S", FILTER, 1, 1, k, False, (0, 0), 0, 1e3, data, Picture(noisy, error)))
    return made


def line(words, pulls, errors, values, began):
    """Print a line of the table."""
    from scipy.stats import binomtest

    pulls = np.ravel(pulls)
    inside = [(int((np.abs(pulls) < k).sum()), share) for k, share in ((1, 0.6827), (2, 0.9545))]
    tests = ", ".join(f"{n / len(pulls):.1%} (p {binomtest(n, len(pulls), share).pvalue:.2g})" for n, share in inside)
    print(
        f"{words}: N {len(values)}, mean {np.mean(values):.4f} ± {np.std(values) / len(values) ** 0.5:.4f}, scatter "
        f"{np.std(values):.4f}, error {np.mean(errors):.4f}, within {tests}; {perf_counter() - began:.0f} s",
        flush=True,
    )


def depths(draws, seed, tried):
    """The depth of the response; the draws of a place are the integrations of one fit."""
    for depth in tried:
        began, v2, errors, made = perf_counter(), [], [], []
        for k, image in enumerate(light(depth)):
            rng = np.random.default_rng([seed, k, round(depth * 100)])
            error = np.broadcast_to(np.sqrt(np.maximum(image, 0) + 200.0), (draws, *image.shape))
            data = fit(
                image + error * rng.normal(size=error.shape), header={"FILTER": FILTER}, error=error, reject=False
            )
            v2.append(data.samples["v2"])
            errors.append(data.v2_err * draws**0.5)
            one = Seen(f"e{k}", "r", "S", FILTER, 1, 1, k, False, (0, 0), 0, 1e3, data)
            flat = np.ones((1, *niriss.SUB80.shape))
            made.append(intrapixel._model_v2(one, DIFFUSION_MAS, {"jitter": JITTER_MAS}, None, flat))
        noise = np.sqrt(np.mean(np.square(errors), axis=0))
        found = [intrapixel._solve_depth(np.array([place[k] for place in v2]), noise, made) for k in range(draws)]
        report(f"depth {depth}", depth, found, began)


def depths_with_flats(draws, strength, seed, tried):
    """The same with sensitivities of pixels that no one knows, which are fitted."""
    for depth in tried:
        began, images, found = perf_counter(), light(depth), []
        for k in range(draws):
            rng = np.random.default_rng([seed, k, round(depth * 100), 7])
            seen = observed(images, rng.normal(1, strength, niriss.SUB80.shape), rng)
            pixels = intrapixel._pixels(seen, places(seen), {})
            found.append(intrapixel.response_depth(seen, (DIFFUSION_MAS, JITTER_MAS), pixels=pixels))
        report(f"depth {depth}, flat {strength}", depth, found, began)


def through_pipeline(draws, strength, seed, tried):
    """The depth and the flat of the core from raw exposures, with the pixels that the pipeline leaves good."""
    for depth in tried:
        began, found, pulls, errors, strengths = perf_counter(), [], [], [], []
        for number in range(seed, seed + draws):
            instrument = Instrument.default(number, "none", depth=depth, flat_error=strength)
            with TemporaryDirectory() as folder:
                simulate_plan(ready_plan("1504"), folder, instrument, seed=number)
                seen = read_study(folder, Path(folder, "out"), workers=1).seen
                pixels, truth = intrapixel._pixels(seen, places(seen), {}), seen[0].truth
                known = truth["exposure"]["star"]["spectral_type"], truth["instrument"]["detector"]["ipc"], pixels
                one = intrapixel.response_depth(seen, (instrument.diffusion, instrument.jitter), *known)
            found.append(one)
            strengths.append(pixels.strength)
            if pixels.strength:
                flat, plain = (d.flat[pixels.window] for d in (instrument.detector, Detector.default(number, "none")))
                known = (pixels.error > 0) & (plain > 0)  # no bad pixels
                pulls.append((pixels.flat[known] - flat[known] / plain[known]) / pixels.error[known])
                errors.append(np.nanmean(pixels.error))
            print(f"  {number}: {one.depth:.3f} ± {one.error:.3f}, flat {pixels.strength:.4f}", flush=True)
        report(f"pipeline, depth {depth}, flat {strength}", depth, found, began)
        if pulls:
            line(f"pipeline, flat {strength}", np.concatenate(pulls), errors, strengths, began)


def report(words, depth, found, began):
    """Print what was found of one depth."""
    values, errors = (np.array([getattr(x, w) for x in found]) for w in ("depth", "error"))
    line(words, [x.sigmas(depth) for x in found], errors, values, began)


def flats(draws, seed):
    """The sensitivity of the pixels of the core."""
    images = light(0.0)
    for strength in (0.0, 0.005, 0.01):
        began, pulls, errors, strengths, joint, claims = perf_counter(), [], [], [], [], 0
        for k in range(draws):
            rng = np.random.default_rng([seed, k, round(strength * 1000)])
            flat = rng.normal(1, strength, niriss.SUB80.shape) if strength else np.ones(niriss.SUB80.shape)
            seen = observed(images, flat, rng)
            found = intrapixel._pixels(seen, places(seen), {})
            strengths.append(found.strength)
            claims += found.significant
            if found.strength:
                pulls.append(((found.flat - flat[found.window]) / found.error).ravel())
                errors.append(np.nanmean(found.error))
                away = np.nan_to_num(found.flat - flat[found.window]).ravel()
                joint.append(away @ np.linalg.solve(found.covariance, away) / away.size)
        print(f"flat {strength}: claimed {claims} of {draws}")
        if pulls:
            line(f"flat {strength}", pulls, errors, strengths, began)
            print(
                f"joint χ² a pixel, with the covariance: {np.mean(joint):.3f} ± {np.std(joint) / len(joint) ** 0.5:.3f}"
            )


def peaks(draws, seed):
    """Linearity of the peak pixels, and persistence."""
    for name, law, loss in (("both", 1e-3, 2e-7), ("persistence", 1e-3, 0.0), ("nonlinearity", 0.0, 2e-7)):
        began, rows, answers, changes = perf_counter(), [], Counter(), []
        for number in range(seed, seed + draws):
            program = foreign.program_of(number, foreign.LAWS["none"], FILTER)
            rng = np.random.default_rng([number, 1509])
            physics = replace(foreign.LAWS["none"], persistence=law, nonlinear=loss)
            ramps = [disturbed(reads, physics, rng) for reads in program.ramps]
            stats = [statistics_of(reads, **facts) for reads, facts in zip(ramps, program.facts, strict=True)]
            pattern, verdict = read_pattern(stats), migration_or_nonlinearity(stats)
            found = dict(
                zip(verdict.kernel.names, zip(verdict.kernel.values, verdict.kernel.errors, strict=True), strict=True)
            )
            rows.append((pattern.persistence, pattern.persistence_error, *found.get("nonlinearity", (np.nan, np.nan))))
            answers[verdict.answer] += 1
            changes.append((verdict.peak, verdict.aperture))
        for words, true, values, errors in (
            ("persistence [%]", 100 * law, *(100 * np.array(rows)[:, :2].T)),
            ("nonlinearity [1e-7/e-]", 1e7 * loss, *(1e7 * np.array(rows)[:, 2:].T)),
        ):
            line(f"{name}, {words} of {true:g}", (values - true) / errors, errors, values, began)
        for words, (values, errors) in zip(("peak", "9 × 9 sum"), 100 * np.transpose(changes, (1, 2, 0)), strict=True):
            true = 0.0 if not loss else values.mean()
            line(f"{name}, change of the {words} [%] from {true:.3f}", (values - true) / errors, errors, values, began)
        print(dict(answers))


STARS = {"A": ("G2V", 0.0), "E": ("G2V", 0.0), "F": ("G5V", 0.44), "G": ("K5III", 0.44)}  # type, mag


def image_at(place, photons, flat, filt=FILTER, kind="", companion=None):
    """Image of a star without noise, electrons; a companion has an offset (rows, columns, pixels) and a flux ratio."""
    options = {"oversample": 5, "diffusion": DIFFUSION_MAS, "jitter": JITTER_MAS, "scale": SQUARE}
    options |= {"spectrum": star_spectrum(kind)} if kind else {}
    image = 0
    for offset, ratio in [((0, 0), 1.0), *([companion] if companion else [])]:
        row, column = np.add(place, offset)
        image = image + ratio * within_pixels(fine_psf(filt, (column, row), **options), 5)
    image = image * photons * flat
    image[: niriss.SUB80.reference_rows] = 0
    return image


def exposure_of(image, rng, star, filt, number, peak=2.5e4):
    """An exposure of a draw, and the same without noise, which is fitted alike."""
    error = np.sqrt(image + 200.0)
    noisy = image + error * rng.normal(size=image.shape)
    data = fit(noisy, header={"FILTER": filt, "ROLL_REF": 0.0, "V3I_YANG": 0.0, "VPARITY": -1}, error=error)
    one = Seen(
        f"e{number}", f"jw04480{number:03d}001_02101_00001_nis", star, filt, number, 1, 1, False, (0, 0), 0, peak, data,
        Picture(noisy, error),
    )  # fmt: skip
    return one, replace(one, data=fit_alike(one, image))


def program_4480(number, binary):
    """Exposures of four stars in two filters, and the same without noise; the third star may have a companion."""
    rng, made = np.random.default_rng([number, 4480]), []
    flat = rng.normal(1, 0.01, niriss.SUB80.shape)
    for k, (star, (kind, mag)) in enumerate(STARS.items()):
        place = np.array((niriss.AIM_PIXEL[1] + 0.03, niriss.AIM_PIXEL[0] + 0.19)) + rng.normal(0, 0.05, 2)
        more = ((1.15, 1.98), 0.02) if binary and star == "F" else None
        for n, filt in enumerate(("F430M", "F480M")):
            image = image_at(place, 5e7 * 10 ** (-0.4 * mag), flat, filt, kind, more)
            made.append(exposure_of(image, rng, star, filt, 2 * k + n + 1))
    return made


def mismatches_of_stars(draws, seed):
    """Mismatches of pairs against those of images without noise, and which star is a binary."""
    began, pulls, errors, values = perf_counter(), {"v2": [], "cp": []}, {"v2": [], "cp": []}, {"v2": [], "cp": []}
    named = Counter()
    for number in range(seed, seed + draws):
        seen, clean = zip(*program_4480(number, number % 2), strict=True)
        found, true = (mismatches(some) for some in (seen, clean))
        for key in pulls:
            away = [getattr(a, key) - getattr(b, key) for a, b in zip(found, true, strict=True)]
            errors[key] += (own := [getattr(a, f"{key}_error") for a in found])
            pulls[key] += list(np.array(away) / own)
            values[key].append(np.mean([getattr(b, key) for b in true]))
        reading = Reading(None, tuple(seen))
        sure = [s for s, f in search_stars(reading).items() if f is not None and f.significance >= BINARY]
        named["with a companion" if number % 2 else "without", " ".join(sure)] += 1
        if number % 10 == 9 or number == seed + draws - 1:
            for key in pulls:
                line(f"mismatch of {key}, mean square", pulls[key], errors[key], values[key], began)
            print(dict(named), flush=True)


def steps_of_a_star(draws, seed):
    """Differences between unseen places: by the model of position, with its covariance, and what they are."""
    began = perf_counter()
    pulls, ratios = {k: [] for k in ("v2", "cp")}, {(k, mas): [] for k in ("v2", "cp") for mas in (5, 10, 20, 40)}
    wide = {k: [] for k in ("v2", "cp")}
    middle = np.array((niriss.AIM_PIXEL[1] + 0.03, niriss.AIM_PIXEL[0] + 0.19))
    for number in range(seed, seed + draws):
        rng = np.random.default_rng([number, 4481])
        flat = rng.normal(1, 0.01, niriss.SUB80.shape)
        spots = middle + np.array(SUBPIXEL_DITHERS[25])[:, ::-1] * 1e3 / np.mean(niriss.PIXEL_SCALE_MAS)
        learnt = [exposure_of(image_at(spot, 1e8, flat), rng, "S", FILTER, 1)[0].data for spot in spots]
        model = fit_position_model(learnt)
        for mas in (5, 10, 20, 40):
            a = spots.mean(axis=0) + rng.uniform(-0.3, 0.3, 2)
            angle = rng.uniform(0, 2 * np.pi)
            b = a + mas / np.mean(niriss.PIXEL_SCALE_MAS) * np.array((np.sin(angle), np.cos(angle)))
            one, other = (exposure_of(image_at(at, 1e8, flat), rng, "S", FILTER, 1)[1].data for at in (a, b))
            for key, true in (("v2", one.v2 / other.v2 - 1), ("cp", wrap(one.cp - other.cp))):
                shift, left, whole = model.difference(key, a, b[None], np.ones(1))
                pulls[key] += list((true - shift) / np.sqrt(np.diag(left)))
                wide[key] += list(true / np.sqrt(np.diag(whole)))
                sizes = true**2, shift**2 + np.diag(left), np.diag(whole), (true - shift) ** 2
                ratios[key, mas].append([np.mean(size) for size in sizes])
    for key, own in pulls.items():
        line(f"step, {key}", own, [1], own, began)
        line(f"step, {key}, nothing taken off", wide[key], [1], wide[key], began)
        for mas in (5, 10, 20, 40):
            sizes = np.sqrt(np.mean(ratios[key, mas], axis=0)) * (1 if key == "v2" else 180 / np.pi)
            print(f"  {mas} mas: rms {{:.4f}}, cost {{:.4f}}, widening {{:.4f}}, left {{:.4f}}".format(*sizes))


def main():
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--what", default="depth,flat")
    parser.add_argument("--flat", type=float, default=0.0)
    parser.add_argument("--depths", default="0,0.05,0.1")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tried = [float(one) for one in options.depths.split(",")]
    for what in options.what.split(","):
        if what == "depth":
            if options.flat:
                depths_with_flats(options.draws, options.flat, options.seed, tried)
            else:
                depths(options.draws, options.seed, tried)
        elif what == "pipeline":
            through_pipeline(options.draws, options.flat, options.seed, tried)
        elif what == "flat":
            flats(options.draws, options.seed)
        elif what == "peak":
            peaks(options.draws, options.seed)
        elif what == "pairs":
            mismatches_of_stars(options.draws, options.seed)
        elif what == "step":
            steps_of_a_star(options.draws, options.seed)


if __name__ == "__main__":
    main()
