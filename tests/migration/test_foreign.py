"""The second simulator: what it must be to judge the first."""

import ast
from pathlib import Path

import foreign
import numpy as np
import pytest

from calami.instrument.optics import psf


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
