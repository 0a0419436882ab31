import json
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable
from toys import rootname, write_exposure, write_star

from calami.core.problems import CalamiError
from calami.dataset import Dataset
from calami.migration import report
from calami.migration.pairs import compare_all
from calami.program import signals


@pytest.fixture
def ds(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_star(folder / f"{rootname(1, 2)}_rate.fits", 5, seed=2, edge=1.2e-6, TARGNAME="<b>HD</b> & Co")
    write_star(folder / f"{rootname(1, 5)}_rate.fits", 13, seed=5, edge=1.2e-6, TARGNAME="<b>HD</b> & Co")
    return Dataset(folder)


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers links and tags."""

    VOID = ("meta", "img", "br", "wbr", "hr", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def test_the_report_is_complete_and_stands_alone(ds, tmp_path):
    results, refused = compare_all(ds)
    page = report.write_cm_report(tmp_path / "out", ds, results, [*refused, "a and b: <why>"], command="x")
    names = {p.name for p in page.parent.iterdir()}
    figures = {f"{name}.{kind}" for name in ("cm_pair_1", "depths") for kind in ("png", "pdf")}
    assert names == {"report.html", "cm_compare.ecsv", "cm_compare.tex", "run.json"} | figures
    parsed = Page(page.read_text())
    assert not parsed.open and parsed.links and all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert "h3" in parsed.tags and "&lt;b&gt;HD&lt;/b&gt; &amp; Co" in page.read_text()
    assert "&lt;why&gt;" in page.read_text() and "consistent with charge migration" in page.read_text()


def test_the_table_on_disk_is_the_result(ds, tmp_path):
    results, refused = compare_all(ds)
    report.write_cm_report(tmp_path / "out", ds, results, refused)
    table = QTable.read(tmp_path / "out" / "cm_compare.ecsv")
    assert table["peak_change"][0] == results[0].peak.value and "rule" in {k.lower() for k in table.meta}
    assert table["peak_adu_deep"].unit == "adu"


def test_what_was_run_on_what(ds, tmp_path):
    results, refused = compare_all(ds)
    report.write_cm_report(tmp_path / "out", ds, results, refused, command="calami cm data")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["command"] == "calami cm data" and run["versions"]["astropy"] and run["seconds"] >= 0
    import hashlib

    for record in run["inputs"]:
        digest = hashlib.sha256((ds.datadir / record["file"]).read_bytes()).hexdigest()
        assert record["sha256"] == digest and record["cal_ver"] == "not recorded"


def test_a_report_of_nothing(ds, tmp_path):
    with pytest.raises(CalamiError, match="nothing to report"):
        report.write_cm_report(tmp_path / "out", ds, [])


def test_a_folder_that_cannot_be_written(ds, tmp_path):
    results, refused = compare_all(ds)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CalamiError, match="cannot be written"):
        report.write_cm_report(tmp_path / "file" / "out", ds, results, refused)


def test_a_full_disk_leaves_no_half_file(ds, tmp_path, monkeypatch):
    results, refused = compare_all(ds)
    write = type(tmp_path).write_bytes

    def full(self, content):
        if content.startswith(b"\x89PNG"):
            write(self, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(CalamiError, match="No space left"):
        report.write_cm_report(tmp_path / "out", ds, results, refused)
    assert sorted(os.listdir(tmp_path / "out")) == ["cm_compare.ecsv", "cm_compare.tex"]


def test_two_runs_give_the_same_figures(ds, tmp_path):
    results, refused = compare_all(ds)
    for k in (1, 2):
        report.write_cm_report(tmp_path / str(k), ds, results, refused)
    for name in ("cm_pair_1.png", "cm_pair_1.pdf", "depths.png", "depths.pdf", "cm_compare.ecsv"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.slow
def test_old_figures_go_and_missing_facts_do_not_matter(ds, tmp_path):
    results, _ = compare_all(ds)
    report.write_cm_report(tmp_path / "out", ds, [*results, *results])
    assert (tmp_path / "out" / "cm_pair_2.png").exists() and (tmp_path / "out" / "cm_pair_2.pdf").exists()
    for facts in results[0].facts:
        for key in ("TARGNAME", "TARGPROP", "FILTER", "NGROUPS"):
            facts.pop(key, None)
    page = report.write_cm_report(tmp_path / "out", ds, results)
    assert not list((tmp_path / "out").glob("cm_pair_2*")) and "unknown target" in page.read_text()


def test_the_verdict_is_said_once_and_all_is_numbered(ds, tmp_path):
    results, refused = compare_all(ds)
    text = report.write_cm_report(tmp_path / "out", ds, results, refused).read_text()
    before = text[: text.index("<h2>Method")]
    assert before.count("consistent with charge migration") == 1
    assert [f"<b>Table {n}.</b>" in text for n in range(1, 6)] == [True] * 4 + [False]
    assert [f"<b>Figure {n}.</b>" in text for n in range(1, 4)] == [True] * 2 + [False]


def test_the_box_says_how_the_data_were_processed(tmp_path):
    for number, (groups, version) in enumerate(((5, "1.20.2"), (13, "1.21.0")), 2):
        facts = {"CAL_VER": version, "CRDS_CTX": "jwst_1584.pmap", "S_CHGMIG": "COMPLETE"}
        write_star(tmp_path / f"{rootname(1, number)}_rate.fits", groups, seed=number, **facts)
    ds = Dataset(tmp_path)
    text = report.write_cm_report(tmp_path / "out", ds, compare_all(ds)[0]).read_text()
    box = text[text.index("<dl>") : text.index("</dl>")]
    assert "jwst 1.20.2 (1 of 2), 1.21.0 (1 of 2)" in box and "<dd>jwst_1584.pmap</dd>" in box
    assert "<dt>Not the default</dt><dd>not recorded</dd>" in box and "pointing equal within 5 mas" in box


def test_exposures_stand_on_the_axis_by_their_names(ds):
    ds.create_mapping()
    labels = [label.get_text() for label in signals.plot_depths(ds).get_xticklabels()]
    assert labels == list(ds.names) and not any(label.startswith("jw") for label in labels)


def test_the_files_compared_are_the_files_recorded(ds, tmp_path):
    rate = ds.path(rootname(1, 2))
    cal = rate.with_name(rate.name.replace("_rate", "_cal"))
    cal.write_bytes(rate.read_bytes())
    both = Dataset(ds.datadir)
    report.write_cm_report(tmp_path / "out", both, compare_all(both)[0])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert all(record["file"].endswith("_rate.fits") for record in run["inputs"])


def test_problems_are_on_the_page(ds, tmp_path):
    write_exposure(ds.datadir / f"{rootname(9)}_rate.fits", {"SCI": np.full((8, 8), np.nan)})
    fresh = Dataset(ds.datadir)
    page = report.write_cm_report(tmp_path / "out", fresh, compare_all(fresh)[0])
    assert "peak not measured" in page.read_text()


@pytest.mark.parametrize(
    "word", [r"$\frac{1}{$", *(pytest.param(w, marks=pytest.mark.slow) for w in ("${}_^$", r"\$$"))]
)
def test_words_of_files_are_drawn_as_they_are(tmp_path, word):
    # matplotlib takes what is between two $ for a formula; a FILTER or a name is none.
    for number, groups in ((2, 5), (5, 13)):
        write_star(tmp_path / f"{rootname(1, number)}_rate.fits", groups, seed=number, TARGNAME=word)
        with fits.open(tmp_path / f"{rootname(1, number)}_rate.fits", mode="update") as hdus:
            hdus[0].header["FILTER"] = word
    ds = Dataset(tmp_path)
    results, refused = compare_all(ds)
    assert report.write_cm_report(tmp_path / "out", ds, results, refused).is_file()
