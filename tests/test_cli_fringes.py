"""`calami fringes`, `calami calibrate` and `calami contrast`."""

import json

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from toys import fringe_cube, fringe_images, rootname, write_exposure
from typer.testing import CliRunner

from calami.cli import app
from calami.fringes.batch import newest_products
from calami.fringes.companions import add_companion
from calami.fringes.observables import add_noise, point_source
from calami.fringes.oifits import read_oifits, write_oifits

POINTING = {"ROLL_REF": 171.765, "V3I_YANG": 0.56126717, "VPARITY": -1, "CDELT1": 65.6 / 3.6e6, "CDELT2": 65.6 / 3.6e6}


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.fixture(scope="module")
def exposures(tmp_path_factory):
    """A cube and an image of a star."""
    folder = tmp_path_factory.mktemp("images")
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 6, seed=1)
    arrays = {"SCI": cube.astype("float32"), "ERR": error.astype("float32"), "DQ": dq}
    paths = [folder / f"{rootname(1)}_calints.fits", folder / f"{rootname(2)}_cal.fits"]
    write_exposure(paths[0], arrays, POINTING, NINTS=6)
    write_exposure(paths[1], {key: value[0] for key, value in arrays.items()}, POINTING, NINTS=6)
    return paths


@pytest.fixture
def calibrated(tmp_path):
    """Files of a binary in two filters, and of a star without companion."""
    rng, paths = np.random.default_rng(1), []
    for name, contrast in (("F380M", 0.01), ("F480M", 0.02)):
        star = add_companion(point_source(name, 1e8, name="binary"), 150, 70, contrast)
        paths.append(write_oifits(add_noise(star, rng), tmp_path / f"{name}.fits"))
    return [*paths, write_oifits(add_noise(point_source("F480M", 1e8, name="ref"), rng), tmp_path / "ref.fits")]


@pytest.mark.parametrize("command", ["fringes", "calibrate", "contrast"])
def test_help_has_examples(command):
    answer = run(command, "--help")
    assert answer.exit_code == 0 and f"calami {command} " in answer.stdout


def test_fringes_writes_the_files_of_each_exposure(exposures, tmp_path):
    before = [path.read_bytes() for path in exposures]
    answer = run("fringes", *exposures, "-o", tmp_path / "oi")
    assert answer.exit_code == 0 and "HD 36705" in answer.stdout and "wrote 2 exposures" in answer.stderr
    names = {f"{rootname(1)}_ami-oi.fits", f"{rootname(1)}_amimulti-oi.fits", f"{rootname(2)}_ami-oi.fits"}
    assert {p.name for p in (tmp_path / "oi").iterdir()} == names
    data = read_oifits(tmp_path / "oi" / f"{rootname(1)}_ami-oi.fits")
    assert data.v2_good.all() and data.n_samples >= 6 and data.filter == "F480M"
    with fits.open(tmp_path / "oi" / f"{rootname(1)}_amimulti-oi.fits") as hdus:
        assert hdus["OI_T3"].data["T3PHI"].shape == (35, 6)
    assert [path.read_bytes() for path in exposures] == before


def test_fringes_takes_the_newest_products_of_a_folder(exposures, tmp_path):
    """Of each exposure one file; acquisitions are none; stages that differ are refused in one sentence."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path, other in zip(exposures, ("rateints", "rate"), strict=True):
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / f"{path.name.rpartition('_')[0]}_{other}.fits").write_bytes(path.read_bytes())
    arrays = {"SCI": np.ones((64, 64), "float32"), "DQ": np.zeros((64, 64), "uint32")}
    write_exposure(folder / f"{rootname(3)}_cal.fits", arrays, POINTING, EXP_TYPE="NIS_TACQ")
    assert {path.name for path in newest_products(folder)} == {path.name for path in exposures}
    answer = run("fringes", folder, "-o", tmp_path / "oi")
    assert answer.exit_code == 0 and "wrote 2 exposures" in answer.stderr
    assert (tmp_path / "oi" / f"{rootname(1)}_amimulti-oi.fits").exists()
    (folder / exposures[1].name).unlink()
    answer = run("fringes", folder, "-o", tmp_path / "oi")
    assert answer.exit_code == 1 and "of 2 exposures 1 are calibrated and 1 are not; give the files" in answer.stderr
    (tmp_path / "raw").mkdir()
    write_exposure(tmp_path / "raw" / f"{rootname(1)}_uncal.fits", {"SCI": np.ones((1, 2, 80, 80), "uint16")}, POINTING)
    answer = run("fringes", tmp_path / "raw", "-o", tmp_path / "oi")
    assert answer.exit_code == 1 and "no rate or cal product" in answer.stderr and "calami pipe" in answer.stderr


def test_fringes_writes_rows(exposures, tmp_path):
    answer = run("fringes", exposures[0], "-o", tmp_path / "oi", "--rows")
    assert answer.exit_code == 0
    with fits.open(tmp_path / "oi" / f"{rootname(1)}_amimulti-oi.fits") as hdus:
        assert hdus["OI_T3"].data["T3PHI"].shape == (6 * 35,)
    assert len(read_oifits(tmp_path / "oi" / f"{rootname(1)}_amimulti-oi.fits").samples["cp"]) == 6


def test_what_cannot_be_fitted_is_told_and_the_others_done(exposures, tmp_path):
    wrong = tmp_path / f"{rootname(3)}_cal.fits"
    write_exposure(wrong, {"SCI": np.ones((80, 80), "float32"), "DQ": np.ones((80, 80), "uint32")}, POINTING)
    answer = run("fringes", wrong, exposures[1], "-o", tmp_path / "oi", "--holes", "B4,C2,B5,C6")
    assert answer.exit_code == 1 and wrong.name in answer.stderr and "1 of 2 exposures" in answer.stderr
    assert len(read_oifits(tmp_path / "oi" / f"{rootname(2)}_ami-oi.fits").v2) == 6
    assert "Traceback" not in answer.stderr


def test_one_exposure_given_twice_is_refused(exposures, tmp_path):
    twin = tmp_path / exposures[1].name.replace("_cal", "_rate")
    twin.write_bytes(exposures[1].read_bytes())
    answer = run("fringes", exposures[1], twin, "-o", tmp_path / "oi")
    assert answer.exit_code == 1 and "is the same exposure" in answer.stderr


@pytest.mark.parametrize("words", [["--holes", "B4,C2"], ["--holes", "A1,B4,C2"]])
def test_holes_that_are_none(exposures, tmp_path, words):
    answer = run("fringes", exposures[1], "-o", tmp_path / "oi", *words)
    assert answer.exit_code == 1 and "at least three of" in answer.stderr


def test_calibrate(calibrated, tmp_path):
    other = write_oifits(point_source("F480M", 1e8, name="other"), tmp_path / "other.fits")
    answer = run("calibrate", calibrated[1], calibrated[2], other, "-o", tmp_path / "out.fits")
    assert answer.exit_code == 0 and "binary by ref, other, F480M" in answer.stdout
    assert "differ beyond their errors" in answer.stdout
    assert read_oifits(tmp_path / "out.fits").references == ("ref", "other")


def test_weights_by_brightness_need_no_more_than_the_files(exposures, tmp_path):
    run("fringes", *exposures, "-o", tmp_path)
    one, two = (tmp_path / f"{rootname(n)}_ami-oi.fits" for n in (1, 2))
    answer = run("calibrate", one, two, "-o", tmp_path / "out.fits", "--weights", "brightness")
    assert answer.exit_code == 0 and read_oifits(one).header["FLUX"] > 0


def test_what_makes_no_sense_as_a_reference_is_refused(calibrated, tmp_path):
    star, ref, out = *calibrated[1:], tmp_path / "out.fits"
    for files in ((star, star), (star, ref, ref)):
        answer = run("calibrate", *files, "-o", out)
        assert answer.exit_code == 1 and "is the same exposure as" in answer.stderr and not out.exists()
    run("calibrate", star, ref, "-o", out)
    for files in ((out, ref), (ref, out)):
        answer = run("calibrate", *files, "-o", tmp_path / "again.fits")
        assert answer.exit_code == 1 and "is calibrated already, by ref" in answer.stderr


def test_one_exposure_counts_once_and_other_stars_are_reported(calibrated, tmp_path):
    answer = run("contrast", calibrated[1], calibrated[1], "-o", tmp_path / "out")
    assert answer.exit_code == 1 and "is the same exposure as" in answer.stderr
    answer = run("contrast", *calibrated[1:], "-o", tmp_path / "out", "--limit", 100)
    assert answer.exit_code == 0 and "different stars are fitted as one: binary, ref" in answer.stderr


def test_calibrate_that_cannot_be_done(calibrated, tmp_path):
    answer = run("calibrate", calibrated[0], calibrated[2], "-o", tmp_path / "out.fits")
    assert answer.exit_code == 1 and "calibrate with the same filter" in answer.stderr
    before = calibrated[1].read_bytes()
    answer = run("calibrate", calibrated[1], calibrated[2], "-o", calibrated[1])
    assert answer.exit_code == 1 and "one of the files to be read" in answer.stderr
    assert calibrated[1].read_bytes() == before and not (tmp_path / "out.fits").exists()
    assert run("calibrate", calibrated[1], "-o", tmp_path / "out.fits").exit_code == 2


def test_contrast(calibrated, tmp_path):
    answer = run("contrast", *calibrated[:2], "-o", tmp_path / "out", "--limit", 300)
    assert answer.exit_code == 0 and "position angle" in answer.stdout and "not calibrated" in answer.stderr
    saved = json.loads((tmp_path / "out" / "companion.json").read_text(encoding="utf-8"))
    assert (
        abs(saved["sep_mas"] - 150) < 4 * saved["sep_err_mas"] and abs(saved["pa_deg"] - 70) < 4 * saved["pa_err_deg"]
    )
    for name, contrast in (("F380M", 0.01), ("F480M", 0.02)):
        assert abs(saved["dmag"][name] + 2.5 * np.log10(contrast)) < 4 * saved["dmag_err"][name]
    assert saved["significance"] > 10 and "alternatives" in saved
    curve = QTable.read(tmp_path / "out" / "contrast_curve.ecsv")
    assert curve.meta["curve"]["definition"] == "delta_chi2" and curve.meta["curve_1"]["definition"] == "absil"
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"companion.json", "contrast_curve.ecsv", "detection_map.fits"} | {
        f"{figure}.png" for figure in ("observables", "chi2_map", "detection_map", "contrast_curve")
    }


def test_contrast_that_cannot_be_done(calibrated, tmp_path):
    answer = run("contrast", calibrated[0], "-o", tmp_path / "out", "--kind", "best")
    assert answer.exit_code == 1 and "no definition of a limit" in answer.stderr
    bare = tmp_path / "bare.fits"
    with fits.open(calibrated[0]) as hdus:
        fits.HDUList([h for h in hdus if h.name not in ("OI_T3", "CALAMI_CPCOV")]).writeto(bare)
    answer = run("contrast", bare, "-o", tmp_path / "out")
    assert answer.exit_code == 1 and "has no closure phases; ask for observables='v2'" in answer.stderr
    assert "warning:" in answer.stderr and not (tmp_path / "out" / "companion.json").exists()
    answer = run("contrast", bare, "-o", tmp_path / "out", "--observables", "v2", "--limit", 200)
    assert answer.exit_code == 0 and (tmp_path / "out" / "companion.json").exists()


def test_notes_of_a_fit_are_reported(tmp_path):
    image = 1e6 * fringe_images("F480M", seed=3, size=80, slopes=False)[0].astype("float32")
    path = tmp_path / f"{rootname(1)}_cal.fits"
    write_exposure(
        path, {"SCI": image[::-1], "ERR": np.sqrt(image + 25), "DQ": np.zeros(image.shape, "uint32")}, POINTING
    )
    answer = run("fringes", path, "-o", tmp_path / "oi")
    assert answer.exit_code == 0 and f"{path.name}: " in answer.stderr and "does the mask lie" in answer.stderr


def test_a_spectral_type_weights_the_band(exposures, tmp_path):
    seen = {}
    for kind in ("M0V", "A0V", "X"):
        words = ("fringes", exposures[1], "-o", tmp_path / kind, "--spectral-type", kind)
        seen[kind] = run(*words)
    files = [tmp_path / kind / f"{rootname(2)}_ami-oi.fits" for kind in ("M0V", "A0V")]
    red, blue = (read_oifits(path).wavelength for path in files)
    assert 0 < red - blue < 0.02e-6
    assert seen["X"].exit_code == 1 and "spectral type 'X'" in seen["X"].stderr


@pytest.mark.slow
def test_errors_of_the_stock_code_are_told_each_time(exposures, tmp_path):
    assert run("fringes", exposures[0], "-o", tmp_path, "--mode", "jwst").exit_code == 0
    one = tmp_path / f"{rootname(1)}_ami-oi.fits"
    answer = run("contrast", one, "-o", tmp_path / "out", "--limit", 100)
    assert answer.exit_code == 0 and "was fitted in mode jwst" in answer.stderr


def test_segments_of_one_exposure_are_fitted_together(exposures, tmp_path):
    whole, paths = exposures[0], []
    with fits.open(whole) as hdus:
        arrays = {name: hdus[name].data for name in ("SCI", "ERR", "DQ")}
    for number in (1, 2):
        path = tmp_path / whole.name.replace("_nis", f"-seg{number:03d}_nis")
        part = {name: values[3 * number - 3 : 3 * number] for name, values in arrays.items()}
        paths.append(write_exposure(path, part, POINTING, NINTS=6, EXSEGNUM=number, EXSEGTOT=2))
    for kind, files in (("whole", [whole]), ("parts", paths[::-1])):
        assert run("fringes", *files, "-o", tmp_path / kind).exit_code == 0
    one, other = (read_oifits(tmp_path / kind / f"{rootname(1)}_ami-oi.fits") for kind in ("whole", "parts"))
    assert np.array_equal(one.v2, other.v2) and np.array_equal(one.cp_covariance, other.cp_covariance)
    answer = run("fringes", paths[1], "-o", tmp_path / "part")
    assert answer.exit_code == 0 and "1 of its 2 segments are here" in answer.stderr


def test_what_the_stock_code_raises_names_the_file_and_others_are_done(exposures, tmp_path):
    lost = tmp_path / f"{rootname(3)}_calints.fits"
    with fits.open(exposures[0]) as hdus:
        hdus["SCI"].data[0], hdus["DQ"].data[0] = np.nan, 1
        hdus.writeto(lost)
    answer = run("fringes", lost, exposures[1], "-o", tmp_path, "--mode", "jwst")
    assert answer.exit_code == 1 and f"{lost.name}: the stock code cannot fit it (IndexError" in answer.stderr
    assert "use mode='exact'" in answer.stderr and (tmp_path / f"{rootname(2)}_ami-oi.fits").exists()


def test_contrast_says_which_of_the_files_of_one_exposure_it_uses(exposures, tmp_path):
    run("fringes", exposures[0], "-o", tmp_path)
    means, single = (tmp_path / f"{rootname(1)}_{kind}-oi.fits" for kind in ("ami", "amimulti"))
    words = "-o", tmp_path / "out", "--limit", 100
    alone = run("contrast", means, *words)
    both = run("contrast", means, single, *words)
    assert both.stdout == alone.stdout and f"the exposure {rootname(1)} counts once" in both.stderr
    other = write_oifits(add_noise(point_source("F480M", name="other"), np.random.default_rng(1)), tmp_path / "o.fits")
    assert run("calibrate", means, other, "-o", tmp_path / "done.fits").exit_code == 0
    answer = run("contrast", means, tmp_path / "done.fits", *words)
    assert answer.exit_code == 1 and "calibrated by a reference star" in answer.stderr
    answer = run("calibrate", means, single, "-o", tmp_path / "again.fits")
    assert answer.exit_code == 1 and f"is the same exposure as {means.name}" in answer.stderr
