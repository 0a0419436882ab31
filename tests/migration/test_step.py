"""The correction as a step of stock jwst: in models, by strun, in Detector1Pipeline, in calami's own runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from jwst.pipeline import Detector1Pipeline
from stdatamodels.jwst import datamodels
from toys import rootname, write_star

from calami.core.problems import CalamiError, FileProblem
from calami.instrument.migration import MIGRATION_PRESETS
from calami.migration.correction import Correct, pipeline_steps, read_kernel, write_kernel
from calami.migration.kernel import Kernel
from calami.migration.step import CorrectMigrationStep, carry_marks, correction_steps
from calami.process.prep import prep_data


def kernel_file(folder, band="F480M", preset="h4rg"):
    """A kernel in a file, as it is measured."""
    found = Kernel(MIGRATION_PRESETS[preset], ("edge",), np.ones(1), np.ones(1), np.eye(1), 1.0, 1, "ramps", band)
    return write_kernel(found, folder / f"pars-correctmigration_{band.lower()}.asdf")


def star(folder, observation=1, edge=0.0, **cards):
    """A rate file that stock jwst knows."""
    path = folder / f"{rootname(observation)}_rate.fits"
    return write_star(path, 12, edge=edge, **{"READPATT": "NISRAPID", "NFRAMES": 1, "DATAMODL": "ImageModel"} | cards)


def model_of(path):
    """A file as a model of stock jwst."""
    return datamodels.open(path)


def test_an_image_is_corrected_as_by_the_recipe(tmp_path):
    path = star(tmp_path, edge=0.4e-6)
    (made,) = prep_data(path, Correct("h4rg"), tmp_path / "prep")
    with model_of(path) as model:
        before = model.data.copy()
        step = CorrectMigrationStep(kernel="h4rg")
        found = step.run(model)
        assert np.array_equal(model.data, before)  # what was given is not touched
    assert np.allclose(found.data, fits.getdata(made, "SCI"), rtol=1e-6, equal_nan=True)
    found.save(str(tmp_path / "again_rate.fits"))
    header = fits.getheader(tmp_path / "again_rate.fits")
    assert (header["S_MIGCOR"], header["MIGKERN"]) == ("COMPLETE", "h4rg") and "correct_migration" in str(
        header["HISTORY"]
    )
    with model_of(tmp_path / "again_rate.fits") as again, pytest.raises(CalamiError, match="corrected for migration"):
        CorrectMigrationStep(kernel="h4rg").process(again)


def test_strun_takes_a_kernel_as_its_parameters(tmp_path):
    path = star(tmp_path, edge=0.4e-6)
    with model_of(path) as model:  # as stock jwst writes it, with its own extension
        model.save(str(path))
    strun = Path(sys.executable).with_name("strun")
    run = [
        str(strun),
        str(kernel_file(tmp_path)),
        str(path),
        f"--output_dir={tmp_path / 'out'}",
        "--disable-crds-steppars",
    ]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (made,) = (tmp_path / "out").glob("*_corrected.fits")
    assert fits.getheader(made)["S_MIGCOR"] == "COMPLETE"
    (ours,) = prep_data(path, Correct("h4rg"), tmp_path / "prep")
    assert np.allclose(fits.getdata(made, "SCI"), fits.getdata(ours, "SCI"), rtol=1e-6, equal_nan=True)
    assert read_kernel(kernel_file(tmp_path))[0].edge == MIGRATION_PRESETS["h4rg"].edge


def test_of_a_folder_the_kernel_for_the_filter_is_taken(tmp_path):
    kernels = tmp_path / "kernels.v1"
    kernel_file(kernels, "F480M"), kernel_file(kernels, "F430M", "h4rg_weak")
    path = star(tmp_path, FILTER="F430M")
    hook = correction_steps(kernels)["charge_migration"]["pre_hooks"][0]
    assert "." not in hook.partition("(")[2]  # stpipe takes what is before the last dot for a package
    with model_of(path) as model:
        found = CorrectMigrationStep(kernel=str(kernels)).process(model)
    cards = dict(card[:2] for card in found.extra_fits.PRIMARY.header)
    assert cards["MIGKERN"] == "pars-correctmigration_f430m.asdf"
    path = star(tmp_path, 2, FILTER="F380M")
    with model_of(path) as model, pytest.raises(CalamiError, match="0 kernels for F380M"):
        CorrectMigrationStep(kernel=str(kernels)).process(model)


def test_kernels_that_are_not_there_are_found_out_before_a_run(tmp_path):
    with pytest.raises(FileProblem, match="is not there"):
        correction_steps(tmp_path / "none.asdf")
    with pytest.raises(CalamiError, match="there are none, h4rg"):
        correction_steps("fligth")
    with pytest.raises(CalamiError, match="mean or each"):
        correction_steps("flight", "median")


def test_marks_go_from_a_ramp_to_its_rates_and_to_no_others():
    ramp, rate, cube = datamodels.RampModel(), datamodels.ImageModel(), datamodels.CubeModel()
    ramp.meta.filename = "a_ramp.fits"
    assert carry_marks(ramp) is ramp
    carry_marks((rate, None))
    assert not rate.hasattr("extra_fits.PRIMARY.header") or not rate.extra_fits.PRIMARY.header
    ramp._instance["extra_fits"] = {"PRIMARY": {"header": [["S_MIGCOR", "COMPLETE", ""], ["MIGKERN", "k", ""]]}}
    carry_marks(ramp)
    carry_marks((rate, cube))
    assert dict(card[:2] for card in cube.extra_fits.PRIMARY.header) == {"S_MIGCOR": "COMPLETE", "MIGKERN": "k"}
    carry_marks(datamodels.RampModel())
    other = datamodels.ImageModel()
    carry_marks(other)
    assert not other.hasattr("extra_fits.PRIMARY.header")


def test_the_hooks_are_those_that_the_stock_pipeline_makes():
    steps = correction_steps("flight")
    made = Detector1Pipeline(steps=steps)
    (hook,) = made.charge_migration._pre_hooks
    assert isinstance(hook, CorrectMigrationStep) and hook.kernel == "flight" and made.charge_migration.skip
    assert len(made.ramp_fit._pre_hooks) == len(made.ramp_fit._post_hooks) == 1


def test_stock_stpipe_finds_the_step_by_its_alias():
    from stpipe.entry_points import get_steps

    aliases = {step.class_alias: step.class_name for step in get_steps()}
    assert aliases["correct_migration"] == pipeline_steps()[0][0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"READPATT": "NIS", "NFRAMES": 4}, "averages of frames"),
        ({"S_CHGMIG": "COMPLETE"}, "without the groups that charge_migration flagged"),
    ],
)
def test_what_cannot_be_corrected(tmp_path, changes, words):
    with model_of(star(tmp_path, **changes)) as model, pytest.raises(CalamiError, match=words):
        CorrectMigrationStep(kernel="h4rg").process(model)


def test_coefficients_may_stand_for_a_kernel(tmp_path):
    path = star(tmp_path)
    flow = MIGRATION_PRESETS["h4rg"]
    with model_of(path) as model:
        one = CorrectMigrationStep(edge=flow.edge, diagonal=flow.diagonal).process(model)
        other = CorrectMigrationStep(kernel="h4rg").process(model)
        assert np.array_equal(one.data, other.data, equal_nan=True)
        with pytest.raises(CalamiError, match="kernel of F380M"):
            CorrectMigrationStep(edge=flow.edge, filter="F380M").process(model)
