"""calami.studies.survey: all exposures of an archive in one table, whatever the archive and the machine do."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from urllib.parse import unquote

import numpy as np
import pytest
from astropy.io import fits
from mast_standin import Disc, StandIn, data_set
from toys import fringe_cube, fringe_images, rootname, write_exposure
from typer.testing import CliRunner

from calami.archive.mast import Patience
from calami.cli import app
from calami.core.problems import CalamiError, FileProblem
from calami.exposures.folder import ExposureSet
from calami.studies import survey as module
from calami.studies.ledger import Ledger, bytes_of
from calami.studies.survey import run_survey
from calami.studies.surveyed import programs_beyond, read_survey, steadiest_references, survey_table

PATIENCE = Patience(tries=3, backoff=0.01, longest=0.02, search=30.0)
POINTING = {"ROLL_REF": 171.765, "V3I_YANG": 0.56126717, "VPARITY": -1, "CDELT1": 65.6 / 3.6e6, "CDELT2": 65.6 / 3.6e6}


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """A cal and a calints file of a star, as bytes."""
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 4, seed=1)
    arrays = {"SCI": cube.astype("float32"), "ERR": error.astype("float32"), "DQ": dq}
    folder = tmp_path_factory.mktemp("star")
    write_exposure(folder / f"{rootname(1)}_calints.fits", arrays, POINTING, NINTS=4)
    write_exposure(folder / f"{rootname(1)}_cal.fits", {k: v[0] for k, v in arrays.items()}, POINTING, NINTS=4)
    return {kind: (folder / f"{rootname(1)}_{kind}.fits").read_bytes() for kind in ("cal", "calints")}


@pytest.fixture
def no_page(monkeypatch):
    """The table only, without a page and figures."""
    monkeypatch.setattr(module, "write_survey", lambda found, facts: found)


def archive(pixels, count, kind="cal"):
    """Data sets of a program, each with the same star; the number at the end keeps them apart."""
    return [(data_set(number), {kind: pixels[kind]}) for number in range(1, count + 1)]


def name(number, kind="cal"):
    return f"{rootname(number, 2)}_{kind}.fits"


def fetched(home):
    """How often each file was asked for."""
    asked = (unquote(path).rsplit("/", 1)[-1] for _, path, _ in home.requests if "retrieve_product" in path)
    return Counter(asked)


def problems(found):
    return {str(row["root"]): str(row["problem"]) for row in found.table if row["problem"]}


def test_nothing_is_lost_and_nothing_twice_whatever_the_archive_does(pixels, no_page, tmp_path):
    content = archive(pixels, 9)
    content[8][1]["cal"] = pixels["cal"] + b"\0" * 200_000_000  # too large for the budget, by the list
    with StandIn(content) as home:
        home.faults |= {name(1): ["503", "429:0"], name(2): ["drop:30000"], name(3): ["shorter"] * 9}
        home.faults[name(4)] = ["page"] * 9
        home.files.pop(name(5))
        home.files[name(6)] = pixels["cal"][:2880] + b"\xff" * (len(pixels["cal"]) - 2880)
        home.hide(name(7))
        home.add(data_set(10), {})  # listed, without files
        size = len(pixels["cal"])
        with ThreadPoolExecutor(3) as pool, Disc(tmp_path / "out" / ".scratch") as disc:
            how = {"budget": 3 * size, "patience": PATIENCE, "executor": pool, "progress": False}
            found = run_survey(1516, tmp_path / "out", **how)
        assert 0 < disc.most <= 3 * size
    roots = [str(root) for root in found.table["root"]]
    assert roots == sorted(rootname(number, 2) for number in range(1, 11))
    wrong = problems(found)
    assert set(wrong) == {rootname(number, 2) for number in (3, 4, 5, 6, 7, 9, 10)}
    for number, words in ((5, "no such file"), (7, "MAST_API_TOKEN"), (9, "budget"), (10, "lists no file")):
        assert words in wrong[rootname(number, 2)]
    whole = found.table[np.asarray(found.table["problem"]) == ""]
    assert len(whole) == 3 and np.isfinite(whole["v2"]).all() and np.isfinite(whole["peak_e"].value).all()
    assert not (tmp_path / "out" / ".scratch").exists() and not list(tmp_path.rglob("*.fits"))
    lines = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 10


@pytest.mark.parametrize("promise", ["", "no-length"])  # how long it is, or nothing
def test_a_file_of_unlisted_size_is_not_received_beyond_the_budget(pixels, no_page, tmp_path, promise):
    content = archive(pixels, 3)
    size = len(pixels["cal"])
    content[0][1]["cal"] = pixels["cal"] + b"\0" * 20_000_000
    with StandIn(content) as home:
        for product in home.products[:2]:  # of the second, too, which fits
            product["size"] = None
        home.faults[name(1)] = [promise]
        with Disc(tmp_path / "out" / ".scratch") as disc:
            found = run_survey(1516, tmp_path / "out", budget=3 * size, patience=PATIENCE, workers=1, progress=False)
    assert 0 < disc.most <= 3 * size
    (wrong,) = problems(found).items()
    assert wrong[0] == rootname(1, 2) and "there is room for" in wrong[1] and "--budget" in wrong[1]
    assert len(found.table) == 3 and fetched(home) == {name(number): 1 for number in (1, 2, 3)}
    assert not (tmp_path / "out" / ".scratch").exists()


def test_what_may_be_better_next_time_is_tried_again_and_the_rest_is_not(pixels, no_page, tmp_path):
    with StandIn(archive(pixels, 3)) as home:
        home.faults[name(2)] = ["503"] * 3
        how = {"patience": PATIENCE, "workers": 1, "progress": False}
        assert set(problems(run_survey(1516, tmp_path, **how))) == {rootname(2, 2)}
        before = fetched(home)
        found = run_survey(1516, tmp_path, **how)
        assert not problems(found) and len(found.table) == 3
        assert fetched(home) - before == {name(2): 1}
        anew = BytesIO()  # the archive makes a file again
        with fits.open(BytesIO(home.files[name(3)])) as hdus:
            fits.HDUList([*hdus, fits.ImageHDU(np.zeros(9), name="MORE")]).writeto(anew)
        home.files[name(3)] = anew.getvalue()
        home.products[-1]["size"] = len(anew.getvalue())
        assert not problems(run_survey(1516, tmp_path, **how))
        assert fetched(home) - before == {name(2): 1, name(3): 1}


def test_the_best_product_is_chosen(pixels, no_page, tmp_path):
    content = [(data_set(1), dict(pixels)), (data_set(2), {"cal": pixels["cal"]})]
    with StandIn(content) as home:
        found = run_survey(1516, tmp_path, patience=PATIENCE, workers=1, progress=False)
        assert set(fetched(home)) == {name(1, "calints"), name(2)}
    assert list(found.table["product"]) == ["calints", "cal"]
    assert list(found.table["errors_from"]) == ["integrations", "ERR"]
    assert np.isfinite(found.table["v2_scatter"][0]) and np.isnan(found.table["v2_scatter"][1])


SCRIPT = """
import sys
from astroquery.mast import conf
from astroquery.mast.services import ServiceAPI
url, out = sys.argv[1:]
conf.server, ServiceAPI.SERVICE_URL, ServiceAPI.MISSIONS_DOWNLOAD_URL = url, url, f"{url}/search/"
from calami.studies.survey import run_survey
run_survey(1516, out, workers=1, progress=False)
"""


def test_a_run_that_is_killed_goes_on_where_it_was(pixels, no_page, tmp_path):
    with StandIn(archive(pixels, 6), chunk=4096) as home:
        home.faults |= {name(number): ["slowly:0.004"] for number in range(1, 7)}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        program = subprocess.Popen([sys.executable, "-c", SCRIPT, home.url, tmp_path], env=environment)
        try:
            rows, deadline = tmp_path / "rows.jsonl", time.monotonic() + 60
            while not (rows.exists() and rows.read_text().count("\n") >= 2) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)  # in the middle of another file
        finally:
            program.send_signal(signal.SIGKILL)
            program.wait()
        with rows.open("a") as file:
            file.write('{"key": "half a li')
        done = {json.loads(line)["key"] for line in rows.read_text().splitlines()[:-1]}
        before = fetched(home)
        found = run_survey(1516, tmp_path, patience=PATIENCE, workers=1, progress=False)
        again = fetched(home) - before
    assert 2 <= len(done) < 6 and not {name.rsplit("_", 1)[0] for name in again} & done
    keys = [json.loads(line)["key"] for line in rows.read_text().splitlines()]
    assert sorted(keys) == sorted(rootname(number, 2) for number in range(1, 7))
    assert not problems(found) and len(found.table) == 6 and not (tmp_path / ".scratch").exists()


def test_two_surveys_do_not_write_in_one_place(pixels, tmp_path):
    (tmp_path / name(1)).write_bytes(pixels["cal"])
    with Ledger(tmp_path / "out" / "rows.jsonl"), pytest.raises(FileProblem, match="another process"):
        run_survey(tmp_path, tmp_path / "out", workers=1, progress=False)


def test_what_a_killed_run_left_is_taken_up_as_far_as_it_fits(tmp_path):
    for root in "abc":
        (tmp_path / ".scratch" / root).mkdir(parents=True)
    items = [module._Item(root, need=10) for root in "xcba"]
    order = module._leftovers_first(items, tmp_path, module.Budget(20))
    assert [item.root for item in order] == ["c", "b", "x", "a"]
    assert sorted(folder.name for folder in (tmp_path / ".scratch").iterdir()) == ["b", "c"]


def test_an_exposure_that_breaks_the_code_is_a_row(pixels, no_page, tmp_path, monkeypatch):
    for number in (1, 2):
        (tmp_path / name(number)).write_bytes(pixels["cal"])
    whole = module.measure_exposure

    def broken(paths, kernel):
        if rootname(1, 2) in str(paths[0]):
            raise ZeroDivisionError("nobody thought of it")
        return whole(paths, kernel)

    monkeypatch.setattr(module, "measure_exposure", broken)
    found = run_survey(tmp_path, tmp_path / "out", workers=1, progress=False)
    assert "nobody thought of it" in problems(found)[rootname(1, 2)] and len(found.table) == 2
    monkeypatch.undo()
    assert not problems(run_survey(tmp_path, tmp_path / "out", workers=1, progress=False))


def test_raw_exposures_that_may_not_fit_are_run_alone_or_refused_with_the_numbers(tmp_path):
    done = {}
    raw = [
        module._Item(root, "uncal", products=(1,), least=size, need=13 * size) for root, size in (("a", 10), ("b", 99))
    ]

    class Work(module._Work):
        def job(self, item):
            return {"root": item.root, "need": item.need, "scratch": str(tmp_path / "none")}

    class Here:
        def submit(self, function, target, job):
            done[job["root"]] = job["need"]
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(dict)

    work = Work(tmp_path, module.SurveyOptions(), module.Engine(executor=Here(), progress=False))
    with Ledger(tmp_path / "rows.jsonl") as ledger:
        module._work_off(raw, ledger, module.Budget(50), work)
        states = {key: state for key, (_, state) in ledger.done.items()}
    assert done == {"a": 50} and states == {"a": "whole", "b": "passing"}


@pytest.mark.slow
def test_raw_ramps_are_processed(tmp_path):
    from calami.simulate.exposures import simulate_plan
    from calami.simulate.plans import ready_plan

    plan = ready_plan("1516", "demo")
    simulate_plan(type(plan)(**{**vars(plan), "exposures": plan.exposures[:1]}), tmp_path / "raw")
    found = run_survey(tmp_path / "raw", tmp_path / "out", workers=2, progress=False)
    (row,) = found.table
    assert row["problem"] == "" and row["processed"] and row["product"] == "calints" and np.isfinite(row["v2"]).all()
    assert row["files"].endswith("_uncal.fits") and row["errors_from"] == "integrations"
    assert not (tmp_path / "out" / ".scratch").exists()


def test_the_command(pixels, tmp_path):
    for number in (1, 2):
        (tmp_path / name(number)).write_bytes(pixels["calints"])
    words = ["survey", tmp_path, "-o", tmp_path / "out", "--workers", 1, "--budget", "1GB"]
    answer = CliRunner().invoke(app, list(map(str, words)))
    assert answer.exit_code == 0 and "2 exposures of 1 star" in answer.stdout, answer.output
    for file in ("survey.ecsv", "report.html", "run.json", "programs.ecsv", "references.ecsv"):
        assert (tmp_path / "out" / file).is_file()
    table = read_survey(tmp_path / "out").table
    assert len(table) == 2 and table["v2"].shape == (2, 21) and table.meta["versions"]["calami"]
    with StandIn(archive(pixels, 2)):
        words = ["survey", "--program", 1516, "-o", tmp_path / "b", "--workers", 1, "--obs", 2]
        answer = CliRunner().invoke(app, list(map(str, words)))
    assert answer.exit_code == 0 and len(read_survey(tmp_path / "b").table) == 1, answer.output
    assert CliRunner().invoke(app, ["survey", "-o", str(tmp_path / "c")]).exit_code == 2
    assert (
        CliRunner().invoke(app, ["survey", str(tmp_path), "-o", str(tmp_path / "c"), "--budget", "much"]).exit_code == 1
    )


def rows(count, star="A", band="F480M", program="01093", seed=1, **values):
    rng = np.random.default_rng(seed)
    return [
        {
            "root": f"jw{program}{k // 90 + 1:03d}001_03102_{k % 90 + 1:05d}_nis", "program": program, "target": star,
            "filter": band, "pupil": "NRM", "role": "reference", "mjd": 59000.0 + k, "row": 40 + rng.normal(0, 0.3),
            "column": 45 + rng.normal(0, 0.3), "peak_e": 2e4, "v2": (0.8 * (1 + rng.normal(0, 0.01, 21))).tolist(),
            "v2_noise": 0.006, "cp": rng.normal(0, 0.2, 35).tolist(), "cp_noise": 0.1, "problem": "",
        }
        | values
        for k in range(count)
    ]  # fmt: skip


def test_scatter_beyond_noise_is_what_was_put_in():
    (row,) = steadiest_references(survey_table(rows(80)))
    assert row["exposures"] == 80 and abs(row["v2_rms"] / 0.01 - 1) < 0.03 and abs(row["cp_rms"].value / 0.2 - 1) < 0.03
    assert abs(row["v2_beyond"] / 0.008 - 1) < 0.06 and abs(row["cp_beyond"].value / np.sqrt(0.03) - 1) < 0.06
    assert row["uncertain"] == pytest.approx(1 / np.sqrt(158))


def test_a_lost_core_counts_as_beyond():
    table = survey_table(rows(3) + rows(1, program="04480", peak_e=None, peak_above=72_000.0))
    first, second = programs_beyond(table)
    assert (first["program"], first["beyond"], first["deepest"].value) == ("04480", 1, 72_000.0)
    assert (second["beyond"], second["unknown"]) == (0, 0)
    assert list(programs_beyond(table, {"F480M": 1e4})["beyond"]) == [1, 3]


def test_the_nearest_reference_is_of_the_own_program_and_at_the_same_place():
    mine = rows(60, star="R", seed=2, row=41.0, column=46.0)
    mine[7] |= {"row": 40.0, "column": 45.0}
    other = rows(60, star="S", program="04480", seed=3, row=40.0, column=45.0)
    target = rows(1, star="T", program="01093", role="target", row=40.0, column=45.0, mjd=59010.2)[0]
    target["root"] = "jw01093099001_03102_00001_nis"
    table = survey_table([*mine, *other, target])
    row = table[table["role"] == "target"][0]
    assert row["references"].split()[0] == mine[7]["root"] and row["reference_mas"].value < 1
    assert row["reference_days"].value == pytest.approx(-3.2)
    alone = survey_table([*other, target])
    (row,) = alone[alone["role"] == "target"]
    assert row["references"].split()[0] == other[10]["root"]


def test_sizes():
    assert [bytes_of(text) for text in ("20GB", "1.5 kB", 7, "2T")] == [20e9, 1500, 7, 2e12]
    for wrong in ("much", "-1GB", "0", ""):
        with pytest.raises(CalamiError, match="is no size"):
            bytes_of(wrong)


def test_exposures_that_are_no_ami_are_not_surveyed(pixels, no_page, tmp_path):
    (tmp_path / name(1)).write_bytes(pixels["cal"])
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 1, seed=1)
    arrays = {"SCI": cube[0], "ERR": error[0], "DQ": dq[0]}
    write_exposure(tmp_path / name(2), arrays, POINTING, EXP_TYPE="NIS_TACQ")
    found = run_survey(ExposureSet(tmp_path), tmp_path / "out", workers=1, progress=False)
    assert [str(root) for root in found.table["root"]] == [rootname(1, 2)]


def test_what_a_killed_run_left_in_the_folder_itself_is_no_exposure(pixels, no_page, tmp_path):
    (tmp_path / name(1)).write_bytes(pixels["cal"])
    left = tmp_path / "out" / ".scratch" / rootname(2, 2) / name(2)
    left.parent.mkdir(parents=True)
    left.write_bytes(pixels["cal"])
    found = run_survey(tmp_path, tmp_path / "out", workers=1, progress=False)
    assert [str(root) for root in found.table["root"]] == [rootname(1, 2)] and not left.exists()
