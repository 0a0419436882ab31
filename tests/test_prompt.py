"""First guesses at the prompt: what a new user types works, or is answered by the right spelling."""

import re

import numpy as np
import pytest
from toys import rootname, write_exposure, write_star

from calami import Dataset
from calami.core.problems import CalamiError
from calami.core.tables import plus_minus, render, with_errors, with_interval
from calami.process.rearrange import Join


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for activity, groups in ((1, 5), (2, 13), (3, 12)):
        write_exposure(tmp_path / "data" / f"{rootname(1, activity)}_rate.fits", NGROUPS=groups)
    return tmp_path / "data"


def ramp(path, groups=6, ints=4, **cards):
    levels = np.arange(1, groups + 1, dtype="float32")[None, :, None, None] * 100
    arrays = {"SCI": np.broadcast_to(levels, (ints, groups, 8, 8)).copy()}
    arrays |= {"PIXELDQ": np.zeros((8, 8), "uint32"), "GROUPDQ": np.zeros((ints, groups, 8, 8), "uint8")}
    return write_exposure(path, arrays, NGROUPS=groups, NINTS=ints, EFFINTTM=groups * 0.07544, **cards)


def test_numbers_slices_lists_and_masks(folder):
    ds = Dataset(folder)
    assert (
        ds[0].rootname == ds.rootlist[0] and ds[-1].rootname == ds.rootlist[2] and ds[np.int64(1)].name == ds.names[1]
    )
    assert ds[:2].rootlist == ds.rootlist[:2] and ds[[2, ds.names[0]]].rootlist == [ds.rootlist[0], ds.rootlist[2]]
    assert ds[np.array([False, True, False])].names == [ds.names[1]] and type(ds[:1]) is Dataset
    for wrong, words in ((3, "from 0 to 2"), (np.array([True]), "does not fit 3 exposures"), (["none"], "no exposure")):
        with pytest.raises(CalamiError, match=words):
            ds[wrong]


def test_names_complete_and_rootnames_need_no_detector(folder):
    ds = Dataset(folder)
    assert ds._ipython_key_completions_() == ds.names
    assert ds[rootname(1, 2).removesuffix("_nis")].rootname == rootname(1, 2)


@pytest.mark.parametrize(("key", "meant"), [("fliter", "filter"), ("ngroup", "ngroups"), ("groups", "ngroups")])
def test_a_misspelt_column_is_answered_by_the_right_one(folder, key, meant):
    with pytest.raises(CalamiError, match=rf"did you mean .*\b{meant}\b"):
        Dataset(folder).select(**{key: 5})


def test_what_has_no_near_name_is_answered_by_all(folder):
    with pytest.raises(CalamiError, match="use one of name, rootname"):
        Dataset(folder).select(zzzzzz=5)


def test_outputdir_is_infodir(folder, tmp_path):
    ds = Dataset(folder, filetypes=("rate"), outputdir=tmp_path / "info")
    assert ds.infodir == tmp_path / "info" and (tmp_path / "info" / "calami.log").exists()
    with pytest.raises(CalamiError, match="two names of one thing"):
        Dataset(folder, infodir=tmp_path / "a", outputdir=tmp_path / "b")


def test_one_file_in_two_roles(folder, tmp_path):
    mine = tmp_path / "my_mapping.txt"
    mine.write_text("deep ngroups=13  # the deep one\n")
    ds = Dataset(folder)
    names = ds.create_mapping(mine, mine)
    assert names["deep"] == rootname(1, 2) and len(names) == 3
    assert (tmp_path / "my_mapping.txt.old").read_text() == "deep ngroups=13  # the deep one\n"
    assert Dataset(folder).create_mapping(mine, mine) == names  # what was written is read
    assert (tmp_path / "my_mapping.txt.old2").exists()
    assert (tmp_path / "my_mapping.txt.old").read_text().startswith("deep ngroups")


def test_a_summary_to_be_read_is_narrow_and_names_the_files(folder, tmp_path):
    ds = Dataset(folder)
    ds.create_summary(tmp_path / "dt_type_file.txt")
    lines = (tmp_path / "dt_type_file.txt").read_text().splitlines()
    assert max(map(len, lines)) < 260 and lines[2].endswith(f"{rootname(1, 1)}_rate.fits")
    ds.create_summary(tmp_path / "all.csv")
    assert len((tmp_path / "all.csv").read_text().splitlines()[0].split(",")) == len(ds.summary.colnames)


def test_latex(folder):
    text = Dataset(folder).info("latex")
    assert text.startswith(r"\begin{tabular}{") and text.count(r"\\") == 4 and r"jw01516001001\_03101" in text
    assert re.search(r"(?<!\\)_", text) is None


def test_pandas(folder):
    pytest.importorskip("pandas")
    frame = Dataset(folder).to_pandas()
    assert list(frame["ngroups"]) == [5, 13, 12] and frame.index[0] == Dataset(folder).names[0]


def test_names_of_an_earlier_session_are_read_back(folder, tmp_path):
    (tmp_path / "mine.txt").write_text("deep ngroups=13\n")
    Dataset(folder, infodir=tmp_path / "info").create_mapping(tmp_path / "mine.txt")
    (folder / f"{rootname(1, 1)}_rate.fits").unlink()  # what is gone does not take the other names along
    again = Dataset(folder, infodir=tmp_path / "info")
    assert again["deep"].rootname == rootname(1, 2) and len(again.names) == 2


def test_damaged_names_are_reported_and_kept(folder, tmp_path):
    Dataset(folder, infodir=tmp_path / "info")
    (tmp_path / "info" / "names.yaml").write_text("- a\n- b\n")
    again = Dataset(folder, infodir=tmp_path / "info")
    assert any("names are automatic" in reason for reason in again.problems["reason"])
    assert (tmp_path / "info" / "names.yaml").read_text() == "- a\n- b\n" and len(again.names) == 3


def test_recipes_as_text_names_and_the_log(tmp_path):
    (tmp_path / "raw").mkdir()
    ramp(tmp_path / "raw" / f"{rootname(1, 1)}_ramp.fits")
    (tmp_path / "mine.txt").write_text(f"abdor_58ke {rootname(1, 1)}\n")
    ds = Dataset(tmp_path / "raw", infodir=tmp_path / "info")
    ds.create_mapping(tmp_path / "mine.txt")
    made = ds[:].prep_data({"abdor_58ke": "dice:2"}, tmp_path / "diced")
    assert made.names == ["abdor_58ke_dice1of2", "abdor_58ke_dice2of2"] and len(made["abdor_58ke_dice1"].shape) == 4
    again = ds.prep_data("truncate:4", tmp_path / "cut")  # for all
    assert again["abdor_58ke"].shape == (4, 4, 8, 8)
    whole = made.rearrange_data(Join(), tmp_path / "joined", ["abdor_58ke_dice1"])
    assert all(name.startswith("abdor_58ke") for name in whole.names)
    log = (tmp_path / "info" / "calami.log").read_text()
    assert "prep_data into" in log and "Dice" in log and "Truncate" in log
    assert len(ds["abdor_58ke"].prep_data(["dice:2"], tmp_path / "one")) == 2


def test_all_recipes_are_read_before_anything_is_made(tmp_path):
    for activity in (1, 2):
        ramp(tmp_path / f"{rootname(1, activity)}_ramp.fits")
    ds = Dataset(tmp_path)
    with pytest.raises(CalamiError, match="'dise:2' is no recipe"):
        ds.prep_data({ds.names[0]: "dice:2", ds.names[1]: "dise:2"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verbose_is_of_that_object(folder, capsys):
    loud, quiet = Dataset(folder, verbose=True), Dataset(folder)
    assert "looked at" in capsys.readouterr().err
    quiet.info(outfile=folder / "a.txt")
    assert capsys.readouterr().err == ""
    loud.info(outfile=folder / "b.txt")
    assert "info written to" in capsys.readouterr().err


def test_a_fault_is_shown_as_its_message(folder, capsys):
    with pytest.raises(CalamiError) as caught:
        Dataset(folder)["none"]
    (line,) = caught.value._render_traceback_()
    assert line.startswith("MappingProblem: no exposure is called 'none'")
    interactive = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell.instance()
    shown = interactive.run_cell("from calami import Dataset; Dataset('/nowhere')")
    out = capsys.readouterr().out
    assert isinstance(shown.error_in_exec, CalamiError) and "no such file or folder" in out and "Traceback" not in out


def test_an_exposure_shows_itself(tmp_path):
    write_star(tmp_path / f"{rootname()}_rate.fits", 5, bad=[(39, 44), (60, 60)])
    star = Dataset(tmp_path)[0]
    ax = star.plot(half=10)
    assert ax.get_title() == star.name and ax.get_xlim() == (34.5, 55.5)
    assert "brightest pixel" in star.info() and "row 40, column 45" in star.info("markdown")
    assert "base64" in star._repr_html_()
    assert re.fullmatch(r"Peak\(row=40, col=45, rate=\d+(\.\d+)? ± [\d.]+ ADU/s\)", repr(star.peak()))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (38820.664, 34.137, "38821 ± 34"), (0.00123456, 0.000987, "0.00123 ± 0.00099"), (-1e-9, 0.5, "0.00 ± 0.50"),
        (12.0, 0.0, "12"), (12.5, np.nan, "12.5"), (1234.5, 1000.0, "1200 ± 1000"),
        (4828.2, 363.7, "4830 ± 360"), (1.0, 0.0999, "1.00 ± 0.10"),
        (6.4e-7, 2e-8, "(6.40 ± 0.20)e-7"), (0.0, 2e-8, "(0.0 ± 2.0)e-8"),
    ],
)  # fmt: skip
def test_digits_end_where_the_error_does(value, error, text):
    assert plus_minus(value, error) == text


def test_a_lopsided_interval_has_an_error_to_each_side():
    assert (
        with_interval(38.8, 38.4, 40.7) == "38.8 (38.4 to 40.7)" and with_interval(38.8, 38.3, 39.3) == "38.80 ± 0.50"
    )
    assert with_interval(5.0, 5.0, 6.0) == "5.0 (5.0 to 6.0)"
    assert with_interval(30.057, 17.979, 30.088) == "30 (18 to 30)"


def test_numbers_join_their_errors_for_display():
    from astropy import units as u
    from astropy.table import QTable

    table = QTable({"a": ["x"], "level": [1234.56] * u.adu, "level_err": [12.3] * u.adu, "b_error": [1.0]})
    shown = with_errors(table)
    assert shown.colnames == ["a", "level", "b_error"] and shown["level"][0] == "1235 ± 12"
    assert "level [adu]" in render(shown, "html") and table["level"][0] == 1234.56 * u.adu


def test_latex_of_awkward_text():
    from astropy.table import Table

    text = render(Table({"A_b": ["50 % & more", "χ² ± 1", r"x\y"]}), "latex")
    assert r"A\_b" in text and r"50 \% \& more" in text and r"\textbackslash{}" in text
