"""Rules of the house that a machine can check."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (REPO / "nbs").glob("[0-9]*.ipynb"))


def module_of(notebook):
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if source.startswith("#| default_exp"):
            return source.split()[2]
    raise AssertionError(f"{notebook.name} exports nothing")


MODULES = [module_of(n) for n in NOTEBOOKS]


def imported(node):
    """calami modules that an import statement asks for."""
    if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("calami")):
        name = (node.module or "").removeprefix("calami").strip(".")
        return [name] if name else [a.name for a in node.names]
    if isinstance(node, ast.Import):
        return [a.name.removeprefix("calami.") for a in node.names if a.name.startswith("calami.")]
    return []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_modules_above_it(name):
    tree = ast.parse((REPO / "calami" / f"{name}.py").read_text(encoding="utf-8"))
    above = MODULES[: MODULES.index(name)]
    at_import = [m for node in tree.body for m in imported(node)]
    assert set(at_import) & set(MODULES) <= set(above)
    inside = {m for node in ast.walk(tree) for m in imported(node)} & set(MODULES) - set(above)
    # A Dataset is the front door: its methods open later modules, when they are called.
    assert inside <= ({"mapping", "calutil"} if name == "dataset" else set())


def test_notebooks_are_numbered_like_their_modules():
    assert [n.stem.split("_", 1)[1] for n in NOTEBOOKS] == MODULES


HEAVY = (
    "jwst",
    "stdatamodels",
    "astropy",
    "scipy",
    "matplotlib",
    "astroquery",
    "dask",
    "rich",
    "jinja2",
    "yaml",
    "tqdm",
    "asdf",
    "crds",
)


@pytest.mark.parametrize(
