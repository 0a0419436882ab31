import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import age, examples, rootname, write_exposure

from calami.core import files as core_files
from calami.core import tables
from calami.core.problems import CalamiError
from calami.core.tables import cell_text, render
from calami.dataset import Dataset
from calami.exposures import columns as exposures_columns
from calami.exposures import folder as exposures_folder
from calami.exposures import index as exposures_index
from calami.exposures.folder import find_files
from calami.exposures.index import Facts, Found, Index


@pytest.fixture
def folder(tmp_path):
    """Three good exposures in a folder of their own."""
    data = tmp_path / "data"
    data.mkdir()
    write_exposure(data / f"{rootname(1, 1)}_rate.fits")
    write_exposure(data / f"{rootname(1, 2)}_rate.fits", NGROUPS=13)
    write_exposure(data / f"{rootname(2, 1)}_rate.fits", TARGPROP="HD-37093", TARGNAME="HD 37093", IS_PSF=True)
    return data


def reasons(ds):
    return {Path(row["file"]).name: f"{row['severity']}: {row['reason']}" for row in ds.problems}


def digests(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).rglob("*") if p.is_file()}


# --- what cannot be looked at --------------------------------------------------------------------------------------


def test_empty_folder(tmp_path):
    with pytest.raises(CalamiError, match="no NIRISS exposure found"):
        Dataset(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(CalamiError, match="no such file or folder"):
        Dataset(tmp_path / "nowhere")


@pytest.mark.parametrize("nonsense", [[], (1516, None), [None], (True, None, "x")])
def test_something_that_is_no_place(nonsense):
    with pytest.raises(CalamiError, match="datafrom is a folder"):
        Dataset(nonsense)


def make_text(path):
    path.write_text("not found")


def make_empty(path):
    path.write_bytes(b"")


def make_truncated_header(path):
    write_exposure(path)
    path.write_bytes(path.read_bytes()[:1500])


def make_truncated_data(path):
    write_exposure(path, {"SCI": np.zeros((80, 80), "float32")})
    path.write_bytes(path.read_bytes()[:-2880])


def make_no_sci(path):
    write_exposure(path, {"ERR": np.zeros((8, 8), "float32")})


def make_other_instrument(path):
    write_exposure(path, INSTRUME="NIRCAM")


def make_bad_gzip(path):
    path.write_bytes(b"\x1f\x8b" + b"garbage" * 50)


FAULTS = {
    make_text: "",
    make_empty: "",
    make_truncated_header: "",
    make_truncated_data: "",
    make_no_sci: "SCI",
    make_other_instrument: "NIRCAM",
    make_bad_gzip: "",
}


@pytest.mark.parametrize("make", FAULTS, ids=lambda f: f.__name__)
def test_a_bad_file_is_left_out_and_listed(folder, make):
    bad = folder / f"{rootname(9, 9)}_rate.fits"
    make(bad)
    before = digests(folder)
    ds = Dataset(folder)
    assert len(ds) == 3
    told = reasons(ds)
    assert list(told) == [bad.name]
    assert told[bad.name].startswith("excluded: ") and FAULTS[make] in told[bad.name]
    assert digests(folder) == before
    age(folder)
    assert reasons(Dataset(folder)) == told == reasons(Dataset(folder))  # from the file, then from the index


def test_unreadable_file(folder, monkeypatch):
    bad = folder / f"{rootname(1, 2)}_rate.fits"
    true_open = os.open

    def guarded(path, *args, **kwargs):
        if os.fspath(path) == str(bad):
            raise PermissionError(13, "Permission denied", str(path))
        return true_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", guarded)
    ds = Dataset(folder)
    assert len(ds) == 2 and "ermission" in reasons(ds)[bad.name]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to become somebody else")
def test_unreadable_file_and_folder_for_an_ordinary_user(folder):
    code = (
        "import os, sys, astropy.table, astropy.units, calami.mapping; from calami.dataset import Dataset; "
        "os.setgid(65534); os.setuid(65534); ds = Dataset(sys.argv[1]); print(len(ds), len(ds.problems))"
    )
    with tempfile.TemporaryDirectory() as open_to_all:
        place = shutil.copytree(folder, Path(open_to_all) / "data")
        Path(open_to_all).chmod(0o755)
        (place / f"{rootname(1, 2)}_rate.fits").chmod(0)
        (place / "closed").mkdir(mode=0)
        run = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True)
    assert run.stdout.split() == ["2", "2"], run.stderr


def test_missing_keywords_are_reported_and_masked(folder):
    bare = write_exposure(folder / f"{rootname(3)}_rate.fits", FILTER=None, NGROUPS=None, TARGPROP=None)
    ds = Dataset(folder)
    assert len(ds) == 4
    assert "lacks FILTER, NGROUPS" in reasons(ds)[bare.name]
    assert ds.summary["ngroups"].mask.tolist() == [False, False, False, True]
    assert ds.summary["ngroups"][:3].tolist() == [5, 13, 5]


def test_wrong_types_are_reported_and_masked(folder):
    odd = write_exposure(folder / f"{rootname(3)}_rate.fits", NGROUPS="five", TGROUP="quick", IS_PSF="F", FILTER=480)
    ds = Dataset(folder)
    told = [row["reason"] for row in ds.problems if Path(row["file"]).name == odd.name]
    assert len(told) == 4 and any("NGROUPS is 'five'" in t for t in told)
    row = ds.summary[ds.rootlist.index(rootname(3))]
    assert row["ngroups"] is np.ma.masked and np.isnan(row["tgroup"]) and row["filter"] is np.ma.masked
    assert len(ds.problems) == 4  # asked again, nothing is listed twice


def test_two_files_claiming_one_exposure_and_type(folder):
    twin = folder / "copy" / f"{rootname(1, 1)}_rate.fits"
    twin.parent.mkdir()
    shutil.copy(folder / twin.name, twin)
    ds = Dataset(folder)
    assert len(ds) == 3 and len(ds.problems) == 1
    assert "holds the same exposure and type" in ds.problems["reason"][0]
    assert ds.path(rootname(1, 1)) != Path(ds.problems["file"][0])


def test_links_in_circles_broken_links_and_links_to_files(folder, tmp_path):
    (folder / "up").symlink_to(folder.parent)
    (folder / "lost_rate.fits").symlink_to(folder / "gone.fits")
    (folder / f"{rootname(7)}_rate.fits").symlink_to(write_exposure(tmp_path / f"{rootname(7)}_rate.fits"))
    ds = Dataset(folder)
    assert len(ds) == 4
    assert list(reasons(ds)) == ["lost_rate.fits"] and "broken link" in reasons(ds)["lost_rate.fits"]


def test_acquisition_images_and_other_exposures_are_rows_with_a_role(folder):
    write_exposure(folder / "jw01516001001_02101_00001_nis_rate.fits", EXP_TYPE="NIS_TACQ", SUBARRAY="SUBTAAMI")
    write_exposure(folder / "jw01516001001_02102_00001_nis_rate.fits", EXP_TYPE="NIS_IMAGE", PUPIL="CLEARP")
    ds = Dataset(folder)
    assert sorted(ds.summary["role"]) == ["acquisition", "other", "reference", "target", "target"]


def test_names_in_upper_case(folder):
    path = folder / f"{rootname(1, 1)}_rate.fits"
    path.rename(folder / path.name.upper())
    ds = Dataset(folder)
    assert ds.rootlist[0] == rootname(1, 1) and len(ds.problems) == 0
    assert ds.path(rootname(1, 1)).name == path.name.upper()


def test_a_renamed_copy_is_known_by_its_filename_card(folder):
    (folder / f"{rootname(1, 2)}_rate.fits").rename(folder / "abdor deep.fits")
    (folder / "stranger.fits").write_bytes(b"")
    write_exposure(folder / "nameless.fits")
    ds = Dataset(folder)
    assert ds.path(rootname(1, 2)).name == "abdor deep.fits"
    told = reasons(ds)
    assert "renamed" in told["abdor deep.fits"] and "rename it" in told["nameless.fits"] and "stranger.fits" in told


def test_a_name_that_contradicts_its_header(folder):
    write_exposure(folder / f"{rootname(8)}_rate.fits", PROGRAM="01093")
    assert "PROGRAM is 01093 in the header" in reasons(Dataset(folder))[f"{rootname(8)}_rate.fits"]


def test_stage_3_and_guide_star_files_are_kept_apart(folder):
    for name in (
        "jw01516-o001_t001_niriss_f480m-nrm-sub80_aminorm-oi.fits",
        "jw01516001001_gs-fg_2022156132225_cal.fits",
    ):
        write_exposure(folder / name, FILENAME=name)
    ds = Dataset(folder)
    assert len(ds) == 3 and len(ds.others) == 2 and len(ds.problems) == 0


def test_nothing_of_the_wanted_type(folder):
    with pytest.raises(CalamiError, match="no NIRISS exposure of type uncal found"):
        Dataset(folder, "uncal")


def test_hidden_folders_are_passed_over(folder):
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / f"{rootname(1, 1)}_rate.fits", folder / ".ipynb_checkpoints")
    assert len(Dataset(folder).problems) == 0


# --- rows ------------------------------------------------------------------------------------------------------------


def test_products_of_one_exposure_are_one_row(folder):
    write_exposure(folder / f"{rootname(1, 1)}_cal.fits", CAL_VER="1.5.3")
    write_exposure(folder / f"{rootname(1, 1)}_uncal.fits")
    write_exposure(folder / f"{rootname(1, 1)}_ami-oi.fits", {"OI_VIS": np.zeros((2, 2))})
    ds = Dataset(folder)
    assert len(ds) == 3 and ds.types(rootname(1, 1)) == ("ami-oi", "uncal", "rate", "cal")
    assert ds.summary["cal_ver"][0] == "1.5.3"
    assert ds.filetypes == ("ami-oi", "uncal", "rate", "cal")
    assert Dataset(folder, ("cal", "uncal")).rootlist == [rootname(1, 1)]


def test_products_that_disagree_are_reported(folder):
    write_exposure(folder / f"{rootname(1, 1)}_cal.fits", NGROUPS=6)
    assert "disagree on NGROUPS: 5 and 6" in reasons(Dataset(folder))[f"{rootname(1, 1)}_cal.fits"]


def test_segments_are_one_row_and_a_missing_one_is_told(folder):
    for k in (3, 1):
        name = f"{rootname(4)}-seg{k:03d}_rateints.fits"
        cube = {"SCI": np.full((2, 8, 8), float(k), "float32")}
        write_exposure(
            folder / name.replace("_nis-seg", "-seg").replace("_rateints", "_nis_rateints"), cube, INTEND=2 * k
        )
    ds = Dataset(folder)
    assert ds.summary["segments"].tolist() == [1, 1, 1, 2] and ds.facts(rootname(4))["INTEND"] == 6
    assert [p.name.split("seg")[1][:3] for p in ds.paths(rootname(4))] == ["001", "003"]
    assert any("segment 2" in reason for reason in reasons(ds).values())
    with pytest.raises(CalamiError, match="cut into 2 segments"):
        ds.path(rootname(4))
    assert ds[rootname(4)].science.shape == (4, 8, 8)


def test_compressed_files(folder):
    path = folder / f"{rootname(1, 1)}_rate.fits"
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    ds = Dataset(folder)
    assert len(ds) == 3 and len(ds.problems) == 0 and ds.summary["ngroups"][0] == 5


def test_values_equal_those_of_astropy_on_real_files(shared_data):
    ds = Dataset(shared_data / "jw01093")
    for root in ds.rootlist[::7]:
        path = ds.path(root)
        for hdu in (0, "SCI"):
            header = fits.getheader(path, hdu)
            for column in exposures_columns.SUMMARY_COLUMNS:
                if (hdu == 0) == (column.hdu == "PRIMARY"):
                    assert ds.facts(root).get(column.keyword) == header.get(column.keyword), column.keyword


def test_roles_and_targets_of_program_1093(shared_data):
    ds = Dataset(shared_data / "jw01093")
    assert len(ds) == 35 and len(ds.problems) == 0
    assert set(ds.select(role="reference").summary["targprop"]) == {"HD-37093", "HD-36805"}
    assert set(ds.select(role="target").summary["targprop"]) == {"AB-DOR"}


# --- the index -------------------------------------------------------------------------------------------------------


def test_second_look_reads_no_header(folder, monkeypatch):
    age(folder)
    # The change time cannot be set back, so pretend that no file is young.
    monkeypatch.setattr(Index, "SETTLED", -1.0)
    first = Dataset(folder)
    monkeypatch.setattr(exposures_folder, "read_facts", lambda *_: pytest.fail("a header was read"))
    again = Dataset(folder)
    assert render(again.summary, "ecsv") == render(first.summary, "ecsv")


def test_a_changed_file_is_read_again(folder, monkeypatch):
    monkeypatch.setattr(Index, "SETTLED", -1.0)
    assert Dataset(folder).summary["ngroups"][0] == 5
    write_exposure(folder / f"{rootname(1, 1)}_rate.fits", NGROUPS=7)
    assert Dataset(folder).summary["ngroups"][0] == 7


def test_a_young_file_is_not_trusted(folder):
    Dataset(folder)
    path = folder / f"{rootname(1, 1)}_rate.fits"
    status = path.stat()
    write_exposure(path, NGROUPS=8)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Dataset(folder).summary["ngroups"][0] == 8


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff\xfe", b"\n\n", b"[" * 100_000])
def test_a_damaged_index_is_made_again(folder, own_cache, monkeypatch, damage):
    monkeypatch.setattr(Index, "SETTLED", -1.0)
    Dataset(folder)
    (file,) = (own_cache / "index").iterdir()
    good = file.read_bytes()
    for content in (damage, good.split(b"\n", 2)[0] + b"\n" + damage):
        file.write_bytes(content)
        assert len(Dataset(folder)) == 3
        assert file.read_bytes() == good


def test_an_edited_index_is_made_again(folder, own_cache, monkeypatch):
    monkeypatch.setattr(Index, "SETTLED", -1.0)
    Dataset(folder)
    (file,) = (own_cache / "index").iterdir()
    good = file.read_bytes()
    file.write_bytes(good.replace(b'"F480M"', b'"F380M"'))  # as well formed as before
    assert set(Dataset(folder).summary["filter"]) == {"F480M"}
    assert file.read_bytes() == good


@given(st.data())
@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_garbled_index_never_gives_wrong_facts(tmp_path, data):
    path = tmp_path / "index.json"
    index = Index(path)
    file = Found("/x/a.fits", (10, 1, 1), (1, 1))
    index.put(file, Facts({"NGROUPS": 5, "FILTER": "F480M", "IS_PSF": True, "TGROUP": 0.07544}), 1e9)
    index.save()
    stored = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(stored) - 1))
    stored[where : where + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path.write_bytes(stored)
    known = Index(path).get(file)
    assert known is None or known == Facts({"NGROUPS": 5, "FILTER": "F480M", "IS_PSF": True, "TGROUP": 0.07544})


def test_types_survive_the_index(tmp_path):
    index = Index(tmp_path / "i.json")
    values = [{"A": 1}, {"A": True}, {"A": 1.0}, {"A": "1"}, {}]
    files = [Found(f"/x/{k}", (k, 1, 1), (1, k)) for k in range(5)]
    for file, value in zip(files, values, strict=True):
        index.put(file, Facts(value), 1e9)
    index.save()
    back = [Index(tmp_path / "i.json").get(file).values for file in files]
    assert back == values and [type(b.get("A")) for b in back] == [int, bool, float, str, type(None)]


def test_a_row_is_like_the_dictionary_it_stands_for():
    columns = {"A": [1, None], "B": ["x", "y"]}
    first, second = exposures_index.Row(columns, 0), exposures_index.Row(columns, 1)
    assert first == {"A": 1, "B": "x"} and dict(second) == {"B": "y"} and len(second) == 1
    assert "A" not in second and second.get("A", 5) == 5 and second.get("C") is None and first.get("A") == 1
    for missing in ("A", "C"):
        with pytest.raises(KeyError):
            second[missing]
    assert exposures_index.columns_of([first, second]) is columns
    assert exposures_index.columns_of([second]) == {"A": [None], "B": ["y"]} and exposures_index.columns_of([]) == {}
    assert exposures_index.columns_of([second, {"A": 3}]) == {"B": ["y", None], "A": [None, 3]}


def test_a_cache_that_cannot_be_written_is_done_without(folder, monkeypatch):
    monkeypatch.setenv("CALAMI_CACHE", os.devnull + "/nowhere")
    assert len(Dataset(folder)) == 3


def test_measurements_are_forgotten_when_the_file_changes(folder, monkeypatch):
    monkeypatch.setattr(Index, "SETTLED", -1.0)
    ds = Dataset(folder)
    assert ds.measured(rootname(1, 1), "peak/1", lambda: {"rate": 1.0}) == {"rate": 1.0}
    ds.remember()
    assert Dataset(folder).measured(rootname(1, 1), "peak/1", lambda: {"rate": 2.0}) == {"rate": 1.0}
    write_exposure(folder / f"{rootname(1, 1)}_rate.fits", NGROUPS=7)
    assert Dataset(folder).measured(rootname(1, 1), "peak/1", lambda: {"rate": 3.0}) == {"rate": 3.0}


def test_a_slow_disk_is_read_by_threads_with_the_same_result(folder, monkeypatch):
    for k in range(40):
        write_exposure(folder / f"{rootname(5, 1, k + 1)}_rate.fits", NGROUPS=k + 2)
    (folder / f"{rootname(6)}_rate.fits").write_text("no FITS")
    quick = Dataset(folder)
    monkeypatch.setattr(exposures_folder, "_SLOW", 0.0)
    slow = Dataset(folder)
    assert len(slow) == 43 and render(slow.summary, "ecsv") == render(quick.summary, "ecsv")
    assert reasons(slow) == reasons(quick)


@pytest.mark.parametrize("card", [b"FILTER  = 'F48", b"NGROUPS = 1.2.3", b"TGROUP  = one"])
def test_a_card_that_cannot_be_read_is_reported_alike_at_every_look(folder, monkeypatch, card):
    monkeypatch.setattr(Index, "SETTLED", -1.0)
    path = folder / f"{rootname(1, 2)}_rate.fits"
    content = path.read_bytes()
    start = content.index(card[:9])
    path.write_bytes(content[:start] + card.ljust(80) + content[start + 80 :])
    looks = [reasons(Dataset(folder)) for _ in range(2)]
    assert looks[0] == looks[1] and card[:8].decode().strip() in looks[0][path.name]
    assert Dataset(folder).headline().startswith("3 exposures")


def test_a_problem_of_reading_is_not_remembered(folder, monkeypatch):
    monkeypatch.setattr(Index, "SETTLED", -1.0)
    true_open = os.open

    def exhausted(path, *args, **kwargs):
        if os.fspath(path).endswith(f"{rootname(1, 2)}_rate.fits"):
            raise OSError(24, "Too many open files")
        return true_open(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", exhausted)
        assert len(Dataset(folder)) == 2
    assert len(Dataset(folder)) == 3


def test_measurements_know_all_segments(folder, monkeypatch):
    monkeypatch.setattr(Index, "SETTLED", -1.0)
    names = [f"jw01516004001_03101_00001-seg00{k}_nis_rateints.fits" for k in (1, 2)]
    cube = {k: np.zeros((2, 8, 8)) for k in ("SCI", "ERR", "DQ")}
    write_exposure(folder / names[0], cube)
    ds = Dataset(folder)
    assert ds.measured(rootname(4), "peak/1", lambda: {"rate": 1.0}) == {"rate": 1.0}
    ds.remember()
    assert Dataset(folder).measured(rootname(4), "peak/1", dict) == {"rate": 1.0}
    write_exposure(folder / names[1], cube)
    assert Dataset(folder).measured(rootname(4), "peak/1", lambda: {"rate": 2.0}) == {"rate": 2.0}


def test_a_file_without_its_errors_or_flags_is_told(folder):
    write_exposure(folder / f"{rootname(5)}_cal.fits", {"SCI": np.zeros((8, 8))})
    ds = Dataset(folder)
    assert len(ds) == 4 and "no ERR and no DQ" in reasons(ds)[f"{rootname(5)}_cal.fits"]


def test_a_whole_file_beside_its_segments(folder):
    cube = {k: np.zeros((2, 8, 8)) for k in ("SCI", "ERR", "DQ")}
    write_exposure(folder / f"{rootname(4)}_rateints.fits", cube, NINTS=2)
    write_exposure(folder / "jw01516004001_03101_00001-seg001_nis_rateints.fits", cube, NINTS=2)
    ds = Dataset(folder)
    assert len(ds.paths(rootname(4))) == 1 and "whole and in segments" in reasons(ds)[f"{rootname(4)}_rateints.fits"]


def test_a_renamed_copy_gives_way_to_the_original(folder):
    shutil.copy(folder / f"{rootname(1, 1)}_rate.fits", folder / "A.FITS")
    ds = Dataset(folder)
    assert ds.path(rootname(1, 1)).name == f"{rootname(1, 1)}_rate.fits"
    assert any("holds the same" in reason for reason in ds.problems["reason"])


def test_links_to_one_file_under_two_names(folder):
    (folder / f"{rootname(6)}_rate.fits").symlink_to(folder / f"{rootname(1, 1)}_rate.fits")
    ds = Dataset(folder)
    assert len(ds) == 3 and any("same file" in reason for reason in reasons(ds).values())


def test_numbers_too_large_for_a_column(folder):
    write_exposure(folder / f"{rootname(3)}_rate.fits", PATT_NUM=10**20, NINTS=1e30)
    ds = Dataset(folder)
    row = ds.summary[ds.rootlist.index(rootname(3))]
    assert row["patt_num"] is np.ma.masked and row["nints"] is np.ma.masked and len(ds.problems) == 2


@pytest.mark.parametrize("asked", ["_rate.fits", "RATE", "cal, rate", ("rate.fits.gz", "cal"), ["rate"]])
def test_ways_to_write_file_types(folder, asked):
    assert len(Dataset(folder, asked)) == 3


@pytest.mark.parametrize("asked", [[1], (None,)])
def test_file_types_that_are_none(folder, asked):
    with pytest.raises(CalamiError, match="filetypes are names"):
        Dataset(folder, asked)


def test_places_given_in_other_ways(folder, monkeypatch):
    assert len(Dataset(folder.glob("*.fits"))) == 3 and len(Dataset(folder, None)) == 3
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(Dataset("~/data")) == 3
    monkeypatch.chdir(folder.parent)
    ds = Dataset("data", infodir="info")
    monkeypatch.chdir("/")
    assert ds.create_mapping() and ds[rootname(1, 1)].shape == (8, 8)
    assert (folder.parent / "info" / "names.yaml").exists()


def test_the_names_of_an_earlier_session_are_kept(folder, tmp_path):
    (tmp_path / "mine.txt").write_text("deep ngroups=13\n")
    Dataset(folder, infodir=tmp_path / "info").create_mapping(tmp_path / "mine.txt")
    kept = (tmp_path / "info" / "names.yaml").read_text()
    Dataset(folder, infodir=tmp_path / "info")
    assert (tmp_path / "info" / "names.yaml").read_text() == kept and kept.startswith("deep:")


def test_asking_for_an_exposure_in_other_ways(folder):
    ds = Dataset(folder)
    assert ds[Path(f"x/{rootname(1, 1)}_rate.fits")].rootname == rootname(1, 1)
    with pytest.raises(CalamiError, match="its name, its rootname or its number"):
        ds[0.5]


def test_an_empty_selection_can_be_asked_everything(folder):
    from matplotlib.figure import Figure

    from calami.program import signals

    none = Dataset(folder).select(ngroups=99)
    assert len(none.select(filter="F480M")) == 0 and list(none) == [] and none.mapping == {}
    for fmt in tables.FORMATS:
        none.info(fmt)
    for view in (signals.exposure_view, signals.setup_view, signals.program_view):
        assert len(view(none)) == 0
    signals.plot_depths(none, Figure().subplots())
    assert none._repr_html_()


def test_data_files_are_never_written_over(folder):
    ds, path = Dataset(folder), folder / f"{rootname(1, 1)}_rate.fits"
    before = path.read_bytes()
    for write in (ds.create_summary, lambda p: ds.info(outfile=p), lambda p: ds.create_mapping(association_file=p)):
        with pytest.raises(CalamiError, match=r"never written over|suffix"):
            write(path)
    assert path.read_bytes() == before


def test_files_are_written_whole_by_many_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    texts = [str(k) * 50_000 for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: core_files.write_atomically(tmp_path / "x.txt", text), texts * 10))
    assert (tmp_path / "x.txt").read_text() in texts and len(list(tmp_path.iterdir())) == 1


# --- asking ----------------------------------------------------------------------------------------------------------


def test_select(folder):
    import astropy.units as u

    ds = Dataset(folder)
    assert len(ds.select(targprop="ab-*")) == 2
    assert len(ds.select(ngroups=[5, 13])) == 3
    assert len(ds.select(ngroups={13}, role="target")) == 1
    assert len(ds.select(is_psf=True)) == 1
    assert len(ds.select(tgroup=75.44 * u.ms)) == 3
    assert len(ds.select(ngroups=lambda n: n > 100)) == 0
    assert len(ds.select(tgroup=lambda seconds: seconds > 0.07)) == 3
    assert len(ds.select(ngroups=range(5, 8))) == len(ds.select(ngroups=np.array([5, 6]))) == 2
    assert len(ds.select(program=1516, observtn=1)) == 2
    for odd in ({"tgroup": 3 * u.m}, {"targprop": lambda t: t > 5}):
        with pytest.raises(CalamiError, match="cannot be compared with"):
            ds.select(**odd)
    assert ds.select(role="target").names == ds.names[:2]
    with pytest.raises(CalamiError, match=r"no column 'ngroup'.*did you mean ngroups"):
        ds.select(ngroup=5)
    assert repr(ds.select(ngroups=99)).startswith("<Dataset: 0 exposures")


def test_asking_for_what_is_not_there(folder):
    ds = Dataset(folder)
    with pytest.raises(CalamiError, match=r"no cal file .* \(there is rate\)"):
        ds.path(rootname(1, 1), "cal")
    with pytest.raises(CalamiError, match="no exposure is called"):
        ds["nobody"]
    assert "nobody" not in ds and rootname(1, 1) in ds and 5 not in ds


def test_iteration_and_length(folder):
    ds = Dataset(folder)
    assert [d.rootname for d in ds] == ds.rootlist and len(ds) == 3


def test_a_list_of_files_and_a_single_file(folder):
    files = sorted(folder.glob("*.fits"))
    assert len(Dataset(files[:2])) == 2 and len(Dataset(files[0])) == 1
    assert Dataset(str(files[0])).datadir == folder


@pytest.mark.parametrize("fmt", ["text", "markdown", "html", "ecsv", "json", "csv"])
@pytest.mark.parametrize("full", [False, True])
def test_every_format(folder, tmp_path, fmt, full):
    ds = Dataset(folder)
    text = ds.info(fmt, tmp_path / "out", full)
    assert (tmp_path / "out").read_text() == text and rootname(1, 2) in text and "abdor_f480m_13g" in text
    with pytest.raises(CalamiError, match="unknown format"):
        ds.info("docx")


def test_ecsv_round_trip_keeps_units_and_masks(folder, tmp_path):
    write_exposure(folder / f"{rootname(3)}_rate.fits", NGROUPS=None)
    ds = Dataset(folder)
    ds.create_summary(tmp_path / "s.ecsv")
    back = QTable.read(tmp_path / "s.ecsv")
    assert back.colnames == ds.summary.colnames and back["tgroup"].unit == "s"
    assert back["ngroups"].mask.tolist() == ds.summary["ngroups"].mask.tolist()
    with pytest.raises(CalamiError, match="suffix"):
        ds.create_summary(tmp_path / "s.docx")


def test_infodir_receives_the_record(folder, tmp_path):
    ds = Dataset(folder, infodir=tmp_path / "info")
    ds.create_mapping(association_file=tmp_path / "info" / "mine.yaml")
    have = {p.name for p in (tmp_path / "info").iterdir()}
    assert {"rootlist.txt", "summary.ecsv", "problems.ecsv", "names.yaml", "calami.log", "mine.yaml"} == have
    assert (tmp_path / "info" / "rootlist.txt").read_text().split() == ds.rootlist
    assert "looked at" in (tmp_path / "info" / "calami.log").read_text()


def test_html_is_escaped():
    assert "<b>" not in render(QTable({"a": ["<b>x</b>"]}), "html")


def test_cells():
    assert cell_text(np.ma.masked) == cell_text(float("nan")) == cell_text(None) == ""
    assert cell_text(0.0754399999999) == "0.07544" and cell_text(np.int64(5)) == "5"


def test_formats_are_for_people_and_files_keep_every_digit():
    table = QTable({"a": [1.23456789012345, np.nan], "b": np.ma.MaskedArray([3, 4], [False, True])})
    table["a"].info.format = ".2f"
    assert render(table).splitlines()[2:] == ["1.23  3", ""] and "1.23456789012345" in render(table, "ecsv")
    assert json.loads(render(table, "json"))[0]["a"] == 1.23456789012345


def test_notebook_repr_names_the_problems(folder):
    (folder / f"{rootname(9)}_rate.fits").write_text("x")
    assert "1 problem" in Dataset(folder)._repr_html_()


def test_a_file_reached_twice_is_one_file(folder):
    assert len(find_files([folder, *folder.glob("*.fits")], print)) == 3


# --- whatever a header may hold --------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_headers_never_stop_the_summary(tmp_path, data):
    folder = tmp_path / "mutants"
    folder.mkdir(exist_ok=True)
    path = write_exposure(folder / f"{rootname(1)}_rate.fits")
    write_exposure(folder / f"{rootname(2)}_rate.fits")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        where = data.draw(st.integers(0, 2 * 2880 - 1))
        content[where] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b" ='/ETF&0123456789.D")))
    path.write_bytes(content)
    ds = Dataset(folder)
    assert rootname(2) in ds.rootlist
    assert (len(ds.summary) == len(ds) and rootname(1) in ds.rootlist) or len(ds.problems) > 0
    assert path.read_bytes() == content


@pytest.mark.slow
@given(st.data())
@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_real_headers_never_stop_the_summary(shared_data, tmp_path, data):
    real = sorted((shared_data / "jw01093").glob("jw01093012*_cal.fits"))[0]
    folder = tmp_path / "mutants"
    folder.mkdir(exist_ok=True)
    content = bytearray(real.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 34_560))] = data.draw(st.integers(0, 255))
    (folder / real.name).write_bytes(content)
    write_exposure(folder / f"{rootname(2)}_cal.fits")
    ds = Dataset(folder)
    assert rootname(2) in ds.rootlist and len(ds.summary) == len(ds)
    assert len(ds) == 2 or len(ds.problems) > 0
