"""The wave of the converter: measured from raw ramps, taken out, kept in files."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from calami.cli import app
from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.instrument.converter import ADC_WAVE, Converter
from calami.instrument.detector import Detector
from calami.process.converter import (
    CorrectConverter,
    correct_converter,
    measure_converter,
    raw_reads,
    read_converter,
    write_converter,
)
from calami.process.prep import prep_data
from calami.simulate.exposures import Instrument, simulate_plan
from calami.simulate.plans import ready_plan

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "campaigns"))
import converter as campaign


@pytest.fixture(scope="module")
def draws():
    """Ten draws of the campaign: (truth, fit)."""
    found = []
    for seed in range(10):
        wave = campaign.true_wave("wave", np.random.default_rng([seed, 3]))
        found.append((wave, measure_converter(list(campaign.reads_of(wave, seed, "wave", 1e7)))))
    return found


def test_amplitude_and_phase_are_right_to_their_errors(draws):
    pulls = [
        (np.array(fit.converter.coefficients[:2]) - wave.coefficients) / np.sqrt(np.diag(fit.covariance)[:2])
        for wave, fit in draws
    ]
    pulls = np.ravel(pulls)
    assert abs(pulls.mean()) < 3 / np.sqrt(pulls.size) and 0.75 < pulls.std() < 1.3
    errors = [fit.tested[0, 1] for _, fit in draws]
    assert 6e-6 < np.median(errors) < 14e-6
    assert all(fit.found and len(fit.converter.coefficients) == 2 for _, fit in draws)


def test_errors_fall_as_the_root_of_the_photons():
    few, many = (
        measure_converter(list(campaign.reads_of(ADC_WAVE, 5, "wave", photons))).tested[0, 1] for photons in (5e6, 2e7)
    )
    assert few / many == pytest.approx(2, rel=0.25)
    # Two exposures of 2e7 photons; 1516 has 200 of 1.2e8 and more (0.3 ppm came out, see validation/converter).
    assert many * np.sqrt(2 * 2e7 / (200 * 1.2e8)) < 0.5e-6


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_where_there_is_nothing(seed):
    fit = measure_converter(list(campaign.reads_of(Converter(), seed, "absent", 2e7)))
    assert not fit.found and fit.tested[0, 2] > 1e-3 and "No wave" in fit.sentence and "ppm (95 %)" in fit.sentence
    with pytest.raises(CalamiError, match="nothing to write"):
        write_converter(fit, "x.asdf")


def test_first_reads_and_persistence_do_not_matter():
    wave = campaign.true_wave("reads", np.random.default_rng(1))
    fit = measure_converter(list(campaign.reads_of(wave, 3, "reads", 3e7)))
    pull = (np.array(fit.converter.coefficients[:2]) - wave.coefficients) / np.sqrt(np.diag(fit.covariance)[:2])
    assert fit.found and np.abs(pull).max() < 3.5


def test_harmonics_are_chosen_by_significance():
    wave = Converter((1.2e-4, 0, 0, 0, 0, -6e-5))
    fit = measure_converter(list(campaign.reads_of(wave, 2, "wave", 3e7)))
    assert (fit.converter.amplitudes > 0).tolist() == [True, False, True]
    assert np.abs(np.array(fit.converter.coefficients) - wave.coefficients).max() < 3e-5
    assert "harmonics 1, 3" in fit.sentence and len(fit.table()) == 4
    only = measure_converter(list(campaign.reads_of(wave, 2, "wave", 3e7)), harmonics=1)
    assert len(only.converter.coefficients) == 2


@pytest.mark.parametrize("period", [990.0, 1024.0])
def test_another_period_is_found(period):
    wave = Converter((1.0e-4, 7e-5), period)
    fit = measure_converter(list(campaign.reads_of(wave, 4, "wave", 3e7)), period=None)
    assert abs(fit.converter.period - period) < 3 * fit.period_error < 30
    errors = np.sqrt(np.diag(fit.covariance))[:2]
    assert np.abs(np.array(fit.converter.coefficients) - wave.coefficients).max() < 4 * errors.max()


def test_the_constant_wave_of_other_simulators_is_seen_as_what_it_is():
    # 2 ADU at every signal: a fraction that falls; about 2 ADU over the mean raw number of what was used.
    light = campaign.RATE * campaign.psf("F480M", (45, 40))
    detector = Detector.default(1, "flight")
    reads = []
    for n in (5, 10):
        raw = campaign.simulate_ramps(light, n, round(3e7 / (4.2e6 * n * 0.0754)), detector, n).astype(float)
        reads.append(raw_reads(np.rint(raw + 2 * np.sin(2 * np.pi * raw / 1024)), f"{n} groups"))
    fit = measure_converter(reads)
    middle = np.mean([r.mean.mean() for r in reads])
    assert fit.found and fit.converter.amplitudes[0] * middle == pytest.approx(2, rel=0.3)


def test_what_is_left_is_a_tenth_of_an_adu():
    signal = np.random.default_rng(1).uniform(11_000, 41_000, 100_000)
    read = ADC_WAVE.distorted(signal)
    assert np.std(read - signal) > 1.5 and np.std(correct_converter(read, ADC_WAVE) - signal) < 1e-3
    # An error of 5 ppm, the most that is allowed, in amplitude and as much in phase:
    near = Converter((1.24e-4 + 3.5e-6, 3.5e-6))
    assert np.std(correct_converter(read, near) - signal) < 0.1
    full = np.array([65_535.0, 65_534.0])
    assert correct_converter(full, ADC_WAVE)[0] == 65_535 and correct_converter(full, ADC_WAVE)[1] != 65_534


def test_too_little_is_refused():
    for bad in (np.zeros((5, 3, 80, 80)), np.zeros((5, 80, 80)), np.full((5, 6, 80, 80), 12_000)):
        with pytest.raises(CalamiError, match=r"four|4 groups|climbs"):
            raw_reads(bad)
    with pytest.raises(CalamiError, match="fewer than 30"):
        measure_converter([])
    short = np.zeros((5, 3, 80, 80))
    with pytest.raises(CalamiError, match=r"fewer than 30(.|\n)*4 groups"):
        measure_converter(short)
    fit = measure_converter([*campaign.reads_of(ADC_WAVE, 1, "wave", 5e6), short])  # among others it is left out
    assert len(fit.exposures) == 2 and "4 groups" in fit.notes[0]
    with pytest.raises(CalamiError, match="harmonics are 1 to 16"):
        measure_converter([], harmonics=0)
    with pytest.raises(CalamiError, match="did you mean"):
        measure_converter([], harmonic=3)


# --- files


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Three uncal files of a detector with a wave."""
    folder = tmp_path_factory.mktemp("raw")
    instrument = Instrument.default(1, "flight")
    detector = replace(instrument.detector, adc_wave=ADC_WAVE)
    plan = ready_plan("1516", "demo")
    plan = replace(plan, exposures=tuple(e for e in plan.exposures if e.ngroups >= 5)[:2])
    simulate_plan(plan, folder, replace(instrument, detector=detector))
    return folder


@pytest.fixture(scope="module")
def fit(raw):
    return measure_converter(raw)


def test_a_folder_a_dataset_and_files_give_the_same(raw, fit):
    assert fit.found and len(fit.exposures) == 2 and abs(fit.converter.amplitudes[0] - 1.24e-4) < 4 * fit.tested[0, 1]
    for source in (Dataset(raw), sorted(raw.glob("*uncal.fits"))):
        assert measure_converter(source).converter == fit.converter


def test_the_wave_is_in_the_truth(raw):
    import json

    truth = json.loads(next(raw.glob("*truth*.json")).read_text())
    assert truth["instrument"]["detector"]["adc_wave"] == {"coefficients": [1.24e-4, 0.0], "period": 1024.0}


def test_the_reference_file_is_ready_for_delivery(fit, tmp_path):
    path = write_converter(
        fit, tmp_path / "niriss_converter.asdf", author="A. Person", pedigree="INFLIGHT 2022-06-05 2022-06-06"
    )
    wave, facts = read_converter(path)
    assert wave == fit.converter and np.array_equal(facts["covariance"], fit.covariance)
    meta = facts["meta"]
    assert (meta["author"], meta["telescope"], meta["instrument"]["name"]) == ("A. Person", "JWST", "NIRISS")
    assert meta["description"] == fit.sentence and fit.exposures[0] in meta["history"]
    with pytest.raises(CalamiError, match="pedigree is"):
        write_converter(fit, path, pedigree="INFLIGHT")
    with pytest.raises(CalamiError, match="useafter a date"):
        write_converter(fit, path, useafter="soon")
    with pytest.raises(FileProblem, match="asdf"):
        write_converter(fit, tmp_path / "x.fits")
    (tmp_path / "bad.asdf").write_text("nothing")
    for bad, words in (("none.asdf", "not there"), ("bad.asdf", "holds no converter")):
        with pytest.raises(FileProblem, match=words):
            read_converter(tmp_path / bad)


def test_the_reference_file_is_what_jwst_takes_for_one(fit, tmp_path):
    from stdatamodels.jwst.datamodels import ReferenceFileModel

    path = write_converter(fit, tmp_path / "niriss_converter.asdf", pedigree="SIMULATION")
    with ReferenceFileModel(str(path), strict_validation=True) as model:
        model.validate()
        assert model.meta.reftype == "integralnonlinearity" and model.meta.instrument.detector == "NIS"


def test_raw_files_are_corrected(raw, fit, tmp_path):
    wave = tmp_path / "niriss_converter.asdf"
    write_converter(fit, wave, pedigree="SIMULATION")
    source = sorted(raw.glob("*uncal.fits"))[0]
    (made,) = prep_data(source, CorrectConverter(wave), tmp_path / "straight")
    with fits.open(made) as new, fits.open(source) as old:
        header, change = new[0].header, new["SCI"].data.astype(float) - old["SCI"].data
        expected = fit.converter.corrected(old["SCI"].data.astype(float)) - old["SCI"].data
        assert (
            header["S_CONVRT"] == "COMPLETE" and header["CONVFILE"] == wave.name and new["SCI"].data.dtype == "uint16"
        )
        assert any("ppm" in line for line in header["HISTORY"])
        # Right on average, in every part of the wave: nothing of the rounding is left.
        assert np.abs(change - expected).max() < 1.0
        phase = np.digitize(old["SCI"].data % 1024, np.arange(0, 1024, 32))
        means = [(change - expected)[phase == k].mean() for k in range(1, 33)]
        assert np.std(means) < 0.05
    with pytest.raises(CalamiError, match="corrected for the converter already"):
        prep_data(made, CorrectConverter(wave), tmp_path / "twice")
    with pytest.raises(CalamiError, match="corrected for the converter already"):
        measure_converter(made)


def test_what_holds_no_raw_counts_is_refused(raw, fit, tmp_path):
    wave = tmp_path / "niriss_converter.asdf"
    write_converter(fit, wave, pedigree="SIMULATION")
    source = sorted(raw.glob("*uncal.fits"))[0]
    for name, cards, words in (
        ("ramp", {"S_SUPERB": "COMPLETE"}, "after the superbias"),
        ("ramp", {}, "after the superbias"),
        ("uncal", {"NFRAMES": 4, "READPATT": "NIS"}, "means of frames"),
    ):
        path = tmp_path / source.name.replace("uncal", name)
        with fits.open(source) as hdus:
            hdus[0].header.update(cards)
            hdus.writeto(path, overwrite=True)
        with pytest.raises(CalamiError, match=words):
            prep_data(path, CorrectConverter(wave), tmp_path / "out")
        with pytest.raises(CalamiError, match=words):
            measure_converter(path)
    with fits.open(source) as hdus:  # a ramp from before the superbias step holds raw counts
        hdus[0].header["S_SUPERB"] = "SKIPPED"
        hdus["SCI"].data = hdus["SCI"].data.astype("float32")
        path = tmp_path / source.name.replace("uncal", "ramp")
        hdus.writeto(path, overwrite=True)
    (made,) = prep_data(path, CorrectConverter(wave), tmp_path / "out")
    with fits.open(made) as hdus, fits.open(source) as old:
        wanted = fit.converter.corrected(old["SCI"].data.astype(float))
        assert hdus["SCI"].data.dtype == ">f4" and np.abs(hdus["SCI"].data - wanted).max() < 0.01


def test_the_command_measures_and_prep_applies(raw, tmp_path):
    from typer.testing import CliRunner

    run = CliRunner()
    out = tmp_path / "wave"
    done = run.invoke(app, ["converter", str(raw), "-o", str(out), "--pedigree", "SIMULATION", "--harmonics", "2"])
    assert done.exit_code == 0, done.output
    assert "ppm of the signal" in done.output
    assert {p.name for p in out.iterdir()} == {"converter.ecsv", "converter.png", "niriss_converter.asdf"}
    words = ["prep", str(raw), f"converter:{out / 'niriss_converter.asdf'}", "-o", str(tmp_path / "straight")]
    done = run.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "straight").glob("*uncal*.fits"))) == 2
    assert run.invoke(app, ["converter", str(raw), "-o", str(out), "--period", "long"]).exit_code != 0
