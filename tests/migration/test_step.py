"""The correction as a step: alone, as a hook of the stock pipeline, in calami pipe; its parameter files and marks."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys
from astropy.io import fits

from calami.core.problems import CalamiError, FileProblem
from calami.instrument import niriss
from calami.instrument.coefficients import KnownMigration
from calami.instrument.migration import Migration, charge_ramp, find_migration, interpixel_capacitance
from calami.migration.correction import Correct, find_kernel, read_kernel, write_kernel
from calami.migration.kernel import Kernel
from calami.process import references
from calami.process.engine import worker_pool
from calami.process.offline import offline_environment
from calami.process.pipeline import pipe_data, reprocess
from calami.process.prep import prep_data
from calami.process.record import read_sidecar

BOXES = {name: (np.linspace(*f.half_power, 20), np.ones(20)) for name, f in niriss.FILTERS.items()}
RATE = 3.6e6 * toys.nrm_psf("F480M", center=(40.0, 45.0)) + 10.0
FLOW = Migration(0.64e-6, 0.37e-6, 1.6e-5, source="as simulated")
GROUPS = 8


@pytest.fixture(scope="module")
def detector():
    return toys.plain_detector(flat=np.ones(niriss.SUB80.shape))


@pytest.fixture(scope="module")
def cache(tmp_path_factory, detector):
    return references.offline_cache(tmp_path_factory.mktemp("crds") / "cache", detector, passbands=BOXES)


@pytest.fixture(scope="module")
def uncal(tmp_path_factory, detector):
    """Raw ramps in which charge has migrated."""
    path = toys.write_uncal(tmp_path_factory.mktemp("raw"), detector, RATE, ngroups=GROUPS, nints=4)
    times = niriss.SUB80.frame_time * np.arange(1, GROUPS + 1)
    ramp = interpixel_capacitance(charge_ramp(RATE * (detector.flags != niriss.REFERENCE_PIXEL), times, FLOW))
    rng = np.random.default_rng(5)
    charge = ramp + rng.normal(0, 12.0, (4, *ramp.shape))
    raw = np.clip(np.rint(detector.bias + (charge - detector.nonlinearity * charge**2) / detector.gain), 0, 65535)
    with fits.open(path, mode="update") as hdus:
        hdus["SCI"].data[:] = raw.astype("uint16")
    return path


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """A folder with kernels of two filters."""
    folder = tmp_path_factory.mktemp("k.1") / "kernels"
    folder.mkdir()
    for band, flow in (("F480M", FLOW), ("F430M", Migration(3e-7, 1e-7))):
        values = np.array([flow.edge, flow.diagonal])
        kernel = Kernel(flow, ("edge", "diagonal"), values, np.full(2, 1e-8), np.eye(2) * 1e-16, 10.0, 9, "ramps", band)
        write_kernel(kernel, folder / f"pars-correctmigrationstep_{band.lower()}.asdf")
    return folder


@pytest.fixture(scope="module")
def executor(cache):
    with worker_pool(1, cache) as pool:
        yield pool


@pytest.fixture(scope="module")
def plain(tmp_path_factory, uncal, cache, executor):
    out = tmp_path_factory.mktemp("plain")
    wish = {"charge_migration.skip": True, "jump.skip": True}
    return pipe_data(
        uncal, "detector1", wish, out, cache=cache, executor=executor, keep="charge_migration"
    ).raise_failures()


def product(run, kind):
    (path,) = [p for p in run.paths if p.name.endswith(f"_{kind}.fits")]
    return path


def in_new_process(cache, code):
    done = subprocess.run(
        [sys.executable, "-c", code], env=offline_environment(cache), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_pipeline_of_calami_corrects_and_its_record_says_so(tmp_path, uncal, cache, executor, plain, kernels):
    from calami.migration.correction import correction_steps

    hooked = correction_steps(kernels)
    run = pipe_data(
        uncal, ["detector1", "image2"], hooked | {"jump": {"skip": True}}, tmp_path, cache=cache, executor=executor
    ).raise_failures()
    for kind in ("rate", "rateints", "cal"):
        header = fits.getheader(product(run, kind))
        assert header["S_MIGCOR"] == "COMPLETE" and header["MIGKERN"] == "pars-correctmigrationstep_f480m.asdf"
        assert header["S_CHGMIG"] == "SKIPPED"
    record = read_sidecar(product(run, "rate"))
    assert "CorrectMigrationStep" in record["parameters"]["charge_migration.pre_hooks"][0]
    before, after = (fits.getdata(product(r, "rate"), "SCI") for r in (plain, run))
    truth = interpixel_capacitance(RATE) / niriss.GAIN
    good = fits.getdata(product(run, "rate"), "DQ") == 0
    bright = good & (truth > 0.3 * truth[good].max())
    assert np.median(np.abs(after / truth - 1)[bright]) < 0.3 * np.median(np.abs(before / truth - 1)[bright])


def test_reprocessing_begins_at_the_correction(tmp_path, plain, cache, executor):
    from calami.migration.correction import correction_steps

    run = reprocess(plain, correction_steps("h4rg"), tmp_path, cache=cache, executor=executor).raise_failures()
    status = {s["name"]: s["status"] for s in run.outcomes[0].steps}
    assert status["dark_current"] == "taken" and status["ramp_fit"] == "run"
    assert fits.getheader(product(run, "rate"))["MIGKERN"] == "h4rg"


@pytest.mark.slow
def test_a_kernel_that_was_measured_anew_is_another_run(tmp_path, plain, cache, executor):
    from calami.migration.correction import correction_steps

    file, out, made = tmp_path / "k.asdf", tmp_path / "out", []

    def measured(edge):
        law, errors = Migration(edge, 1e-7), np.full(2, 1e-8)
        return Kernel(
            law, ("edge", "diagonal"), np.array([edge, 1e-7]), errors, np.diag(errors**2), 1.0, 9, "r", "F480M"
        )

    def corrected(**how):
        return reprocess(plain, correction_steps(file), out, cache=cache, executor=executor, **how)

    for edge in (4e-7, None, 5e-7):
        if edge:
            kernel = measured(edge)
            write_kernel(kernel, file)
        rate = product(corrected(overwrite=edge == 5e-7).raise_failures(), "rate")
        made.append((fits.getheader(rate)["MIGCOEF"], read_sidecar(rate)["contents"], rate.stat().st_mtime_ns))
    assert made[0] == made[1], "nothing is done twice"
    assert made[2][0].startswith("edge 5e-07") and made[2][1] != made[0][1]
    assert list(made[0][1]) == ["charge_migration"] and len(made[0][1]["charge_migration"]) == 1
    recipes = []
    for covariance in (1e-16, 1e-16, 4e-16):  # errors belong to what is written
        write_kernel(replace(kernel, covariance=np.eye(2) * covariance), file)
        recipes.append(Correct(file).parameters)
    assert recipes[0] == recipes[1] != recipes[2]


def test_stock_programs_run_it(tmp_path, cache, plain, kernels):
    rate = product(plain, "rate")
    code = f"""
from calami.migration.step import CorrectMigrationStep
from jwst.stpipe import Step
from stpipe._cli import strun
import sys
from pathlib import Path
kernel = {str(kernels / "pars-correctmigrationstep_f480m.asdf")!r}
rate, out = {str(rate)!r}, {str(tmp_path)!r}
corrected = CorrectMigrationStep.call(rate, config_file=kernel, save_results=True, output_dir=out)
assert corrected.meta.cal_step.correct_migration == "COMPLETE"
step = Step.from_config_file(kernel)
assert type(step) is CorrectMigrationStep and step.edge == 0.64e-6
folder = Path(out) / "strun"
sys.argv = ["strun", kernel, rate, "--output_dir", str(folder)]
assert strun.main() in (0, None)
assert [p.name for p in folder.iterdir()] == [Path(rate).name.replace("_rate", "_corrected_rate")]
"""
    status, said = in_new_process(cache, code)
    assert status == 0, said[-3000:]
    made = next(tmp_path.glob("*_corrected_rate.fits"))
    header = fits.getheader(made)
    assert header["MIGKERN"] == "pars-correctmigrationstep_f480m.asdf" and "put back" in str(header.get("HISTORY", ""))
    assert KnownMigration.of_header(header).migration.edge == 0.64e-6
    by_recipe = prep_data(rate, Correct(kernels), tmp_path / "prep")[0]
    good = fits.getdata(rate, "DQ") & 1 == 0
    assert np.allclose(fits.getdata(made, "SCI")[good], fits.getdata(by_recipe, "SCI")[good], rtol=2e-6)


@pytest.mark.slow
def test_the_stock_pipeline_runs_it(tmp_path, uncal, cache, kernels):
    code = f"""
from calami.migration.correction import correction_steps
from calami.migration.step import CorrectMigrationStep
from jwst.pipeline import Detector1Pipeline
kernel = {str(kernels / "pars-correctmigrationstep_f480m.asdf")!r}
uncal, out = {str(uncal)!r}, {str(tmp_path)!r}
made = Detector1Pipeline.call(uncal, steps=correction_steps(kernel), save_results=True, output_dir=out)
assert made.meta.cal_step.correct_migration == "COMPLETE"
hooked = {{"charge_migration": {{"pre_hooks": [CorrectMigrationStep], "skip": False}}}}
try:
    Detector1Pipeline.call(uncal, steps=hooked)
except Exception as error:
    print("REFUSED:", error)
hooked["charge_migration"]["pre_hooks"] = ["calami.migration.step.CorrectMigrationStep(kernel='flight')"]
try:
    Detector1Pipeline.call(uncal, steps=hooked)
except Exception as error:
    print("REFUSED:", error)
"""
    status, said = in_new_process(cache, code)
    assert status == 0, said[-3000:]
    assert said.count("REFUSED: charge_migration is not skipped") == 2


def test_marks_survive_stock_models_and_steps():
    # The schema of jwst holds our keywords where calami is; without it, they are kept as they are.
    code = """
from stdatamodels.jwst import datamodels
from calami.process.ownstep import keyword_of, mark, use_own_keywords
early = datamodels.RampModel((2, 3, 4, 4))
use_own_keywords()
long = "edge 6.4e-07; " + " ".join(["diagonal"] + 20 * ["1.234e-08"])
mark(early, {"S_MIGCOR": "COMPLETE", "MIGKERN": "flight", "MIGCOV": long}, "done")
for kind in (datamodels.ImageModel, datamodels.CubeModel, datamodels.AmiOIModel, datamodels.RampModel):
    late = kind()
    late.update(early)
    assert keyword_of(late, "S_MIGCOR") == "COMPLETE" and keyword_of(late, "MIGKERN") == "flight", kind
    assert keyword_of(late, "MIGCOV") == long, kind
    hdu = late.to_flat_dict(include_arrays=False)
    assert hdu["meta.cal_step.correct_migration"] == "COMPLETE"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_installed_programs_know_step_and_keywords(tmp_path):
    # An installation in little: what pyproject says of entry points, beside the package.
    import tomllib

    root = Path(__file__).resolve().parents[2]
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "calami-0.dist-info"  # before the one of the environment, if that has one
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: calami\nVersion: 0\n")
    lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in points[g].items()) for g in points if g != "nbdev"]
    (info / "entry_points.txt").write_text("\n".join(lines))
    code = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]
from stpipe.utilities import resolve_step_class_alias
assert resolve_step_class_alias("correct_migration") == "calami.migration.step.CorrectMigrationStep"
assert "calami.migration.step" not in sys.modules
from stdatamodels.jwst import datamodels
ramp, rate = datamodels.RampModel((1, 2, 3, 3)), datamodels.ImageModel((3, 3))
ramp.meta.cal_step.correct_migration = "COMPLETE"
rate.update(ramp)
assert rate.find_fits_keyword("S_MIGCOR") == ["meta.cal_step.correct_migration"]
assert rate.meta.cal_step.correct_migration == "COMPLETE"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_kernel_knows_what_it_was_measured_with(tmp_path, plain, caplog):
    rate = product(plain, "rate")
    kernel = Kernel(
        FLOW, ("edge",), np.array([FLOW.edge]), np.full(1, 1e-8), np.eye(1) * 1e-16, 10.0, 9, "pair", "F480M"
    )
    path = write_kernel(kernel, tmp_path / "k.asdf", [rate])
    header = fits.getheader(rate)
    found = find_kernel(tmp_path / "k")
    assert found.meta["references"]["R_LINEAR"] == [header["R_LINEAR"]] and found.differences(header) == []
    assert read_kernel(path)[0] == FLOW
    other = tmp_path / rate.name
    with fits.open(rate) as hdus:
        hdus[0].header["R_LINEAR"] = "crds://another.fits"
        hdus.writeto(other)
    with caplog.at_level("WARNING"):
        prep_data(other, Correct(path), tmp_path / "out")
    assert "was measured with R_LINEAR" in caplog.text and "another.fits" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class": "jwst.jump.JumpStep"}, "it is for jwst"),
        ({"parameters": {"edge": 1e-7, "diagonal": 1e-7, "sideways": 1.0}}, "sideways"),
        ({"parameters": {"edge": -1e-7, "diagonal": 1e-7}}, "numbers from 0 up"),
        ({"parameters": {"edge": "strong", "diagonal": 1e-7}}, "strong"),
        ({"covariance": [[1.0, 0.0]]}, "does not belong"),
        ({"covariance": [[-1.0]]}, "negative eigenvalues"),
        ({"fitted": ["flux"]}, "does not belong"),
    ],
)
def test_files_that_lie_are_refused(tmp_path, change, words):
    import asdf

    meta = {"instrument": {"filter": "F480M"}, "fitted": ["edge"], "covariance": [[1e-16]]}
    tree = {"class": "calami.migration.step.CorrectMigrationStep", "parameters": {"edge": 1e-7, "diagonal": 1e-7}}
    tree |= {key: change[key] for key in ("class", "parameters") if key in change}
    tree["meta"] = meta | {key: change[key] for key in ("covariance", "fitted") if key in change}
    asdf.AsdfFile(tree).write_to(tmp_path / "k.asdf")
    with pytest.raises(FileProblem, match=f"holds no kernel .*{words}"):
        find_kernel(tmp_path / "k.asdf")


def test_files_of_the_recipe_are_still_read(tmp_path):
    import asdf

    flight = find_migration("flight")
    tree = {"class": "calami.migration.correction.Correct", "name": "correct_migration", "parameters": vars(flight)}
    tree["meta"] = {"instrument": {"filter": "F480M"}, "fitted": ["edge"], "covariance": [[1e-16]]}
    asdf.AsdfFile(tree).write_to(tmp_path / "k.asdf")
    assert read_kernel(tmp_path / "k.asdf")[0] == flight


def test_a_folder_gives_the_kernel_of_the_filter(tmp_path, kernels):
    assert find_kernel(kernels, "F430M").migration.edge == 3e-7
    with pytest.raises(CalamiError, match=r"0 kernels for F380M.*pars-correctmigrationstep_f430m"):
        find_kernel(kernels, "F380M")
    star = toys.write_star(tmp_path / f"{toys.rootname(2, 5)}_rate.fits", 13, FILTER="F380M")
    with pytest.raises(CalamiError, match="0 kernels for F380M"):
        prep_data(star, Correct(kernels), tmp_path / "out")


def ramp_model(**changes):
    from stdatamodels.jwst import datamodels

    model = datamodels.RampModel((2, 4, 20, 20))
    model.data[:] = 1000.0 * np.arange(1, 5)[:, None, None]
    model.meta.filename, model.meta.bunit_data = "star_ramp.fits", "DN"
    model.meta.instrument.filter, model.meta.exposure.readpatt = "F480M", "NISRAPID"
    model.meta.exposure.nframes, model.meta.exposure.ngroups = 1, 4
    model.meta.cal_step.superbias = model.meta.cal_step.linearity = "COMPLETE"
    for path, value in changes.items():
        model[path.replace("__", ".")] = value
    return model


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"meta__exposure__nframes": 4, "meta__exposure__readpatt": "NIS"}, "averages of frames"),
        ({"meta__cal_step__superbias": "SKIPPED"}, "bias or nonlinearity"),
        ({"meta__cal_step__linearity": "SKIPPED"}, "bias or nonlinearity"),
        ({"meta__cal_step__charge_migration": "COMPLETE"}, "charge_migration flagged"),
        ({"meta__bunit_data": "Jy"}, "its unit is 'Jy'"),
    ],
)
def test_what_the_step_refuses(changes, words):
    from calami.migration.step import CorrectMigrationStep

    with pytest.raises(CalamiError, match=words):
        CorrectMigrationStep(kernel="h4rg").process(ramp_model(**changes))


def test_what_is_left_says_so_and_nothing_is_done_twice():
    from stdatamodels.jwst import datamodels

    from calami.migration.step import CorrectMigrationStep

    model = ramp_model()
    model.groupdq[0, 2:, 5, 5] = model.groupdq[1, 2:, 5, 5] = niriss.SATURATED
    model.data[:, :, 7, 7] = np.nan
    made = CorrectMigrationStep(kernel="h4rg", edge=1e-6).process(model)
    assert made is not model and not model.groupdq[0, 0, 7, 7]
    assert (made.groupdq[:, :, 7, 7] == niriss.CHARGELOSS | niriss.DO_NOT_USE).all()
    assert (made.groupdq[:, 2:, 5, 5] == niriss.SATURATED).all() and made.groupdq[0, 0, 0, 0] == 0
    assert "edge 1e-06" in str(made._instance["history"])
    with pytest.raises(CalamiError, match="done already"):
        CorrectMigrationStep().process(made)
    with pytest.raises(CalamiError, match="raw counts"):
        raw = datamodels.Level1bModel((2, 4, 20, 20))
        raw.meta.instrument.filter = "F480M"
        CorrectMigrationStep().process(raw)
    with pytest.raises(CalamiError, match="one exposure at a time"):
        CorrectMigrationStep().process([ramp_model(), ramp_model()])


def test_hooks_of_wrong_kernels_are_found_before_anything_runs(tmp_path):
    from calami.migration.correction import correction_steps

    with pytest.raises(CalamiError, match="no migration coefficients called"):
        correction_steps("nobody")
    with pytest.raises(FileProblem, match="is not there"):
        correction_steps(tmp_path / "no.asdf")
    with pytest.raises(CalamiError, match="mean or each"):
        correction_steps("flight", "all")


def test_the_step_and_the_recipe_know_the_same_coefficients():
    from calami.migration.step import CorrectMigrationStep

    own = {"edge": 1e-7, "growth": 2e-5}
    changed = CorrectMigrationStep(kernel="flight_linear", **own)._kernel("F480M").migration
    assert replace(changed, source="") == replace(find_migration("flight_linear"), source="", **own)


def star_model(folder, observation=1, **cards):
    """A rate image that stock jwst opens."""
    from stdatamodels.jwst import datamodels

    path = folder / f"{toys.rootname(observation)}_rate.fits"
    wanted = {"READPATT": "NISRAPID", "NFRAMES": 1, "DATAMODL": "ImageModel"} | cards
    return path, datamodels.open(toys.write_star(path, 12, edge=0.4e-6, **wanted))


def test_an_image_is_corrected_as_by_the_recipe_and_what_was_given_is_not_touched(tmp_path):
    from stdatamodels.jwst import datamodels

    from calami.migration.step import CorrectMigrationStep

    path, model = star_model(tmp_path)
    before = model.data.copy()
    found = CorrectMigrationStep(kernel="h4rg").run(model)
    assert np.array_equal(model.data, before)
    (made,) = prep_data(path, Correct("h4rg"), tmp_path / "prep")
    assert np.allclose(found.data, fits.getdata(made, "SCI"), rtol=1e-6, equal_nan=True)
    found.save(str(tmp_path / "again_rate.fits"))
    header = fits.getheader(tmp_path / "again_rate.fits")
    assert (header["S_MIGCOR"], header["MIGKERN"]) == ("COMPLETE", "h4rg")
    assert "correct_migration" in str(header["HISTORY"])
    with datamodels.open(tmp_path / "again_rate.fits") as again, pytest.raises(CalamiError, match="done already"):
        CorrectMigrationStep(kernel="h4rg").process(again)
    with pytest.raises(CalamiError, match="corrected for migration already"):
        prep_data(made, Correct("h4rg"), tmp_path / "twice")


def test_a_kernel_may_be_in_a_folder_with_a_dot(tmp_path):
    from calami.migration.correction import correction_steps

    (tmp_path / "kernels.v1").mkdir()
    kernel = Kernel(FLOW, ("edge",), np.ones(1), np.ones(1), np.eye(1), 1.0, 1, "ramps", "F480M")
    write_kernel(kernel, tmp_path / "kernels.v1" / "k.asdf")
    hook = correction_steps(tmp_path / "kernels.v1")["charge_migration"]["pre_hooks"][0]
    assert "." not in hook.partition("(")[2]  # stpipe takes what is before the last dot for a package


def test_the_hooks_are_those_that_the_stock_pipeline_makes():
    from jwst.pipeline import Detector1Pipeline

    from calami.migration.correction import correction_steps
    from calami.migration.step import CorrectMigrationStep

    made = Detector1Pipeline(steps=correction_steps("flight"))
    (hook,) = made.charge_migration._pre_hooks
    assert isinstance(hook, CorrectMigrationStep) and hook.kernel == "flight" and made.charge_migration.skip


def test_coefficients_may_stand_for_a_kernel(tmp_path):
    from calami.migration.step import CorrectMigrationStep

    flow = find_migration("h4rg")
    _, model = star_model(tmp_path)
    one = CorrectMigrationStep(edge=flow.edge, diagonal=flow.diagonal).process(model)
    other = CorrectMigrationStep(kernel="h4rg").process(model)
    assert np.array_equal(one.data, other.data, equal_nan=True)
    with pytest.raises(CalamiError, match="kernel of F380M"):
        CorrectMigrationStep(edge=flow.edge, filter="F380M").process(model)


def test_lines_of_history_are_ascii(tmp_path):
    from stdatamodels.jwst import datamodels

    from calami.process.ownstep import mark, use_own_keywords

    use_own_keywords()
    model = datamodels.ImageModel(np.zeros((4, 4), "float32"))
    mark(model, {"MIGKERN": "k"}, "fitted to ramps of a, b, …")
    model.save(str(tmp_path / "a_rate.fits"))
    assert "of a, b, ..." in str(fits.getheader(tmp_path / "a_rate.fits")["HISTORY"])
