"""The converter's wave taken out by a step of stock jwst: in models, by strun, as a hook before superbias."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calami.core.problems import CalamiError, FileProblem
from calami.instrument.converter import ADC_WAVE
from calami.process.converter import ConverterFit, write_converter

SIGNAL = np.linspace(11_000, 41_000, 5 * 64, dtype=np.float32).reshape(1, 5, 8, 8)
NAME = "jw01516001001_03102_00001_nis_uncal.fits"


@pytest.fixture
def wave(tmp_path):
    fit = ConverterFit(ADC_WAVE, np.eye(2) * 1e-12, np.array([[1.24e-4, 1e-6, 0.0]]), 1.0, 1.0, 1, ("simulated",))
    return write_converter(fit, tmp_path / "waves.v1" / "niriss_converter.asdf", pedigree="SIMULATION")


def ramp(kind="RampModel", **done):
    from stdatamodels.jwst import datamodels

    values = ADC_WAVE.distorted(SIGNAL)
    model = getattr(datamodels, kind)(np.rint(values).astype("uint16") if kind == "Level1bModel" else values)
    model.meta.filename, model.meta.instrument.name = NAME, "NIRISS"
    model.meta.exposure.nframes = done.pop("nframes", 1)
    for key, value in done.items():
        setattr(model.meta.cal_step, key, value)
    return model


def test_a_ramp_is_corrected_and_says_so(wave, tmp_path):
    from astropy.io import fits

    from calami.process.converterstep import CorrectConverterStep

    given = ramp()
    before = given.data.copy()
    found = CorrectConverterStep(file=str(wave)).run(given)
    assert np.array_equal(given.data, before) and np.abs(found.data - SIGNAL).max() < 0.02
    assert np.abs(before - SIGNAL).max() > 2
    found.save(str(tmp_path / NAME.replace("uncal", "ramp")))
    header = fits.getheader(tmp_path / NAME.replace("uncal", "ramp"))
    assert (header["S_CONVRT"], header["CONVFILE"]) == ("COMPLETE", wave.name)
    with pytest.raises(CalamiError, match="done already"):
        CorrectConverterStep(file=str(wave)).process(found)


def test_what_holds_no_raw_counts_is_refused(wave):
    from calami.process.converterstep import CorrectConverterStep

    step = CorrectConverterStep(file=str(wave))
    with pytest.raises(CalamiError, match="after the superbias"):
        step.process(ramp(superbias="COMPLETE"))
    with pytest.raises(CalamiError, match="means of frames"):
        step.process(ramp(nframes=4))
    with pytest.raises(CalamiError, match="needs a file"):
        CorrectConverterStep().process(ramp())
    with pytest.raises(FileProblem, match="is not there"):
        CorrectConverterStep(file="none.asdf").process(ramp())


def test_stock_detector1_runs_it_before_superbias(wave):
    from jwst.pipeline import Detector1Pipeline

    from calami.process.converterstep import CorrectConverterStep, converter_steps

    steps = converter_steps(wave)
    made = Detector1Pipeline(steps=steps)
    (hook,) = made.superbias._pre_hooks
    assert isinstance(hook, CorrectConverterStep)
    assert np.abs(hook.process(ramp()).data - SIGNAL).max() < 0.02  # dots in the name of the folder do no harm
    with pytest.raises(FileProblem, match="is not there"):
        converter_steps(wave.with_name("none.asdf"))


@pytest.mark.slow
def test_strun_knows_it_by_its_name(wave, tmp_path):
    from astropy.io import fits

    ramp().save(str(tmp_path / NAME.replace("uncal", "ramp")))
    words = [str(Path(sys.executable).with_name("strun")), "calami.process.converterstep.CorrectConverterStep"]
    words += [str(tmp_path / NAME.replace("uncal", "ramp")), f"--file={wave}", f"--output_dir={tmp_path}"]
    done = subprocess.run([*words, "--disable-crds-steppars"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (out,) = tmp_path.glob("*corrected*.fits")
    assert np.abs(fits.getdata(out, "SCI") - SIGNAL).max() < 0.02
