"""Migration or nonlinearity, and the kernel: found as put in, from ramps and from images."""

from dataclasses import replace

import foreign
import numpy as np
import pytest
from astropy.io import fits
from migration.test_onset import LIGHT, TAU, jackknife, ramps_of
from toys import rootname, variants, write_exposure

from calami.core.images import RateImage
from calami.core.problems import CalamiError, FileProblem
from calami.instrument import niriss
from calami.instrument.migration import (
    MIGRATION_PRESETS,
    Migration,
    charge_ramp,
    interpixel_capacitance,
    migration_flow,
)
from calami.migration.kernel import (
    HYPOTHESES,
    Kernel,
    _choose,
    kernel_from_dice,
    kernel_from_diced,
    kernel_from_ramps,
    kernel_table,
    migration_or_nonlinearity,
    patterns,
    undo_capacitance,
)
from calami.migration.pair_kernel import NUISANCES, KernelFit
from calami.migration.ramps import RampStatistics, statistics_of


def statistics(migration="h4rg", loss=0.0, **more):
    """Of simulated ramps, seen through the capacitance, with a quadratic loss left by the correction."""
    reads = interpixel_capacitance(ramps_of(migration=migration, **more) * niriss.GAIN)
    return statistics_of(((reads - loss * reads**2) / niriss.GAIN).astype("float32"), filter="F480M", name="star")


def test_capacitance_can_be_undone():
    image = np.random.default_rng(1).uniform(100, 1e4, (3, 20, 20))
    assert np.allclose(undo_capacitance(interpixel_capacitance(image)), image, rtol=1e-6)
    assert undo_capacitance(image, None) is image


def test_patterns_are_those_of_the_flow():
    light, charge = LIGHT[30:50, 35:55], TAU * 5 * LIGHT[30:50, 35:55]
    found = patterns(light, charge[None], charge[None], None)[:, 0]
    assert np.allclose(found[0], migration_flow(charge, light, 1.0, 0.0))
    assert np.allclose(found[1], migration_flow(charge, light, 0.0, 1.0))
    both = migration_flow(charge, light, 0.3, 0.1, growth=1e-5)
    assert np.allclose(0.3 * found[0] + 0.1 * found[1] + 1e-5 * (0.3 * found[2] + 0.1 * found[3]), both)
    assert np.allclose(found[4], -2 * light * charge)
    assert np.abs(found[:4].sum(axis=(1, 2))).max() < 1e-9 * np.abs(found[:4]).max() * found[0].size


@pytest.mark.parametrize("preset", ["h4rg", "flight"])
def test_the_kernel_is_what_was_put_in_without_noise(preset):
    truth = MIGRATION_PRESETS[preset]
    free = ("edge", "diagonal", "growth") if truth.growth else ("edge", "diagonal")
    found = kernel_from_ramps(statistics(truth, nints=2, groups=14, noise=0.0), free=free)
    for name in free:
        assert found.value(name)[0] == pytest.approx(getattr(truth, name), rel=0.04)
    assert found.migration.edge == found.value("edge")[0]


@pytest.mark.parametrize(
    ("migration", "loss", "answer"),
    [("h4rg", 0.0, "migration"), ("none", 2e-7, "nonlinearity"), ("flight", 2e-7, "both"), ("none", 0.0, "neither")],
)
def test_verdicts(migration, loss, answer):
    found = migration_or_nonlinearity(statistics(migration, loss, nints=60, groups=12), n_bootstrap=50)
    assert found.answer == answer
    if answer != "both":  # what is lost by both is a small part of what migrates
        assert found.conserved == (loss == 0)
    assert (found.log10_odds > 2) == (migration != "none")
    assert found.superlinear == (migration == "flight") and str(found.kernel)
    assert len(found.table()) == 9 and "9×9 sum" in found.sentence


def test_errors_are_those_of_repetition():
    held = [kernel_from_ramps(statistics(nints=40, groups=8, seed=s), free=("edge", "diagonal")) for s in range(10)]
    values, errors = np.array([k.values for k in held]), np.mean([k.errors for k in held], axis=0)
    assert np.all(np.abs(np.log(values.std(axis=0, ddof=1) / errors)) < 0.6)
    assert np.abs(values.mean(axis=0) - (0.39e-6, 0.10e-6)).max() < 4 * errors.max() / np.sqrt(10)
    assert held[0].covariance[0, 1] < 0  # what goes across a corner might have gone across edges


def test_few_integrations_have_errors_too():
    found = kernel_from_ramps(statistics(nints=3, groups=10), free=("edge", "diagonal", "growth", "nonlinearity"))
    assert np.all(found.errors > 0) and found.covariance.shape == (4, 4)


def test_bad_pixels_and_their_neighbours_are_left_out():
    ramps = ramps_of(nints=30, groups=8)
    flags = np.zeros((80, 80), "uint32")
    flags[42, 46] = niriss.DO_NOT_USE
    ramps[:, :, 42, 46] = 5e3 * np.arange(8)
    one, other = (statistics_of(ramps, pixeldq=f) for f in (flags, None))
    good = kernel_from_ramps(one, free="edge", ipc=None)
    assert good.value("edge")[0] == pytest.approx(0.5e-6, rel=0.5)  # the edges take over what corners do
    assert good.chi2 < 1.3 * good.dof
    assert kernel_from_ramps(other, free="edge", ipc=None).value("edge")[0] < 0.1e-6  # as if it gave nothing


def test_the_simpler_hypothesis_wins_unless_odds_are_high():
    assert _choose({"neither": 0, "nonlinearity": -5, "migration": -5.9, "both": -5}) == "neither"
    assert _choose({"neither": 0, "nonlinearity": -50, "migration": -100, "both": -104}) == "migration"
    assert _choose({"neither": 0, "nonlinearity": -50, "migration": -100, "both": -107}) == "both"
    assert set(HYPOTHESES) == {"neither", "nonlinearity", "migration", "both"}


def chunks_of(migration="h4rg", bounds=((1, 5), (6, 12)), noise=0.0):
    """Count-rate images of chunks of noise-free ramps, with the errors of 100 integrations."""
    charge = interpixel_capacitance(charge_ramp(LIGHT, TAU * np.arange(1, bounds[-1][1] + 1), migration, steps=6))
    rng, made = np.random.default_rng(1), []
    for first, last in bounds:
        seconds = (last - first) * TAU
        rate = (charge[last - 1] - charge[first - 1]) / seconds
        error = np.sqrt((rate * seconds + 2 * niriss.READ_NOISE_E**2) / 100) / seconds
        rate = rate + noise * error * rng.standard_normal(rate.shape)
        made.append((RateImage(rate / niriss.GAIN, error / niriss.GAIN, np.ones(rate.shape, bool)), first, last))
    return made


@pytest.mark.parametrize("bounds", [((1, 5), (6, 12)), ((1, 4), (5, 8), (9, 12))])
def test_the_kernel_of_diced_images(bounds):
    found = kernel_from_diced(chunks_of(bounds=bounds))
    assert found.value("edge")[0] == pytest.approx(0.39e-6, rel=0.03)
    assert found.value("diagonal")[0] == pytest.approx(0.10e-6, rel=0.06) and found.source == "diced"
    noisy = kernel_from_diced(chunks_of(bounds=bounds, noise=1.0))
    assert np.all(np.abs(noisy.values - found.values) < 4 * noisy.errors) and 0.7 < noisy.chi2 / noisy.dof < 1.4


def test_the_kernel_of_diced_files(tmp_path):
    paths = []
    for number, (image, first, last) in enumerate(chunks_of(noise=1.0), 1):
        arrays = {"SCI": image.value, "ERR": image.error, "DQ": np.zeros(image.value.shape, "uint32")}
        path = write_exposure(tmp_path / f"{rootname()}_dice{number}of2_rate.fits", arrays, {"BUNIT": "DN/s"})
        with fits.open(path, mode="update") as hdus:
            hdus[0].header["CLMGRPS"] = f"{first}-{last} of 12"
        paths.append(path)
    found = kernel_from_dice(paths)
    assert np.all(np.abs(found.values - (0.39e-6, 0.10e-6)) < 4 * found.errors) and found.filter == "F480M"
    for path in paths:  # a chunk in two segments of as many integrations is one chunk
        for number in (1, 2):
            with fits.open(path) as hdus:
                hdus[0].header.update({"INTSTART": 50 * number - 49, "INTEND": 50 * number})
                hdus["ERR"].data = hdus["ERR"].data * np.sqrt(2).astype(hdus["ERR"].data.dtype)
                hdus.writeto(path.with_name(path.name.replace("_nis_", f"-seg00{number}_nis_")))
    again = kernel_from_dice(sorted(tmp_path.glob("*-seg*")))
    assert np.allclose(again.values, found.values, rtol=1e-3) and np.allclose(again.errors, found.errors, rtol=1e-3)
    whole = write_exposure(tmp_path / f"{rootname(activity=3)}_rate.fits")
    with pytest.raises(FileProblem, match="CLMGRPS"):
        kernel_from_dice([whole, paths[0]])


def test_a_pair_in_the_common_form(tmp_path):
    image = np.zeros((3, 3))
    names = ("edge", "diagonal", "growth", "cubic", *NUISANCES)
    covariance = np.diag([1.0, 4.0, 9.0, *[1.0] * 6])
    fit = KernelFit(
        Migration(3e-7, 1e-7), names, np.arange(9.0), np.ones(9), covariance, 0.01, 10.0, 5.0, 50, 9, image, image,
        image, image, image > 0, image,
    )  # fmt: skip
    pair = Kernel.of_pair(fit, "F480M", ("a", "b"))
    assert pair.names == ("edge", "diagonal", "growth", "cubic") and pair.covariance.shape == (4, 4) and pair.dof == 41
    diced = kernel_from_diced(chunks_of())
    table = kernel_table([pair, diced])
    table.write(tmp_path / "cm_kernel.ecsv")
    assert list(table["source"]) == ["pair", "diced"] and np.isnan(table["growth"][1].value)
    assert str(table["edge"].unit) == "1 / electron" and len(pair.table()) == 1


def test_what_cannot_be_answered():
    two = statistics(nints=10, groups=2)
    with pytest.raises(CalamiError, match="two group differences below saturation"):
        migration_or_nonlinearity(two)
    with pytest.raises(CalamiError, match="free coefficients are of"):
        kernel_from_ramps(statistics(nints=10, groups=4), free=("edge", "colour"))
    with pytest.raises(CalamiError, match="two chunks or more"):
        kernel_from_diced(chunks_of()[:1])
    flags = np.where(np.indices((80, 80)).sum(axis=0) % 2, 0, niriss.DO_NOT_USE)  # every pixel has a bad neighbour
    with pytest.raises(CalamiError, match="all its neighbours good"):
        migration_or_nonlinearity(statistics_of(ramps_of(nints=10, groups=6), pixeldq=flags))


def test_the_figure():
    import matplotlib.pyplot as plt

    ax = migration_or_nonlinearity(statistics(nints=10, groups=5), n_bootstrap=10).plot()
    assert "distance" in ax.get_xlabel()
    plt.close(ax.figure)


# Statistics drawn around noise-free ramps: what errors are worth, and what is claimed of noise.

BOTH = ("edge", "diagonal")


def mean_reads(migration="h4rg", loss=0.0, groups=8):
    """Noise-free reads, ADU, of 19 × 19 pixels around the star, with a quadratic loss."""
    signal = interpixel_capacitance(charge_ramp(LIGHT, TAU * np.arange(1, groups + 1), migration, steps=6))
    signal = signal[:, 31:50, 36:55]
    return (signal - loss * signal**2) / niriss.GAIN


def drawn_box(rng, reads, nints=200, blocks=20):
    """Statistics whose sums over blocks are drawn around mean reads, with photon and read noise."""
    n, read_noise, shape = nints // blocks, niriss.READ_NOISE_E / niriss.GAIN, (blocks, *reads.shape)
    step = np.diff(reads, axis=0, prepend=0.0)
    photons = np.sqrt(n * np.maximum(step, 0) / niriss.GAIN) * rng.standard_normal(shape)
    sums = n * reads + np.cumsum(photons, axis=1) + np.sqrt(n) * read_noise * rng.standard_normal(shape)
    total = np.diff(sums, axis=1)
    variance = np.maximum(step[1:], 0) / niriss.GAIN + 2 * read_noise**2
    square = total.sum(axis=0) ** 2 / nints + (nints - 1) * variance
    count, usable = np.full(total.shape, n), np.ones(square.shape, bool)
    return RampStatistics(
        "star", "F480M", "", "", TAU, (31, 36), (9, 9), nints, count[:, 0], sums[:, 0], count, total, square, usable
    )


def test_covariance_and_errors_are_those_of_draws():
    # 200 draws: errors, their correlation, and how often they hold the truth.
    rng, reads = np.random.default_rng(1), mean_reads(groups=6)
    held = [kernel_from_ramps(drawn_box(rng, reads), free=BOTH, n_bootstrap=100, seed=k) for k in range(200)]
    values, seen = np.array([k.values for k in held]), np.mean([k.covariance for k in held], axis=0)
    scatter = np.cov(values.T)
    assert np.sqrt(np.diag(seen)) == pytest.approx(np.sqrt(np.diag(scatter)), rel=0.12)
    assert seen[0, 1] / np.sqrt(seen[0, 0] * seen[1, 1]) == pytest.approx(np.corrcoef(values.T)[0, 1], abs=0.05)
    truth = np.array([MIGRATION_PRESETS["h4rg"].edge, MIGRATION_PRESETS["h4rg"].diagonal])
    inside = np.abs(values - truth) < np.array([k.errors for k in held])
    assert np.abs(inside.mean(axis=0) - 0.68).max() < 0.08, inside.mean(axis=0)


def test_resampled_errors_are_those_of_leaving_out_blocks():
    # The scatter of a mean of n blocks has n - 1 in it: with 4 blocks, errors are 15 % larger than with n.
    ratios = []
    for seed in range(6):
        stats = drawn_box(np.random.default_rng(seed), mean_reads(), 20, 4)
        error = jackknife(stats, lambda one: kernel_from_ramps(one, free=BOTH, n_bootstrap=0).values)
        ratios.append(kernel_from_ramps(stats, free=BOTH, n_bootstrap=3000).errors / error)
    assert np.mean(ratios, axis=0) == pytest.approx([1, 1], abs=0.05)


def cut(image):
    """The 13 × 13 pixels around the star."""
    return RateImage(*(np.ascontiguousarray(a[34:47, 39:52]) for a in (image.value, image.error, image.good)))


def test_the_covariance_of_diced_images_agrees_with_a_numerical_jacobian():
    # The variance of each pixel of each image, taken through the fit by moving one value after the other.
    chunks = [(cut(image), first, last) for image, first, last in chunks_of()]
    rows, columns = np.indices(chunks[0][0].value.shape)
    covariance = np.zeros((2, 2))
    for n, (image, first, last) in enumerate(chunks):
        for place in np.argwhere(np.hypot(rows - 6, columns - 6) < 3.5):  # pixels that are fitted, and their neighbours
            moved = []
            for move in (-1, 1):
                value = image.value.copy()
                value[*place] += move * image.error[*place]
                parts = [*chunks[:n], (replace(image, value=value), first, last), *chunks[n + 1 :]]
                moved.append(kernel_from_diced(parts, radius=2).values)
            slope = (moved[1] - moved[0]) / 2
            covariance += np.outer(slope, slope)
    assert kernel_from_diced(chunks, radius=2).covariance == pytest.approx(covariance, rel=0.05)


@pytest.mark.parametrize("preset", ["h4rg", "flight"])
def test_patterns_are_what_the_rates_of_a_ramp_change_by(preset):
    # Of a ramp that is followed finely: between its ends a difference feels the charge of before, after and between.
    truth = MIGRATION_PRESETS[preset]
    signal = charge_ramp(LIGHT, TAU * np.arange(1, 8), truth, steps=20)
    found = patterns(LIGHT, signal[:-1], signal[1:], None)
    change = found[0] * truth.edge + found[1] * truth.diagonal
    change = change + truth.growth * (found[2] * truth.edge + found[3] * truth.diagonal)
    seen = np.diff(signal, axis=0) / TAU - LIGHT
    assert np.abs(change - seen)[:, 40, 45].max() < 0.05 * np.abs(seen[:, 40, 45]).max()


def test_a_loss_of_the_charge_squared_or_cubed_is_found_as_put_in():
    # What is read is q - a q²; a difference of two reads loses a (q2² - q1²), not twice what the first has lost.
    charge = TAU * LIGHT * np.arange(1, 6)[:, None, None]
    lost = -np.diff(charge**2, axis=0) / TAU
    assert np.allclose(patterns(LIGHT, charge[:-1], charge[1:], None)[4], lost)
    assert np.allclose(patterns(LIGHT, charge[:-1], charge[1:], None)[5], -np.diff(charge**3, axis=0) / TAU)
    stats = statistics("none", 2e-7, nints=2, groups=8, noise=0.0)
    assert kernel_from_ramps(stats, free="nonlinearity").value("nonlinearity")[0] == pytest.approx(2e-7, rel=0.02)


def test_scatter_that_nothing_explains_is_no_evidence():
    # 20 draws of rates that differ from read to read, the same in all integrations, by four times the noise.
    answers = []
    flat = mean_reads("none")
    step = np.diff(flat, axis=0, prepend=0.0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        odd = flat + np.cumsum(4 * np.sqrt(step / niriss.GAIN / 200) * rng.standard_normal(step.shape), axis=0)
        answers.append(migration_or_nonlinearity(drawn_box(rng, odd), n_bootstrap=0).answer)
    assert answers.count("neither") >= 19, answers


def test_a_flow_towards_the_brighter_pixel_is_no_migration():
    uphill = 2 * mean_reads("none") - mean_reads("h4rg")  # the peak gains what it would have lost
    found = migration_or_nonlinearity(drawn_box(np.random.default_rng(1), uphill, 1000), n_bootstrap=0)
    assert found.peak[0] > 4 * found.peak[1]  # seen beyond doubt
    assert found.answer in ("neither", "nonlinearity") and found.log10_odds <= 0


# --- ramps of a simulator that shares nothing with calami ------------------------------------------------------------


def foreign_statistics(law, seed=5, band="F480M", change=None, **more):
    """Of a program of `foreign`."""
    physics = replace(foreign.LAWS[law], **(change or {}))
    program = foreign.program_of(seed, physics, band, **more)
    return [
        statistics_of(ramps, filter=facts["filter"], name=facts["name"])
        for ramps, facts in zip(program.ramps, program.facts, strict=True)
    ]


@pytest.mark.parametrize("band", [pytest.param("F380M", marks=pytest.mark.slow), "F480M"])
def test_the_kernel_of_light_that_falls_on_edges(band):
    # The mean of two pixels gave 0.38e-6 for an edge of 0.6e-6, and a growth that is not there.
    stats = foreign_statistics("linear", band=band, photons=8.0, depths=(10, 16))
    found = kernel_from_ramps(stats, free=("edge", "diagonal"))
    assert found.value("edge")[0] == pytest.approx(0.6e-6, rel=0.05)
    assert abs(found.value("diagonal")[0] - 0.15e-6) < 3 * found.value("diagonal")[1] + 0.01e-6
    grown = kernel_from_ramps(stats, free=("edge", "diagonal", "growth"))
    assert grown.value("growth")[0] < 2 * grown.value("growth")[1]
    verdict = migration_or_nonlinearity(stats)
    assert verdict.answer == "migration" and not verdict.superlinear and verdict.known and verdict.chi2_per_dof < 1.1


@pytest.mark.parametrize("band", ["F380M", "F430M", "F480M"])
def test_the_kernel_of_ramps_without_noise_is_as_far_off_as_its_errors_say(band):
    stats = foreign_statistics("linear", band=band, depths=(6, 16), change={"noise": False}, photons=0.01)
    found = kernel_from_ramps(stats, free=("edge", "diagonal", "growth"), read_pattern=False)
    off = np.abs(found.values - (0.6e-6, 0.15e-6, 0.0))
    assert (off < 2.5 * found.errors).all() and found.errors == pytest.approx((0.006e-6, 0.003e-6, 2e-7), rel=0.2)


def test_a_growth_next_to_zero_has_an_error_on_both_sides():
    # Resamples that stopped at 0 gave growths of 0.000 ± 0.002 in such programs.
    stats = foreign_statistics("linear", seed=5, band="F430M", depths=(6, 16))
    found = kernel_from_ramps(stats, free=("edge", "diagonal", "growth"))
    value, error = found.value("growth")
    assert value == 0 and 0.6e-6 < error < 2e-6 and f"growth < {2e6 * error:.2g}e-6" in str(found)
    assert found.covariance[0, 2] < -0.2 * found.errors[0] * error


def test_an_offset_of_the_first_reads_is_no_migration():
    verdict = migration_or_nonlinearity(foreign_statistics("none", change={"first": 25.0}))
    assert verdict.answer == "neither" and verdict.known
    doubtful = replace(verdict, answer="both", aperture=(0.01, 1e-4), peak=(-0.02, 1e-4))
    doubtful = replace(doubtful, kernel=replace(verdict.kernel, chi2=6.4 * verdict.kernel.dof))
    assert not doubtful.known
    assert "cannot be told apart" in doubtful.sentence and "odds" not in doubtful.sentence


@pytest.mark.slow
def test_a_nonlinearity_that_does_not_matter_is_not_in_the_answer():
    # 0.1 % at 48 ke-, as an over-careful fit would find it in ten times the usual photons.
    stats = foreign_statistics("linear", change={"nonlinear": 2e-8}, photons=10.0, depths=(10, 16))
    verdict = migration_or_nonlinearity(stats)
    assert verdict.answer == "migration" and verdict.minor == ("nonlinearity",)
    assert "nonlinearity as well, of less than 0.2 %" in verdict.sentence
    assert migration_or_nonlinearity(foreign_statistics("linear", change={"nonlinear": 2e-7})).answer == "both"


def test_words_for_growth_at_the_most_that_is_tried():
    found = kernel_from_ramps(statistics())
    top = replace(found, names=("edge", "growth"), values=np.array([1e-7, 3e-4]), errors=np.zeros(2))
    assert top.at_bound and "growth > 300e-6" in str(top) and "± 0.000" not in str(top).split("growth")[1]
    assert not replace(top, values=np.array([1e-7, 1e-5])).at_bound


def test_ramps_that_no_law_describes():
    verdict = migration_or_nonlinearity(foreign_statistics("threshold", change={"converter": 2.0}))
    assert verdict.answer in ("migration", "both") and verdict.known and not verdict.describes
    assert "No law that is known here describes the ramps" in verdict.sentence and "odds" not in verdict.sentence


@pytest.mark.parametrize(
    ("law", "nonlinear", "answer"), variants(("threshold", 0.0, "migration"), ("linear", 2e-7, "both"))
)
def test_a_law_that_is_not_known_is_no_nonlinearity(law, nonlinear, answer):
    """What only moves charge leaves the sum of the core; what loses it does not."""
    made = foreign.program_of(5, replace(foreign.LAWS[law], nonlinear=nonlinear), "F430M")
    stats = [statistics_of(r, **f) for r, f in zip(made.ramps, made.facts, strict=True)]
    assert migration_or_nonlinearity(stats, n_bootstrap=50).answer == answer
    assert ("nonlinearity" in kernel_from_ramps(stats, n_bootstrap=50).names) == (answer == "both")


def test_a_small_edge_with_a_large_growth_is_hardly_another_flow(monkeypatch):
    """Draws whose growing part, edge × growth, is the same in all: the covariance knows it, too."""
    from types import SimpleNamespace

    from calami.migration import kernel as module

    rng = np.random.default_rng(2)
    edge = 0.6 * np.exp(0.6 * rng.normal(size=300))
    draws = np.column_stack([edge, rng.normal(0.3, 0.02, 300), 0.6 * 1.5e-5 / edge])
    monkeypatch.setattr(module, "_best", lambda *_: (draws, None))
    monkeypatch.setattr(module, "_resampled_right", lambda *_: None)
    values, names = np.array([0.6, 0.3, 1.5e-5]), ("edge", "diagonal", "growth")
    found = module._covariance(SimpleNamespace(blocks=[range(9)]), names, values, 1.0, module.KernelOptions())
    along = np.array([values[2], 0.0, values[0]])  # by how much edge × growth changes
    assert along @ found @ along < 1e-6 * (values[0] * values[2]) ** 2
    assert found[0, 0] == pytest.approx(np.var(edge, ddof=1)) and found[2, 2] > 0
