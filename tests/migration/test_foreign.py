"""The second simulator: what it must be to judge the first."""

import ast
from pathlib import Path

import foreign
import numpy as np
import pytest

from calami.instrument.migration import light_between, star_light
from calami.instrument.optics import psf
from calami.migration.kernel import kernel_from_ramps
from calami.migration.ramps import statistics_of


def test_it_imports_nothing_of_calami():
    tree = ast.parse(Path(foreign.__file__).read_text(encoding="utf-8"))
    names = [n for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names]
    modules = {n.name for n in names} | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert modules == {"dataclasses", "numpy"}


@pytest.mark.parametrize("law", [name for name in foreign.LAWS if name != "none"])
def test_charge_is_conserved_and_levels_are_within_a_ramp(law):
    light = foreign.light_of().scaled(3000.0)
    charge = foreign.charges_of(light, [16], foreign.LAWS[law])[0]
    assert charge.sum() == pytest.approx(16 * light.pixel.sum(), rel=1e-12)
    levels = list(foreign.levels_of(foreign.truth_of(light, foreign.LAWS[law])).values())
    assert (np.diff(levels) > 0).all() and levels[0] > 2e3 and levels[-1] < 40e3


def test_images_agree_with_those_of_the_optics():
    for band in foreign.BANDS:
        own = foreign.light_of(band).pixel
        other = psf(band, (45.0, 40.0))[25:56, 30:61]
        assert np.corrcoef(own.ravel(), other.ravel())[0, 1] > 0.98


def test_light_on_an_edge_is_not_the_mean_of_its_pixels():
    light = foreign.light_of()
    mean = (light.pixel[15, 15] + light.pixel[15, 16]) / 2
    assert light.right[15, 15] > 1.1 * mean


@pytest.mark.parametrize("place", [(15.0, 15.0), (15.1, 14.8), (14.7, 15.3)])
def test_light_between_pixels_that_are_too_coarse_is_known_from_the_optics(place):
    light = foreign.light_of("F277W", place, pistons=np.random.default_rng(2).normal(0, 30, 7))
    image, errors = light.pixel, []
    for star in (None, star_light(image, "F277W")):
        found = light_between(image, star=star)
        rest = [
            found[step] - true for step, true in (((0, 1), light.right), ((1, 0), light.down), ((1, 1), light.corner))
        ]
        errors.append([np.sqrt(np.mean(r[11:19, 11:19] ** 2)) for r in rest])
    plain, known = np.array(errors)
    assert (known < plain / 2).all() and known.max() < 0.03 < plain.max()


def test_there_is_no_such_star_in_fine_filters_nor_where_none_is():
    assert star_light(foreign.light_of("F480M").pixel, "F480M") is None
    assert star_light(np.zeros((31, 31)), "F277W") is None


def test_the_edge_is_right_where_pixels_are_too_coarse():
    made = foreign.program_of(4, foreign.LAWS["linear"], "F277W", photons=3.0)
    stats = [statistics_of(r, **f) for r, f in zip(made.ramps, made.facts, strict=True)]
    kernel = kernel_from_ramps(stats, free=("edge", "diagonal"), n_bootstrap=100)
    (edge, error), (diagonal, other) = (kernel.value(name) for name in ("edge", "diagonal"))
    assert abs(edge / 0.6e-6 - 1) < 0.05 and abs(edge - 0.6e-6) < 3 * error < 0.05e-6
    assert abs(diagonal - 0.15e-6) < 2 * other
