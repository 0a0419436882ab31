"""The whole way: simulate, reduce with the pipeline, answer, compare, check against the truth."""

import io
import json
import logging
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from calami import demo
from calami.calutil import Data
from calami.core.problems import CalamiError
from calami.dataset import Dataset
from calami.instrument.migration import interpixel_capacitance
from calami.instrument.niriss import GAIN
from calami.process import references
from calami.process.engine import Engine, worker_pool
from calami.simulate import exposures, plans


def small_plan(nints=(30, 12)):
    whole = plans.ready_plan("1516")
    pair = [replace(e, nints=n) for e, n in zip(whole.exposures[:2], nints, strict=True)]
    return plans.Plan("small", "a pair", tuple(pair))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One process for all runs of this file, so that jwst is imported once; and the references."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALAMI_CACHE", str(tmp_path_factory.mktemp("cache")))
        cache = references.default_cache(exposures.Instrument.default().detector)
        with worker_pool(1, cache) as pool:
            yield Engine(cache, workers=1, executor=pool, progress=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory, engine):
    """A demonstration of one pair."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return demo.run_demo(out, plan=small_plan(), engine=engine), out


def test_measured_changes_agree_with_the_truth(done):
    found, _ = done
    assert found.agrees and len(found.checks) == 4
    assert repr(found).splitlines()[0].endswith(str(found.report)) and "array(" not in repr(found)
    assert f"{max(abs(c.pull) for c in found.answer_checks if np.isfinite(c.pull)):.1f} standard" in repr(found)
    assert "<table" in found._repr_html_()
    assert {c.what for c in found.checks} == {"peak", "neighbours", "ring", "sum"}
    peak = found.checks[0]
    assert peak.true < -0.01 and peak.error < 0.01


def test_the_step_removes_part_of_the_loss(done):
    found, _ = done
    (without,), (with_step,) = found.results, found.mitigated
    assert with_step.peak.value > without.peak.value + without.peak.error
    assert with_step.facts[0]["S_CHGMIG"] == "COMPLETE" and without.facts[0]["S_CHGMIG"] == "SKIPPED"


def test_the_three_answers_have_their_tables_and_the_truth_beside_them(done):
    found, out = done
    assert not found.answers.missing and found.answers.truth
    for name in ("cm_onset", "cm_kernel", "cm_mitigation", "cm_saturation"):
        table = Table.read(out / "report" / f"{name}.ecsv")
        assert len(table) > 0, name
    assert list(dict.fromkeys(Table.read(out / "report" / "cm_mitigation.ecsv")["version"])) == [
        "none", "step", "corrected",
    ]  # fmt: skip
    checks = {(c.question, c.what): c for c in found.answer_checks}
    assert [q for q, _ in checks] == sorted(q for q, _ in checks) and {q for q, _ in checks} == {"a", "b", "c"}
    pulls = [c.pull for c in checks.values() if np.isfinite(c.pull)]
    assert len(pulls) >= 7 and max(map(abs, pulls)) < 4
    plain, corrected = (checks["b", f"V² of long baselines - 1, {v} [%]"] for v in ("no mitigation", "corrected"))
    assert float(plain.true) < -0.5 and float(corrected.true) == 0
    assert float(corrected.measured.split()[0]) > float(plain.measured.split()[0])
    assert "by noise alone" in checks["b", "contrast, corrected [mag]"].true
    shown = demo.answer_truth_table(found.answer_checks)
    assert len(shown) == len(checks) and "" in shown["off by [σ]"]


def test_the_truth_of_fringes_is_that_of_images_without_noise(done):
    _, out = done
    truth = exposures.read_truth(out / "raw", small_plan().exposures[1].rootname)
    levels, fringes = demo.true_fringes(truth, [2, 12])
    assert levels[1] == pytest.approx(5.8 * levels[0], rel=0.05)  # less than 6: the peak loses charge
    lower = fringes.samples["v2"][1] / fringes.samples["v2"][0] - 1
    assert np.all(lower[fringes.baseline_length > 4] < -0.005)
    still = truth | {"instrument": {"detector": {"migration": {"edge": 0.0, "diagonal": 0.0}}}}
    _, same = demo.true_fringes(still, [2, 12])
    assert np.ptp(same.samples["v2"], axis=0).max() < 1e-9


def test_all_is_in_the_folder_and_marked_as_simulated(done):
    found, out = done
    assert sorted(p.name for p in out.iterdir()) == ["info", "products", "raw", "report"]
    page = found.report.read_text(encoding="utf-8")
    assert "Simulated data" in page and "Against the truth" in page and "pairs/report.html" in page
    pairs = (found.report.parent / "pairs" / "report.html").read_text(encoding="utf-8")
    assert "Simulated data" in pairs and found.results[0].sentence in unescape(pairs)
    assert not list(out.rglob(".work_*")) and not list(out.rglob("*.part"))
    assert (out / "info" / "names.yaml").exists()
    made = list((out / "products").glob("*/*_calints.fits"))
    assert len(made) == 6
    for path in made:
        header = fits.getheader(path)
        assert header["TITLE"].upper().startswith("SIMULATED") and header["ORIGIN"] == "CALAMI"
    assert all(len(Dataset(path).problems) == 0 for path in {path.parent for path in made})


def test_steps_report_what_they_did_with_the_simulated_references(done):
    _, out = done
    header = fits.getheader(next((out / "products" / "step").glob("*_calints.fits")))
    steps = "DQINIT SATURA SUPERB REFPIX LINEAR CHGMIG JUMP RAMP WCS FLAT".split()
    assert {s: header[f"S_{s}"] for s in steps} == dict.fromkeys(steps, "COMPLETE")
    names = "MASK SATURA SUPERB LINEAR GAIN READNO FLAT DISTOR".split()
    assert all("calami" in header[f"R_{name}"] for name in names)
    assert header["CRDS_CTX"].startswith("jwst_calami")


def test_a_second_run_does_nothing_again_and_shows_one_bar(done, engine, monkeypatch):
    _, out = done
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.fits")}
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", seen)
    again = demo.run_demo(out, plan=small_plan(), engine=replace(engine, progress=True))
    assert seen.getvalue().split("\r")[-1].startswith("demo 100%") and "demo: report" in seen.getvalue()
    assert seen.getvalue().count("\n") == 1 and seen.getvalue().rstrip().endswith("left")
    assert again.agrees and times == {p: p.stat().st_mtime_ns for p in out.rglob("*.fits")} and len(times) > 20


def test_another_demonstration_is_not_mixed_in(done):
    _, out = done
    with pytest.raises(CalamiError, match="choose another folder"):
        demo.run_demo(out, plan=small_plan(), seed=2, workers=1, progress=False)


def test_a_failure_names_the_exposure_and_the_reason(tmp_path, engine):
    broken = tmp_path / "jw01516001001_03102_00001_nis_uncal.fits"
    broken.write_bytes(b"SIMPLE  =                    T".ljust(2880))
    with pytest.raises(CalamiError, match="jw01516001001_03102_00001_nis") as failure:
        demo.reduce_all([broken], {False: tmp_path / "out"}, engine)
    assert "ends inside a header" in str(failure.value)
    assert not list((tmp_path / "out").glob("*.fits"))


def test_the_pipeline_finds_the_rates_that_were_put_in(tmp_path, engine):
    instrument = exposures.Instrument.default().without("migration")
    exposure = replace(plans.ready_plan("1516").exposures[1], nints=60)
    (path,) = exposures.simulate_exposure(exposure, tmp_path, instrument)
    detector = instrument.detector
    assert references.default_cache(detector).context == engine.cache.context
    demo.reduce_all(Dataset(path.parent), {False: tmp_path}, engine)
    truth = exposures.read_truth(tmp_path, exposure.rootname)
    true = interpixel_capacitance(truth["rate"] + np.where(detector.reference, 0, detector.dark)) / GAIN
    found = Data(tmp_path / f"{exposure.rootname}_rate.fits").rate()
    good = found.good & (detector.flags == 0)
    pull = ((found.value - true) / np.where(good, found.error, 1))[good]
    assert good.sum() > 5900
    assert abs(pull.mean()) < 0.2 and abs(pull.std() - 1) < 0.08 and np.mean(np.abs(pull) > 3) < 0.01
    assert abs(found.value[40, 45] - true[40, 45]) < 4 * found.error[40, 45]
    bright = good & (true > 2000)
    total = (found.value[bright] - true[bright]).sum() / true[bright].sum()
    assert abs(total) < 0.001


def test_truth_knows_nothing_it_was_not_told(tmp_path):
    exposure = small_plan().exposures[0]
    exposures.simulate_exposure(exposure, tmp_path)
    text = exposures.truth_path(tmp_path, exposure.rootname).read_text(encoding="utf-8")
    assert json.loads(text)["simulated"] is True
    assert str(Path.home()) not in text and str(tmp_path) not in text


def test_remarks_of_the_plan_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        exposures.simulate_plan(small_plan((1, 1)), tmp_path, progress=False)
    deep = replace(small_plan().exposures[1], ngroups=60, nints=1)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        exposures.simulate_plan(plans.Plan("deep", "too deep", (deep,)), tmp_path / "deep", progress=False)
    assert "full after group" in caplog.text
