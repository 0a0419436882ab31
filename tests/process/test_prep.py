"""calami.process.piece: products that stock jwst takes, records, and what happens when things go wrong."""

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from stdatamodels.jwst import datamodels
from toys import examples, rootname, variants, write_exposure

from calami.calutil import Data
from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.instrument import fourier, niriss
from calami.instrument.fourier import FourierFix
from calami.instrument.mask import pupil_image
from calami.instrument.optics import Pupil, psf
from calami.process import badpixels, clean, graft, prep, record
from calami.process.badpixels import FixBadPixels
from calami.process.clean import Clean
from calami.process.graft import Graft
from calami.process.piece import read_piece
from calami.process.prep import prep_data
from calami.process.recipes import Bin, Dice, Slice, Truncate
from calami.simulate.exposures import Instrument, simulate_exposure
from calami.simulate.level1b import timing
from calami.simulate.plans import ready_plan

NAME = f"{rootname(1, 2)}_rateints.fits"


@pytest.fixture(scope="session")
def quiet():
    return Instrument.default(1).without("migration")


@pytest.fixture(scope="session")
def exposure():
    return dataclasses.replace(ready_plan("1516", "demo").exposures[1], nints=9)


@pytest.fixture(scope="session")
def raw(tmp_path_factory, quiet, exposure):
    return simulate_exposure(exposure, tmp_path_factory.mktemp("raw"), quiet, seed=1)[0]


@pytest.fixture(scope="session")
def ramp(tmp_path_factory, raw):
    """A ramp product as stdatamodels writes it: the hash in its ASDF extension agrees with its headers."""
    path = tmp_path_factory.mktemp("ramp") / raw.name.replace("uncal", "ramp")
    with datamodels.RampModel(raw) as model:
        model.groupdq[2, 5, 40, 40] = niriss.DO_NOT_USE
        model.save(path)
    return path


def cube(path, nints=12, seed=1, hits=(), **cards):
    """A small rateints file: a star, noise, and outliers."""
    rng = np.random.default_rng(seed)
    image = 4e4 * psf("F480M", (20, 20), (40, 40)) * 5
    science = (image + rng.normal(0, 1, (nints, 40, 40)) * np.sqrt(image + 25)).astype("float32")
    for where, by in hits:
        science[where] += by * np.sqrt(image + 25)[where[1:]]
    error = np.broadcast_to(np.sqrt(image + 25), science.shape).astype("float32")
    arrays = {"SCI": science, "ERR": error, "DQ": np.zeros(science.shape, "uint32")}
    return write_exposure(path, arrays, NINTS=nints, **cards)


def header(path, key, ext=0):
    return fits.getheader(path, ext)[key]


# --- what stock jwst sees --------------------------------------------------------------------------------------------


def expected_times(exposure, groups, integrations):
    """EXPSTART and EXPEND for groups [a, b) and integrations [i, j] from 0, s after the start of the exposure."""
    frame, cadence = niriss.SUB80.frame_time, (exposure.ngroups + 1) * niriss.SUB80.frame_time
    start = integrations[0] * cadence + groups[0] * frame
    end = (integrations[1] + 1) * cadence - (exposure.ngroups - groups[1]) * frame
    return start, end


CUTS = [
    (Dice(2), [((0, 6), (0, 8)), ((6, 12), (0, 8))]),
    (Slice(2), [((0, 12), (0, 4)), ((0, 12), (5, 8))]),
    (Dice(ranges=((1, 5), (8, 12))), [((0, 5), (0, 8)), ((7, 12), (0, 8))]),
    (Dice(5), [((2 * k, 2 * k + 2), (0, 8)) for k in range(5)]),
    (Truncate(4), [((0, 4), (0, 8))]),
    (Slice(alternate=2), [((0, 12), (0, 8)), ((0, 12), (1, 7))]),
    (Slice(ranges=((3, 4),)), [((0, 12), (2, 3))]),
]


@pytest.mark.parametrize("source", ["raw", "ramp"])
@pytest.mark.parametrize("recipe, cuts", [CUTS[0], *variants(*CUTS[1:])], ids=lambda v: repr(v)[:24])
def test_cut_products_are_consistent_to_stdatamodels(source, recipe, cuts, exposure, tmp_path, request):
    path = request.getfixturevalue(source)
    original = fits.getheader(path)
    for product, (groups, integrations) in zip(prep_data(path, recipe, tmp_path), cuts, strict=True):
        with datamodels.open(product) as model:
            assert type(model).__name__ == ("Level1bModel" if source == "raw" else "RampModel")
            facts, (nints, ngroups) = model.meta.exposure, model.data.shape[:2]
            told = timing(ngroups, nints)
            assert (facts.ngroups, facts.nints) == (ngroups, nints)
            assert (facts.integration_start, facts.integration_end) == (1, nints)
            assert facts.integration_time == pytest.approx(told.integration)
            assert facts.exposure_time == pytest.approx(told.exposure, abs=2e-3)
            assert facts.duration == pytest.approx(told.duration, abs=2e-3)
            assert (facts.group_time, facts.nframes) == (0.07544, 1)
            start, end = expected_times(exposure, groups, integrations)
            assert (facts.start_time - original["EXPSTART"]) * 86400 == pytest.approx(start, abs=1e-4)
            assert (facts.end_time - original["EXPSTART"]) * 86400 == pytest.approx(end, abs=1e-4)
            assert facts.mid_time == pytest.approx((facts.start_time + facts.end_time) / 2, abs=1e-9)
            assert model.meta.filename == product.name
            rows = model.int_times
            assert rows["integration_number"].tolist() == list(range(1, nints + 1))
            length = (rows["int_end_MJD_UTC"] - rows["int_start_MJD_UTC"]) * 86400
            assert np.allclose(length, told.integration, atol=1e-4)
            table = model.group
            assert table["group_number"].tolist() == list(range(1, ngroups + 1)) * nints
            assert table["integration_number"].tolist() == np.repeat(np.arange(1, nints + 1), ngroups).tolist()
            assert model.meta.target.catalog_name == original["TARGNAME"]
            assert model.meta.dither.position_number == original["PATT_NUM"]


def test_a_stale_copy_of_the_metadata_does_not_win(ramp, tmp_path):
    with fits.open(ramp) as hdus:
        assert b"_fits_hash" in hdus["ASDF"].data.tobytes()
    (product,) = prep_data(ramp, Truncate(4), tmp_path)
    with fits.open(product) as hdus:
        tree = hdus["ASDF"].data.tobytes()
        assert b"_fits_hash: " + b"0" * 64 in tree
    with datamodels.open(product) as model:
        assert model.meta.exposure.ngroups == 4 and model.groupdq.shape == model.data.shape
        assert model.groupdq[2].sum() == 0  # the flag was in group 6
        model.save(tmp_path / "again.fits")  # validates
    from stdatamodels.jwst.datamodels.util import read_metadata

    assert read_metadata(product)["meta.exposure.ngroups"] == 4


def test_uint16_arrays_are_not_decoded_on_the_way(raw, tmp_path):
    for product in prep_data(raw, [Slice(2), Dice(2)], tmp_path):
        with fits.open(product) as hdus:
            assert hdus["SCI"].data.dtype == "uint16" and hdus["SCI"].header["BZERO"] == 32768
            hdus.verify("exception")


@pytest.mark.slow
@given(nints=st.integers(1, 7), ngroups=st.integers(2, 9), data=st.data())
@settings(max_examples=25)
def test_chunks_and_slices_restore_the_original(tmp_path_factory, nints, ngroups, data):
    folder = tmp_path_factory.mktemp("cut")
    rng = np.random.default_rng(nints * 100 + ngroups)
    values = rng.integers(0, 65535, (nints, ngroups, 6, 5), endpoint=True, dtype="uint16")
    path = write_exposure(folder / f"{rootname()}_uncal.fits", {"SCI": values}, NGROUPS=ngroups, NINTS=nints)
    chunks = prep_data(path, Dice(data.draw(st.integers(1, ngroups // 2)), remainder="last"), folder / "dice")
    assert np.array_equal(np.concatenate([fits.getdata(c) for c in chunks], axis=1), values)
    parts = prep_data(path, Slice(data.draw(st.integers(1, nints))), folder / "slice")
    assert np.array_equal(np.concatenate([fits.getdata(p) for p in parts]), values)
    if nints > 1:
        odd, even = (fits.getdata(p) for p in prep_data(path, Slice(alternate=2), folder / "alt"))
        both = np.empty_like(values)
        both[::2], both[1::2] = odd, even
        assert np.array_equal(both, values)


def test_pieces_of_pieces_know_where_they_come_from(raw, tmp_path):
    (even,) = prep_data(raw, Slice(alternate=2), tmp_path)[1:]
    (late,) = prep_data(even, [Slice(ranges=((2, 3),)), Dice(2)], tmp_path / "b")[1:]
    assert header(late, "CLMINTS") == "4,6 of 9" and header(late, "CLMGRPS") == "7-12 of 12"
    assert header(late, "CLMABS") is True and late.name.endswith("_even_slice1of1_dice2of2_uncal.fits")
    cadence = 13 * 0.07544
    assert (header(late, "EXPSTART") - header(raw, "EXPSTART")) * 86400 == pytest.approx(
        3 * cadence + 6 * 0.07544, abs=1e-3
    )


def test_segments_become_one(quiet, exposure, tmp_path):
    size = 4 * 6400 * 2 * 12  # four integrations
    paths = simulate_exposure(exposure, tmp_path, quiet, seed=1, max_bytes=size)
    assert len(paths) == 3
    odd, even = prep_data(paths, Slice(alternate=2), tmp_path / "out")
    whole = np.concatenate([fits.getdata(p) for p in paths])
    assert np.array_equal(fits.getdata(even), whole[1::2]) and header(even, "CLMINTS") == "2-8:2 of 9"
    with datamodels.open(odd) as model:
        assert model.meta.exposure.segment_number is None and len(model.int_times) == 5
    (alone,) = prep_data(paths[1], Truncate(3), tmp_path / "one")  # a segment by itself
    assert header(alone, "NINTS") == 3 and header(alone, "CLMINTS") == "4-6 of 9"
    assert (header(alone, "EXPSTART") - header(paths[0], "EXPSTART")) * 86400 == pytest.approx(
        3 * 13 * 0.07544, abs=1e-3
    )


def test_binning_is_what_frames_averaged_on_board_would_be(raw, ramp, tmp_path):
    (product,) = prep_data(raw, Bin(5), tmp_path)
    values = fits.getdata(raw).astype(float)
    assert np.array_equal(fits.getdata(product)[:, 1], np.rint(values[:, 5:10].mean(axis=1)))
    with datamodels.open(product) as model:
        facts = model.meta.exposure
        assert (facts.ngroups, facts.nframes, facts.frame_divisor) == (2, 5, 5)
        assert facts.group_time == pytest.approx(5 * 0.07544) and facts.readpatt == "NISRAPID"
        assert facts.integration_time == pytest.approx(10 * 0.07544)
        assert model.group["group_number"].tolist() == [1, 2] * 9
    (product,) = prep_data(ramp, Bin(2), tmp_path)
    flags = fits.getdata(product, "GROUPDQ")
    assert flags[2, 2, 40, 40] == 1 and flags.sum() == 1
    assert fits.getdata(product).dtype == ">f4"


# --- cleaning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, nints", [("mad", 12), ("mad", 50), ("iqr", 50), ("std", 50)])
def test_ten_sigma_hits_are_found_and_few_are_invented(scale, nints, tmp_path):
    rng = np.random.default_rng(5)
    hits = [((int(rng.integers(nints)), r, c), 10.0) for r in range(40) for c in range(40) if (r + c) % 4 == 0]
    path = cube(tmp_path / NAME, nints, hits=hits)
    (product,) = prep_data(path, Clean(4, scale), tmp_path / "out")
    flagged = fits.getdata(product, "DQ") & clean.OUTLIER != 0
    true = np.zeros(flagged.shape, bool)
    true[tuple(np.transpose([h for h, _ in hits]))] = True
    assert flagged[true].mean() >= 0.99
    assert flagged[~true].mean() < 0.005
    assert np.array_equal(fits.getdata(product, "CLEANED"), flagged.sum(axis=0))
    assert np.array_equal(fits.getdata(product, "DQ")[flagged] & 1, np.ones(flagged.sum()))
    assert np.array_equal(fits.getdata(product), fits.getdata(path))


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(5, 40),
    sigma=st.sampled_from([2, 3, 4]),
    scale=st.sampled_from(["mad", "std", "iqr"]),
)
@settings(max_examples=examples(60))
def test_clipping_equals_the_slow_way(seed, n, sigma, scale):
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(2, (8, n)).astype("float32")
    rows[rng.random(rows.shape) < 0.1] = np.nan
    out, middle, _ = clean._reject(rows, Clean(sigma, scale, iterations=4, pool=False, least=3), False, 1)
    for k, row in enumerate(rows):
        kept = np.sort(row[np.isfinite(row)]).astype(float)
        for _ in range(4):
            centre, scatter = np.median(kept), slow_scale(kept, scale)
            left = kept[np.abs(kept - centre) <= sigma * scatter]
            if len(left) == len(kept):
                break
            kept = left
        if np.isfinite(row).sum() >= 3:
            assert np.array_equal(np.sort(row[np.isfinite(row) & ~out[k]]), kept.astype("float32"))
        assert middle[k] == pytest.approx(np.median(kept))


def slow_scale(values, scale):
    n = len(values)
    if scale == "std":
        return values.std(ddof=1)
    if scale == "iqr":
        return 0.741301 * np.subtract(*np.percentile(values, [75, 25]))
    factor = clean.MAD_FACTORS[n - 2] if n < 10 else n / (n - 0.8)
    return 1.482602 * factor * np.median(np.abs(values - np.median(values)))


def test_the_small_sample_factors_are_right():
    rng = np.random.default_rng(1)
    for n in (5, 8, 9, 15):
        rows = np.sort(rng.normal(0, 1, (40_000, n)), axis=1)
        spread = clean._spread_mad(rows, np.full(len(rows), n), np.median(rows, axis=1))
        assert spread.mean() == pytest.approx(1, abs=0.03)


def test_replaced_samples_take_the_median_and_neighbours_are_grown(tmp_path):
    path = cube(tmp_path / NAME, 20, hits=[((3, 10, 12), 50.0)])
    (product,) = prep_data(path, Clean(sigma=8, replace=True, neighbours=4), tmp_path / "out")
    before, after = fits.getdata(path).astype(float), fits.getdata(product)
    changed = np.argwhere(fits.getdata(product, "DQ") & clean.FLUX_ESTIMATED != 0)
    assert sorted(map(tuple, changed.tolist())) == [(3, 9, 12), (3, 10, 11), (3, 10, 12), (3, 10, 13), (3, 11, 12)]
    others = np.delete(before[:, 10, 12], 3)
    assert after[3, 10, 12] == pytest.approx(np.median(others), rel=1e-6)
    assert (fits.getdata(product, "DQ") & 1).sum() == 0


def test_differences_flag_one_group_and_take_the_jump_away(raw, tmp_path):
    path = tmp_path / raw.name
    with fits.open(raw) as hdus:
        hdus["SCI"].data[4, 7:, 60, 20] += 1000
        hdus.writeto(path)
    (flagged,) = prep_data(path, Clean(of="differences"), tmp_path / "flag")
    assert fits.getdata(flagged, "GROUPDQ")[4, :, 60, 20].tolist() == [0] * 7 + [4] + [0] * 4
    with datamodels.open(flagged) as model:  # raw counts with flags are a RampModel
        assert type(model).__name__ == "RampModel" and model.groupdq[4, 7, 60, 20] == 4
    (mended,) = prep_data(path, Clean(of="differences", replace=True), tmp_path / "mend")
    with datamodels.open(mended) as model:
        assert type(model).__name__ == "Level1bModel"
    new, old = (fits.getdata(p)[4, :, 60, 20].astype(float) for p in (mended, raw))
    assert np.array_equal(new[:7], old[:7]) and np.abs(new - old).max() < 100
    (filled,) = prep_data(path, Clean(of="samples", replace=True), tmp_path / "fill")
    new = fits.getdata(filled)[4, :, 60, 20].astype(float)
    assert np.abs(new - old).max() < 250


def test_unusable_samples_do_not_count(tmp_path):
    path = cube(tmp_path / NAME, 12)
    with fits.open(path, mode="update") as hdus:
        hdus["SCI"].data[:5, 3, 3] = np.nan
        hdus["DQ"].data[:5, 4, 4] = 1
        hdus["SCI"].data[:5, 4, 4] = 1e9
        hdus["DQ"].data[:9, 5, 5] = 1  # too few are left
        hdus["SCI"].data[9, 5, 5] = 1e9
    (product,) = prep_data(path, Clean(), tmp_path / "out")
    count = fits.getdata(product, "CLEANED")
    assert count[3, 3] <= 1 and count[4, 4] <= 1 and count[5, 5] == 0


# --- bad pixels ------------------------------------------------------------------------------------------------------


def star(filter_name, n=70, seed=1, frames=2):
    rng = np.random.default_rng(seed)
    truth = 1e6 * psf(filter_name, (n / 2 + 0.2, n / 2 - 0.1), (n, n), pupil=Pupil().with_errors(30, seed=2))
    noisy = truth + rng.normal(0, 1, (frames, n, n)) * np.sqrt(truth / 1.6 + 100)
    bad = np.zeros((n, n), bool)
    bad[rng.integers(0, n, 40), rng.integers(0, n, 40)] = True
    bad[rng.integers(n // 2 - 6, n // 2 + 6, 6), rng.integers(n // 2 - 6, n // 2 + 6, 6)] = True
    noisy[:, bad] = rng.uniform(-1e4, 1e5, bad.sum())
    return truth, noisy, bad


@pytest.mark.parametrize("filter_name", ["F380M", "F430M", "F480M"])
def test_the_fourier_fix_equals_jwst_and_is_nearer_to_the_truth_with_its_own_support(filter_name):
    from types import SimpleNamespace

    from jwst.ami import bp_fix

    truth, frames, bad = star(filter_name)
    frames[0, 20, 22] += 5e4  # nobody has flagged it
    n, scale = len(truth), float(np.mean(niriss.PIXEL_SCALE_MAS))
    pupil = pupil_image()
    flags = np.broadcast_to(bad.astype("uint32"), frames.shape).copy()
    theirs, marked = bp_fix.fix_bad_pixels(frames.copy(), flags, filter_name, scale, SimpleNamespace(nrm=pupil))
    amplitude = bp_fix.calc_pupil_support(filter_name, n, np.radians(scale / 3.6e6), pupil)
    outside = np.fft.fftshift(amplitude / amplitude.max() < 1e-3)[:, : n // 2 + 1]
    same, own = FourierFix(outside), FourierFix(fourier.forbidden(filter_name, n))
    for frame, their, mark in zip(frames, theirs, marked, strict=True):
        image, found, _, converged = same.fix(frame, bad)
        assert converged and np.array_equal(found, mark > 0)
        assert np.abs(image - their).max() < 1e-6 * np.abs(their).max()
    errors = [np.std((fixer.correct(truth, bad) - truth)[bad]) for fixer in (same, own)]
    assert errors[1] < 0.6 * errors[0]  # without noise: their support is half a frequency sample off
    assert marked[0, 20, 22] > 0


def test_without_noise_the_truth_comes_back():
    truth = 1e5 * psf("F480M", (35, 35), (70, 70))
    bad = np.zeros(truth.shape, bool)
    bad[33:35, 36] = bad[50, 50] = True
    fixed = FourierFix(fourier.forbidden("F480M", 70)).correct(np.where(bad, np.nan_to_num(np.inf), truth), bad)
    assert np.abs(fixed - truth).max() < 3e-3 * truth.max()


def flagged_cube(tmp_path, nints=3):
    truth, frames, bad = star("F480M", 72, frames=nints)
    science = np.zeros((nints, 80, 80), "float32")
    science[:, 6:78, 4:76] = frames
    flags = np.zeros(science.shape, "uint32")
    flags[:, 6:78, 4:76] = bad
    flags[:, :4] = niriss.REFERENCE_PIXEL | 1
    science[1, 30, 30] = np.nan
    arrays = {"SCI": science, "ERR": np.full(science.shape, 7, "float32"), "DQ": flags}
    arrays["ERR"][flags & 1 != 0] = np.nan
    return write_exposure(tmp_path / NAME, arrays, NINTS=nints), truth, bad


@pytest.mark.parametrize("method, limit", [("fourier", 0.02), ("gaussian", 0.6), ("median", 0.6)])
def test_fixed_pixels_are_marked_and_lose_their_flag(method, limit, tmp_path):
    path, truth, bad = flagged_cube(tmp_path)
    (product,) = prep_data(path, FixBadPixels(method), tmp_path / "out")
    with fits.open(product) as hdus:
        marks, flags, science = hdus["FIXED"].data, hdus["DQ"].data, hdus["SCI"].data
        assert (marks[:, :4] == 0).all() and (flags[:, :4] & 1 == 1).all()  # reference pixels are left alone
        assert (marks[:, 6:78, 4:76][:, bad] == badpixels.FIXED_FLAGGED).all() and marks[
            1, 30, 30
        ] == badpixels.FIXED_FLAGGED
        changed = np.isin(marks, (badpixels.FIXED_FLAGGED, badpixels.FIXED_FOUND))
        assert (flags[changed] & 1 == 0).all() and (flags[changed] & clean.FLUX_ESTIMATED != 0).all()
        assert np.isfinite(science[:, 4:]).all() and np.isfinite(hdus["ERR"].data[changed]).all()
        assert np.array_equal(science[~changed], fits.getdata(path)[~changed])
        worst = np.abs(science[:, 6:78, 4:76][:, bad] - truth[bad]).max() / truth.max()
        assert worst < limit
    report = record.read_sidecar(product)["report"]["fix"]
    assert report["frames"] == report["converged"] == 3 and report["left"] == 0
    if method == "fourier":
        assert report["rms_outside"]["fourier"] < report["rms_outside"]["neighbours"]


def test_what_does_not_converge_says_so(tmp_path, caplog):
    path, *_ = flagged_cube(tmp_path, 2)
    with fits.open(path, mode="update") as hdus:
        hdus["SCI"].data[0, 50, 50] = 1e6
    (product,) = prep_data(path, FixBadPixels(max_iterations=1), tmp_path / "out")
    assert record.read_sidecar(product)["report"]["fix"]["converged"] == 1
    assert "1 of 2 frames converged" in caplog.text
    assert fits.getdata(product)[0, 50, 50] < 1e5  # fixed all the same


def test_a_real_image_is_fixed(shared_data, tmp_path):
    path = shared_data / "jw01093" / "jw01093012001_03102_00001_nis_cal.fits"
    before = path.stat().st_mtime_ns, path.stat().st_size
    (product,) = prep_data(path, FixBadPixels(), tmp_path)
    report = record.read_sidecar(product)["report"]["fix"]
    assert report["converged"] == 1 and report["left"] == 0
    assert report["rms_outside"]["fourier"] < 0.5 * report["rms_outside"]["neighbours"]
    with datamodels.open(product) as model, datamodels.open(path) as original:
        assert np.isfinite(model.data[4:]).all()
        assert model.meta.wcs is not None and model.meta.wcs(40, 40) == original.meta.wcs(40, 40)
    assert (path.stat().st_mtime_ns, path.stat().st_size) == before


# --- grafting --------------------------------------------------------------------------------------------------------


def test_pixels_of_a_simulation_get_a_mast_header(raw, tmp_path):
    pixels = np.random.default_rng(1).integers(1000, 2000, (4, 5, 80, 80), dtype="uint16")
    piece = graft.piece_of(pixels, "laboratory run 7", "uncal", {"TGROUP": 0.07544})
    (grafted,) = Graft(str(raw)).apply(piece)
    (product,) = prep.write_pieces([grafted], tmp_path, {"operation": "prep", "inputs": [], "parameters": {}})
    with datamodels.open(product) as model:
        facts = model.meta.exposure
        told = timing(5, 4)
        assert (facts.nints, facts.ngroups) == (4, 5) and np.array_equal(model.data, pixels)
        assert facts.integration_time == pytest.approx(told.integration)
        assert facts.duration == pytest.approx(told.duration, abs=2e-3)
        assert (facts.end_time - facts.start_time) * 86400 == pytest.approx(told.elapsed, abs=1e-3)
        assert model.meta.target.catalog_name == header(raw, "TARGNAME")
        gap = model.int_times["int_start_MJD_UTC"][0] - facts.start_time
        assert gap * 86400 == pytest.approx(0.07544, abs=1e-4)
    told = fits.getheader(product)
    assert told["GRAFTED"] is True and told["CLMPIXEL"] == "laboratory run 7" and told["CLMHEAD"] == raw.name
    assert "SIMULATD" not in told  # that was said of the pixels of the other file


def test_a_graft_carries_the_history_of_the_pixels_not_of_the_header(raw, shared_data, tmp_path):
    donor = shared_data / "jw01093" / "jw01093012001_03102_00001_nis_cal.fits"
    rate = tmp_path / raw.name.replace("uncal", "rate")
    write_exposure(rate, {"SCI": np.ones((80, 80), "float32")}, {"BUNIT": "DN/s"}, S_RAMP="COMPLETE", SIMULATD=True)
    (product,) = prep_data(rate, Graft(donor), tmp_path / "out")
    told = fits.getheader(product)
    assert told["SIMULATD"] is True and told["S_RAMP"] == "COMPLETE" and "S_FLAT" not in told
    assert header(product, "BUNIT", "SCI") == "DN/s" and "PHOTMJSR" not in fits.getheader(product, "SCI")
    assert product.name == "jw01093012001_03102_00001_nis_graft_rate.fits"
    with datamodels.open(product) as model:
        assert type(model).__name__ == "ImageModel" and model.meta.instrument.filter == "F480M"


def test_what_cannot_be_grafted(raw, tmp_path):
    small = graft.piece_of(np.ones((8, 8)), "small", "rate")
    with pytest.raises(CalamiError, match=r"8, 8"):
        Graft(str(raw)).apply(small)
    slow = graft.piece_of(np.ones((2, 3, 80, 80), "uint16"), "slow", "uncal", {"TGROUP": 10.7})
    with pytest.raises(CalamiError, match=r"10\.7 s"):
        Graft(str(raw)).apply(slow)
    with pytest.raises(CalamiError, match="whole numbers"):
        graft.piece_of(np.ones((2, 3, 8, 8)), "x", "uncal")
    with pytest.raises(CalamiError, match="2-D pixels"):
        graft.piece_of(np.ones((8, 8)), "x", "uncal")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe, words",
    [
        (Dice(13), "ask for 6 or less"),
        (Dice(ranges=((1, 6), (7, 13))), "groups 7 to 13 are not among 1 to 12"),
        (Dice(ranges=((3, 3),)), "one group has no slope"),
        (Truncate(13), "has 12 groups, not 13"),
        (Bin(13), "fewer than the 13"),
        (Slice(10), "9 integrations do not make 10 parts"),
        (Slice(ranges=((8, 10),)), "integrations 8 to 10 are not among 1 to 9"),
        (FixBadPixels(), "raw counts hold the bias"),
        (Clean(least=10), "too few to find"),
    ],
)
def test_impossible_requests_are_refused_and_nothing_is_written(recipe, words, raw, tmp_path):
    with pytest.raises(CalamiError, match=words):
        prep_data(raw, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dice(),
        lambda: Dice(2, ((1, 2),)),
        lambda: Dice(True),
        lambda: Dice(ranges=()),
        lambda: Dice(2, remainder="keep"),
        lambda: Slice(),
        lambda: Slice(0),
        lambda: Slice(alternate=1),
        lambda: Slice(ranges=((1, 2, 3),)),
        lambda: Truncate(0),
        lambda: Bin(1),
        lambda: Clean(0.5),
        lambda: Clean(float("nan")),
        lambda: Clean(scale="variance"),
        lambda: Clean(neighbours=3),
        lambda: Clean(iterations=0),
        lambda: FixBadPixels("magic"),
        lambda: FixBadPixels(box=7),
        lambda: FixBadPixels(rejection=-1),
        lambda: prep_data("x", [], "y"),
        lambda: prep_data("x", ["clean"], "y"),
    ],
)
def test_wrong_parameters_are_refused_at_once(make):
    with pytest.raises(CalamiError):
        make()


def test_images_are_not_sliced_and_cubes_not_diced(tmp_path):
    image = write_exposure(tmp_path / f"{rootname()}_cal.fits")
    with pytest.raises(CalamiError, match="one image; Slice needs 3-D or 4-D"):
        prep_data(image, Slice(2), tmp_path)
    with pytest.raises(CalamiError, match="one image; Clean needs"):
        prep_data(image, Clean(), tmp_path)
    with pytest.raises(CalamiError, match="integrations without groups; Dice needs 4-D"):
        prep_data(cube(tmp_path / NAME), Dice(2), tmp_path)


def test_hopeless_pixels_are_refused(tmp_path):
    path = cube(tmp_path / NAME, 6)
    with fits.open(path, mode="update") as hdus:
        hdus["DQ"].data[:] = 1
    for recipe, words in ((Clean(), "every sample is flagged"), (FixBadPixels("gaussian"), "all pixels are bad")):
        with pytest.raises(CalamiError, match=words):
            prep_data(path, recipe, tmp_path / "out")
    with fits.open(path, mode="update") as hdus:
        hdus["DQ"].data[:] = 0
        hdus["SCI"].data[:] = np.nan
    with pytest.raises(CalamiError, match="not finite"):
        prep_data(path, Clean(), tmp_path / "out")


def test_fourier_needs_forbidden_frequencies(tmp_path):
    path = cube(tmp_path / NAME, 6, FILTER="F277W")
    with pytest.raises(CalamiError, match="hardly any frequency"):
        prep_data(path, FixBadPixels(), tmp_path / "out")
    path = cube(tmp_path / NAME, 6, FILTER="CLEAR")
    with pytest.raises(CalamiError, match="no filter 'CLEAR'"):
        prep_data(path, FixBadPixels(), tmp_path / "out")


def test_files_that_cannot_be_read(tmp_path, raw):
    cut = tmp_path / raw.name
    cut.write_bytes(raw.read_bytes()[:100_000])
    other = write_exposure(tmp_path / "my_star.fits")
    for path, words in ((cut, "cut"), (other, "graft"), (tmp_path / "none.fits", "none.fits")):
        with pytest.raises(CalamiError, match=words):
            prep_data(path, Slice(2), tmp_path / "out")


# --- records, restarts, discs ----------------------------------------------------------------------------------------


def test_equal_runs_are_not_repeated_and_other_ones_do_not_overwrite(raw, tmp_path):
    first = prep_data(raw, Dice(2), tmp_path)
    stamps = [p.stat().st_mtime_ns for p in first]
    assert prep_data(Data(raw), [Dice(2)], tmp_path) == first and [p.stat().st_mtime_ns for p in first] == stamps
    content = [p.read_bytes() for p in first]
    with pytest.raises(FileProblem, match="already exists"):
        prep_data(raw, Dice(ranges=((1, 4), (5, 8))), tmp_path)
    assert [p.read_bytes() for p in first] == content and all(record.sidecar_path(p).exists() for p in first)
    prep_data(raw, Dice(ranges=((1, 4), (5, 8))), tmp_path, overwrite=True)
    assert header(first[0], "NGROUPS") == 4 and record.read_sidecar(first[0])["parameters"]["recipes"][0]["n"] is None
    assert len(prep_data(raw, Dice(2), tmp_path, overwrite=True)) == 2 and header(first[0], "NGROUPS") == 6


def test_existing_products_are_refused_before_anything_is_computed(raw, tmp_path, monkeypatch):
    first = prep_data(raw, [Clean(3), Dice(2)], tmp_path)
    content = [p.read_bytes() for p in first]

    def never(self, piece):
        raise AssertionError("was carried out")

    with monkeypatch.context() as patch:
        patch.setattr(Clean, "apply", never)
        with pytest.raises(FileProblem, match="already exists and was made with other settings"):
            prep_data(raw, [Clean(4), Dice(2)], tmp_path)
        assert prep_data(raw, [Clean(3), Dice(2)], tmp_path) == first  # equal ones are kept
        with pytest.raises(CalamiError, match="was carried out"):
            prep_data(raw, [Clean(4), Dice(2)], tmp_path, overwrite=True)
    assert [p.read_bytes() for p in first] == content
    assert prep_data(raw, [Clean(4), Dice(2)], tmp_path, overwrite=True) == first


@pytest.mark.parametrize("recipe", [Clean(), FixBadPixels()])
def test_names_known_beforehand_are_those_that_are_made(ramp, recipe):
    piece = read_piece(ramp)
    known, made = (prep._carried_out(piece, [recipe, Dice(2)], names_only=only) for only in (True, False))
    assert [p.name for p in known] == [p.name for p in made] and made[0].name.tag == f"{recipe._tag}_dice1of2"


def test_the_record_tells_all(raw, tmp_path):
    (product,) = prep_data(raw, [Clean(3), Truncate(6)], tmp_path)
    told = record.read_sidecar(product)
    assert told["operation"] == "prep" and told["outputs"] == [product.name]
    assert told["inputs"][0]["file"] == raw.name and len(told["inputs"][0]["sha256"]) == 64
    assert [r["recipe"] for r in told["parameters"]["recipes"]] == ["Clean", "Truncate"]
    assert told["parameters"]["recipes"][0]["sigma"] == 3 and told["seconds"] > 0
    assert {"changed_from_spec", "changed_from_crds", "crds", "made", "calami"} <= told.keys()
    assert record.is_current(product, told["fingerprint"])
    assert record.fingerprint_of(told["inputs"], told["parameters"], told["versions"]) == told["fingerprint"]
    history = " ".join(header(product, "HISTORY"))
    assert "clean:" in history and "truncate: groups 1-6 of 12" in history
    assert str(tmp_path) not in record.sidecar_path(product).read_text()
    record.sidecar_path(product).write_text("{")
    assert not record.is_current(product, told["fingerprint"])
    with pytest.raises(FileProblem, match="damaged"):
        record.read_sidecar(product)
    with pytest.raises(CalamiError, match="lacks inputs, parameters"):
        record.write_sidecar(product, {"operation": "prep"})


def test_a_changed_input_is_another_input(tmp_path):
    path = cube(tmp_path / NAME, 6)
    prep_data(path, Slice(2), tmp_path / "out")
    cube(path, 6, seed=2)
    with pytest.raises(FileProblem, match="already exists"):
        prep_data(path, Slice(2), tmp_path / "out")


def test_the_input_is_never_written_over(tmp_path, raw):
    first = prep_data(raw, Dice(2), tmp_path)[0]
    link = tmp_path / raw.name
    link.symlink_to(first)
    with pytest.raises(FileProblem, match="is the input itself"):
        prep_data(link, Dice(2), tmp_path, overwrite=True)
    assert header(first, "NGROUPS") == 6


FULL = """
import resource, signal, sys
from pathlib import Path
from calami.headers import CalamiError
from calami.prep import Dice, prep_data
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    prep_data(sys.argv[1], Dice(2), sys.argv[2], overwrite=True)
except CalamiError as error:
    print(error)
"""


def test_a_full_disc_leaves_what_was_there(raw, tmp_path):
    first = prep_data(raw, Dice(ranges=((1, 6),)), tmp_path)[0]
    kept = first.rename(first.with_name(first.name.replace("1of1", "1of2")))
    content = kept.read_bytes()
    said = subprocess.run(
        [sys.executable, "-c", FULL, raw, tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert "cannot be written" in said and "make room" in said
    assert kept.read_bytes() == content
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]


KILLED = """
import os, signal, sys
from calami.process import prep
from calami.process.recipes import Dice
write = prep._write_piece
def slow(piece, path):
    write(piece, path)
    if "2of2" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
prep._write_piece = slow
prep.prep_data(sys.argv[1], Dice(2), sys.argv[2])
"""


def test_a_killed_run_leaves_nothing_half_written_and_is_resumed(raw, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, raw, tmp_path], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert all(p.name.endswith(".part") for p in tmp_path.iterdir()) and list(tmp_path.iterdir())
    products = prep_data(raw, Dice(2), tmp_path)
    assert len(products) == 2 and not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]
    record.sidecar_path(products[1]).unlink()  # as if it had been killed between two products
    products[1].unlink()
    with pytest.raises(FileProblem):
        prep_data(raw, Dice(ranges=((1, 3), (4, 6))), tmp_path)


def test_a_number_that_cannot_be_written_is_a_fault_of_its_file(raw, tmp_path):
    content = raw.read_bytes()
    place = content.index(b"TARG_RA =")
    (tmp_path / raw.name).write_bytes(content[:place] + b"TARG_RA = %20s" % b"1e400" + content[place + 30 :])
    with pytest.raises(FileProblem, match=rf"{raw.name.split('_uncal')[0]}.*check the header"):
        prep_data(tmp_path / raw.name, Slice(2), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.fits"))


def test_a_run_stopped_between_two_products_is_finished(raw, tmp_path):
    products = prep_data(raw, Dice(2), tmp_path)
    products[1].unlink()  # its record is written first, so it may stand alone
    again = prep_data(raw, Dice(2), tmp_path)
    assert again == products and header(products[1], "NGROUPS") == 6


# --- by name ---------------------------------------------------------------------------------------------------------


def test_a_dataset_is_prepared_by_name_and_failures_are_told(raw, tmp_path, exposure, quiet):
    folder = tmp_path / "raw"
    simulate_exposure(exposure, folder, quiet, seed=1)
    other = dataclasses.replace(ready_plan("1516", "demo").exposures[0], nints=3)
    simulate_exposure(other, folder, quiet, seed=1)
    ds = Dataset(folder)
    deep, shallow = sorted(ds.names, key=lambda n: -ds.facts(n)["NGROUPS"])
    made = ds.prep_data({deep: Dice(2), shallow: [Dice(3)]}, tmp_path / "out")
    assert len(made) == 2 and [made.data(n).shape[1] for n in made.names] == [6, 6]
    assert {n.rsplit("_", 1)[1] for n in made.names} == {"dice1of2", "dice2of2"}
    assert made[made.rootlist[1]].shape == (9, 6, 80, 80)
    assert "not made" in str(made.problems["reason"][0])
    assert len(ds.prep_data({"*": Slice(alternate=2)}, tmp_path / "alt")) == 4
    with pytest.raises(CalamiError, match="do not make"):
        ds.prep_data({shallow: Dice(3)}, tmp_path / "none")
    with pytest.raises(CalamiError, match="no exposure"):
        ds.prep_data({"nothing*": Dice(2)}, tmp_path / "none")


def test_several_processes(raw, tmp_path, exposure, quiet):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        made = Dataset(raw).prep_data({"*": [Slice(3), Dice(2)]}, tmp_path, pool)
    assert len(made) == 6


# --- through the pipeline ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_early_and_late_chunks_give_equal_rates(tmp_path, quiet):
    from calami.process import offline, references

    plan = dataclasses.replace(ready_plan("1516", "demo").exposures[1], nints=400)
    (raw,) = simulate_exposure(plan, tmp_path / "raw", quiet, seed=3)
    cache = references.default_cache(quiet.detector)
    images = []
    for chunk in prep_data(raw, Dice(2), tmp_path / "dice"):
        steps = {"charge_migration": {"skip": True}}
        task = "jwst.pipeline:Detector1Pipeline.call"
        offline.run_offline(cache, task, str(chunk), output_dir=str(tmp_path), save_results=True, steps=steps)
        with fits.open(tmp_path / chunk.name.replace("uncal", "rate")) as hdus:
            images.append([hdus[k].data.astype(float) for k in ("SCI", "ERR")] + [hdus["DQ"].data & 1 == 0])
    (early, error, good), (late, other, too) = images
    use = good & too & (early > 0.1 * np.nanmax(early[good]))
    bias = late[use].sum() / early[use].sum() - 1
    noise = np.sqrt((error[use] ** 2 + other[use] ** 2).sum()) / early[use].sum()
    assert abs(bias) < 1e-3 and abs(bias) < 5 * noise


@pytest.mark.slow
def test_the_pipeline_keeps_the_flags_of_raw_counts(tmp_path, raw, quiet):
    from calami.process import offline, references

    (product,) = prep_data(raw, Clean(), tmp_path)
    options = {"save_calibrated_ramp": True, "steps": {"jump": {"skip": True}, "charge_migration": {"skip": True}}}
    task = "jwst.pipeline:Detector1Pipeline.call"
    cache = references.default_cache(quiet.detector)
    offline.run_offline(cache, task, str(product), output_dir=str(tmp_path), save_results=True, **options)
    given, kept = (fits.getdata(p, "GROUPDQ") for p in (product, tmp_path / product.name.replace("uncal", "ramp")))
    assert given.any() and (kept & given == given).all()
