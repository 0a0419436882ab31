"""The onset of charge migration: what is read of ramps, what is made of it, and what is refused."""

import importlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from toys import nrm_psf, rootname, write_exposure

from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.instrument.migration import charge_ramp, crossings, departure
from calami.migration import onset, ramps
from calami.migration import ramps as migration_ramps
from calami.migration.onset import DEPARTURES, _departures, _levels, quantify
from calami.migration.ramps import RampStatistics, covariance_of_means, ramp_statistics, slope_of_sum, statistics_of

TAU = niriss.SUB80.frame_time
LIGHT = 2.4e6 * nrm_psf(center=(40.1, 45.2))


def ramps_of(light=LIGHT, groups=10, nints=40, migration="h4rg", seed=1, noise=1.0):
    """Linearised reads, ADU, float32, with photon and read noise."""
    rng = np.random.default_rng(seed)
    charge = charge_ramp(light, TAU * np.arange(1, groups + 1), migration)
    step = np.diff(charge, axis=0, prepend=0.0)
    shape = (nints, *step.shape)
    reads = charge + noise * np.cumsum(np.sqrt(np.maximum(step, 0)) * rng.standard_normal(shape), axis=1)
    reads += noise * niriss.READ_NOISE_E * rng.standard_normal(shape)
    return (reads / niriss.GAIN).astype("float32")


def write_ramp(folder, ramps=None, groupdq=None, pixeldq=None, filetype="ramp", activity=2, **cards):
    ramps = ramps_of(nints=12, groups=5) if ramps is None else ramps
    groupdq = np.zeros(ramps.shape, "uint8") if groupdq is None else groupdq
    pixeldq = np.zeros(ramps.shape[2:], "uint32") if pixeldq is None else pixeldq
    arrays = {"SCI": ramps, "PIXELDQ": pixeldq, "GROUPDQ": groupdq}
    cards = {"NINTS": ramps.shape[0], "NGROUPS": ramps.shape[1]} | cards
    return write_exposure(folder / f"{rootname(activity=activity)}_{filetype}.fits", arrays, {"BUNIT": "DN"}, **cards)


@pytest.fixture(scope="module")
def stats():
    return statistics_of(ramps_of(nints=100), filter="F480M", name="star")


def test_file_and_array_give_the_same(tmp_path):
    ramps = ramps_of(nints=15, groups=4)
    path = write_ramp(tmp_path, ramps)
    first, second = ramp_statistics(path), statistics_of(ramps, filter="F480M")
    assert np.array_equal(first.total, second.total) and first.place == second.place == (40, 45)
    assert first.filter == "F480M" and first.target == "HD 36705" and "/1/SUB80/40/45" in first.pointing


def test_sums_are_those_of_the_array(stats):
    ramps = ramps_of(nints=100)
    row, col = stats.place
    mean = np.diff(ramps[:, :, row, col], axis=1).mean(axis=0)
    assert np.allclose(stats.means()[:, *stats.peak], mean, rtol=2e-4)  # but for the few that are rejected
    assert stats.blocks == 24 and stats.count[:, 0, *stats.peak].sum() >= 99


@given(st.integers(1, 60), st.integers(1, 24))
def test_blocks_share_the_integrations_evenly(nints, blocks):
    sums = migration_ramps._Sums(nints, 3, (2, 2), blocks, 1e9)
    parts = migration_ramps._parts(nints, sums.edges, 7)
    for part in parts:
        sums.add(part.start, np.zeros((part.stop - part.start, 3, 2, 2), "float32"), None)
    own = sums.count[:, 0, 0, 0]
    assert own.sum() == nints and own.max() - own.min() <= 1 and len(own) == min(blocks, nints)


def test_saved_statistics_come_back(tmp_path, stats):
    again = RampStatistics.load(stats.save(tmp_path / "a_cmstats.npz"))
    assert all(np.array_equal(getattr(again, k), v) for k, v in vars(stats).items())
    (tmp_path / "b.npz").write_bytes(b"no")
    with pytest.raises(FileProblem, match="holds no ramp statistics"):
        RampStatistics.load(tmp_path / "b.npz")


def test_statistics_are_kept_and_noticed_to_be_old(tmp_path, monkeypatch):
    path = write_ramp(tmp_path)
    first = ramp_statistics(path, cache=tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setattr(migration_ramps, "_opened", None)
        assert np.array_equal(ramp_statistics(path, cache=tmp_path / "kept").total, first.total)
        with pytest.raises(TypeError):
            ramp_statistics(path, cache=tmp_path / "kept", radius=5)
    write_ramp(tmp_path, ramps_of(nints=13, groups=5, seed=9))
    assert ramp_statistics(path, cache=tmp_path / "kept").nints == 13


@pytest.mark.parametrize("flagged", [True, False])
def test_cosmic_rays_do_not_move_the_mean(flagged):
    clean = ramps_of(nints=60, groups=6)
    hit, flags = clean.copy(), np.zeros(clean.shape, "uint8")
    for k, (i, g) in enumerate(((3, 2), (20, 4), (41, 1))):
        hit[i, g:, 40, 45] += 3000 + 500 * k
        flags[i, g, 40, 45] = niriss.JUMP_DET
    a, b = (statistics_of(r, groupdq=f) for r, f in ((clean, None), (hit, flags if flagged else None)))
    assert np.allclose(b.means()[:, *b.peak], a.means()[:, *a.peak], rtol=3e-3)
    assert b.count[:, :, *b.peak].sum() <= 60 * 5 - 3


def test_nothing_at_or_beyond_saturation_is_used():
    ramps = ramps_of(light=2.5 * LIGHT, nints=30, groups=12)
    limit = 25_000.0
    stats = statistics_of(ramps, saturation_adu=limit)
    last = stats.used_at_peak[-1]
    assert 2 <= last < 10 and ramps[:, last + 1, *stats.place].max() < limit
    assert np.isnan(stats.means()[last + 1 :, *stats.peak]).all() and any("saturated" in n for n in stats.notes)
    flags = np.where(ramps >= 20_000, niriss.SATURATED, 0).astype("uint8")
    assert len(statistics_of(ramps, saturation_adu=limit, groupdq=flags).used_at_peak) < last + 1


def test_groups_flagged_by_the_migration_step_are_looked_at():
    ramps = ramps_of(nints=10, groups=6)
    flags = np.zeros(ramps.shape, "uint8")
    flags[:, 3:] = niriss.CHARGELOSS | niriss.DO_NOT_USE
    assert len(statistics_of(ramps, groupdq=flags).used_at_peak) == 5
    flags[:, 3:] = niriss.DO_NOT_USE
    assert len(statistics_of(ramps, groupdq=flags).used_at_peak) == 2


def test_bad_pixels_are_not_the_peak():
    ramps, flags = ramps_of(nints=10, groups=4), np.zeros((80, 80), "uint32")
    ramps[:, :, 60, 20] += np.arange(4)[:, None][:, 0] * 9000  # a hot pixel that nobody has flagged
    flags[40, 45] = niriss.DO_NOT_USE
    stats = statistics_of(ramps, pixeldq=flags)
    assert stats.place != (40, 45) and max(abs(stats.place[0] - 40), abs(stats.place[1] - 45)) == 1
    assert any("neighbour of the peak" in n for n in stats.notes)


def test_covariance_of_means_is_that_of_ramps():
    light, rng = 3000.0, np.random.default_rng(1)
    reads = np.cumsum(rng.poisson(light, (40_000, 4)), axis=1) + rng.normal(0, niriss.READ_NOISE_E, (40_000, 4))
    seen = np.cov(np.diff(reads, axis=1).T / niriss.GAIN)
    model = covariance_of_means(np.full(3, light / niriss.GAIN), np.ones(3))
    assert np.allclose(seen, model, atol=0.03 * model[0, 0])


@settings(max_examples=25)
@given(st.floats(0.005, 0.05), st.floats(0.0, 0.02))
def test_departures_agree_with_stepping_through_a_ramp(linear, bend):
    grid, found = _departures(np.array([[linear, bend]]), 3.0, "quadratic", np.zeros(2), np.zeros(1))
    times, signals = np.linspace(0, 4, 4_001), [0.0]
    for step in np.diff(times):
        q = signals[-1]
        signals.append(q + step * (1 - linear * q - bend * q * q))
    signals = np.array(signals)
    for q in (0.5, 1.7, 2.9):
        t = np.interp(q, signals, times)
        half = np.interp(t / 2, times, signals)
        place = {k: np.interp(q, grid, v[0]) for k, v in found.items()}
        assert place["instantaneous"] == pytest.approx(-(linear * q + bend * q * q), abs=1e-4)
        assert place["cumulative"] == pytest.approx(q / t - 1, abs=3e-4)
        assert place["half"] == pytest.approx((q - half) / half - 1, abs=2e-4)


def test_levels_are_where_a_curve_first_crosses():
    grid = np.linspace(0, 10, 11)
    curves = np.array([-0.01 * grid, 0.0 * grid, np.where(grid > 4, -0.5, 0.0)])
    assert np.allclose(_levels(grid, curves, 0.025), [2.5, np.inf, 4.05])


def test_the_onset_is_found_from_ramps_without_noise():
    deep = [ramps_of(groups=g, nints=4, noise=0.0, light=s * LIGHT) for g, s in ((12, 1.0), (16, 0.7))]
    found = quantify([statistics_of(r, filter="F480M", name=str(k)) for k, r in enumerate(deep)], n_bootstrap=100)
    true = crossings(departure(LIGHT, (40, 45), "h4rg"))
    for definition, threshold in (("instantaneous", 0.01), ("instantaneous", 0.02), ("half", 0.01)):
        level = found.crossing("F480M", threshold, definition)
        assert level.level_e == pytest.approx(true[definition][threshold], rel=0.01)


def test_truth_of_programs(monkeypatch):
    bench = importlib.import_module("benchmarks.bench_onset")
    monkeypatch.setattr(bench, "IMAGES", 2)
    rows = [
        row
        for seed, preset in enumerate(("h4rg", "flight"))
        for row in bench.check_program(seed, "F480M", preset, 1e-7 * seed, 200, False)[0]
        if row[5] and row[6]
    ]
    ratio = np.median([r[2] for r in rows])
    assert len(rows) > 10 and 0.9 < ratio < 1.1 and np.mean([r[4] for r in rows]) > 0.5


def test_no_migration_gives_limits_only():
    found = quantify(ramps_of(migration="none", nints=80), filters="F480M", n_bootstrap=200)
    assert {c.limit for c in found.crossings()} == {"lower"}
    reach = found.filters["F480M"].reach_adu
    assert all(0 < c.level_adu <= reach and c.hi95_adu == np.inf for c in found.crossings())
    assert found.filters["F480M"].has_onset is None and "does not depend" in found.sentences[0]


def test_order_and_seed(stats):
    other = statistics_of(ramps_of(nints=60, groups=14, seed=5), filter="F480M", name="other")
    one, two = (quantify(s, n_bootstrap=200) for s in ([stats, other], [other, stats]))
    assert [c.lo95_adu for c in one.crossings()] == pytest.approx([c.lo95_adu for c in two.crossings()], rel=1e-6)
    assert [c.lo95_adu for c in quantify([stats, other], n_bootstrap=200, seed=3).crossings()] != pytest.approx(
        [c.lo95_adu for c in one.crossings()], rel=1e-6
    )


def test_another_threshold_reads_nothing(stats, monkeypatch):
    found = quantify(stats, n_bootstrap=200)
    for module, name in ((ramps, "_opened"), (onset, "_curve"), (onset, "_profile"), (ramps, "statistics_of")):
        monkeypatch.setattr(module, name, None)
    table = found.with_thresholds(0.004, 0.03).table()
    assert sorted(set(table["threshold"])) == [0.004, 0.03]
    with pytest.raises(CalamiError, match=r"between 0 and 0\.5"):
        found.with_thresholds(1.0)


def test_table_as_ecsv(stats, tmp_path):
    found = quantify(stats, n_bootstrap=200)
    table = found.table()
    names = "filter definition threshold level_adu level_e lo68_adu hi68_adu lo95_adu hi95_adu limit n_samples"
    assert table.colnames == names.split() and set(table["definition"]) == set(DEPARTURES)
    for made in (table, found.fits()):
        made.write(tmp_path / "t.ecsv", overwrite=True)
        assert len(QTable.read(tmp_path / "t.ecsv")) == len(made) > 3
    assert np.allclose(table["level_e"].value, table["level_adu"].value * niriss.GAIN)


def test_a_real_onset_is_told_from_a_crossing():
    base = ramps_of(migration="none", nints=50, groups=16, noise=0.1)
    signal = np.cumsum(np.diff(base, axis=1, prepend=0), axis=1)
    lost = 4e-6 * np.maximum(signal - 8000, 0) ** 2 / 2
    found = quantify(base - lost, filters="F480M", n_bootstrap=200).filters["F480M"]
    assert found.preferred == "piecewise" and found.has_onset
    assert found.fits["piecewise"]["onset_adu"] == pytest.approx(8000, rel=0.15)


def test_exposures_that_disagree_get_rates_of_their_own():
    made = [
        statistics_of(ramps_of(light=f * LIGHT, nints=60, groups=g), filter="F480M", name=str(g), pointing="one")
        for f, g in ((1.0, 12), (0.9, 8))
    ]
    found = quantify(made, n_bootstrap=200).filters["F480M"]
    assert len(found.pointings) == 2 and any("separate rate" in n for n in found.notes)
    together = [made[0], statistics_of(ramps_of(nints=60, groups=8, seed=8), filter="F480M", pointing="one")]
    assert len(quantify(together, n_bootstrap=200).filters["F480M"].pointings) == 1


def test_pointings_can_be_drawn_too():
    made = [
        statistics_of(ramps_of(nints=40, groups=10, seed=k, migration=m), filter="F480M", name=str(k))
        for k, m in enumerate(("h4rg", "flight_linear") * 3)
    ]
    fixed, drawn = (quantify(made, n_bootstrap=400, resample_pointings=d) for d in (False, True))
    widths = [np.log(c.hi68_adu / c.lo68_adu) for f in (fixed, drawn) for c in [f.crossing("F480M", 0.01)]]
    assert widths[1] > 1.2 * widths[0]  # the pointings differ much more than noise
    few = quantify(made[:2], n_bootstrap=100, resample_pointings=True).filters["F480M"]
    assert any("too few to resample" in note for note in few.notes)


def test_slope_of_a_sum_that_is_conserved(stats):
    rows, columns = np.indices(stats.count.shape[2:])
    square = np.maximum(abs(rows - stats.peak[0]), abs(columns - stats.peak[1]))
    peak, total = (slope_of_sum(stats, square <= half) for half in (0, 4))
    assert peak[0] < -4 * peak[1] and abs(total[0]) < 4 * total[1]


# What can be answered, and what not.


def test_one_integration_is_answered_from_the_noise_model():
    found = quantify(ramps_of(nints=1, groups=14), filters="F480M", n_bootstrap=200)
    assert any("noise model" in n for n in found.filters["F480M"].notes)
    assert all(np.isfinite(c.level_adu) for c in found.crossings())


def test_two_groups_cannot_answer_alone_but_help_others(stats):
    two = statistics_of(ramps_of(nints=30, groups=2), filter="F480M", name="two", pointing="p")
    with pytest.raises(CalamiError, match="single usable group difference"):
        quantify(two)
    deep = statistics_of(ramps_of(nints=30, groups=12, seed=4), filter="F480M", name="deep", pointing="p")
    assert quantify([two, deep], n_bootstrap=100).filters["F480M"].exposures == ("two", "deep")


def test_all_saturated():
    full = np.full((6, 5, 80, 80), 10.0, "float32")
    full[:, :, 36:44, 40:50] = 50_000.0
    with pytest.raises(CalamiError, match="saturat"):
        quantify(full, filters="F480M")


@pytest.mark.parametrize("core", [50_000.0, np.nan, 0.0])
@pytest.mark.parametrize("read", [1, 2])
def test_a_saturated_star_is_said_to_be_saturated(tmp_path, core, read):
    full = ramps_of(nints=6, groups=5)
    flags = np.zeros(full.shape, "uint8")
    full[:, read - 1 :, 38:43, 43:48], flags[:, read - 1 :, 38:43, 43:48] = core, niriss.SATURATED
    words = rf"saturated from group {read} on, with it 25 pixels at the end.*use a fainter star, or a filter with less"
    with pytest.raises(CalamiError, match=words):
        quantify(write_ramp(tmp_path, full, flags), n_bootstrap=100)
    full[:, read - 1 :], flags[:, read - 1 :] = core, niriss.SATURATED
    with pytest.raises(CalamiError, match=rf"6400 of 6400 pixels are saturated from group {read} on; use a fainter"):
        quantify(write_ramp(tmp_path, full, flags), n_bootstrap=100)


def test_a_core_that_is_not_finite_is_not_called_the_edge():
    broken = ramps_of(nints=6, groups=5)
    broken[:, :, 38:43, 43:48] = np.nan
    with pytest.raises(CalamiError, match="the core of the star is flagged, or not finite"):
        quantify(broken, filters="F480M")


def in_segments(path, cuts):
    """Write an exposure of ramps again as the archive cuts it; the names of its segments."""
    with fits.open(path) as hdus:
        whole = fits.HDUList([hdu.copy() for hdu in hdus])
    path.unlink()
    nints, names = whole["SCI"].shape[0], []
    for number, (start, stop) in enumerate(pairwise([0, *cuts, nints]), 1):
        part = fits.HDUList([hdu.copy() for hdu in whole])
        for name in ("SCI", "GROUPDQ"):
            part[name].data = part[name].data[start:stop]
        part[0].header.update({"EXSEGNUM": number, "EXSEGTOT": len(cuts) + 1, "INTSTART": start + 1, "INTEND": stop})
        names.append(path.with_name(path.name.replace("_nis_", f"-seg{number:03d}_nis_")))
        part[0].header["FILENAME"] = names[-1].name
        part.writeto(names[-1])
    return names


def levels(source):
    """Crossings with their intervals, and the integrations of each exposure."""
    found = quantify(source, n_bootstrap=100)
    return [(c.level_adu, c.lo68_adu, c.hi95_adu) for c in found.crossings()], [s.nints for s in found.statistics]


def test_segments_give_what_the_whole_exposure_gives(tmp_path):
    reads = ramps_of(nints=40, groups=8)
    flags = np.zeros(reads.shape, "uint8")
    flags[17, 3, 40, 45] = niriss.JUMP_DET
    folders = [tmp_path / "whole", tmp_path / "cut"]
    for folder in folders:
        folder.mkdir()
    deep, cut = (write_ramp(folder, reads, flags) for folder in folders)
    more, other = (write_ramp(folder, reads[:, :5], activity=3) for folder in folders)
    parts = in_segments(cut, [7, 19])
    one = ramp_statistics(deep)
    for same in (ramp_statistics(parts, cache=tmp_path / "kept"), ramp_statistics(parts, cache=tmp_path / "kept")):
        for key, value in vars(one).items():
            assert np.array_equal(value, getattr(same, key)), key
    assert levels(Dataset(folders[0])) == levels(Dataset(folders[1])) == levels(folders[1])
    assert levels([deep, more]) == levels([parts[2], other, parts[0], parts[1]])
    assert levels([deep, more])[1] == [40, 40]
    assert ramp_statistics(parts[:2]).notes == ("2 of its 3 segments are here",)


def test_star_off_the_subarray():
    with pytest.raises(CalamiError, match="edge of the subarray"):
        quantify(ramps_of(light=2.4e6 * nrm_psf(center=(40.0, -0.8)), nints=8), filters="F480M")
    with pytest.raises(CalamiError, match="no star stands out"):
        quantify(ramps_of(light=np.full((80, 80), 500.0), nints=8), filters="F480M")


@pytest.mark.parametrize(("shape", "words"), [((3, 80, 80), "have the shape"), ((3, 1, 80, 80), "single group")])
def test_arrays_that_are_no_ramps(shape, words):
    with pytest.raises(CalamiError, match=words):
        statistics_of(np.zeros(shape))


def test_files_that_are_no_ramps(tmp_path):
    rate = write_exposure(tmp_path / f"{rootname()}_rate.fits")
    with pytest.raises(FileProblem, match=r"count rates, not ramps.*save_calibrated_ramp"):
        ramp_statistics(rate)
    uncal = write_ramp(tmp_path, ramps_of(nints=3, groups=3).astype("uint16"), filetype="uncal", activity=3)
    with pytest.raises(FileProblem, match="raw reads"):
        ramp_statistics(uncal)
    single = write_ramp(tmp_path, ramps_of(nints=3, groups=3)[:, :1], activity=4)
    with pytest.raises(FileProblem, match="single group"):
        ramp_statistics(single)
    cut = write_ramp(tmp_path, activity=5)
    cut.write_bytes(cut.read_bytes()[:100_000])
    with pytest.raises(FileProblem):
        ramp_statistics(cut)
    with pytest.raises(FileProblem):
        ramp_statistics(tmp_path / "nothing_ramp.fits")


def test_a_dataset_with_some_ramps_is_answered_in_part(tmp_path):
    write_ramp(tmp_path, ramps_of(nints=20, groups=8))
    write_ramp(tmp_path, ramps_of(nints=20, groups=8), activity=3, FILTER="F380M", TARGNAME="other")
    write_exposure(tmp_path / f"{rootname(activity=4)}_rate.fits")
    found = quantify(Dataset(tmp_path), n_bootstrap=100)
    assert sorted(found.filters) == ["F380M", "F480M"]
    assert any("no calibrated ramps of" in n and "save_calibrated_ramp" in n for n in found.notes)
    assert list(quantify(tmp_path, filters=["F380M", "F277W"], n_bootstrap=100).filters) == ["F380M"]
    with pytest.raises(CalamiError, match="F277W: no exposure"):
        quantify(tmp_path, filters="F277W")
    import matplotlib.pyplot as plt

    axes = found.plot()
    assert [ax.get_title() for ax in axes] == ["F380M", "F480M"] and axes[0].figure is axes[1].figure
    assert found.plot(filter="F380M").get_title() == "F380M"
    with pytest.raises(CalamiError, match="more than one filter"):  # one panel does not hold both
        found.plot(axes[0])
    plt.close("all")


def test_crossings_are_shown_with_their_errors(stats):
    found = quantify(stats, n_bootstrap=100)
    (row,) = found.shown()
    for crossing in found.filters["F480M"].crossings(found.thresholds, ["instantaneous"]):
        shown = row[f"{100 * crossing.threshold:g} % [ke-]"]
        assert shown == crossing.short and float(shown.split()[-3 if " ± " in shown else 1]) == pytest.approx(
            crossing.level_e / 1e3, abs=0.06
        )
        assert crossing.limit or " ± " in shown or " +" in shown
    assert str(shown).replace(">", "&gt;") in found._repr_html_() and "<table" in found._repr_html_()
    limit = replace(crossing, limit="lower", level_adu=2.5e4)
    assert limit.short == f"> {2.5e4 * niriss.GAIN / 1e3:.1f}"


def test_scaled_integers_are_read_too(tmp_path):
    path = write_ramp(tmp_path, np.maximum(ramps_of(nints=9, groups=4), 0).astype("uint16"))
    with fits.open(path) as hdus:
        assert "BZERO" in hdus["SCI"].header
    assert ramp_statistics(path).differences == 3


def test_wrong_questions(stats):
    with pytest.raises(CalamiError, match="definitions are"):
        quantify(stats, definitions=["sudden"])
    with pytest.raises(CalamiError, match="the law is"):
        quantify(stats, law="cubist")
    with pytest.raises(CalamiError, match="no result in F277W"):
        quantify(stats, n_bootstrap=100).crossing("F277W")


def test_leaving_out_the_first_difference(stats):
    ramps = ramps_of(nints=100)
    ramps[:, 0] -= 40.0  # the first read is off
    off = statistics_of(ramps, filter="F480M", name="star")
    known = {"n_bootstrap": 100, "read_pattern": False}
    wrong, right = (quantify(off, skip_first=k, **known).filters["F480M"] for k in (0, 1))
    best = quantify(stats, n_bootstrap=100, skip_first=1).filters["F480M"]
    assert right.fits["linear"]["coefficient"] == pytest.approx(best.fits["linear"]["coefficient"], rel=0.05)
    assert wrong.fits["linear"]["coefficient"] > 1.25 * right.fits["linear"]["coefficient"]


def test_the_figure(stats):
    import matplotlib.pyplot as plt

    ax = quantify(stats, n_bootstrap=100).plot()
    assert "ADU" in ax.get_xlabel() and len(ax.child_axes) == 1
    plt.close(ax.figure)


def test_mixed_targets_and_subarrays_are_kept_apart(tmp_path):
    light = 0.5 * LIGHT
    paths = [
        write_ramp(tmp_path, ramps_of(nints=30, groups=8), activity=2, TARGNAME="A", SUBARRAY="SUB80"),
        write_ramp(tmp_path, ramps_of(light, nints=30, groups=8, seed=2), activity=3, TARGNAME="B", SUBARRAY="SUB80"),
        write_ramp(tmp_path, ramps_of(nints=30, groups=8, seed=3), activity=4, TARGNAME="A", SUBARRAY="SUBAMPCAL"),
    ]
    found = quantify(paths, n_bootstrap=100).filters["F480M"]
    rates = found.pointings
    assert len(rates) == 3 and {p.split("/")[0] for p in rates} >= {"A", "B"}
    bright, faint = (max(v for p, v in rates.items() if p.startswith(star)) for star in "AB")
    assert abs(faint / bright - 0.5) < 0.02


# What reads are taken, and into which sums.


def test_a_flagged_cosmic_ray_costs_only_the_difference_that_ends_in_it():
    # Five integrations are too few to find jumps by scatter, so only the flag speaks.
    ramps = ramps_of(nints=5, groups=7)
    flags = np.zeros(ramps.shape, "uint8")
    ramps[2, 3:, 40, 45] += 2000.0
    flags[2, 3, 40, 45] = niriss.JUMP_DET
    found = statistics_of(ramps, groupdq=flags)
    assert found.count.sum(axis=0)[:, *found.peak].tolist() == [5, 5, 4, 5, 5, 5]
    steps = np.diff(ramps[:, :, 40, 45].astype(float), axis=1)
    steps[2, 2] = np.nan
    assert np.allclose(found.means()[:, *found.peak], np.nanmean(steps, axis=0), rtol=1e-5)


def test_a_block_holds_its_own_stretch_of_integrations():
    ramps = ramps_of(nints=26, groups=3)
    found = statistics_of(ramps, blocks=4)
    edges = np.linspace(0, 26, 5).round().astype(int)
    own = [ramps[a:b, 0, *found.place].sum(dtype=float) for a, b in pairwise(edges)]
    assert np.allclose(found.first_sum[:, *found.peak], own, rtol=1e-6)


def test_reads_that_only_low_integrations_pass_are_not_used():
    # In one integration of six the eighth read is saturated; the differences of the others are too low by selection.
    ramps = ramps_of(LIGHT[34:48, 38:52], groups=10, nints=3000)
    free = statistics_of(ramps)
    peak = ramps[:, :, *free.place]
    limit = float(np.quantile(peak[:, 7], 5 / 6))
    cut = statistics_of(ramps, saturation_adu=limit)
    used = cut.used_at_peak
    error = np.sqrt(free.scatter()[:, *free.peak] / free.nints)
    assert len(used) >= 5  # those before the reads that saturate are still there
    low = (cut.means() - free.means())[:, *free.peak] / error
    assert np.abs(low[used]).max() < 0.5, low


# Statistics drawn from a known law, at one pixel: what errors and intervals are worth.


def reads_of(law, rate, groups):
    """Signals at the reads, ADU, of a pixel that loses the fraction `law(Q)` of its rate (ADU/s) at Q (10,000 ADU)."""
    signal, reads, step = 0.0, [], rate * TAU / 100
    for _ in range(groups):
        for _ in range(100):
            middle = signal + step / 2 * (1 - law(signal / 1e4))
            signal += step * (1 - law(middle / 1e4))
        reads.append(signal)
    return np.array(reads)


def drawn_statistics(rng, reads, nints=60, blocks=24, noise=1.0, name="star"):
    """Statistics of one pixel whose mean reads are given, with photon and read noise."""
    step = np.diff(reads, prepend=0.0)
    shape = (nints, len(reads))
    ramps = np.cumsum(step + noise * np.sqrt(step / niriss.GAIN) * rng.standard_normal(shape), axis=1)
    ramps += noise * niriss.READ_NOISE_E / niriss.GAIN * rng.standard_normal(shape)
    steps, parts = np.diff(ramps, axis=1), np.array_split(np.arange(nints), blocks)
    n, k = np.array([len(p) for p in parts]), len(reads) - 1
    first, total = (np.array([a[p].sum(axis=0) for p in parts]) for a in (ramps[:, 0], steps))
    count = np.broadcast_to(n[:, None], (blocks, k))
    return RampStatistics(
        name, "F480M", "", name, TAU, (0, 0), (0, 0), nints, n[:, None, None], first[:, None, None],
        count[..., None, None], total[..., None, None], (steps**2).sum(axis=0)[:, None, None], np.ones((k, 1, 1), bool),
    )  # fmt: skip


def without_block(stats, block):
    """The same statistics without one block of integrations."""
    left = {k: np.delete(getattr(stats, k), block, axis=0) for k in ("first_count", "first_sum", "count", "total")}
    fewer = 1 - 1 / stats.blocks
    return replace(stats, **left, nints=round(stats.nints * fewer), square=stats.square * fewer)


def jackknife(stats, measure):
    """Standard error of what is measured, from leaving out each block in turn."""
    held = np.array([measure(without_block(stats, k)) for k in range(stats.blocks)])
    return np.sqrt((stats.blocks - 1) ** 2 / stats.blocks) * held.std(axis=0, ddof=1)


def bending(signal):
    """A quadratic law whose flow falls as the peak is levelled with its neighbours, as `onset` assumes it."""
    lost = 0.006 * signal**2
    return lost * (1 - lost / 3)


def test_contrast_that_has_gone_no_longer_drives():
    # What has moved no longer drives the flow. Without that the lowest crossing would come out 2.5 % too low.
    image = nrm_psf("F430M", center=(40.1, 45.2))
    light = image / image.max() * 48e3 / TAU / 16
    deep = [ramps_of(s * light, g, 4, "flight", noise=0.0) for g, s in ((12, 1.0), (16, 0.7))]
    found = quantify([statistics_of(r, filter="F430M", name=str(k)) for k, r in enumerate(deep)], n_bootstrap=100)
    true = crossings(departure(light, (40, 45), "flight"))["instantaneous"]
    for threshold in (0.005, 0.01, 0.02):
        assert found.crossing("F430M", threshold).level_e == pytest.approx(true[threshold], rel=0.008)


def test_resampled_curves_spread_as_leaving_out_blocks_says():
    # The error of the mean of n blocks is their scatter / sqrt(n), with n - 1 in the scatter: 12 % more than with n for
    # 5 blocks.
    ratios = []
    for seed in range(8):
        stats = drawn_statistics(np.random.default_rng(seed), reads_of(lambda q: 0.004 * q, 9e4, 6), 500, 5)

        def slope(one):
            return quantify(one, law="linear", n_bootstrap=2000, converter_adu=0).filters["F480M"]

        spread = slope(stats).resampled[:, 0].std()
        ratios.append(spread / jackknife(stats, lambda one: slope(one).theta[0]))
    assert 0.95 < np.mean(ratios) < 1.05, ratios


def test_errors_of_a_law_agree_with_a_numerical_jacobian():
    # Covariance of the mean differences, taken through the fit by moving one mean after the other.
    stats = drawn_statistics(np.random.default_rng(1), reads_of(lambda q: 0.004 * q, 4e4, 12), 400, noise=0.0)
    variance = stats.means() / niriss.GAIN + 2 * (niriss.READ_NOISE_E / niriss.GAIN) ** 2
    stats = replace(stats, square=stats.square + 400 * variance)

    def slope(move, k):
        total = stats.total.copy()
        total[:, k] += move * stats.count[:, k]
        found = quantify(replace(stats, total=total), law="linear", n_bootstrap=100, converter_adu=0)
        return found.filters["F480M"].fits["linear"]

    jacobian = [(slope(0.5, k)["coefficient"] - slope(-0.5, k)["coefficient"]) for k in range(stats.differences)]
    means, n = stats.means()[:, 0, 0], stats.count.sum(axis=0)[:, 0, 0]
    error = np.sqrt(jacobian @ covariance_of_means(means, n) @ jacobian)
    assert slope(0.0, 0)["coefficient_error"] == pytest.approx(error, rel=0.02)


def test_most_intervals_hold_the_truth():
    # 200 draws: 68 and 95 % of the intervals hold the crossing, and hardly more or fewer.
    rng, reads = np.random.default_rng(2), reads_of(bending, 13_500.0, 24)
    true = 1e4 * brentq(lambda q: bending(q) - 0.02, 0, 3)
    held = [quantify(drawn_statistics(rng, reads), n_bootstrap=150, seed=k).crossing("F480M", 0.02) for k in range(200)]
    inside = [(c.lo68_adu <= true <= c.hi68_adu, c.lo95_adu <= true <= c.hi95_adu) for c in held]
    assert np.abs(np.mean(inside, axis=0) - (0.68, 0.95)).max() < 0.08, np.mean(inside, axis=0)


def test_intervals_hold_their_share_of_the_resamples():
    found = quantify(drawn_statistics(np.random.default_rng(3), reads_of(bending, 9000.0, 36)), n_bootstrap=1000)
    grid, _, many = found.filters["F480M"].departures()
    one = found.crossing("F480M", 0.02)
    levels = np.array([np.interp(0.02, np.maximum.accumulate(-curve), grid) for curve in many["instantaneous"]])
    for low, high, share in ((one.lo68_adu, one.hi68_adu, 0.68), (one.lo95_adu, one.hi95_adu, 0.95)):
        below, above = np.mean(levels < low), np.mean(levels > high)
        assert below == pytest.approx((1 - share) / 2, abs=0.02) and above == pytest.approx((1 - share) / 2, abs=0.02)


def test_a_measured_crossing_has_an_interval_with_two_ends():
    # Near the end of what is sampled, more and more resamples never cross: then only a limit is given.
    found = quantify(drawn_statistics(np.random.default_rng(4), reads_of(bending, 9000.0, 30)), n_bootstrap=400)
    answers = [found.crossing("F480M", t) for t in np.linspace(0.01, 0.03, 41)]
    assert {c.limit for c in answers} == {"", "lower"}
    for c in answers:
        assert np.isfinite([c.lo95_adu, c.hi95_adu]).all() == (c.limit == "")


def test_the_exponent_and_the_onset_are_those_put_in():
    # Between the values that are tried, both are found by a parabola.
    for exponent in (0.93, 1.3, 1.47):
        reads = reads_of(lambda q, p=exponent: 0.01 * q**p, 9000.0, 36)
        fit = quantify(drawn_statistics(np.random.default_rng(5), reads, noise=0.0), n_bootstrap=100)
        assert fit.filters["F480M"].fits["power"]["exponent"] == pytest.approx(exponent, abs=0.02)
    for start in (0.82, 1.0, 1.13):
        reads = reads_of(lambda q, q0=start: 0.02 * max(q - q0, 0.0), 9000.0, 36)
        fit = quantify(drawn_statistics(np.random.default_rng(5), reads, noise=0.0), n_bootstrap=100)
        assert fit.filters["F480M"].fits["piecewise"]["onset_adu"] == pytest.approx(1e4 * start, abs=60)


def test_noise_is_seldom_mistaken_for_a_law():
    # 100 draws of a constant rate with 50 differences: the more data, the more a parameter must earn.
    rng, reads = np.random.default_rng(6), reads_of(lambda q: 0.0, 9000.0, 26)
    laws = []
    for k in range(100):
        stats = [drawn_statistics(rng, reads, nints=24, name=str(n)) for n in range(2)]
        laws.append(quantify(stats, n_bootstrap=100, seed=k).filters["F480M"].preferred)
    assert laws.count("none") >= 90, laws


def test_a_steep_law_is_used_where_the_data_ask_for_it():
    # 40 draws of a rate that falls with the fourth power: a quadratic law would put the 1 % crossing too low.
    def steep(signal):
        return 0.0012 * signal**4 * (1 - 0.0012 * signal**4 / 5)

    rng, reads = np.random.default_rng(7), reads_of(steep, 9000.0, 36)
    true = 1e4 * brentq(lambda q: steep(q) - 0.01, 0, 3)
    found = [quantify(drawn_statistics(rng, reads, nints=240), n_bootstrap=100, seed=k) for k in range(40)]
    gains = [f["quadratic"]["chi2"] - f["quartic"]["chi2"] for f in (x.filters["F480M"].fits for x in found)]
    assert 10 < np.median(gains) < 50  # clear, but not beyond all doubt
    levels = [x.crossing("F480M", 0.01).level_adu for x in found]
    laws = [x.filters["F480M"].law for x in found]
    assert laws.count("quadratic") <= 4, laws
    assert np.mean(levels) == pytest.approx(true, rel=0.015)


@pytest.mark.parametrize("nints", [3, 60])
def test_the_error_of_a_summed_slope_is_its_scatter(nints):
    # 400 draws each: with three integrations the error is from the noise model, with 60 from the blocks.
    rng, reads = np.random.default_rng(8), reads_of(lambda q: 0.02 * q, 9000.0, 24)
    draws = [drawn_statistics(rng, reads, nints, min(nints, 24)) for _ in range(400)]
    values, errors = np.transpose([slope_of_sum(one, np.ones((1, 1), bool)) for one in draws])
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.08)
    near = np.abs(values + 0.02 / (1e4 * niriss.GAIN)) < errors
    assert np.mean(near) == pytest.approx(0.68, abs=0.08)


def test_ramps_that_bend_lose_no_differences_to_flags_of_jumps():
    # The jump step compares the differences of a ramp with their median: where the rate falls, it flags the first ones,
    # those that noise has made larger, and the last ones that it has made smaller.
    ramps = ramps_of(nints=60, groups=12, seed=4)
    steps = np.diff(ramps.astype(float), axis=1)
    middle = np.median(steps, axis=1, keepdims=True)
    noise = np.sqrt(np.maximum(middle, 0) / niriss.GAIN + 2 * (niriss.READ_NOISE_E / niriss.GAIN) ** 2)
    flags = np.zeros(ramps.shape, "uint8")
    flags[:, 1:][np.abs(steps - middle) > 1.5 * noise] = niriss.JUMP_DET
    plain, flagged = statistics_of(ramps), statistics_of(ramps, groupdq=flags)
    assert np.array_equal(flagged.total, plain.total) and np.array_equal(flagged.count, plain.count)
    share = (flags[:, 1:, 40, 45] != 0).mean(axis=0)
    assert share[0] > 0.1 and plain.notes == ()
    (note,) = flagged.notes
    assert f"{100 * share.max():.0f} % of the differences that end in group {share.argmax() + 2} of the peak" in note
    few = statistics_of(ramps[:5], groupdq=flags[:5])  # too few to know a hit by its scatter
    assert few.count.sum() < statistics_of(ramps[:5]).count.sum() and few.notes == ()
