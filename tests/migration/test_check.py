"""Whether a kernel fits: right ones, wrong ones, other laws; ramps and pairs; how often it is wrong about that."""

from dataclasses import replace

import foreign
import numpy as np
import pytest
from matplotlib import pyplot as plt
from migration.test_answers import write_ramp
from migration.test_kernel import statistics
from toys import rootname, variants, write_star
from typer.testing import CliRunner

from calami.calutil import Data
from calami.cli import app
from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.instrument.migration import MIGRATION_PRESETS, find_migration, light_between
from calami.instrument.optics import fine_psf, within_pixels
from calami.migration.check import LEAST_CHANCE, check_kernel, check_kernel_on_pair, check_kernels, measure_kernels
from calami.migration.correction import read_kernel, write_kernel
from calami.migration.kernel import kernel_from_ramps
from calami.migration.pair_kernel import observed_slope
from calami.migration.pairs import compare
from calami.migration.ramps import statistics_of


def scaled(kernel, factor):
    """The same flow, stronger or weaker."""
    return replace(find_migration(kernel), edge=factor * kernel.edge, diagonal=factor * kernel.diagonal)


def program(law, seed=0, band="F480M", **sizes):
    """Statistics of a program of the second simulator."""
    made = foreign.program_of(seed, foreign.LAWS[law], band, **sizes)
    return [statistics_of(r, **f) for r, f in zip(made.ramps, made.facts, strict=True)]


@pytest.mark.parametrize(("migration", "loss"), variants(("flight_linear", 0.0), ("h4rg", 0.0), ("h4rg", 2e-7)))
def test_a_right_kernel_fits_and_a_small_one_does_not(migration, loss):
    truth = replace(MIGRATION_PRESETS[migration], cubic=0.0, nonlinearity=loss)
    stats = statistics(truth if not loss else migration, loss, nints=120, groups=12)
    assert check_kernel(stats, truth).fits
    small = check_kernel(stats, scaled(truth, 0.7))
    assert not small.fits and small.chance < 1e-5 and "does not fit" in small.sentence
    assert small.left == pytest.approx(0.3 / 0.7 * small.effect, rel=0.4)
    assert not check_kernel(stats, "none").fits


def test_a_nonlinearity_that_the_kernel_does_not_know_is_seen():
    stats = statistics("h4rg", 3e-7, nints=120, groups=12)
    assert not check_kernel(stats, "h4rg").fits
    assert check_kernel(stats, kernel_from_ramps(stats)).fits  # it measures both, and both are corrected


@pytest.mark.slow
def test_how_often_a_right_kernel_is_doubted_and_what_chance_is_worth():
    """Chances are uniform, or a little too large: 40 draws."""
    chances = np.array([check_kernel(statistics(nints=40, groups=8, seed=s), "h4rg").chance for s in range(40)])
    assert 0.4 < np.mean(chances < 0.5) / 0.5 < 1.35 and np.mean(chances < 0.05) < 0.15
    assert np.sum(chances < LEAST_CHANCE) <= 1


@pytest.mark.parametrize(("law", "fits"), variants(("threshold", False), ("linear", True)))
def test_laws_that_are_not_ours(law, fits):
    stats = program(law, photons=4.0)
    found = check_kernel(stats, kernel_from_ramps(stats))
    assert found.fits == fits
    assert found.left < 0.1 * found.effect or not fits


@pytest.mark.slow
def test_errors_of_the_kernel_count(tmp_path):
    weak = statistics(nints=8, groups=8, seed=5)
    kernel = kernel_from_ramps(weak, free=("edge", "diagonal"))
    many = statistics(nints=400, groups=12)
    alone, known = check_kernel(many, kernel.migration), check_kernel(many, kernel)
    assert alone.chi2 > 2 * known.chi2 and known.left_error > alone.left_error
    path = write_kernel(replace(kernel, filter="F480M"), tmp_path / "pars-k.asdf")
    assert check_kernel(many, path).chi2 == pytest.approx(known.chi2)
    with pytest.raises(FileProblem, match="is not there"):
        check_kernel(many, tmp_path / "none.asdf")
    with pytest.raises(CalamiError, match="there are none, h4rg"):
        check_kernel(many, "fligth")


def test_a_pair_of_images(tmp_path):
    truth = replace(find_migration("none"), edge=0.6e-6)
    light, paths = 4.4e6 * fine_psf("F480M", (40.2, 45.1), (80, 80)), []
    for groups in (5, 13):
        seen = observed_slope(within_pixels(light, 5), truth, groups, niriss.SUB80.frame_time, light_between(light, 5))
        path = tmp_path / f"{rootname(1, groups)}_rate.fits"
        paths.append(write_star(path, groups, electrons_per_s=seen, nints=400, seed=groups))
    result = compare(*(Data(path) for path in paths))
    right, none = check_kernel_on_pair(result, truth), check_kernel_on_pair(result, "none")
    assert right.fits and not none.fits
    assert right.left < 0.3 * right.effect and none.left == pytest.approx(none.effect)


@pytest.mark.slow
def test_the_real_pair_and_the_kernel_that_was_fitted_to_it(shared_data):
    folder = shared_data / "jw01093"
    paths = [folder / f"jw01093012001_0310{k}_00001_nis_cal.fits" for k in (2, 5)]
    result = compare(*(Data(path) for path in paths))
    flight, none = check_kernel_on_pair(result, "flight"), check_kernel_on_pair(result, "none")
    assert flight.fits and not none.fits and flight.left < 0.2 * flight.effect
    assert not check_kernel_on_pair(result, scaled(MIGRATION_PRESETS["flight"], 0.5)).fits


def test_the_figure():
    found = check_kernel(statistics(nints=20, groups=8), "h4rg")
    ax = found.plot()
    assert len(ax.get_legend().get_texts()) == 2 and "F480M" in ax.get_title() and "KernelCheck" in repr(found)
    plt.close(ax.figure)


def test_the_command_measures_and_checks(tmp_path, shared_data):
    pair = [str(shared_data / "jw01093" / f"jw01093012001_0310{k}_00001_nis_cal.fits") for k in (2, 5)]
    made = CliRunner().invoke(app, ["kernel", *pair, "-o", str(tmp_path)])
    assert made.exit_code == 0 and "it fits these data" in made.output, made.output
    path = tmp_path / "pars-correctmigrationstep_f480m.asdf"
    assert read_kernel(path)[0].edge > 0
    again = CliRunner().invoke(app, ["kernel", *pair, "--check", str(path)])
    assert again.exit_code == 0 and "it fits these data" in again.output
    wrong = CliRunner().invoke(app, ["kernel", *pair, "--check", "h4rg"])
    assert wrong.exit_code != 0 and "does not fit" in wrong.output
    with pytest.raises(CalamiError, match="no kernel can be measured"):
        measure_kernels(Dataset(pair[0]))


def test_kernels_from_a_folder_of_ramps(tmp_path):
    write_ramp(tmp_path, 10, 2)
    found = measure_kernels(Dataset(tmp_path))
    assert list(found) == ["F480M"] and found["F480M"].source == "ramps"
    (checked,) = check_kernels(Dataset(tmp_path), found["F480M"])
    assert checked.fits and checked.after
