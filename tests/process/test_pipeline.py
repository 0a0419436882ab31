"""Running jwst on exposures: names and parameters, products and sidecars, faults, and what was done."""

import contextlib
import hashlib
import importlib.util
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import toys
from astropy.io import fits
from campaigns.kill import contents
from hypothesis import given, settings
from hypothesis import strategies as st

from calami.calutil import Data
from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.process import audit, offline, pipeline, references
from calami.process import parameters as process_parameters
from calami.process.audit import count_flags, flags_table, nondefault, step_table
from calami.process.engine import worker_pool
from calami.process.graft import Graft
from calami.process.parameters import PRESETS, chain_of, check_parameters, preset_parameters, preset_table
from calami.process.pipeline import main_product, pipe_data, reprocess
from calami.process.prep import prep_data
from calami.process.recipes import Slice
from calami.process.record import read_sidecar, records_in, sidecar_path

BOXES = {name: (np.linspace(*f.half_power, 20), np.ones(20)) for name, f in niriss.FILTERS.items()}
RATE = 3.6e6 * toys.nrm_psf("F480M", center=(40.0, 45.0)) + 10.0
DETECTOR1 = "calwebb_detector1"
STEPS = "dq_init saturation superbias refpix linearity charge_migration jump ramp_fit gain_scale".split()


@pytest.fixture(scope="module")
def detector():
    return toys.plain_detector()


@pytest.fixture(scope="module")
def cache(tmp_path_factory, detector):
    return references.offline_cache(tmp_path_factory.mktemp("crds") / "cache", detector, passbands=BOXES)


@pytest.fixture(scope="module")
def uncal(tmp_path_factory, detector):
    return toys.write_uncal(tmp_path_factory.mktemp("raw"), detector, RATE, ngroups=6, nints=4)


@pytest.fixture(scope="module")
def executor(cache):
    """Processes in which jwst is imported once for all tests."""
    with worker_pool(1, cache) as pool:
        pool.submit(pipeline._freeze_gc)
        yield pool


@pytest.fixture(scope="module")
def first(tmp_path_factory, uncal, cache, executor):
    out = tmp_path_factory.mktemp("first")
    run = pipe_data(uncal, "detector1", None, out, cache=cache, executor=executor, keep=("ramp", "jump"))
    return run.raise_failures()


def product(run, kind):
    (path,) = [p for p in run.paths if p.name.endswith(f"_{kind}.fits")]
    return path


def pixels(path):
    with fits.open(path) as hdus:
        return {h.name: h.data.copy() for h in hdus[1:] if h.is_image}


def assert_equal_pixels(one, other):
    one, other = pixels(one), pixels(other)
    assert one.keys() == other.keys() and "SCI" in one
    for name, values in one.items():
        assert np.array_equal(values, other[name], equal_nan=values.dtype.kind == "f"), name


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def statuses(run):
    return {s["name"]: s["status"] for s in run.outcomes[0].steps}


# ---- Names and parameters


@pytest.mark.parametrize("name", ["detector1", "DETECTOR1", "calwebb_detector1", "Detector1Pipeline"])
def test_a_pipeline_goes_by_all_its_names(name):
    assert chain_of(name) == (DETECTOR1,)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("detektor1", "did you mean detector1"),
        (["dq_init", "jmup"], "did you mean jump"),
        ([], "nothing to run"),
        (["detector1", "jump"], "cannot be mixed"),
        ([3], "neither a pipeline nor a step"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_comes_near(asked, said):
    with pytest.raises(CalamiError, match=said):
        chain_of(asked)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"jump.rejection_treshold": 6}, "did you mean rejection_threshold"),
        ({"jmp.skip": True}, "no step jmp; did you mean jump"),
        ({"rejection_threshold": 6}, "did you mean jump.rejection_threshold"),
        ({"jump.rejection_threshold": "high"}, "float.*wrong type"),
        ({"jump.rejection_threshold": -1}, "too small"),
        ({"jump.rejection_threshold": True}, "does not fit float"),
        ({"jump.skip": 3}, "does not fit boolean"),
        ({"output_dir": "/tmp"}, "use outdir"),
        ({"linearity.override_linearity": "nowhere.fits"}, "is no file"),
        ({"flat_field.skip": True}, "no step flat_field"),
        ({"jump": {"skip": True}, "jump.skip": True}, "given twice"),
    ],
)
def test_a_wrong_parameter_is_told_before_anything_runs(tmp_path, parameters, said):
    with pytest.raises(CalamiError, match=said):
        pipe_data(tmp_path / "nothing_uncal.fits", "detector1", parameters, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_parameters_are_checked_without_importing_jwst(tmp_path):
    # What jwst says of its steps is kept between programs.
    code = """
import sys
from calami.process.parameters import check_parameters, defaults
assert check_parameters(["detector1", "image2"], {"jump.rejection_threshold": 6}) == {"jump.rejection_threshold": 6.0}
assert defaults("calwebb_detector1")["charge_migration.skip"] is True
print("jwst.stpipe" in sys.modules)
"""
    environment = {**os.environ, "CALAMI_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def imported():
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip() == "True"

    assert [imported(), imported()] == [True, False]


def test_a_process_that_has_jwst_is_asked_what_it_says_of_its_steps(tmp_path):
    code = """
import sys
from calami.process.engine import Engine
from calami.process.parameters import check_parameters
from calami.process.pipeline import _learn
if __name__ == "__main__":
    with Engine(workers=1).running(jwst=True) as ready:
        _learn(("calwebb_detector1", "calwebb_image2"), ready)
    assert check_parameters(["detector1", "image2"], {"jump.skip": True}) == {"jump.skip": True}
    print("jwst.stpipe" in sys.modules)
"""
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = {**os.environ, "CALAMI_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("text", ["{", "[]", '{"other": {}}'])
def test_what_is_kept_of_jwst_is_read_again_where_it_is_damaged(tmp_path, monkeypatch, text):
    read = []
    monkeypatch.setenv("CALAMI_CACHE", str(tmp_path))
    monkeypatch.setattr(process_parameters, "_read_facts", lambda alias: read.append(alias) or {"steps": ["jump"]})
    kept = tmp_path / f"jwst-{process_parameters._state_of_jwst()}.json"
    kept.write_text(text, encoding="utf-8")
    found = [process_parameters._facts_of.__wrapped__("calwebb_detector1") for _ in range(2)]
    assert found == [{"steps": ["jump"]}] * 2 and read == ["calwebb_detector1"]
    assert json.loads(kept.read_text(encoding="utf-8"))["calwebb_detector1"] == {"steps": ["jump"]}


def test_parameters_may_be_nested_dotted_or_text():
    same = [
        {"jump.rejection_threshold": 6, "save_calibrated_ramp": True},
        {"jump": {"rejection_threshold": "6"}, "detector1.save_calibrated_ramp": "true"},
        {"steps": {"jump": {"rejection_threshold": 6.0}}, "calwebb_detector1": {"save_calibrated_ramp": True}},
    ]
    wanted = {"calwebb_detector1.save_calibrated_ramp": True, "jump.rejection_threshold": 6.0}
    assert [check_parameters("detector1", p) for p in same] == [wanted] * 3


@pytest.mark.parametrize("name", ["detector1", "image2", "ami3"])
def test_every_default_is_a_valid_value_of_its_parameter(name):
    (alias,) = chain_of(name)
    usual = {
        k: v
        for k, v in process_parameters.defaults(alias).items()
        if k.rpartition(".")[2] not in process_parameters._OURS
    }
    usual = {k: v for k, v in usual.items() if v != []}
    assert len(usual) > 20 and check_parameters(name, usual) == usual


def test_a_parameter_that_two_steps_have_must_name_its_step():
    with pytest.raises(CalamiError, match=r"jump\.skip or ramp_fit\.skip"):
        check_parameters(["jump", "ramp_fit"], {"skip": True})


# ---- Products and sidecars


def test_a_preset_comes_after_what_is_given(tmp_path, monkeypatch):
    toys.write_exposure(tmp_path / f"{toys.rootname()}_calints.fits")
    monkeypatch.setattr(pipeline, "_fill", lambda *_: None)
    monkeypatch.setattr(pipeline, "_settle_context", lambda _: "none")
    run = pipe_data(tmp_path, "ami3", {"ami_analyze.oversample": 7}, tmp_path / "out", preset="team")
    assert run.parameters == {"ami_analyze.firstfew": None, "ami_analyze.oversample": 7, "ami_analyze.usebp": False}


def test_every_parameter_of_a_preset_is_one_of_the_installed_jwst():
    for name, preset in PRESETS.items():
        parts = [preset_parameters(name, chain) for chain in ("detector1", "image2", "ami3")]
        assert {k: v for part in parts for k, v in part.items()} == preset.parameters
    assert "no such parameter" not in set(preset_table()["default"])
    assert preset_parameters("notebook", "jump") == {}
    with pytest.raises(CalamiError, match=r"no preset is called 'notebok'.*notebook"):
        preset_parameters("notebok", "detector1")


def test_detector1_makes_complete_products_and_leaves_the_input_alone(first, uncal):
    kinds = {p.name.split("_nis_")[1] for p in first.outdir.iterdir() if p.is_file()}
    assert kinds == {
        *(f"{k}.{s}" for k in ("ramp", "rate", "rateints") for s in ("fits", "calami.json")),
        "rate.log",
        "rate.pars.asdf",
    }
    assert not list(first.outdir.glob(".calami-*")), "no working folder is left"
    record = json.loads(sidecar_path(product(first, "rate")).read_text())
    assert record["inputs"][0] | {"folder": ""} == {
        "file": uncal.name, "size": uncal.stat().st_size, "sha256": digest(uncal), "folder": "",
    }  # fmt: skip
    assert first.dataset.rootlist == [toys.rootname(12, 2, program=1093)]
    assert "made" in repr(first) and "rateints" in first._repr_html_()


def test_the_sidecar_tells_what_was_done(first, cache):
    record = json.loads(sidecar_path(product(first, "rate")).read_text())
    assert record["operation"] == "pipe" and record["chain"] == [DETECTOR1]
    assert record["crds"]["context"] == cache.context and record["versions"]["jwst"].startswith("3.")
    assert record["parameters"]["jump.rejection_threshold"] == 4.0
    assert record["changed_from_spec"]["charge_migration.skip"] == {"used": False, "spec": True}
    assert record["changed_from_crds"] == {}, "nothing was asked for"
    assert record["references"]["linearity"] == f"crds://{cache.find('linearity').name}"
    assert record["outputs"] == sorted(p.name for p in first.paths)
    assert {s["name"] for s in record["steps"]} >= {"dq_init", "jump", "ramp_fit"}
    assert record["seconds"] > sum(s["seconds"] for s in record["steps"]) * 0.9


def test_the_log_is_in_a_file_and_not_on_the_terminal(first, uncal, cache, executor, tmp_path, capfd):
    capfd.readouterr()
    run = pipe_data(uncal, "detector1", {"jump.skip": True}, tmp_path, cache=cache, executor=executor, progress=False)
    assert capfd.readouterr() == ("", "")
    (path,) = run.logs
    assert path.name.endswith("_rate.log") and "Step ramp_fit done" in path.read_text()
    record = json.loads(sidecar_path(product(run, "rate")).read_text())
    assert record["changed_from_crds"] == {"jump.skip": {"used": True, "crds": False}}


def test_each_exposure_is_shown_with_the_step_it_is_at(uncal, cache, tmp_path, monkeypatch):
    """In JupyterLab, while the cell runs; several exposures of one process have no result until all are done."""
    seen, ends = [], iter(("failed", "made", "made"))

    @contextlib.contextmanager
    def shown(make, show):
        seen.append(make)
        yield
        seen.append(make())

    class Slow:
        def submit(self, function, target, job):
            work, end, future = Path(job["work"]), next(ends), Future()
            work.mkdir()
            (work / "log").write_text("INFO - Step saturation running with args\nINFO - Step jump running with args\n")
            seen.append(seen[0]())
            shutil.rmtree(work)
            paths = {"failed": pipeline._failed_log(job), "made": pipeline._expected(job)[0]}
            paths[end].touch()
            error = "no reason" if end == "failed" else None
            future.set_result({"products": [], "steps": [], "seconds": 1.0, "error": error})
            return future

    monkeypatch.setattr(pipeline, "live_html", shown)
    folders = [tmp_path / name for name in "abc"]
    files = [folder / uncal.name.replace("_00001_", f"_0000{k}_") for k, folder in enumerate(folders, 2)]
    for path in files:
        path.parent.mkdir()
        shutil.copyfile(uncal, path)
    pipe_data(files, "detector1", {}, tmp_path / "out", cache=cache, executor=Slow())
    cells = [re.findall("<td>([a-z ]+)</td>", text) for text in seen[1:]]
    assert cells[0] == ["jump", "waiting", "waiting"] and "2 waiting, 1 being made" in seen[1]
    assert cells[1] == ["failed", "jump", "waiting"]
    assert cells[2] == ["failed", "made", "jump"]
    assert cells[3] == ["failed", "made", "made"] and "2 made, 1 failed" in seen[4] and "waiting" not in seen[4]
    monkeypatch.setattr(pipeline, "_LISTED", 2)
    assert re.findall("<td>([a-z ]+)</td>", seen[0]()) == ["failed"]


def test_two_equal_runs_leave_the_same(first, uncal, cache, executor, tmp_path):
    """All but the times of day and how long it took, what logs say, and the log of jwst in the ASDF extension."""
    options = {"cache": cache, "executor": executor, "save_calibrated_ramp": True}
    runs = [pipe_data(uncal, "detector1", {}, tmp_path / n, **options).raise_failures() for n in ("one", "other")]
    one, other = (contents(run.outdir) for run in runs)
    assert one == other and {".fits", ".json", ".asdf", ".log"} == {Path(name).suffix for name in one}
    for record in runs[0].sidecars:
        assert ".calami-" not in record.read_text() and str(tmp_path) not in record.read_text()
    made = [prep_data(uncal, Slice(2), tmp_path / f"prepared {n}") for n in ("one", "other")]
    assert contents(made[0][0].parent) == contents(made[1][0].parent)


def test_equal_inputs_and_parameters_are_not_run_again(first, uncal, cache, executor):
    before = {p: p.stat().st_mtime_ns for p in first.outdir.rglob("*")}
    again = pipe_data(uncal, "detector1", {}, first.outdir, cache=cache, executor=executor, keep=("ramp", "jump"))
    assert [o.status for o in again.outcomes] == ["already there"] and again.paths == first.paths
    assert {p: p.stat().st_mtime_ns for p in first.outdir.rglob("*")} == before


def test_products_made_otherwise_are_kept_unless_told(first, uncal, cache, executor, tmp_path):
    out = tmp_path / "out"
    options = {"cache": cache, "executor": executor}
    pipe_data(uncal, "detector1", {}, out, **options).raise_failures()
    before = {p.name: digest(p) for p in out.iterdir()}
    run = pipe_data(uncal, "detector1", {"jump.skip": True}, out, **options)
    assert "made from something else or with other parameters" in next(iter(run.failures.values()))
    assert {p.name: digest(p) for p in out.iterdir()} == before
    told = pipe_data(uncal, "detector1", {"jump.skip": True}, out, overwrite=True, **options).raise_failures()
    assert step_status(product(told, "rate"), "jump") == "SKIPPED"


def step_status(path, step):
    table = step_table(path)
    return dict(zip(table["step"], table["status"], strict=True))[step]


def test_detector1_by_steps_is_detector1(first, uncal, cache, executor, tmp_path):
    run = pipe_data(uncal, STEPS, None, tmp_path, cache=cache, executor=executor).raise_failures()
    for kind in ("rate", "rateints"):
        assert_equal_pixels(product(run, kind), product(first, kind))
    used = nondefault(product(run, "rate"))
    assert {"charge_migration", "jump"} <= set(used["step"]) and set(used["source"]) == {"sidecar"}
    sidecar_path(product(run, "rate")).unlink()
    from_log = nondefault(product(run, "rate"))
    assert set(zip(from_log["step"], from_log["parameter"], from_log["used"], strict=True)) == set(
        zip(used["step"], used["parameter"], used["used"], strict=True)
    )


def test_a_skipped_step_is_marked_whatever_the_metadata_call_it(uncal, cache, executor, tmp_path):
    run = pipe_data(
        uncal, ["dq_init", "dark_current"], {"dark_sub.skip": True}, tmp_path, cache=cache, executor=executor
    )
    assert step_status(run.raise_failures().paths[0], "dark_current") == "SKIPPED"


def test_a_single_step_and_products_to_keep(first, cache, executor, tmp_path):
    run = pipe_data(product(first, "ramp"), "ramp_fit", None, tmp_path, products="rate", cache=cache, executor=executor)
    assert [p.name.split("_nis_")[1] for p in run.raise_failures().paths] == ["rate.fits"]
    assert np.array_equal(pixels(run.paths[0])["SCI"], pixels(product(first, "rate"))["SCI"], equal_nan=True)


# ---- Doing again only what a change touches


def test_a_late_change_runs_late_steps_only(first, uncal, cache, executor, tmp_path):
    change = {"jump.rejection_threshold": 2.5}
    late = reprocess(first, change, tmp_path / "late", executor=executor).raise_failures()
    ran = {name for name, status in statuses(late).items() if status == "run"}
    assert ran == {"jump", "ramp_fit", "gain_scale"} and late.steps_run < first.steps_run / 2
    assert late.parameters["jump.rejection_threshold"] == 2.5
    whole = pipe_data(uncal, "detector1", change, tmp_path / "whole", cache=cache, executor=executor, keep="ramp")
    for kind in ("rate", "rateints", "ramp"):
        assert_equal_pixels(product(late, kind), product(whole.raise_failures(), kind))


def test_a_change_after_the_ramp_begins_with_the_ramp(first, executor, tmp_path):
    run = reprocess(product(first, "rate"), {"ramp_fit.suppress_one_group": False}, tmp_path, executor=executor)
    ran = {name for name, status in statuses(run.raise_failures()).items() if status == "run"}
    assert ran == {"ramp_fit", "gain_scale"}


def test_an_early_change_runs_everything(first, executor, tmp_path):
    run = reprocess(first, {"refpix.use_side_ref_pixels": False}, tmp_path, executor=executor).raise_failures()
    assert "taken" not in statuses(run).values() and run.steps_run == first.steps_run


def test_a_later_pipeline_takes_the_products_of_the_one_before(uncal, cache, executor, tmp_path):
    both = pipe_data(uncal, ["detector1", "image2"], {}, tmp_path / "a", cache=cache, executor=executor)
    kinds = [p.name.split("_nis_")[1] for p in both.raise_failures().paths]
    assert kinds == ["rate.fits", "rateints.fits", "cal.fits", "calints.fits"]
    late = reprocess(both, {"flat_field.skip": True}, tmp_path / "b", executor=executor).raise_failures()
    assert {s["stage"] for s in late.outcomes[0].steps if s["status"] == "run"} == {"calwebb_image2"}
    assert step_status(product(late, "cal"), "flat_field") == "SKIPPED"
    assert np.nanmax(pixels(product(late, "cal"))["SCI"]) == np.nanmax(pixels(product(both, "rate"))["SCI"])


def test_a_damaged_checkpoint_is_not_used(uncal, cache, executor, tmp_path):
    kept = pipe_data(uncal, "detector1", {}, tmp_path / "a", cache=cache, executor=executor, keep="jump")
    (checkpoint,) = (kept.raise_failures().outdir / ".checkpoints").rglob("*.fits")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-2880])
    run = reprocess(kept, {"jump.rejection_threshold": 6}, tmp_path / "b", executor=executor).raise_failures()
    assert run.steps_run == kept.steps_run


def test_the_very_files_of_then_can_be_used(first, executor, tmp_path):
    run = reprocess(first, None, tmp_path / "files", references="files", executor=executor).raise_failures()
    assert_equal_pixels(product(run, "rate"), product(first, "rate"))
    told = json.loads(sidecar_path(product(run, "rate")).read_text())
    assert told["pinned"]["linearity"].endswith(".fits") and fits.getval(run.paths[0], "R_LINEAR").startswith("/")


def test_other_references_are_not_used_unnoticed(first, tmp_path, executor):
    other = references.offline_cache(tmp_path / "cache", toys.plain_detector(seed=2), passbands=BOXES)
    with pytest.raises(CalamiError, match="the earlier run had"):
        reprocess(first, None, tmp_path / "out", cache=other, executor=executor)


def test_reprocess_wants_the_same_input(uncal, cache, executor, tmp_path):
    raw = tmp_path / uncal.name
    raw.write_bytes(uncal.read_bytes())
    run = pipe_data(raw, ["dq_init"], {}, tmp_path / "a", cache=cache, executor=executor).raise_failures()
    with fits.open(raw, mode="update") as hdus:
        hdus["SCI"].data[0, 0, 10, 10] += 1
    with pytest.raises(FileProblem, match="is not what"):
        reprocess(run, None, tmp_path / "b", executor=executor)
    raw.unlink()
    with pytest.raises(FileProblem, match="not there any more"):
        reprocess(run, None, tmp_path / "b", executor=executor)
    with pytest.raises(FileProblem, match="how the product was made is not recorded"):
        reprocess(uncal, None, tmp_path / "b")


# ---- What goes wrong


def test_bad_files_are_reported_and_the_others_finished(uncal, cache, executor, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    names = [f"{toys.rootname(12, activity, program=1093)}_uncal.fits" for activity in (2, 3, 4, 5)]
    paths = [raw / name for name in names]
    for path in paths:
        path.write_bytes(uncal.read_bytes())
    paths[0].write_bytes(uncal.read_bytes()[:-5000])
    paths[1].write_text("not a FITS file")
    from stdatamodels.jwst.datamodels import Level1bModel

    with Level1bModel(paths[2]) as model:
        model.meta.instrument.detector = None
        model.meta.subarray.name = None
        model.save(paths[2])
    options = {"cache": cache, "executor": executor, "progress": False}
    run = pipe_data([*paths, raw / "absent_uncal.fits"], "detector1", {}, tmp_path / "out", **options)
    assert [o.status for o in run.outcomes] == ["failed"] * 3 + ["made", "failed"]
    assert all(error for error in run.failures.values())
    rootname = toys.rootname(12, 5, program=1093)
    left = {p.name for p in (tmp_path / "out").iterdir() if rootname not in p.name}
    assert left == {names[2].replace(".fits", ".failed.log")}, "what failed left its log and nothing else"
    assert run.outcomes[2].log.read_text().count("Traceback") >= 1
    words = rf"{names[2]}: \w+ of jwst failed \(.*\); .* see {names[2].replace('.fits', '.failed.log')}"
    assert re.search(words, run.outcomes[2].error)
    with pytest.raises(CalamiError, match="4 of 5 failed"):
        run.raise_failures()


def without_asdf(path, target):
    with fits.open(path) as hdus:
        fits.HDUList([hdu.copy() for hdu in hdus if hdu.name != "ASDF"]).writeto(target)
    return target


def test_a_file_without_metadata_is_named_before_anything_runs(first, uncal, cache, executor, tmp_path):
    images = without_asdf(product(first, "rate"), tmp_path / product(first, "rate").name)
    ramps = without_asdf(uncal, tmp_path / uncal.name)
    options = {"cache": cache, "executor": executor, "progress": False}
    for path, pipeline_, recipe, said in (
        (images, "image2", Graft(images), f"graft:header={images.name}"),
        (ramps, "detector1", Slice(1), "slice:1"),
    ):
        (error,) = pipe_data(path, pipeline_, {}, tmp_path / "out", **options).failures.values()
        assert f"{path.name}: has no ASDF extension" in error and f"calami prep {path.name} {said} -o" in error
        assert not list((tmp_path / "out").iterdir())
        again = prep_data(path, recipe, tmp_path / "again")  # the remedy works
        assert pipe_data(again, pipeline_, {}, tmp_path / "done", **options).raise_failures().paths


def test_members_of_an_association_need_their_metadata_too(first, cache, executor, tmp_path):
    images = without_asdf(product(first, "rateints"), tmp_path / product(first, "rateints").name)
    facts = {"products": [{"name": "pair", "members": [{"expname": images.name, "exptype": "science"}]}]}
    (tmp_path / "pair.json").write_text(json.dumps(facts))
    run = pipe_data(tmp_path / "pair.json", "ami3", {}, tmp_path / "out", cache=cache, executor=executor)
    assert f"{images.name}: has no ASDF extension" in run.outcomes[0].error


def damaged(path, target, old, new):
    """A copy with other bytes in one place of its first header."""
    content = path.read_bytes()
    place = content.index(old)
    target.write_bytes(content[:place] + new + content[place + len(new) :])
    return target


def test_a_header_with_numbers_that_are_none_stops_nobody_else(uncal, cache, executor, tmp_path):
    names = [f"{toys.rootname(12, activity, program=1093)}_uncal.fits" for activity in (2, 3)]
    card = f"NINTS   = {'1_000':>20}".encode()
    wrong, right = damaged(uncal, tmp_path / names[0], b"NINTS   =", card), tmp_path / names[1]
    right.write_bytes(uncal.read_bytes())
    run = pipe_data([wrong, right], ["dq_init"], {}, tmp_path / "out", cache=cache, executor=executor, progress=False)
    assert run.outcomes[1].status == "made"
    assert run.outcomes[0].status == "made" or names[0] in run.outcomes[0].error
    made = Dataset([wrong, right]).prep_data({"*": Slice(2)}, tmp_path / "prepared")
    assert len(made.rootlist) == 2 and names[0] in made.problems["file"][0]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", '{"products": 3}', '{"products": [{"members": [{"expname": 3}]}]}']
)
def test_what_is_no_association_is_named(text, cache, executor, tmp_path):
    (tmp_path / "jw_ami3_asn.json").write_text(text)
    run = pipe_data(tmp_path / "jw_ami3_asn.json", "ami3", {}, tmp_path / "out", cache=cache, executor=executor)
    assert re.search(r"jw_ami3_asn.json: is (no association|not JSON)", next(iter(run.failures.values())))


@pytest.mark.parametrize(
    "change",
    [
        {"chain": "calwebb_detector1"}, {"asked": []}, {"inputs": [3]}, {"inputs": [{"file": "a"}]}, {"outputs": [1]},
        {"steps": [{}]}, {"crds": {}}, {"parameters": None}, {"checkpoint": {"done": "jump"}}, {"fingerprint": 3},
        "[" * 100_000, "{", "[]", "null",
    ],
)  # fmt: skip
def test_a_record_of_another_shape_counts_as_none(change, first, executor, tmp_path):
    path = tmp_path / product(first, "rate").name
    path.write_bytes(product(first, "rate").read_bytes())
    known = json.loads(sidecar_path(product(first, "rate")).read_text())
    sidecar_path(path).write_text(change if isinstance(change, str) else json.dumps(known | change))
    with pytest.raises(FileProblem, match="remove it and make the product again"):
        read_sidecar(path)
    with pytest.raises(FileProblem):
        reprocess(path, {}, tmp_path / "new", executor=executor)
    assert "sidecar" not in nondefault(path)["source"]
    assert not list(records_in(tmp_path))


def test_a_full_disc_leaves_nothing_half_written(uncal, cache, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))  # inherited by the processes that are started
    try:
        run = pipe_data(uncal, "detector1", {}, tmp_path / "out", cache=cache, workers=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (error,) = run.failures.values()
    assert "File too large" in error or "OSError" in error
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".log"}


def kill_workers(folder, stop, others, kills):
    """Kill the processes that work in a folder as soon as they do."""
    while not stop.is_set() and kills:
        if list(folder.glob(".calami-*")):
            for process in multiprocessing.active_children():
                if process.pid not in others:
                    os.kill(process.pid, signal.SIGKILL)
                    kills.pop()
            time.sleep(0.3)
        time.sleep(0.005)


@pytest.mark.parametrize(("kills", "status"), [(2, "failed"), (1, "made")])
def test_a_killed_process_is_tried_once_more(uncal, cache, tmp_path, executor, kills, status):
    others = {p.pid for p in multiprocessing.active_children()}
    out, stop = tmp_path / "out", threading.Event()
    killer = threading.Thread(target=kill_workers, args=(out, stop, others, [0] * kills))
    killer.start()
    try:
        run = pipe_data(uncal, ["dq_init"], {}, out, cache=cache, workers=1, progress=False)
    finally:
        stop.set()
        killer.join()
    assert [o.status for o in run.outcomes] == [status]
    assert not list(out.glob(".calami-*"))
    assert status == "made" or ("was killed" in next(iter(run.failures.values())) and not list(out.iterdir()))


def test_after_a_killed_program_the_next_run_finishes(uncal, cache, executor, tmp_path):
    out = tmp_path / "out"
    code = f"""
        from calami.pipeline import pipe_data
        if __name__ == "__main__":
            pipe_data({str(uncal)!r}, "detector1", {{}}, {str(out)!r}, cache={str(cache.path)!r}, workers=1)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    program = subprocess.Popen([sys.executable, str(tmp_path / "script.py")], env=environment)
    try:
        deadline = time.monotonic() + 600  # for a machine that does not get anywhere
        while not list(out.glob(".calami-*/log")) and time.monotonic() < deadline:
            time.sleep(0.01)
        work = list(out.glob(".calami-*"))
    finally:
        program.kill()
        program.wait()
    assert work and not list(out.glob("*.fits"))
    time.sleep(0.5)  # its worker notices, and ends
    run = pipe_data(uncal, ["dq_init"], {}, out, cache=cache, executor=executor).raise_failures()
    assert run.outcomes[0].status == "made" and not list(out.glob(".calami-*"))


def test_an_input_is_never_written_over(first, cache, executor, tmp_path):
    source = tmp_path / product(first, "ramp").name.replace("_ramp", "_jump")
    source.write_bytes(product(first, "ramp").read_bytes())
    before = digest(source)
    run = pipe_data(source, ["jump"], {}, tmp_path, cache=cache, executor=executor, overwrite=True)
    assert "is an input" in next(iter(run.failures.values())) and digest(source) == before


def test_nothing_to_do_is_said(cache, first, tmp_path):
    with pytest.raises(CalamiError, match="nothing to process"):
        pipe_data([], "detector1", {}, tmp_path, cache=cache)
    with pytest.raises(CalamiError, match=r"rate.*is needed"):
        pipe_data(Dataset(product(first, "rate")), "detector1", {}, tmp_path, cache=cache)
    with pytest.raises(CalamiError, match=r"keep: 'jumps'.*jump"):
        pipe_data(product(first, "rate"), "detector1", {}, tmp_path, cache=cache, keep="jumps")


def test_without_crds_it_says_so_before_anything_runs(uncal, tmp_path, monkeypatch):
    for key in [k for k in os.environ if k.startswith("CRDS_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("CRDS_PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("CRDS_SERVER_URL", references.SERVERLESS)
    with pytest.raises(
        CalamiError, match=r"(?s)CRDS names no context.*export CRDS_PATH.*export CRDS_SERVER_URL.*--offline"
    ):
        pipe_data(uncal, ["dq_init"], {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_users_own_crds_settings_hold(uncal, cache, tmp_path, monkeypatch):
    for key, value in offline.offline_environment(cache).items():
        monkeypatch.setenv(key, value)
    run = pipe_data(Data(uncal), ["dq_init"], {}, tmp_path, workers=1, progress=False).raise_failures()
    assert run.context == cache.context
    assert json.loads(run.sidecars[0].read_text())["crds"]["path"] is None


# ---- Executors


def test_a_dask_cluster_can_do_the_work(uncal, cache, tmp_path):
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("needs dask[distributed], the extra 'dask'")
    run = pipe_data(uncal, ["dq_init"], {}, tmp_path, cache=cache, dask="local", workers=1)
    assert run.raise_failures().outcomes[0].status == "made"


def test_what_a_lost_worker_left_is_no_obstacle(uncal, cache, executor, tmp_path):
    class Again:
        def submit(self, function, target, job):
            (Path(job["work"]) / "half").mkdir(parents=True)
            return executor.submit(function, target, job)

    run = pipe_data(uncal, ["dq_init"], {}, tmp_path, cache=cache, executor=Again())
    assert run.raise_failures().outcomes[0].status == "made"
    assert not list(tmp_path.glob(".calami*"))


def test_what_an_executor_raises_is_a_failure_of_that_exposure(uncal, cache, tmp_path, monkeypatch):
    def lost(job):
        raise OSError("connection lost")

    monkeypatch.setattr(pipeline, "_run_job", lost)
    with ThreadPoolExecutor(1) as pool:
        run = pipe_data(uncal, ["dq_init"], {}, tmp_path, cache=cache, executor=pool)
    assert list(run.failures.values()) == ["OSError: connection lost"]


@pytest.mark.slow
def test_two_processes_make_what_one_makes(uncal, cache, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for activity in (2, 3, 4):
        (raw / f"{toys.rootname(12, activity, program=1093)}_uncal.fits").write_bytes(uncal.read_bytes())
    runs = [pipe_data(raw, "detector1", {}, tmp_path / str(n), cache=cache, workers=n) for n in (1, 2)]
    for one, two in zip(*(r.raise_failures().paths for r in runs), strict=True):
        assert_equal_pixels(one, two)


@pytest.mark.slow
def test_ami3_on_an_exposure_and_on_a_pair(uncal, cache, executor, tmp_path):
    options = {"cache": cache, "executor": executor}
    cal = pipe_data(uncal, ["detector1", "image2"], {}, tmp_path / "a", products=("cal", "calints"), **options)
    settings = {"ami_analyze.oversample": 1}
    alone = pipe_data(cal, "ami3", settings, tmp_path / "b", **options).raise_failures()
    assert any("ami-oi" in p.name for p in alone.paths)
    members = [{"expname": str(product(cal, "calints")), "exptype": kind} for kind in ("science", "psf")]
    told = {"asn_type": "ami3", "asn_rule": "x", "asn_pool": "none", "asn_id": "a3001", "program": "01093"}
    (tmp_path / "pair.json").write_text(json.dumps(told | {"products": [{"name": "pair", "members": members}]}))
    pair = pipe_data(tmp_path / "pair.json", "ami3", settings, tmp_path / "c", **options).raise_failures()
    assert any("aminorm-oi" in p.name for p in pair.paths)
    assert len(json.loads(pair.sidecars[0].read_text())["inputs"]) == 3


# ---- What was done


def test_the_log_tells_the_same_as_the_sidecar(first, cache, tmp_path):
    path = product(first, "rate")
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    ours, theirs = nondefault(path), nondefault(copy, cache=cache)
    columns = ["step", "parameter", "used", "spec", "crds"]
    assert sorted(map(tuple, ours[columns])) == sorted(map(tuple, theirs[columns])) and len(ours) > 5
    assert set(theirs["source"]) == {"log in the file"} and set(theirs["remark"]) == {""}
    elsewhere = nondefault(copy)
    assert set(elsewhere["crds"]) == {"not recorded"}, "its parameter files are not at hand"


def change_log(path, change):
    """Rewrite the log lines of a product."""
    import asdf

    with fits.open(path) as hdus:
        with asdf.open(io.BytesIO(hdus["ASDF"].data[0][0].tobytes()), lazy_tree=True) as tree:
            logs = {alias: change(list(lines)) for alias, lines in tree.tree["cal_logs"].items()}
        stream = io.BytesIO()
        asdf.AsdfFile({"cal_logs": logs}).write_to(stream)
        content = np.frombuffer(stream.getvalue(), "u1")
        column = fits.Column("ASDF_METADATA", f"{content.size}B", array=[content])
        rest = [h.copy() for h in hdus if h.name != "ASDF"]
    fits.HDUList([*rest, fits.BinTableHDU.from_columns([column], name="ASDF")]).writeto(path, overwrite=True)


def test_a_blanked_record_is_not_taken_for_the_defaults(first, cache, tmp_path):
    copy = tmp_path / product(first, "rate").name
    copy.write_bytes(product(first, "rate").read_bytes())
    change_log(copy, lambda lines: ["" if "parameters are" in line else line for line in lines])
    table = nondefault(copy, cache=cache)
    assert set(table["used"]) == set(table["spec"]) == {"not recorded"}
    assert {"jump", "ramp_fit"} <= set(table["step"]) and "ipc" not in table["step"]
    assert all("blanked" in remark for remark in table["remark"])
    row = flags_table([copy, product(first, "rate")])[0]
    assert row["jump.flag_4_neighbors"] == "not recorded" and "not recorded" in row["remark"]


def test_a_blanked_line_makes_what_crds_said_unknown(first, cache, tmp_path):
    copy = tmp_path / product(first, "rate").name
    copy.write_bytes(product(first, "rate").read_bytes())
    change_log(copy, lambda lines: ["" if "parameters found" in line else line for line in lines])
    assert set(nondefault(copy, cache=cache)["crds"]) == {"not recorded"}


def test_another_version_of_jwst_is_remarked(first, tmp_path):
    copy = tmp_path / product(first, "rate").name
    copy.write_bytes(product(first, "rate").read_bytes())
    fits.setval(copy, "CAL_VER", value="1.99.0")
    table = nondefault(copy)
    assert all("made with jwst 1.99.0" in remark for remark in table["remark"]) and len(table)


@pytest.mark.parametrize(
    "text",
    [
        "{'skip': True, 'steps': {'jump': {'rejection_threshold': 5.5, 'maximum_cores': None}}}",
        "\n  skip: True\n  steps:\n    jump:\n      rejection_threshold: 5.5\n      maximum_cores: None",
    ],
)
def test_old_and_new_forms_of_the_record_are_read(text):
    lines = ["...", f"2026 - stpipe.step - INFO - Step Detector1Pipeline parameters are: {text}", "done"]
    told = audit._logged_parameters(DETECTOR1, lines)
    assert told == {f"{DETECTOR1}.skip": True, "jump.rejection_threshold": 5.5, "jump.maximum_cores": None}
    assert audit._logged_parameters(DETECTOR1, ["nothing", ""]) is None
    assert audit._logged_parameters(DETECTOR1, ["Step X parameters are: {broken"]) is None


def test_the_record_of_the_archive_is_read(shared_data):
    # The run of STScI's notebook, jwst 3.0.0 and jwst_1584.pmap
    text = (shared_data / "headers" / "ami_1093_executed_outputs_jwst3.0.0_jwst_1584.txt").read_text()
    record = re.search(r"Step Detector1Pipeline parameters are:.*?(?=\n\S)", text, re.DOTALL)[0]
    told = audit._logged_parameters(DETECTOR1, [record])
    usual = process_parameters.defaults(DETECTOR1)
    changed = {
        k for k, v in told.items() if k.rpartition(".")[2] not in process_parameters.HOUSEKEEPING and v != usual[k]
    }
    assert told["charge_migration.signal_threshold"] == 14_465 and told["charge_migration.skip"] is False
    assert {"charge_migration.skip", "jump.expand_factor", "jump.edge_size"} <= changed and len(changed) < 30


def test_real_products_without_a_log_are_not_taken_for_defaults(shared_data):
    folder = shared_data / "jw01093"
    table = flags_table(Dataset(folder))
    assert len(table) == 35 and set(table["jwst"]) == {"1.5.3"}
    assert all("not recorded" in remark and "1.5.3" in remark for remark in table["remark"])
    one = nondefault(next(iter(sorted(folder.glob("*_cal.fits")))))
    assert set(one["used"]) == {"not recorded"} and {"jump", "ramp_fit", "flat_field"} <= set(one["step"])


def test_real_oifits_products(shared_data):
    path = sorted((shared_data / "oifits").glob("jw01349*"))[0]
    assert set(nondefault(path)["used"]) == {"not recorded"}
    assert "1.14.0" in nondefault(path)["remark"][0]
    assert step_status(path, "ami_analyze") == "COMPLETE"
    with pytest.raises(FileProblem, match="no data quality flags"):
        count_flags(path)


def test_steps_come_in_order_with_their_references(first, cache):
    table = step_table(product(first, "rate"))
    order = [s for s in table["step"] if s in STEPS]
    assert order == [s for s in STEPS if s in order] and len(order) >= 8
    row = dict(zip(table["step"], table["references"], strict=True))
    assert row["linearity"] == cache.find("linearity").name and row["ipc"] == ""


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 31)), max_size=40),
    st.sampled_from(["DQ", "PIXELDQ"]),
)
@settings(max_examples=30)
def test_flags_are_counted_bit_by_bit(tmp_path_factory, marks, array):
    from stdatamodels.jwst.datamodels import dqflags

    flags, expected = np.zeros((8, 8), "uint32"), {}
    for row, col, bit in marks:
        flags[row, col] |= np.uint32(1 << bit)
        expected.setdefault(bit, set()).add((row, col))
    path = tmp_path_factory.mktemp("dq") / f"{toys.rootname()}_rate.fits"
    toys.write_exposure(path, {"SCI": np.zeros((8, 8), "f4"), array: flags})
    table = count_flags(path)
    assert {row["bit"]: row["count"] for row in table} == {bit: len(places) for bit, places in expected.items()}
    names = {v: k for k, v in dqflags.pixel.items()}
    assert all(row["flag"] == names.get(1 << int(row["bit"]), f"bit {row['bit']}") for row in table)
    assert all(abs(row["percent"] - 100 * row["count"] / 64) < 0.001 for row in table)


def test_a_file_that_cannot_be_read_does_not_stop_the_table(first, tmp_path):
    broken = tmp_path / product(first, "rate").name
    broken.write_bytes(product(first, "rate").read_bytes()[:100_000])
    table = flags_table([broken, product(first, "rate")])
    assert table["remark"][0] and table["remark"][1] == "" and table["jwst"][1].startswith("3.")


def test_main_product():
    paths = [Path(f"x_{kind}.fits") for kind in ("ramp", "rateints", "rate", "calints", "cal")]
    chosen = [main_product(paths[:n]).stem for n in (1, 2, 3, 4, 5)]
    assert chosen == ["x_ramp", "x_rateints", "x_rate", "x_rate", "x_cal"]


def test_a_distortion_that_was_not_used_is_reported(tmp_path):
    # The line of jwst 3.0.0 when one AmiAnalyzeStep takes a second exposure
    import asdf

    line = "2026-07-28 16:36:23,896 - jwst.ami.ami_analyze_step - INFO - Could not use affine2d from <Affine2d>. See"
    tables = {}
    for name, lines in (("1", ["Using affine2d"]), ("2", [line])):
        stream = io.BytesIO()
        asdf.AsdfFile({"cal_logs": {"ami_analyze": lines}}).write_to(stream)
        content = np.frombuffer(stream.getvalue(), "u1")
        column = fits.Column("ASDF_METADATA", f"{content.size}B", array=[content])
        primary = fits.PrimaryHDU()
        primary.header.update({"S_AMIANA": "COMPLETE", "CAL_VER": "3.0.0", "TELESCOP": "JWST"})
        path = tmp_path / f"jw01093012001_03102_0000{name}_nis_ami-oi.fits"
        fits.HDUList([primary, fits.BinTableHDU.from_columns([column], name="ASDF")]).writeto(path)
        tables[name] = nondefault(path)
    assert "affine2d" not in tables["1"]["parameter"]
    (row,) = [row for row in tables["2"] if row["parameter"] == "affine2d"]
    assert row["step"] == "ami_analyze" and row["used"] == "the identity" and "V2 off by up to 0.009" in row["remark"]


def test_the_line_is_that_of_the_archive(shared_data):
    text = (shared_data / "headers" / "ami_1093_executed_outputs_jwst3.0.0_jwst_1584.txt").read_text()
    assert any(words in text for words in audit._FAULTS)


def test_the_keywords_of_references_are_those_of_the_installed_models():
    from stdatamodels.jwst.datamodels import JwstDataModel

    files = JwstDataModel().schema["properties"]["meta"]["properties"]["ref_file"]["properties"]
    names = {
        kind: facts["properties"]["name"] for kind, facts in files.items() if "name" in facts.get("properties", {})
    }
    assert pipeline._reference_keywords() == {kind: name["fits_keyword"] for kind, name in names.items()}
    assert pipeline._reference_keywords()["linearity"] == "R_LINEAR"
