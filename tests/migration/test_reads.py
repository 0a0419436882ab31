"""What reads add, laws that are none of ours: ramps of the second simulator, one program each."""

from dataclasses import replace

import foreign
import numpy as np
import pytest
from toys import rootname, variants, write_exposure

from calami.core.problems import CalamiError
from calami.instrument import niriss
from calami.instrument.converter import ADC_WAVE
from calami.migration.kernel import (
    PATTERNS,
    KernelOptions,
    _gathered,
    _in_core,
    _pooled,
    _prepared,
    _resampled_right,
    kernel_from_ramps,
    migration_or_nonlinearity,
)
from calami.migration.onset import _curve, _fit_free, _Group, _pool, _wave_amplitude, _without_patterns, quantify
from calami.migration.ramps import (
    RampStatistics,
    _fit_persistence,
    _medians,
    _released,
    read_pattern,
    statistics_of,
    unsure_pattern,
    without_pattern,
)
from calami.process.converter import correct_converter, measure_converter


def program(law, seed=1, **nuisance):
    """Statistics of a program, and its true levels."""
    made = foreign.program_of(seed, replace(foreign.LAWS[law], **nuisance))
    return [statistics_of(r, **f) for r, f in zip(made.ramps, made.facts, strict=True)], made


def levels(stats, made, **options):
    """Levels over truth, and the result of the filter."""
    found = quantify(stats, n_bootstrap=100, **options).filters["F480M"]
    true = made.levels(found.weights)
    crossings = found.crossings(foreign.THRESHOLDS, ["instantaneous"])
    return np.array([c.level_e / true[c.threshold] for c in crossings]), found


def test_additive_first_reads_are_measured_in_faint_pixels_and_leave_no_trace():
    offset, made = program("linear", first=25.0)
    clean, _ = program("linear")
    pattern = read_pattern(offset)
    expected = np.diff(25 * np.exp(-np.arange(6) / 1.5)) / niriss.GAIN
    assert np.abs(pattern.additive[:5] - expected).max() < 5 * pattern.additive_error[0] < 1.0
    assert "common to all pixels" in pattern.notes[0]
    with_it, without, never = (
        levels(s, made, read_pattern=r)[0] for s, r in ((offset, True), (offset, False), (clean, True))
    )
    assert np.abs(with_it - never).max() < 0.02 and without[1] > 1.15


def test_what_was_subtracted_once_is_not_subtracted_again():
    stats, _ = program("none", first=15.0)
    once = [without_pattern(s, read_pattern(stats)) for s in stats]
    again = read_pattern(once)
    assert np.abs(again.additive).max() < 1e-4 and again.persistence < 1e-3
    mean, scatter = once[0].means(), once[0].scatter()
    assert np.allclose(scatter, stats[0].scatter(), rtol=1e-6) and np.isfinite(mean[:, 9, 9]).all()


@pytest.mark.parametrize(
    "nuisance",
    variants(
        {"first": -15.0, "first_groups": 2.5},
        {"first": 25.0},
        {"persistence": 1e-3},
        {"converter": 2.0},
        {"stripes": 6.0},
    ),
)
def test_nuisances_of_reads_are_neither_migration_nor_nonlinearity(nuisance):
    stats, _ = program("none", **nuisance)
    found = quantify(stats, n_bootstrap=100)
    assert found.filters["F480M"].significance < 3 and not found.filters["F480M"].flags
    assert migration_or_nonlinearity(found.statistics, n_bootstrap=50).answer == "neither"


def test_persistence_is_what_differs_between_depths():
    pattern = read_pattern(program("threshold", persistence=1e-3)[0])
    assert pattern.persistence == pytest.approx(1e-3, abs=4 * pattern.persistence_error)
    assert pattern.persistence > 3 * pattern.persistence_error and "persistence of 0.1" in pattern.notes[-1]
    nothing = read_pattern(program("threshold")[0])
    assert nothing.persistence < 3 * nothing.persistence_error and not nothing.notes
    single = read_pattern(program("none")[0][:1])
    assert single.persistence == 0 and single.persistence_error == np.inf


def relative_rates(rng, fraction, scatter=1.0, drift=0.0):
    """Relative rates of eight exposures of two pointings, with persistence; `drift` is the scatter of their rates."""
    sums = []
    for _ in range(2):
        sums.append([])
        for differences in (3, 6, 10, 16):
            error = np.full(differences, 2e-4)
            value = 1 + drift * rng.standard_normal() + scatter * error * rng.standard_normal(differences)
            value += fraction * (differences + 1) * _released(differences, 5.0)
            sums[-1].append((value, error, differences + 1))
    return sums


def test_scatter_of_a_bad_fit_is_no_reason_for_exposures_to_have_rates_of_their_own():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        value, error, *_ = _fit_persistence(relative_rates(rng, 1e-3, scatter=1.6), 5.0)
        assert value == pytest.approx(1e-3, abs=4 * error) and error < 1.5e-4
        value, error, *_ = _fit_persistence(relative_rates(rng, 0.0, drift=2e-3), 5.0)
        assert value == 0 and error > 1.8e-4  # rates differ by themselves: what remains says little


def without_block(stats, block):
    """Statistics without one block of integrations."""
    sums = {name: np.delete(getattr(stats, name), block, axis=0) for name in ("first_count", "first_sum")}
    sums |= {name: np.delete(getattr(stats, name), block, axis=0) for name in ("count", "total")}
    return replace(stats, **sums, nints=int(sums["count"].sum(axis=0).max()))


def test_it_is_known_which_blocks_the_persistence_is_from():
    """Without a block it is what remains: so what is made of the same blocks can know what it shares with it."""
    stats, _ = program("none", persistence=1e-3)
    pattern, found = read_pattern(stats), []
    for k in (0, 3, 6):
        for block in range(0, stats[k].blocks, 3):
            others = [without_block(s, block) if n == k else s for n, s in enumerate(stats)]
            moved = (pattern.persistence - read_pattern(others).persistence) / pattern.persistence_error
            found.append((moved, pattern.shares[k][block]))
    moved, said = np.transpose(found)
    assert np.corrcoef(moved, said)[0, 1] > 0.95 and np.polyfit(said, moved, 1)[0] == pytest.approx(1, abs=0.15)
    assert all(abs(shares.sum()) < 1e-9 for shares in pattern.shares)


def test_errors_of_a_loss_follow_blocks_through_the_persistence_that_they_make(monkeypatch):
    """Without a block the loss is what its part of the equations says, which holds what it did to the persistence."""
    monkeypatch.setattr("calami.migration.kernel.noise_factor", lambda _: 1.0)  # exposures weigh the same
    stats, options, found = program("none", persistence=1e-3, nonlinear=2e-7)[0], KernelOptions(), []

    def equations(some):
        return _gathered(_prepared(some, options)[1], options, ("nonlinearity",))

    eq, own = equations(stats), PATTERNS.index("nonlinearity")
    draws = _resampled_right(eq, 400, 0)[:, own] / eq.normal[own, own]
    for k in (1, 6):
        for block in range(0, stats[k].blocks, 5):
            other = equations([without_block(s, block) if n == k else s for n, s in enumerate(stats)])
            moved = eq.right[own] / eq.normal[own, own] - other.right[own] / other.normal[own, own]
            said = (eq.blocks[k][block] - eq.released[k][block] * eq.unsure)[own] / eq.normal[own, own]
            found.append((moved, said, eq.blocks[k][block, own] / eq.normal[own, own]))
    # A shorter exposure weighs less, whichever block is left out
    moved, said, without = (
        np.subtract(a, np.mean(a, axis=1, keepdims=True)) for a in np.array(found).T.reshape(3, 2, -1)
    )
    assert (
        np.std(moved - said) < 0.5 * np.std(moved - without) and np.corrcoef(moved.ravel(), said.ravel())[0, 1] > 0.95
    )
    parts = [b[:, own] - r * eq.unsure[own] for b, r in zip(eq.blocks, eq.released, strict=True)]
    spread = np.sqrt(sum(len(part) * part.var(ddof=1) for part in parts)) / eq.normal[own, own]
    assert draws.std() == pytest.approx(spread, rel=0.1)


@pytest.mark.slow
def test_what_is_not_known_of_persistence_is_in_the_errors_of_a_loss():
    """A tenth of its charge comes in with the first reads: a loss is uncertain by what persistence makes of it."""
    stats = [without_pattern(s, read_pattern(program("none")[0])) for s in program("none", nonlinear=2e-7)[0]]
    unsure = [replace(s, persistence=(2e-3, 5.0)) for s in stats]
    more = [without_pattern(s, unsure_pattern(s)) for s in unsure]
    sure = [replace(s, persistence=(0.0, 5.0)) for s in stats]
    options = {"free": "nonlinearity", "read_pattern": False}
    for draws, within in ((0, 0.02), (400, 0.2)):
        known, loss, other = (kernel_from_ramps(some, n_bootstrap=draws, **options) for some in (sure, unsure, more))
        by_persistence = abs(other.values[0] - loss.values[0])
        assert by_persistence > 3 * known.errors[0]
        assert loss.errors[0] == pytest.approx(np.hypot(known.errors[0], by_persistence), rel=within)
    found = (migration_or_nonlinearity(some, n_bootstrap=0, read_pattern=False) for some in (sure, unsure, more))
    change, doubted, other = found
    made = other.peak[0] - change.peak[0]
    assert abs(made) > 2.5 * change.peak[1]
    assert doubted.peak[1] == pytest.approx(np.hypot(change.peak[1], made), rel=0.02)
    assert doubted.persistence > 3 * change.aperture[1]


def test_a_rate_that_changes_is_no_scatter_of_blocks_of_unequal_size():
    """Thirty integrations in 24 blocks, of one and two, without noise: nothing scatters."""
    quiet = replace(foreign.LAWS["none"], noise=False, nonlinear=2e-7)
    light = foreign.light_of("F480M", (15.0, 15.0)).scaled(3e3)
    ramps = np.repeat(foreign.reads_of(light, 12, 1, quiet, np.random.default_rng(1)), 30, axis=0)
    kernel = kernel_from_ramps(statistics_of(ramps, filter="F480M"), free="nonlinearity", read_pattern=False)
    assert kernel.values[0] == pytest.approx(2e-7, rel=0.03) and kernel.errors[0] < 1e-3 * kernel.values[0]


def test_nonlinearity_is_not_claimed_where_persistence_is_as_large():
    stats, _ = program("none", nonlinear=2e-7)
    found = migration_or_nonlinearity(stats, n_bootstrap=0)
    assert found.answer == "nonlinearity" and 0 < found.persistence < 0.1 * -found.aperture[0]
    assert "several depths" not in found.sentence
    unsure = [replace(s, persistence=(0.02, 5.0)) for s in stats]
    doubted = migration_or_nonlinearity(unsure, n_bootstrap=0, read_pattern=False)
    assert doubted.answer == "neither" and "what persistence may do (± " in doubted.sentence
    assert 3 * doubted.persistence > -doubted.aperture[0]
    single = migration_or_nonlinearity([s for s in stats if s.differences == stats[-1].differences], n_bootstrap=0)
    assert single.answer == "nonlinearity" and np.isinf(single.persistence)
    assert "exposures of several depths would tell" in single.sentence


@pytest.mark.parametrize("seed", [61007, pytest.param(61008, marks=pytest.mark.slow)])
def test_a_loss_that_is_cubic_is_no_migration(seed):
    band = tuple(foreign.BANDS)[seed % len(foreign.BANDS)]
    made = foreign.program_of(seed, replace(foreign.LAWS["none"], cubic=3e-12), band)
    stats = [statistics_of(r, **f) for r, f in zip(made.ramps, made.facts, strict=True)]
    found = migration_or_nonlinearity(stats, n_bootstrap=0)
    assert found.answer == "nonlinearity" and found.steady
    forced = kernel_from_ramps(stats, free=("nonlinearity", "cubic"), n_bootstrap=100)
    value, error = forced.value("cubic")
    assert abs(value - 3e-12) < 4 * error and forced.table()["cubic"].unit == "electron-2"


def test_a_threshold_is_seen_by_a_curve_that_is_free():
    ratio, found = levels(*program("threshold"))
    assert found.law == "free" and np.abs(ratio - 1).max() < 0.05
    assert any("no law fits" in note for note in found.notes) and "free curve, χ²" in found.sentence
    polynomial, poor = levels(*program("threshold"), law="quadratic")
    assert "fit is poor" in poor.flags[0] and "doubtful" in poor.sentence and np.abs(polynomial - 1).max() > 0.1


def test_pointings_that_lose_unlike_amounts_beyond_a_threshold_are_no_poor_fit():
    # The star lies elsewhere in a pixel, so the neighbours pass the threshold at another signal of the peak.
    made = foreign.program_of(2054, foreign.LAWS["threshold"], "F430M")
    stats = [statistics_of(r, **f) for r, f in zip(made.ramps, made.facts, strict=True)]
    found = quantify(stats, n_bootstrap=100).filters["F430M"]
    assert found.law == "free" and not found.flags and found.chi2 < 1.3 * found.dof


def test_a_kink_is_found_between_the_knots_and_its_place_is_drawn():
    ends = np.linspace(0, 3, 31)
    low, high, noise = ends[None, :-1], ends[None, 1:], 0.6
    mean = (np.maximum(high - 1.3, 0) ** 2 - np.maximum(low - 1.3, 0) ** 2) / 0.2
    rate = 500 * (1 - 0.02 * mean) / noise + np.zeros((300, 1))
    rate[1:] += np.random.default_rng(3).normal(size=(299, 30))
    low, high = (np.repeat(a, 300, axis=0) for a in (low, high))
    theta, chi2, *_ = _fit_free([_Group(rate, low, high, np.eye(30) / noise, np.ones(300))], 3.0)
    true = 0.02 * np.maximum(3.0 * np.arange(1, theta.shape[1] + 1) / theta.shape[1] - 1.3, 0)
    assert np.abs(theta[0] - true).max() < 6e-4 and chi2[0] < 0.5
    assert np.sqrt(((theta[1:] - true) ** 2).mean(axis=0)).max() < 1.2e-3
    assert len(np.unique((theta > 1e-4).argmax(axis=1))) > 15


@pytest.mark.parametrize("law", variants("own", "linear", "long"))
def test_smooth_laws_need_no_free_curve(law):
    ratio, found = levels(*program(law))
    assert found.law == "quadratic" and not found.flags and np.abs(ratio - 1).max() < 0.15


def test_a_free_curve_only_falls_and_is_right_for_a_smooth_law():
    ratio, found = levels(*program("linear"), law="free")
    assert (np.diff(found.resampled, axis=1) >= -1e-9).all() and np.abs(ratio - 1).max() < 0.3
    with pytest.raises(CalamiError, match="the law is auto, free"):
        levels(*program("linear"), law="stepwise")


@pytest.mark.parametrize("law", variants("growing", "linear"))
def test_a_free_curve_that_is_asked_for_is_no_more_certain_than_the_law(law):
    # The damping alone made intervals of two thirds of the length.
    stats, made = program(law, seed=3)
    lengths = []
    for chosen in ("free", "quadratic"):
        found = quantify(stats, n_bootstrap=200, law=chosen).filters["F480M"]
        true, one = made.levels(found.weights), found.crossings(foreign.THRESHOLDS, ["instantaneous"])
        lengths.append([np.log(c.hi68_adu / c.lo68_adu) for c in one])
        assert all(c.lo95_adu < true[c.threshold] / niriss.GAIN < c.hi95_adu for c in one)
    assert (np.array(lengths[0]) > 0.85 * np.array(lengths[1])).all()


@pytest.mark.parametrize("nuisance", variants({"first": -15.0, "first_groups": 2.5}, {"first": 5.0}))
def test_levels_with_other_first_reads_are_those_without(nuisance):
    (ratio, found), (clean, _) = (levels(*program("linear", **more)) for more in (nuisance, {}))
    assert found.law == "quadratic" and not found.flags and np.abs(ratio / clean - 1).max() < 0.02


def test_levels_with_stripes_are_within_their_intervals():
    stats, made = program("linear", stripes=6.0)
    ratio, found = levels(stats, made)
    true, one = made.levels(found.weights), found.crossings(foreign.THRESHOLDS, ["instantaneous"])
    assert all(c.lo95_adu < true[c.threshold] / niriss.GAIN < c.hi95_adu < 1.5 * c.lo95_adu for c in one)
    assert found.law == "quadratic" and not found.flags and np.abs(ratio - 1).max() < 0.1


def test_a_change_that_rests_on_the_first_read_is_doubted():
    stats, made = program("none", first=25.0)
    _, found = levels(stats, made, read_pattern=False)
    assert found.flags, found.significance
    assert "doubtful" in found.sentence


def test_the_converter_moves_levels_less_where_it_is_known():
    # Photon noise drawn, but the same with and without the converter.
    clean, made = program("growing")
    wavy, _ = program("growing", converter=4.0)
    known, unknown = (
        np.abs(levels(wavy, made, converter_adu=a)[0] - levels(clean, made, converter_adu=a)[0]).max() for a in (2, 0)
    )
    assert known < 0.6 * unknown


@pytest.mark.parametrize("amplitude", [0.0, *variants(2.0, 1.0, 4.0)])
def test_bright_pixels_say_how_large_the_wave_is(amplitude):
    stats, _ = program("linear", converter=amplitude)
    found = _wave_amplitude(_without_patterns(stats, []), 2.0)
    assert found == pytest.approx(amplitude, rel=0.3) if amplitude else found < 0.5
    assert _wave_amplitude(stats, 0.0) == 0.0
    assert _wave_amplitude([replace(s, straight=True) for s in stats], 2.0) == 0.0


def test_a_wave_that_was_taken_out_of_the_raw_counts_leaves_no_trace():
    # Raw counts: reads with the bias of each pixel, and the wave as a converter makes it, in proportion to them.
    clean, made = program("linear")
    bias = np.random.default_rng(5).uniform(11_000, 13_000, made.ramps[0].shape[2:])
    raw = [np.rint(ADC_WAVE.distorted(r.astype(float) + bias)) for r in made.ramps]
    fit = measure_converter(raw)
    assert abs(fit.converter.amplitudes[0] - 1.24e-4) < 4 * fit.tested[0, 1] < 3e-5
    straight = [
        replace(statistics_of((correct_converter(r, fit) - bias).astype("float32"), **f), straight=True)
        for r, f in zip(raw, made.facts, strict=True)
    ]
    wavy = [statistics_of((r - bias).astype("float32"), **f) for r, f in zip(raw, made.facts, strict=True)]
    never, with_it, without = (levels(s, made)[0] for s in (clean, straight, wavy))
    plain = levels(wavy, made, converter_adu=0)[0]
    assert np.abs(with_it - never).max() < 0.012
    assert np.abs(with_it - never).max() < 0.5 * np.abs(plain - never).max()
    assert np.abs(without - never).max() < np.abs(plain - never).max()


def test_one_pixel_has_one_phase():
    # Two pointings on one pixel: their resamples have the wave in common.
    stats, _ = program("linear", converter=2.0)
    assert len({s.place for s in stats}) == 1
    curves = {k: _curve(s, 400, 1, 0) for k, s in enumerate(stats)}
    _, shared = _pool(curves, stats, True, 2.0)
    _, none = _pool(curves, stats, True, 0.0)
    moved = [(a.rate - b.rate) @ np.linalg.inv(b.white).T for a, b in zip(shared, none, strict=True)]
    assert all(np.abs(m[0]).max() > 0 for m in moved)
    # Sine and cosine: all that is subtracted from both pointings has two dimensions.
    size = np.linalg.svd(np.concatenate(moved, axis=1), compute_uv=False)
    assert size[2] < 1e-6 * size[0] < size[1]


def test_nonlinearity_is_said_to_change_the_sum():
    stats, made = program("linear", nonlinear=6e-7)
    _, found = levels(stats, made)
    assert any("9×9 sum" in flag for flag in found.flags)


def test_options_of_the_onset_reach_it_from_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from calami import cli
    from calami.migration import answers

    seen = {}
    monkeypatch.setattr(answers, "quantify", lambda ramps, **options: seen.update(options) or refuse())

    def refuse():
        raise CalamiError("seen")

    folder = tmp_path / "ramps"
    folder.mkdir()
    write_exposure(folder / f"{rootname()}_ramp.fits")
    words = ["cm", str(folder), "-o", str(tmp_path / "out"), "--skip-first", "2", "--law", "free", "--keep-reads"]
    assert CliRunner().invoke(cli.app, words).exit_code != 0
    assert (seen["skip_first"], seen["law"], seen["read_pattern"]) == (2, "free", False)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_medians_of_rows_are_those_of_numpy(count):
    values = np.random.default_rng(count).normal(size=(5, count)).astype("float32")
    assert np.array_equal(_medians(values.copy()), np.median(values, axis=1))


def drawn(rng, groups, common, faint=60, blocks=24, each=3, side=9):
    """Statistics of an exposure without any change of its rates; `common` is what all pixels share at a read, ADU."""
    row, col = np.indices((side, side)) - side // 2
    rate = 48e3 / niriss.GAIN / 17 * np.exp(-(row**2 + col**2) / 4) + 2.0
    count = np.full((blocks, groups - 1, side, side), each)
    shared = np.diff(rng.normal(0, common, (blocks, groups)), axis=1)[..., None, None]
    reads = np.diff(rng.normal(0, niriss.READ_NOISE_E / niriss.GAIN, (blocks, groups, side, side)), axis=1)
    photons = np.sqrt(rate / niriss.GAIN) * rng.standard_normal(count.shape)
    total = each * rate + np.sqrt(each) * (photons + reads + shared)
    dark = 1.25 * niriss.READ_NOISE_E / niriss.GAIN / np.sqrt(faint)
    dark = (np.diff(rng.normal(0, dark, (blocks, groups)), axis=1) + shared[..., 0, 0]) / np.sqrt(each)
    mean, error = dark.mean(axis=0), dark.std(axis=0, ddof=1) / np.sqrt(blocks)
    first = np.full((blocks, side, side), each)
    square = each * blocks * rate**2 + np.zeros(count.shape[1:])
    return RampStatistics(
        f"{groups} groups", "F480M", "S", "p", niriss.SUB80.frame_time, (0, 0), (side // 2, side // 2), blocks * each,
        first, first * rate, count, total, square, np.ones(count.shape[1:], bool), faint=np.array([mean, error]),
        faint_blocks=(dark - mean) / blocks,
    )  # fmt: skip


@pytest.mark.parametrize("common", variants(1.5, 0.0))
def test_errors_of_a_sum_hold_what_is_common_to_its_pixels(common):
    """Noise of the faint pixels is in all pixels of a sum; what all pixels share at a read is in neither."""
    rng, found, bare = np.random.default_rng(12), [], []
    for _ in range(300):
        stats = [drawn(rng, groups, common) for groups in (4, 7, 11, 17)]
        pattern = read_pattern(stats)
        stats = [without_pattern(s, pattern, n) for n, s in enumerate(stats)]
        found.append(_pooled(stats, _in_core, 0)[:2])
        bare.append(_pooled([replace(s, read_blocks=np.zeros((0, 0))) for s in stats], _in_core, 0)[1])
    values, errors = np.transpose(found)
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(300)
    assert errors.mean() == pytest.approx(values.std(), rel=0.12)  # three times what 300 draws scatter
    pulls = np.abs(values / errors)
    assert 0.61 < np.mean(pulls < 1) < 0.76 and 0.92 < np.mean(pulls < 2) < 0.985
    assert abs(np.mean(bare) / errors.mean() - 1) > 0.05  # what blocks show of the sum alone


def test_it_is_known_which_blocks_the_pattern_of_the_reads_is_from():
    stats, _ = program("none", first=5.0)
    pattern = read_pattern(stats)
    for k, block in ((0, 3), (5, 7)):
        others = list(stats)
        faint = stats[k].faint - np.array([[1.0], [0.0]]) * stats[k].faint_blocks[block]
        others[k] = replace(stats[k], faint=faint)
        moved = pattern.additive - read_pattern(others).additive
        size = np.dot(moved, pattern.reads[k][block]) / np.dot(moved, moved)
        assert 1 <= size < 1.3 and np.allclose(size * moved, pattern.reads[k][block], atol=1e-9)
    assert all(abs(reads.sum(axis=0)).max() < 1e-6 for reads in pattern.reads)


def test_noise_may_put_persistence_below_nothing():
    """Cut at 0 its mean would lie above 0 where there is none, and a loss would come out too small."""
    found = [_fit_persistence(relative_rates(np.random.default_rng(seed), 0.0), 5.0) for seed in range(200)]
    values, errors = (np.array([getattr(one, name) for one in found]) for name in ("value", "error"))
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(200) and 0.3 < np.mean(values < 0) < 0.7
    assert 0.95 < errors.mean() / values.std() < 1.3  # a χ² below that of noise does not make it smaller
