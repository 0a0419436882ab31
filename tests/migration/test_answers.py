import json
import pickle
import re
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from astropy.table import QTable
from markupsafe import escape
from toys import nrm_psf, rootname, write_exposure
from typer.testing import CliRunner

from calami.cli import app
from calami.core.problems import CalamiError
from calami.core.tables import render, table_cells
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.instrument.migration import charge_ramp
from calami.migration import answers as answers_module
from calami.migration import report
from calami.migration.answers import (
    ASSUMPTIONS,
    METHOD,
    QUESTIONS,
    Answers,
    answer_questions,
    headline_table,
    onset_words,
    write_answers,
)
from calami.migration.check import KernelCheck
from calami.migration.mitigation import (
    Departure,
    Entry,
    Mitigation,
    ScanExposure,
    best_versions,
    corrected,
    with_step,
    without_step,
)
from calami.migration.onset import quantify
from calami.migration.saturation import Level, effective_saturation
from calami.process.engine import Engine

LIGHT = 2.4e6 * nrm_psf(center=(40.1, 45.2))


def write_ramp(folder, groups, activity, nints=60, migration="flight", seed=1):
    rng = np.random.default_rng(seed)
    step = np.diff(
        charge_ramp(LIGHT, niriss.SUB80.frame_time * np.arange(1, groups + 1), migration), axis=0, prepend=0.0
    )
    shape = (nints, *step.shape)
    reads = np.cumsum(step + np.sqrt(np.maximum(step, 0)) * rng.standard_normal(shape), axis=1)
    reads = ((reads + niriss.READ_NOISE_E * rng.standard_normal(shape)) / niriss.GAIN).astype("float32")
    arrays = {"SCI": reads, "PIXELDQ": np.zeros((80, 80), "uint32"), "GROUPDQ": np.zeros(shape, "uint8")}
    cards = {"NINTS": nints, "NGROUPS": groups, "FILTER": "F480M"}
    return write_exposure(folder / f"{rootname(activity=activity)}_ramp.fits", arrays, {"BUNIT": "DN"}, **cards)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ramps")
    write_ramp(folder, 6, 2)
    write_ramp(folder, 14, 3, seed=2)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def partial(ramps, out):
    return answer_questions(Dataset(ramps), out, progress=False)


@pytest.fixture
def scan():
    rng = np.random.default_rng(1)
    versions, entries = (without_step(), with_step(12000)), []
    for version, share in zip(versions, (1.0, 0.3), strict=True):
        for level in (1e4, 2e4, 3.5e4):
            bias = share**2 * (1e-6 * level) ** 2
            draws = bias * (1 + 0.1 * rng.normal(size=100))
            facts = Departure(bias, 0.1 * bias, 1e-6, 1e-6, -np.sqrt(bias), 1e-4, draws, 0.1 * draws, -np.sqrt(draws))
            target = ScanExposure(f"jw{level}", f"star {level:.0f}", "A", "F480M", level, 1e8)
            shown = np.array([0.001 + np.sqrt(bias) / 3])
            entries.append(
                Entry(version, target, target, "shallowest", facts, np.array([0.001]), shown, np.array([5e-4]))
            )
    return Mitigation(tuple(entries), np.array([150.0]), versions)


def whole(partial, scan):
    counts = (1e7, 1e8)
    return Answers(
        partial.onset, partial.verdicts, scan, best_versions(scan, counts), tuple(effective_saturation(scan, counts)),
        {}, 1e8, {}, False, ("a note",),
    )  # fmt: skip


def test_ramps_alone_answer_the_first_question(partial):
    assert set(partial.missing) == {"b", "c"} and "uncal" in partial.missing["b"]
    words = " ".join(partial.sentences("a"))
    assert "F480M" in words and "1 % at" in words and "migrates" in words.lower()
    assert partial.sentences("c")[0].startswith("Not answered: there are no raw exposures")
    assert not partial.simulated and partial.truth == {}


def test_what_is_known_of_ramps_is_not_measured_again(partial, ramps, out, monkeypatch):
    def never(*args, **options):
        raise AssertionError("it is known")

    for name in ("quantify", "_verdicts"):
        monkeypatch.setattr(answers_module, name, never)
    again = answer_questions(Dataset(ramps), out, thresholds=(0.015, 0.04), progress=False)
    same = partial.onset.with_thresholds(0.015, 0.04)
    assert render(again.onset.table(), "ecsv") == render(same.table(), "ecsv")
    assert repr(again.verdicts) == repr(partial.verdicts) and again.notes == partial.notes
    with pytest.raises(AssertionError, match="it is known"):  # another law is another fit
        answer_questions(Dataset(ramps), out, onset={"law": "linear"}, progress=False)


class Here(Executor):
    """Does at once what it is given, with what can be sent to a process only."""

    def submit(self, function, /, *args):
        done = Future()
        function, args = pickle.loads(pickle.dumps((function, args)))
        done.set_result(function(*args))
        return done


def test_the_onset_is_measured_while_versions_are_compared(partial, ramps, tmp_path, monkeypatch):
    files, ahead, engine = sorted(ramps.glob("*_ramp.fits")), [], Engine(executor=Here())
    for law in ("auto", "auto", "none of these"):  # what is known is not begun; a fault waits until it is asked for
        answers_module._begin_onset(tmp_path, {"law": law}, ahead, files, engine)
    assert [one.result() for one in ahead] == [None, None]
    with pytest.raises(CalamiError, match="none of these"):
        answers_module._onset_of(files, tmp_path, {"law": "none of these"})

    def never(*args, **options):
        raise AssertionError("it is known")

    for name in ("quantify", "_verdicts"):
        monkeypatch.setattr(answers_module, name, never)
    onset = answers_module._onset_of(files, tmp_path, {"law": "auto"})
    levels = [[crossing.level_e for crossing in one.crossings()] for one in (onset, partial.onset)]
    assert levels[0] == levels[1]
    verdicts, _ = answers_module._verdicts_of(onset, files, tmp_path, {"law": "auto"})
    assert str(verdicts["F480M"]) == str(partial.verdicts["F480M"])


def test_processes_that_are_ready_draw_several_figures(partial, scan, tmp_path, monkeypatch):
    asked = []

    @contextmanager
    def running(self, jobs=None, *, jwst=False):
        if self.executor is None:
            asked.append((jobs, jwst))
        yield replace(self, executor=Here())

    plots = answers_module._plots(whole(partial, scan))
    here, _ = report.draw_all(plots)
    monkeypatch.setattr(report, "has_begun", lambda: True)
    monkeypatch.setattr(Engine, "running", running)
    there, _ = report.draw_all(plots, folder=tmp_path)
    again, _ = report.draw_all(plots, folder=tmp_path)
    assert asked == [(len(plots), True)] and len(plots) > 1
    assert here == there == again and len(here) == 2 * len(plots)  # PNG and PDF


def test_figures_can_be_drawn_by_another_process(partial, scan):
    from matplotlib.figure import Figure

    plots = answers_module._plots(whole(partial, scan))
    for name, plot in pickle.loads(pickle.dumps(plots)).items():
        ax, other = Figure().subplots(1, 2)
        plot.panels[0](ax)
        plots[name].panels[0](other)
        assert ax.get_title(loc="left") == other.get_title(loc="left") and ax.get_xlabel() == other.get_xlabel() != ""
        assert len(ax.lines) == len(other.lines) > 0


def test_a_figure_is_drawn_once_unless_anything_of_it_changes(partial, tmp_path, monkeypatch):
    import matplotlib

    drawn = []
    monkeypatch.setattr(report, "figure_files", lambda *args, **options: drawn.append(1) or {"png": b"%d" % len(drawn)})

    def draw(answers):
        return report.draw_all(answers_module._plots(answers), folder=tmp_path)[0]["onset_f480m.png"]

    assert [draw(partial), draw(partial)] == [b"1", b"1"]
    assert draw(replace(partial, onset=partial.onset.with_thresholds(0.015))) == b"2"
    with matplotlib.rc_context({"lines.linewidth": 7}):
        assert draw(partial) == b"3"
    assert draw(partial) == b"1"


def test_rates_answer_nothing_and_say_why(tmp_path):
    arrays = {"SCI": np.ones((80, 80), "float32"), "ERR": np.ones((80, 80), "float32")}
    write_exposure(tmp_path / f"{rootname()}_rate.fits", arrays | {"DQ": np.zeros((80, 80), "uint32")})
    found = answer_questions(Dataset(tmp_path), tmp_path / "out", progress=False)
    assert set(found.missing) == set(QUESTIONS) and "no ramps" in found.missing["a"]


def test_there_are_three_questions(partial):
    with pytest.raises(CalamiError, match="a, b, c"):
        partial.sentences("d")


def test_a_report_of_partial_answers(partial, ramps, tmp_path):
    page = write_answers(partial, Dataset(ramps), tmp_path / "report")
    names = {p.name for p in page.parent.iterdir()}
    tables = {f"{name}.tex" for name in ("headline", "cm_onset", "cm_laws", "cm_kernel")}
    figures = {"onset_f480m.png", "onset_f480m.pdf"}
    assert names == {"report.html", "run.json", "cm_onset.ecsv", "cm_kernel.ecsv"} | figures | tables
    text = page.read_text(encoding="utf-8")
    assert "(b) not answered" in text and "(a) answered" in text and "Simulated" not in text
    assert all(escape(line) in text for line in (*ASSUMPTIONS, *METHOD))
    run = json.loads((page.parent / "run.json").read_text())
    assert len(run["inputs"]) == 2 and all(len(i["sha256"]) == 64 for i in run["inputs"])
    table = QTable.read(page.parent / "cm_onset.ecsv")
    columns = "filter definition threshold level_adu level_e lo68_adu hi68_adu lo95_adu hi95_adu limit n_samples"
    assert table.colnames[:11] == columns.split() and len(table) == 12


def test_the_whole_report(partial, ramps, scan, tmp_path):
    answers = whole(partial, scan)
    page = write_answers(answers, Dataset(ramps), tmp_path / "report")
    names = {p.name for p in page.parent.iterdir()}
    wanted = {"cm_mitigation.ecsv", "cm_best.ecsv", "cm_saturation.ecsv", "mitigation_f480m.png"}
    wanted |= {"mitigation_f480m.pdf", "headline.tex", "cm_mitigation.tex", "cm_best.tex", "cm_saturation.tex"}
    assert wanted | {"jwst_niriss_pars-chargemigrationstep_f480m.asdf"} <= names
    assert answers.best_version("F480M").name == "step 12000 ADU"
    assert "with the best version (step 12000 ADU)" in answers.sentences("b")[0]
    assert "without mitigation, bias" in answers.sentences("c")[0] and "; with step 12000" in answers.sentences("c")[0]
    text = page.read_text(encoding="utf-8")
    assert "a note" in text and text.count("<img") == 2 and "http" not in text.split("</style>")[0]
    box = text[text.index('class="answer"') : text.index("<h2>Processing")]
    assert "<b>Table 1.</b>" in box and box.count("<tr>") == 2 and box.count("<h3>") == 3
    numbers = [int(n) for n in re.findall(r"<b>(?:Table) (\d+)\.", text)]
    assert numbers == list(range(1, 9)) and [f"<b>Figure {n}.</b>" in text for n in (1, 2, 3)] == [True, True, False]


@pytest.mark.slow
def test_the_box_says_what_was_not_as_usual(partial, ramps, scan, tmp_path):
    answers = replace(whole(partial, scan), settings={"Onset": "law = free"})
    text = write_answers(answers, Dataset(ramps), tmp_path / "report").read_text(encoding="utf-8")
    box = text[text.index("<dl>") : text.index("</dl>")]
    for words in (
        "jwst not recorded",
        "CRDS context",
        "0.5 %, 1 %, 2 %, 3 %",
        "signal_threshold = 12000.0",
        "law = free",
    ):
        assert words in box
    found = answer_questions(
        Dataset(ramps), tmp_path / "out", onset={"law": "linear", "n_bootstrap": 100}, progress=False
    )
    assert found.settings == {"Onset": "law = linear; n_bootstrap = 100"}


def test_tables_of_the_page_have_no_digit_too_many(partial, scan):
    truth = {"crossings": {}, "migration": {"edge": 6.4e-7, "diagonal": 3.7e-7, "growth": 1.6e-5, "nonlinearity": 0.0}}
    shown = answers_module._shown_tables(replace(whole(partial, scan), truth=truth))
    kernel = shown["cm_kernel"].table
    assert list(kernel["filter"]) == ["F480M", "truth"] and kernel["edge [per e-]"][1] == "6.4e-7"
    assert re.fullmatch(r"\(\d\.\d\d ± 0\.\d\d\)e-7", kernel["edge [per e-]"][0])
    for one in shown.values():
        for column in table_cells(one.table):
            for cell in column[1:]:
                assert not re.search(r"\d\.\d{4}", cell) and len(re.sub("[^0-9]", "", cell.split(" ")[0])) < 7, cell


@pytest.mark.parametrize(
    "limit, words",
    [("", "equals the noise at 9,000 ADU"), (">", "stays below the noise up to 9,000 ADU"),
     ("<", "exceeds the noise below 9,000 ADU; shallower"), ("?", "was not sampled (one depth); other depths")],
)  # fmt: skip
def test_a_level_that_is_a_limit_says_so_and_what_would_decide(partial, scan, limit, words):
    level = Level("F480M", "none", "both", 1e8, 9000.0, (8e3, 1e4), (7e3, 1.1e4), limit, 3, 3, 9.0, "one depth")
    answers = replace(whole(partial, scan), levels=(level,))
    assert words in answers.sentences("c")[0]


def test_what_correction_buys_is_said(partial, scan):
    entries = tuple(replace(e, version=corrected()) if e.version.level else e for e in scan.entries)
    check = KernelCheck("F480M", "ramps", 0.001, 0.001, 0.04, 4.0, 5, np.inf, {}, {})
    scan = replace(scan, entries=entries, versions=(without_step(), corrected()), checks=(check,))
    answers = whole(partial, scan)
    answers = replace(answers, levels=tuple(
        Level("F480M", name, "both", 1e8, level, (level, level), (level, level), "", 3, 3, 9.0, "")
        for name, level in (("none", 9000.0), ("corrected", 25000.0))
    ))  # fmt: skip
    assert "with the best version (corrected)" in answers.sentences("b")[0] and "it fits" in answers.sentences("b")[-1]
    level, gain = answers.sentences("c")
    assert "; corrected, bias equals the noise at 25,000 ADU" in level
    groups = [int(words.split(" groups")[0].split()[-1]) for words in gain.split("corrected: ")]
    assert 2 <= groups[0] < groups[1] and "s with resets" in gain
    limits = tuple(replace(x, limit="?") for x in answers.levels)
    assert len(replace(answers, levels=limits).sentences("c")) == 1  # nothing is bought for what is not known


def test_a_law_that_does_not_fit_says_so(partial, scan):
    (name, result), *_ = partial.onset.filters.items()
    assert f"{result.chi2 / result.dof:.2f} for each degree of freedom." in partial.sentences("a")[0]
    poor = replace(result, chi2=6.4 * result.dof)
    told = replace(partial, onset=replace(partial.onset, filters={name: poor}))
    assert "6.40 for each degree of freedom: it does not describe the rates" in told.sentences("a")[0]


def test_a_free_curve_is_no_law_and_has_an_answer(partial):
    onset = quantify(partial.onset.statistics, law="free", n_bootstrap=100)
    free, (result,) = replace(partial, onset=onset), onset.filters.values()
    words = f"A free falling curve instead of a law, χ² {result.chi2 / result.dof:.2f} for each degree"
    assert words in free.sentences("a")[0] and words in repr(free)
    table = onset.fits()
    assert list(table["law"][table["used"]]) == ["free"] and np.isnan(table["bic"][table["used"]][0])
    assert ">nan<" not in render(answers_module._laws(free), "html")


def test_versions_that_may_as_well_be_the_best_are_named(partial, scan):
    answers = whole(partial, scan)
    assert "cannot be told apart" not in answers.sentences("b")[0]
    best = answers.best.copy()
    best["chance"] = 0.5
    assert "cannot be told apart from no mitigation" in replace(answers, best=best).sentences("b")[0]


def test_truth_stands_beside_the_answer(partial):
    truth = {"crossings": {"F480M": {0.01: (9e3, 1.1e4)}}, "migration": {"edge": 1e-6}}
    with_truth = Answers(partial.onset, {}, None, None, (), {"b": "no", "c": "no"}, 1e8, truth, True)
    table = onset_words(with_truth)
    row = table[(table["definition"] == "instantaneous") & (table["drop"] == "1 %")][0]
    assert row["true [ke-]"] == "9.0 to 11.0" and repr(with_truth).startswith("Simulated data.")


def test_the_headline_has_a_row_for_each_filter_and_no_digit_too_many(partial, scan):
    truth = {"crossings": {"F480M": {0.01: (9e3, 1.1e4)}}, "migration": {"edge": 1e-6}}
    answers = replace(whole(partial, scan), truth=truth)
    table = headline_table(answers)
    assert list(table["filter"]) == ["F480M", "F480M, truth"]
    names = "filter|0.5 % [ke-]|1 % [ke-]|2 % [ke-]|3 % [ke-]|saturation, no mitigation [ke-]|deepest [ke-]|"
    names += "contrast, no mitigation [mag]|contrast, step [mag]|step at [ADU]|by noise alone [mag]"
    assert table.colnames == names.split("|")
    found, true = table
    crossing = partial.onset.crossing("F480M", 0.01)
    assert found["1 % [ke-]"] == crossing.short and true["1 % [ke-]"] == "9.0 to 11.0"
    assert true["2 % [ke-]"] == "not reached" and true["contrast, step [mag]"] == ""
    entries = scan.deepest("F480M")
    assert found["contrast, no mitigation [mag]"].startswith(f"{-2.5 * np.log10(entries['none'].reached[0]):.1f}")
    assert " ± " in found["contrast, step [mag]"] and found["step at [ADU]"] == "12,000"
    page = answers._repr_html_()
    assert "<table" in page and "(c) Where is effective saturation?" in page and crossing.short in page
    assert headline_table(replace(answers, onset=None, scan=None, best=None, truth={})).colnames == []
    assert headline_table(partial).colnames == names.split("|")[:5]


def test_errors_of_contrasts_follow_from_the_resampled_bias(scan):
    entry = scan.deepest("F480M")["none"]  # its bias is 10 % uncertain as a mean square, 5 % as an error
    value, error = entry.magnitude(0)
    assert value == -2.5 * np.log10(entry.reached[0]) and error == pytest.approx(0.05 * 2.5 / np.log(10), rel=0.3)


def test_a_scan_shows_itself_without_raw_arrays(scan):
    assert "array" not in repr(scan) + repr(scan.entries[0]) and "F480M" in repr(scan)
    page = scan._repr_html_()
    assert page.count("<tr>") == 3 and "step 12000 ADU" in page and " ± " in page


def test_the_command_answers_what_it_can(ramps, tmp_path):
    answer = CliRunner().invoke(app, ["cm", str(ramps), "-o", str(tmp_path / "report")])
    assert answer.exit_code == 0, answer.stderr
    assert "(a) F480M: the rate of the peak pixel" in answer.stdout and "(b) Not answered" in answer.stdout
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_wave_of_the_converter_is_taken_out_first(tmp_path, monkeypatch, ramps):
    from astropy.io import fits

    from calami.instrument.converter import ADC_WAVE
    from calami.migration import answers
    from calami.simulate.exposures import Instrument, simulate_plan
    from calami.simulate.plans import ready_plan

    instrument, plan, seen = Instrument.default(1, "flight"), ready_plan("1516", "demo"), []
    plan = replace(plan, exposures=tuple(e for e in plan.exposures if e.ngroups >= 5)[:2])
    detector = replace(instrument.detector, adc_wave=ADC_WAVE)
    simulate_plan(plan, tmp_path / "raw", replace(instrument, detector=detector))

    def nothing(data, *args, **options):
        seen.append(data)
        raise CalamiError("not now")

    monkeypatch.setattr(answers, "mitigation_scan", nothing)
    monkeypatch.setattr(answers, "_plain_ramps", nothing)
    raw = Dataset(tmp_path / "raw")

    def headers():
        paths = [path for root in seen[-1].rootlist for path in seen[-1].paths(root, "uncal")]
        return [fits.getheader(path) for path in paths]

    found = answer_questions(raw, tmp_path / "out", converter="measure")
    assert [h["S_CONVRT"] for h in headers()] == ["COMPLETE"] * 2 and found.simulated
    assert "ppm of the signal" in found.notes[0] and "was taken out of the raw exposures" in found.notes[-1]
    file = tmp_path / "out" / "straight" / "niriss_converter.asdf"
    again = answer_questions(raw, tmp_path / "again", converter=str(file))
    assert [h["CONVFILE"] for h in headers()] == [file.name] * 2 and len(again.notes) == 1
    answer_questions(raw, tmp_path / "plain")
    assert not any("S_CONVRT" in h for h in headers())
    for wrong, words in ((tmp_path / "no.asdf", "is not there"), ("measure", "there are no raw exposures")):
        with pytest.raises(CalamiError, match=words):
            answer_questions(Dataset(ramps) if wrong == "measure" else raw, tmp_path / "x", converter=str(wrong))
    told = CliRunner().invoke(app, ["cm", str(ramps), "-o", str(tmp_path / "cm"), "--converter", "measure"])
    assert told.exit_code == 1 and "there are no raw exposures" in told.stderr


def test_the_command_plans():
    answer = CliRunner().invoke(app, ["advise", "f480m", "5.1"])
    assert answer.exit_code == 0 and "7 groups" in answer.stdout
    wrong = CliRunner().invoke(app, ["advise", "F480M"])
    assert wrong.exit_code == 1 and "one of the two" in wrong.stderr


@pytest.mark.parametrize(
    "words, told",
    [(("F480M", "20"), "An exposure has at most 10,000 integrations: this takes 52"),
     (("F480M", "20"), "GB are more than one downlink of 28.6 GB"),
     (("F480M", "1"), "the star is too bright")],
)  # fmt: skip
def test_a_plan_that_cannot_be_carried_out_says_so(words, told):
    answer = CliRunner().invoke(app, ["advise", *words])
    assert told in answer.stdout
    assert "at most" not in CliRunner().invoke(app, ["advise", "F480M", "6"]).stdout
