import json
import shutil
import subprocess
import sys

import pytest
import yaml
from astropy.io import fits
from astropy.table import QTable
from toys import rootname, variants, write_exposure, write_star
from typer.testing import CliRunner

from calami.cli import app


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_star(data / f"{rootname(1, 2)}_rate.fits", 5, seed=2, edge=1.2e-6)
    write_star(data / f"{rootname(1, 5)}_rate.fits", 13, seed=5, edge=1.2e-6)
    (data / f"{rootname(9)}_rate.fits").write_text("no FITS")
    return data


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_help_has_examples_for_every_command():
    for command in ("summary", "map", "cm"):
        answer = run(command, "--help")
        assert answer.exit_code == 0 and f"calami {command} data/jw01093" in answer.stdout
    assert run("--help").exit_code == 0 and run("--version").stdout.startswith("calami 0.")


def test_summary(folder):
    answer = run("summary", folder)
    assert answer.exit_code == 0 and rootname(1, 5) in answer.stdout
    assert "excluded" in answer.stderr and "excluded" not in answer.stdout


def test_summary_with_peaks(folder):
    answer = run("summary", folder, "--peaks")
    assert answer.exit_code == 0 and "of_migration_limit" in answer.stdout


@pytest.mark.parametrize("fmt", ["json", "ecsv", "markdown", "html", "csv", "text"])
def test_summary_in_every_format(folder, tmp_path, fmt):
    answer = run("summary", folder, "--full", "--format", fmt, "-o", tmp_path / "s")
    assert answer.exit_code == 0 and not answer.stdout
    text = (tmp_path / "s").read_text()
    if fmt == "json":
        assert json.loads(text)[0]["ngroups"] == 5
    if fmt == "ecsv":
        assert QTable.read(tmp_path / "s", format="ascii.ecsv")["tgroup"].unit == "s"
    assert rootname(1, 2) in text


def test_the_suffix_chooses_the_format(folder, tmp_path):
    assert run("summary", folder, "-o", tmp_path / "s.ecsv").exit_code == 0
    assert QTable.read(tmp_path / "s.ecsv")["ngroups"].tolist() == [5, 13]
    assert run("summary", folder, "-o", tmp_path / "s.docx").exit_code == 1


def test_data_are_never_written_over(folder):
    path = folder / f"{rootname(1, 2)}_rate.fits"
    before = path.read_bytes()
    for command in ("summary", "map"):
        answer = run(command, folder, "-o", path)
        assert answer.exit_code == 1 and path.read_bytes() == before


def test_a_names_file_with_no_name_or_a_byte_order_mark(folder, tmp_path):
    (tmp_path / "names.txt").write_text("# none yet\n")
    answer = run("map", folder, "--names", tmp_path / "names.txt")
    assert answer.exit_code == 1 and "no name in it" in answer.stderr
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfdeep ngroups=13\n")
    assert run("map", folder, "--names", tmp_path / "names.txt").exit_code == 0


def test_summary_keeps_the_record(folder, tmp_path):
    assert run("summary", folder, "--infodir", tmp_path / "info").exit_code == 0
    assert (tmp_path / "info" / "rootlist.txt").exists()
    assert len(QTable.read(tmp_path / "info" / "problems.ecsv")) == 1


def test_map(folder, tmp_path):
    answer = run("map", folder)
    assert answer.exit_code == 0 and yaml.safe_load(answer.stdout)["abdor_f480m_13g_d1_1516o1a3105"] == rootname(1, 5)
    (tmp_path / "names.txt").write_text("deep ngroups=13\n")
    answer = run("map", folder, "--names", tmp_path / "names.txt", "-o", tmp_path / "a.yaml")
    assert answer.exit_code == 0 and yaml.safe_load((tmp_path / "a.yaml").read_text()) == {"deep": rootname(1, 5)}


def test_map_with_a_mistake(folder, tmp_path):
    (tmp_path / "names.txt").write_text("deep ngroups=14\n")
    answer = run("map", folder, "--names", tmp_path / "names.txt")
    assert answer.exit_code == 1 and "line 1" in answer.stderr and "Traceback" not in answer.stderr


def test_cm_finds_the_pair_and_writes_the_report(folder, tmp_path):
    answer = run("cm", folder, "-o", tmp_path / "out")
    assert answer.exit_code == 0 and "consistent with charge migration" in answer.stdout
    assert (tmp_path / "out" / "report.html").exists()
    assert len(QTable.read(tmp_path / "out" / "cm_compare.ecsv")) == 1


@pytest.mark.parametrize("deep", ["pair", pytest.param("pair and more", marks=pytest.mark.slow)])
def test_cm_of_contradictory_numbers_has_no_verdict(folder, tmp_path, deep):
    path = folder / f"{rootname(1, 5)}_rate.fits"
    with fits.open(path, mode="update") as hdus:
        hdus[0].header.update({"EFFINTTM": 8.98072, "TGROUP": 0.07544})
    if deep == "pair and more":
        write_star(folder / f"{rootname(1, 6)}_rate.fits", 9, seed=6, edge=1.2e-6)
    answer = run("cm", folder, "-o", tmp_path / "out")
    wrong = "EFFINTTM is 8.98072 s, but NGROUPS × TGROUP"
    assert f"No verdict: {wrong}" in answer.stdout and wrong in answer.stderr, "it is among the problems"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No verdict" in page and wrong in page
    table = QTable.read(tmp_path / "out" / "cm_compare.ecsv")
    judged = [not v.startswith("no verdict") for v in table["verdict"]]
    assert judged.count(False) == len(table) - judged.count(True) > 0
    assert answer.exit_code == (0 if any(judged) else 1) and any(judged) == (deep != "pair")
    assert deep != "pair" or "no pair has a verdict" in answer.stderr
    assert answer.stdout.count("consistent with") == judged.count(True)


def test_corrected_exposures_count_when_asked_for(folder, tmp_path):
    assert run("correct", folder, "-o", folder / "corrected").exit_code == 0
    for words, wanted in (((), "processed"), (("--corrected",), "charge was put back in both")):
        listed = run("summary", folder, *words, "-f", "json")
        assert [row["rootname"].endswith("corrected") for row in json.loads(listed.stdout)] == [bool(words)] * 2
        answer = run("cm", folder, "-o", tmp_path / "out", *words)
        assert answer.exit_code == 0 and (wanted in answer.stdout) == bool(words)


def test_cm_with_names(folder, tmp_path):
    (tmp_path / "names.txt").write_text("shallow ngroups=5\ndeep ngroups=13\n")
    given = ("--names", tmp_path / "names.txt", "--shallow", "shallow", "--deep", "deep")
    assert run("cm", folder, "-o", tmp_path / "out", *given).exit_code == 0
    assert QTable.read(tmp_path / "out" / "cm_compare.ecsv")["deep"][0] == "deep"


def test_cm_that_cannot_be_done(folder, tmp_path):
    (folder / f"{rootname(1, 5)}_rate.fits").unlink()
    answer = run("cm", folder, "-o", tmp_path / "out")
    assert answer.exit_code == 1 and "no two exposures" in answer.stderr and not (tmp_path / "out").exists()
    answer = run("cm", folder, "-o", tmp_path / "out", "--shallow", "abdor", "--deep", "nobody")
    assert answer.exit_code == 1 and "no exposure is called 'nobody'" in answer.stderr


def test_cm_of_a_pair_that_is_none(folder, tmp_path):
    write_star(folder / f"{rootname(1, 6)}_rate.fits", 13, FILTER="F430M")
    given = ("--shallow", rootname(1, 2), "--deep", rootname(1, 6))
    answer = run("cm", folder, "-o", tmp_path / "out", *given)
    assert answer.exit_code == 1 and "not the same filter" in answer.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("summary",),
        ("summary", "nowhere"),
        ("summary", ".", "-f", "docx"),
        ("cm", "."),
        ("dance",),
        ("cm", ".", "-o", "x", "--deep", "y"),
    ],
)
def test_usage_errors(words):
    assert run(*words).exit_code == 2


def test_output_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for words in (
        ("summary", folder, "-o", tmp_path / "file" / "x.txt"),
        ("map", folder, "-o", tmp_path / "file" / "x"),
    ):
        answer = run(*words)
        assert answer.exit_code == 1 and "cannot be written" in answer.stderr


def test_an_empty_folder(tmp_path):
    for words in (("summary", tmp_path), ("map", tmp_path), ("cm", tmp_path, "-o", tmp_path / "out")):
        answer = run(*words)
        assert answer.exit_code == 1 and "no NIRISS exposure" in answer.stderr


def test_a_closed_pipe_is_no_disaster(folder):
    command = f'"{sys.executable}" -c "from calami.cli import main; main()" summary "{folder}" | head -1'
    answer = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in answer.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("width", [60, *variants(80, 120, 200)])
@pytest.mark.parametrize("peaks", [[], ["--peaks"]])
def test_a_table_fits_the_terminal_and_keeps_the_names_whole(folder, width, peaks):
    import os
    import pty

    write_exposure(folder / f"{rootname(8)}_rate.fits", TARGPROP="[bold]X[/bold]")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"COLUMNS": str(width), "TERM": "dumb", "PYTHONWARNINGS": "ignore"}
        code = f"from calami.cli import app; app(['summary', {str(folder)!r}, *{peaks}])"
        os.execv(sys.executable, [sys.executable, "-c", code])
    text = ""
    try:
        while chunk := os.read(terminal, 65536):
            text += chunk.decode()
    except OSError:  # how a pseudo-terminal says that its other end is closed
        pass
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    rows = [line for line in text.splitlines() if "abdor_f480m_13g_d1_1516o1a3105" in line]
    assert len(rows) == 1 and len(rows[0].rstrip()) <= width and " 13 " in rows[0]
    assert ("not shown" in text) == (width < 160 or bool(peaks))


PLAN = "target,filter,ngroups,nints,magnitude\nSIM-X,F480M,3,2,7.5\nSIM-X,F480M,6,2,7.5\n"


def test_simulate_a_table(tmp_path):
    table = tmp_path / "plan.csv"
    table.write_text(PLAN)
    answer = run("simulate", table, "-o", tmp_path / "out", "--workers", 1)
    assert answer.exit_code == 0, answer.stderr
    assert len(list((tmp_path / "out").glob("*_uncal.fits"))) == 2
    assert len(list((tmp_path / "out").glob("*_truth.json"))) == 2
    assert run("summary", tmp_path / "out").stdout.count("F480M") >= 2


def test_simulate_shows_a_plan_and_writes_nothing(tmp_path):
    answer = run("simulate", "4480", "-o", tmp_path / "out", "--dry-run")
    assert answer.exit_code == 0 and "jw04480" in answer.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nothing.csv",), "nothing.csv"),
        (("1999",), "1516, 1504, 4478, 4480"),
        (("1516", "--migration", "much"), "h4rg"),
        (("program.xml", "--magnitude", "AB-DOR"), "TARGET=4.7"),
    ],
)
def test_a_plan_that_is_none(tmp_path, words, told):
    answer = run("simulate", *words, "-o", tmp_path / "out")
    assert answer.exit_code == 1 and told in answer.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line",
    ["SIM-X,F480M,0,2,7.5", "SIM-X,F480M,3,2,-4", "SIM-X,F999W,3,2,7.5"],
    ids=["no group", "too bright", "filter"],
)
def test_an_impossible_plan_is_refused_before_anything_is_written(tmp_path, line):
    table = tmp_path / "plan.csv"
    table.write_text(PLAN + line + "\n")
    answer = run("simulate", table, "-o", tmp_path / "out")
    assert answer.exit_code == 1 and "plan.csv" in answer.stderr and "line 4" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_demo_has_help_with_examples():
    answer = run("demo", "--help")
    assert answer.exit_code == 0 and "calami demo" in answer.stdout


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two simulated exposures."""
    base = tmp_path_factory.mktemp("prep")
    (base / "plan.csv").write_text(PLAN)
    answer = run("simulate", base / "plan.csv", "-o", base / "raw", "--workers", 1)
    assert answer.exit_code == 0, answer.stderr
    return base / "raw"


def test_prep_makes_versions_of_exposures_called_by_name(raw, tmp_path):
    answer = run("prep", raw, "dice:2", "slice:alternate=2", "-o", tmp_path / "diced", "--name", "*_6g_*")
    assert answer.exit_code == 0, answer.stderr
    made = sorted(p.name for p in (tmp_path / "diced").glob("*.fits"))
    assert [n.split("_nis_")[1] for n in made] == [
        f"dice{k}of2_{s}_uncal.fits" for k in (1, 2) for s in ("even", "odd")
    ]
    assert len(list((tmp_path / "diced").glob("*.calami.json"))) == 4
    again = run("prep", raw, "dice:3", "-o", tmp_path / "diced", "--name", "nobody")
    assert again.exit_code == 1 and "nobody" in again.stderr


def test_prep_ends_with_1_when_an_exposure_could_not_be_prepared(raw, tmp_path):
    answer = run("prep", raw, "dice:3", "-o", tmp_path / "out")  # only one of the two has six groups
    assert answer.exit_code == 1 and "not all could be processed:\n  not made: " in answer.stderr, answer.stderr
    assert len(list((tmp_path / "out").glob("*.fits"))) == 3
    one = shutil.copytree(raw, tmp_path / "raw")
    (one / "no_exposure.fits").write_text("nothing")
    assert run("prep", one, "slice:1", "-o", tmp_path / "whole").exit_code == 0
    (one / f"{rootname(9)}_uncal.fits").write_text("no FITS")
    for words in (("prep", one, "slice:1"), ("pipe", one, "dq_init", "--offline", "--workers", 1)):
        answer = run(*words, "-o", tmp_path / words[0])
        assert answer.exit_code == 1 and f"{rootname(9)}_uncal.fits" in answer.stderr
        assert len(list((tmp_path / words[0]).glob("*.fits"))) == 2


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("wash:2", "clean, fix, dice"),
        ("dice:many", "whole number"),
        ("clean:strength=3", "parameters are sigma"),
        ("dice:7", "7"),
    ],
)
def test_a_recipe_that_cannot_be(raw, tmp_path, recipe, told):
    answer = run("prep", raw, recipe, "-o", tmp_path / "out")
    assert answer.exit_code == 1 and told in answer.stderr
    assert not list(tmp_path.rglob("*.fits"))


def test_pipe_and_flags(raw, tmp_path):
    words = ["pipe", raw, "dq_init", "saturation", "-o", tmp_path / "out", "--offline", "--workers", 1]
    answer = run(*words, "--set", "saturation.n_pix_grow_sat=0")
    assert answer.exit_code == 0, answer.stderr
    made = sorted((tmp_path / "out").glob("*.fits"))
    assert len(made) == 2 and "2 made" in answer.stderr
    assert "2 already there" in run(*words, "--set", "saturation.n_pix_grow_sat=0").stderr
    whole, one = run("flags", tmp_path / "out"), run("flags", made[0])
    assert whole.exit_code == one.exit_code == 0, whole.stderr + one.stderr
    assert "n_pix_grow_sat" in whole.stdout and "n_pix_grow_sat" in one.stdout
    assert "parameters:" in one.stdout and "steps:" in one.stdout and "flags:" in one.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("detector7",), "neither a pipeline nor a step"),
        (("detector1", "--set", "jump.threshold"), "step.parameter=value"),
        (("detector1", "--set", "jump.no_such=1"), "no_such"),
    ],
)
def test_what_cannot_be_piped(raw, tmp_path, words, told):
    answer = run("pipe", raw, *words, "-o", tmp_path / "out", "--offline")
    assert answer.exit_code == 1 and told in answer.stderr
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_told_before_anything_is_fetched(tmp_path, monkeypatch):
    from calami.archive import download

    monkeypatch.setattr(download, "fetch", lambda *_, **__: pytest.fail("fetched"))
    answer = run("fetch", 1516, "--to", tmp_path, "-o", tmp_path / "list.pdf")
    assert answer.exit_code == 1 and "list.pdf: the suffix says no known format" in answer.stderr


def test_one_plan_at_a_time(folder, tmp_path):
    (tmp_path / "p.xml").write_text("<a/>")
    answer = run("program", folder, "--apt", tmp_path / "p.xml", "--fetch-apt", "--no-simbad")
    assert answer.exit_code == 2 and "not both" in answer.stderr


def test_a_folder_of_two_programs_asks_for_one(tmp_path):
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 5)
    write_star(tmp_path / f"{rootname(1, 2, program=1504)}_rate.fits", 5, PROGRAM="01504")
    answer = run("program", tmp_path, "--no-simbad", "--fetch-apt")
    assert answer.exit_code == 1 and "holds programs 1504, 1516; choose one with --program" in answer.stderr
    answer = run("program", tmp_path, "--no-simbad", "--program", 1504)
    assert answer.exit_code == 0 and answer.stdout.startswith("Program 1504")


def test_the_list_of_what_was_fetched_is_written_although_a_file_failed(tmp_path, monkeypatch):
    from astropy.table import Table

    from calami.archive import download

    def fail(*_, **__):
        raise download.DownloadProblem("1 of 2 files", Table({"file": ["a", "b"], "status": ["there", "failed"]}))

    monkeypatch.setattr(download, "fetch", fail)
    answer = run("fetch", 1516, "--to", tmp_path, "-o", tmp_path / "list.csv")
    assert answer.exit_code == 1 and "1 of 2 files" in answer.stderr
    assert (tmp_path / "list.csv").read_text().splitlines() == ["file,status", "a,there", "b,failed"]


def test_map_checks_a_plan_and_ends_with_1_where_it_differs(folder, tmp_path, shared_data):
    assert run("map", folder, "--check").exit_code == 2
    apt = shared_data / "apt" / "com1093.xml"
    answer = run("map", folder, "--apt", apt, "--check")
    assert answer.exit_code == 1 and "plan is of program 1093" in answer.stderr
    answer = run("map", shared_data / "jw01093", "--apt", apt, "--check", "-o", tmp_path / "check.ecsv")
    assert answer.exit_code == 1 and "73 planned, 35 files" in answer.stderr
    assert set(QTable.read(tmp_path / "check.ecsv")["check"]) == {"other counts", "missing", "unplanned"}


def test_pairs_are_written_and_taken_by_fringes_and_calibrate(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_star(data / f"{rootname(1)}_cal.fits", 5)
    write_star(data / f"{rootname(2)}_cal.fits", 5, seed=2, IS_PSF=True, TARGPROP="HD-1")
    assert run("pairs", data, "-o", tmp_path / "pairs.yaml").exit_code == 0
    printed = run("pairs", data)
    assert yaml.safe_load(printed.stdout) == yaml.safe_load((tmp_path / "pairs.yaml").read_text())
    assert run("fringes", *data.glob("*cal.fits"), "-o", tmp_path / "oi").exit_code == 0
    answer = run("calibrate", tmp_path / "oi", "--pairs", tmp_path / "pairs.yaml", "-o", tmp_path / "out")
    assert answer.exit_code == 0 and (tmp_path / "out" / f"{rootname(1)}_aminorm-oi.fits").is_file()
    (pair,) = yaml.safe_load(printed.stdout)
    name = pair["references"][0]["name"].rsplit("_", 1)[0]  # by hand, the beginning of a name is enough
    (tmp_path / "edited.yaml").write_text(yaml.safe_dump([pair | {"references": [name]}]))
    answer = run("calibrate", tmp_path / "oi", "--pairs", tmp_path / "edited.yaml", "-o", tmp_path / "edited")
    assert answer.exit_code == 0 and (tmp_path / "edited" / f"{rootname(1)}_aminorm-oi.fits").is_file()
    for words in ((tmp_path / "oi",), (next((tmp_path / "oi").glob("*")), "--pairs", tmp_path / "pairs.yaml")):
        assert run("calibrate", *words, "-o", tmp_path / "x.fits").exit_code == 2
    assert run("pipe", data, "image2", "--pairs", tmp_path / "pairs.yaml", "-o", tmp_path / "p").exit_code == 2


def test_presets_are_shown():
    answer = run("flags", "--presets")
    assert answer.exit_code == 0 and "ami_analyze.usebp" in answer.stdout and "team" in answer.stderr
    assert run("flags").exit_code == 2
