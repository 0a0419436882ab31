"""Charge put back: by the law that moved it, by other laws, in ramps, in images, in files."""

import shutil
from dataclasses import replace

import foreign
import numpy as np
import pytest
from astropy.io import fits
from toys import rootname, write_exposure, write_star

from calami.calutil import Data
from calami.cli import app
from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.instrument.migration import Migration, charge_ramp, find_migration, interpixel_capacitance, light_between
from calami.instrument.optics import fine_psf, within_pixels
from calami.migration.correction import Correct, correct_image, correct_ramp, read_kernel, write_kernel
from calami.migration.kernel import Kernel
from calami.migration.pair_kernel import observed_slope
from calami.migration.pairs import compare, find_pairs
from calami.process.prep import prep_data

FRAME = niriss.SUB80.frame_time
FINE = 4.4e6 * fine_psf("F480M", (20.2, 19.7), (41, 41))
STAR = within_pixels(FINE, 5)
TIMES = FRAME * np.arange(1, 13)
PEAK = np.unravel_index(STAR.argmax(), STAR.shape)
NEAR = np.hypot(*(np.indices(STAR.shape) - np.array(PEAK)[:, None, None])) <= 8
STRAIGHT = interpixel_capacitance(STAR) * TIMES[:, None, None]
FLOW = replace(find_migration("flight"), cubic=0.0)


def bent(migration, own=True):
    """A ramp to 60 ke- as it is seen."""
    ramp = interpixel_capacitance(charge_ramp(STAR, TIMES, migration, steps=8, light=light_between(FINE, 5)))
    return ramp - migration.nonlinearity * ramp**2 - migration.cubic * ramp**3


@pytest.mark.parametrize("name", ["h4rg", "flight", "flight_linear"])
def test_a_known_kernel_puts_everything_back(name):
    flow = replace(find_migration(name), cubic=0.0)
    moved = bent(flow)
    back = correct_ramp(moved[None], flow)[0]
    error = np.abs(back / STRAIGHT - 1)
    assert error[-1][PEAK] < 1e-3 and error[-1][NEAR].max() < 1e-3 < np.abs(moved / STRAIGHT - 1)[-1][NEAR].max() / 10
    assert np.abs(back.sum(axis=(1, 2)) / moved.sum(axis=(1, 2)) - 1).max() < 1e-12
    each = correct_ramp(moved[None], flow, mode="each")[0]
    assert np.abs(each - back).max() < 1e-6 * back.max()


@pytest.mark.parametrize("name", ["h4rg", "flight", "flight_linear"])
def test_sixty_thousand_electrons_are_put_back(name):
    more = 6e4 / STRAIGHT[-1].max()
    flow, light = replace(find_migration(name), cubic=0.0), light_between(more * FINE, 5)
    moved = interpixel_capacitance(charge_ramp(more * STAR, TIMES, flow, steps=8, light=light))
    back = correct_ramp(moved[None], flow)[0]
    error = np.abs(back / (more * STRAIGHT) - 1)[-1]
    print(name, error[PEAK], error[NEAR].max(), abs(back.sum() / moved.sum() - 1))
    assert error[PEAK] < 1e-3 and error[NEAR].max() < 1e-3 and abs(back.sum() / moved.sum() - 1) < 1e-12


def test_the_own_signal_is_undone_with_it():
    flight = find_migration("flight")
    back = correct_ramp(bent(flight)[None], flight)[0]
    assert np.abs(back / STRAIGHT - 1)[-1][NEAR].max() < 1e-3


def test_a_kernel_wrong_by_a_tenth_leaves_a_tenth():
    wrong = replace(FLOW, edge=0.9 * FLOW.edge, diagonal=0.9 * FLOW.diagonal)
    left = correct_ramp(bent(FLOW)[None], wrong)[0][-1] - STRAIGHT[-1]
    effect = bent(FLOW)[-1] - STRAIGHT[-1]
    assert np.linalg.norm(left[NEAR]) < 0.12 * np.linalg.norm(effect[NEAR])


@pytest.mark.parametrize(("law", "share"), [("linear", 0.99), ("own", 0.8), ("long", 0.8)])
def test_ramps_of_the_second_simulator(law, share):
    # Laws that are not ours are undone in part, with the coefficients that suit them best.
    physics = replace(foreign.LAWS[law], noise=False)
    light = foreign.light_of("F480M").scaled(4800.0)
    charge = foreign.charges_of(light, np.arange(1, 11), physics)
    straight = light.pixel * np.arange(1, 11)[:, None, None]
    seen, truth = (interpixel_capacitance(c) for c in (charge, straight))
    near = np.hypot(*(np.indices(truth.shape[1:]) - 15)) <= 6
    effect = np.linalg.norm((seen - truth)[-1][near])
    found = min(
        np.linalg.norm((correct_ramp(seen[None], Migration(edge, ratio * edge))[0] - truth)[-1][near])
        for edge in np.linspace(0.3e-6, 1.2e-6, 10)
        for ratio in (0.1, 0.25, 0.5)
    )
    assert found < (1 - share) * effect


def test_noise_and_cosmic_rays_stay_what_they_are():
    rng = np.random.default_rng(1)
    light = light_between(FINE, 5)
    clean = interpixel_capacitance(charge_ramp(STAR, TIMES, FLOW, light=light))
    noise = np.cumsum(rng.normal(0, np.sqrt(STAR * FRAME), (12, *STAR.shape)), axis=0)
    ramps = clean + noise + rng.normal(0, 16, (30, 12, *STAR.shape))
    ramps[3, 6:, PEAK[0], PEAK[1] + 2] += 8000.0
    for mode in ("mean", "each"):
        back = correct_ramp(ramps, FLOW, mode=mode)
        change = back - ramps
        assert np.abs(change.sum(axis=(2, 3))).max() < 1e-6
        ratio = (back.std(axis=0, ddof=1) / ramps.std(axis=0, ddof=1))[:, NEAR]
        ratio = np.delete(ratio, np.flatnonzero(np.argwhere(NEAR)[:, 1] == PEAK[1] + 2), axis=1)
        assert abs(np.median(ratio) - 1) < 0.01
        jump = np.diff(back[3, :, PEAK[0], PEAK[1] + 2])[5]
        assert jump > 7900


def test_pixels_that_are_not_known_are_left_and_do_not_spread():
    moved, bad = bent(FLOW), np.zeros(STAR.shape, bool)
    bad[PEAK[0], PEAK[1] + 4] = True
    broken = moved.copy()
    broken[:, bad] = np.nan
    back = correct_ramp(broken[None], FLOW, bad)[0]
    assert np.isnan(back[:, bad]).all() and np.isfinite(back[:, ~bad]).all()
    assert np.abs(back / STRAIGHT - 1)[-1][PEAK] < 1e-3
    saturated = np.zeros(moved.shape, bool)
    saturated[9:, PEAK[0], PEAK[1]] = True
    clipped = np.where(saturated, moved[8][PEAK], moved)
    back = correct_ramp(clipped[None], FLOW, saturated)[0]
    assert np.array_equal(back[saturated], clipped[saturated])
    beside = (PEAK[0], PEAK[1] + 1)
    assert abs(back[-1][beside] / STRAIGHT[-1][beside] - 1) < 5e-3 < abs(moved[-1][PEAK] / STRAIGHT[-1][PEAK] - 1)


@pytest.mark.parametrize("groups", [2, 5, 12])
def test_images_of_slopes(groups):
    flight = find_migration("flight")
    seen = observed_slope(STAR, flight, groups, FRAME, light_between(FINE, 5)) - 3.0  # the background may be below 0
    back = correct_image(seen, groups, FRAME, flight)
    assert np.abs(back + 3 - interpixel_capacitance(STAR))[NEAR].max() < 1e-3 * STAR.max()
    seen[3, 4] = np.nan
    assert np.isnan(correct_image(seen, groups, FRAME, flight)[3, 4])


@pytest.mark.parametrize("mode", ["mean", "each"])
def test_blocks_of_integrations_give_what_the_whole_gives(mode, tmp_path, monkeypatch):
    from calami.migration import correction

    rng = np.random.default_rng(2)
    ramps = (bent(FLOW) + rng.normal(0, 16, (7, 12, *STAR.shape))).astype(np.float32)
    ramps[2, 5:, 20, 20] = np.nan
    whole = correct_ramp(ramps, FLOW, mode=mode, filter_name="F480M")
    assert whole.dtype == np.float32 and np.isnan(whole[2, 5:, 20, 20]).all()
    exact = correct_ramp(ramps.astype(float), FLOW, mode=mode, filter_name="F480M")
    assert np.nanmax(np.abs(whole - exact)) < 0.05  # e-, of 60,000
    monkeypatch.setattr(correction, "_blocks", lambda shape: [slice(k, k + 2) for k in range(0, shape[0], 2)])
    assert np.array_equal(correct_ramp(ramps, FLOW, mode=mode, filter_name="F480M"), whole, equal_nan=True)
    cards = {"READPATT": "NISRAPID", "NFRAMES": 1, "NGROUPS": 12, "NINTS": 7, "FILTER": "F480M"}
    adu = {"SCI": (ramps / np.float32(niriss.GAIN)), "GROUPDQ": np.zeros(ramps.shape, "u1")}
    path = write_exposure(tmp_path / f"{rootname(1, 5)}_ramp.fits", adu, {"BUNIT": "DN"}, **cards)
    read, most = correction.Layer.values, []

    def watched(layer, where=...):
        values = read(layer, where)
        most.append(values.size if values.dtype.kind == "f" else 0)
        return values

    monkeypatch.setattr(correction.Layer, "values", watched)
    (made,) = prep_data(path, Correct("flight", mode), tmp_path / "out")
    assert max(most) < ramps.size  # the file is read a part at a time, never as a whole
    again = fits.getdata(made, "SCI") * niriss.GAIN
    flight = correct_ramp(ramps, "flight", mode=mode, filter_name="F480M")
    assert np.allclose(again, flight, rtol=1e-6, atol=0.05, equal_nan=True)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_corrected_once_and_says_so(tmp_path):
    path = write_star(tmp_path / f"{rootname(1, 5)}_rate.fits", 13)
    before = path.read_bytes()
    (made,) = prep_data(path, Correct("flight"), tmp_path / "out")
    assert made.name == f"{rootname(1, 5)}_corrected_rate.fits" or "corrected" in made.name
    header = fits.getheader(made)
    assert header["S_MIGCOR"] == "COMPLETE" and header["MIGKERN"] == "flight" and path.read_bytes() == before
    assert "charge migration put back" in str(header["HISTORY"])
    old, new = fits.getdata(path, "SCI"), fits.getdata(made, "SCI")
    at = np.unravel_index(np.nanargmax(np.where(old > 1e6, 0, old)), old.shape)
    assert 1.01 < new[at] / old[at] < 1.15
    good = fits.getdata(path, "DQ") == 0
    assert np.isclose(new[good].sum(), old[good].sum(), rtol=3e-3)
    with pytest.raises(CalamiError, match="corrected for migration already"):
        prep_data(made, Correct("flight"), tmp_path / "twice")
    assert Data(made).header["CLMDONE"] == "corrected"


def test_the_original_counts_in_a_folder_unless_corrected_ones_are_asked_for(tmp_path):
    (tmp_path / "data").mkdir()
    for activity, groups in ((2, 5), (5, 13)):
        path = write_star(tmp_path / "data" / f"{rootname(1, activity)}_rate.fits", groups, seed=activity)
        prep_data(path, Correct("flight"), tmp_path / "data" / "corrected")
    shutil.copy(path, tmp_path / "data" / f"{rootname(1, activity)}_cal.fits")
    plain, corrected = Dataset(tmp_path / "data"), Dataset(tmp_path / "data", corrected=True)
    assert plain.rootlist == [rootname(1, 2), rootname(1, 5)]
    assert not any("S_MIGCOR" in plain.facts(root) for root in plain.rootlist)
    assert [corrected.facts(root).get("S_MIGCOR") for root in corrected.rootlist] == ["COMPLETE", None, "COMPLETE"]
    assert corrected.types(rootname(1, 5)) == ("cal",), "what has not been corrected stays"
    for ds, words in ((plain, "is corrected for migration"), (corrected, "is not corrected for migration")):
        rows = [row for row in ds.problems if words in row["reason"]]
        assert len(rows) == 2 and all("is used instead" in r["reason"] and r["severity"] == "warning" for r in rows)
    for ds, note in ((plain, False), (corrected, True)):
        (pair,) = find_pairs(ds)
        result = compare(*(ds.data(name, "rate") for name in pair[:2]))
        assert any("charge was put back in both" in n for n in result.notes) == note
    mixed = compare(plain[rootname(1, 2)], corrected.data(f"{rootname(1, 5)}_corrected", "rate"))
    assert any("processed differently" in note and "S_MIGCOR (nothing and COMPLETE)" in note for note in mixed.notes)
    # also where its name is that of the original, and where only the corrected is there
    for name in (rootname(1, 2), rootname(1, 5)):
        (made,) = (tmp_path / "data" / "corrected").glob(f"{name}_*rate.fits")
        made.rename(made.with_name(f"{name}_rate.fits"))
        made.with_name(f"{made.name}.json").unlink(missing_ok=True)
    for wanted in (False, True):
        ds = Dataset(tmp_path / "data", corrected=wanted)
        assert ds.rootlist == [rootname(1, 2), rootname(1, 5)]
        found = {ds.path(root, "rate").parent.name for root in ds.rootlist}
        assert found == {"corrected" if wanted else "data"}
    assert len(Dataset(tmp_path / "data" / "corrected")) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"NFRAMES": 4, "READPATT": "NIS"}, "averages of frames"),
        ({"S_CHGMIG": "COMPLETE"}, "charge_migration flagged"),
        ({"S_UNDSMP": "COMPLETE"}, "charge_migration flagged"),
        ({"CLMGRPS": "6-10 of 13"}, "part of a ramp"),
        ({"NGROUPS": 1}, "1 groups"),
        ({"EFFINTTM": 8.98072}, "EFFINTTM is 8.98072 s, but NGROUPS × TGROUP = 13"),
        ({"sci_cards": {"BUNIT": "Jy"}}, "its unit is 'Jy'"),
        ({"sci_cards": {"BUNIT": "MJy/sr"}}, "MJy/sr with PHOTMJSR"),
    ],
)
def test_what_cannot_be_corrected(tmp_path, change, words):
    path = write_star(tmp_path / f"{rootname(1, 5)}_rate.fits", 13, **change)
    with pytest.raises(CalamiError, match=words):
        prep_data(path, Correct("flight"), tmp_path / "out")
    assert not list(tmp_path.glob("out/*.fits"))


def test_raw_counts_and_kernels_of_other_filters(tmp_path):
    raw = np.zeros((1, 3, 80, 80), "uint16")
    path = write_exposure(tmp_path / f"{rootname(1, 5)}_uncal.fits", {"SCI": raw}, NGROUPS=3, NINTS=1)
    with pytest.raises(CalamiError, match="raw counts"):
        prep_data(path, Correct("flight"), tmp_path / "out")
    kernel = Kernel(
        Migration(5e-7, 1e-7, cubic=-1e-12), ("edge", "diagonal"), np.array([5e-7, 1e-7]), np.full(2, 1e-8),
        np.eye(2) * 1e-16, 10.0, 9, "ramps", "F430M", ("one", "two"),
    )  # fmt: skip
    file = write_kernel(kernel, tmp_path / "pars-correctmigration_f430m.asdf")
    found, meta = read_kernel(file)
    assert found == kernel.migration and np.allclose(meta["covariance"], kernel.covariance)
    star = write_star(tmp_path / f"{rootname(2, 5)}_rate.fits", 13)
    with pytest.raises(CalamiError, match="it is of F480M, and the kernel of F430M"):
        prep_data(star, Correct(file), tmp_path / "out")
    for name, text in (("no.asdf", None), ("bad.asdf", "#ASDF 1.0.0\n")):
        if text:
            (tmp_path / name).write_text(text)
        with pytest.raises(FileProblem, match=r"is not there|holds no kernel"):
            Correct(tmp_path / name)
    with pytest.raises(FileProblem, match=r"end it in \.asdf"):
        write_kernel(kernel, tmp_path / "kernel.fits")
    with pytest.raises(CalamiError, match="no migration coefficients called 'nobody'"):
        Correct("nobody")
    with pytest.raises(CalamiError, match="integrations, groups, rows and columns"):
        correct_ramp(np.zeros((3, 4, 4)))


def test_the_command(tmp_path):
    from typer.testing import CliRunner

    (tmp_path / "in").mkdir()
    for k, groups in ((2, 5), (5, 13)):
        write_star(tmp_path / "in" / f"{rootname(1, k)}_rate.fits", groups)
    result = CliRunner().invoke(app, ["correct", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").glob("*corrected*rate*.fits"))) == 2
    again = CliRunner().invoke(app, ["correct", str(tmp_path / "out"), "-o", str(tmp_path / "twice")])
    assert again.exit_code != 0


@pytest.mark.shared
def test_the_real_pair(shared_data, tmp_path):
    from calami.fringes import fit

    folder = shared_data / "jw01093"
    paths = [folder / f"jw01093012001_0310{k}_00001_nis_cal.fits" for k in (2, 5)]
    change = []
    for pair in (paths, [prep_data(p, Correct("flight"), tmp_path)[0] for p in paths]):
        shallow, deep = (fit(p, pixel_weights="plain") for p in pair)
        change.append(np.sqrt(np.mean((deep.v2 / shallow.v2 - 1) ** 2)))
    assert change[0] > 0.035 and change[1] < 0.007


def test_the_flat_is_undone_and_put_back(tmp_path, monkeypatch, caplog):
    cards = {"READPATT": "NISRAPID", "NFRAMES": 1, "SUBSTRT1": 1045, "SUBSTRT2": 1}
    plain = write_star(tmp_path / f"{rootname(1)}_rate.fits", 12, edge=0.4e-6, **cards)
    flat = np.random.default_rng(3).normal(1, 0.05, (90, 1200))
    here = flat[:80, 1044:1124]
    path = tmp_path / "crds" / "references" / "jwst" / "niriss" / "jwst_niriss_flat_0001.fits"
    path.parent.mkdir(parents=True)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(flat, name="SCI")]).writeto(path)
    named = {"R_FLAT": f"crds://{path.name}", "S_FLAT": "COMPLETE"}
    flattened = write_star(tmp_path / f"{rootname(2)}_rate.fits", 12, edge=0.4e-6, **cards, **named)
    with fits.open(flattened, mode="update") as hdus:
        hdus["SCI"].data = (hdus["SCI"].data / here).astype("float32")
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "crds"))
    one, other = (fits.getdata(prep_data(p, Correct("h4rg"), tmp_path / "out")[0], "SCI") for p in (plain, flattened))
    known = np.isfinite(one) & (np.abs(one) > 1)
    assert np.allclose(other[known] * here[known], one[known], rtol=1e-5)
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "none"))
    without = fits.getdata(prep_data(flattened, Correct("h4rg"), tmp_path / "without")[0], "SCI")
    assert "is not in CRDS_PATH" in caplog.text and not np.allclose(without[known] * here[known], one[known], rtol=1e-5)
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "crds"))
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(flat[:60], name="SCI")]).writeto(path, overwrite=True)
    with pytest.raises(CalamiError, match="does not cover"):
        prep_data(flattened, Correct("h4rg"), tmp_path / "small")[0]
