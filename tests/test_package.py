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
    # Dataset and Data are the front door: their methods open later modules, when they are called.
    # The spectrum that program offers for a star is one of optics.
    front = {
        "dataset": {"mapping", "archive", "calutil", "prep", "rearrange", "pipeline"},
        "calutil": {"prep", "pipeline"},
        "program": {"optics"},
    }
    assert inside <= front.get(name, set())


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
    "requests",
    "keyring",
    "asdf",
    "crds",
)


@pytest.mark.parametrize(
    "name",
    "dataset cli headers mapping archive calutil optics detector prep rearrange crds pipeline plans level1b simulate "
    "effects fringes oifits contrast onset kernel mitigation saturation answers demo program report".split(),
)
def test_importing_is_light(name):
    code = f"import sys, calami.{name}; print(*{{m.split('.')[0] for m in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    allowed = {"rich"} if name == "cli" else set()  # typer loads it by itself
    assert not set(HEAVY) & set(loaded) - allowed


def public():
    for name in MODULES:
        module = importlib.import_module(f"calami.{name}")
        for key, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and not key.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
                yield f"{name}.{key}", value
                for inner, member in vars(value).items() if inspect.isclass(value) else ():
                    if not inner.startswith("_") and inspect.isfunction(member):
                        yield f"{name}.{key}.{inner}", member


PUBLIC = dict(public())


@pytest.mark.parametrize("name", [n for n in PUBLIC if not n.startswith("cli.")])
def test_public_names_have_numpydoc_docstrings(name):
    from numpydoc.docscrape import FunctionDoc

    thing = PUBLIC[name]
    text = inspect.getdoc(thing)
    assert text and text.split("\n\n")[0].strip().endswith("."), "a summary that is a sentence"
    if inspect.isclass(thing):
        return
    doc = FunctionDoc(thing)
    documented = [n.strip().lstrip("*") for p in doc["Parameters"] for n in p.name.split(",")]
    takes = [p for p in inspect.signature(thing).parameters if p != "self"]
    if name.count(".") == 2 and not doc["Parameters"] and len(text.splitlines()) == 1:
        return  # a method told in one line
    assert documented == takes
    gives = inspect.signature(thing).return_annotation
    assert gives in (inspect.Signature.empty, None, "None") or doc["Returns"] or doc["Yields"]


def test_functions_are_short():
    for name in MODULES:
        for node in ast.walk(ast.parse((REPO / "calami" / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
                assert lines <= 60, f"{name}.{node.name} has {lines} lines"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebooks_read_as_pages(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"]).splitlines()
    assert first[0] == "# " + notebook.stem.split("_", 1)[1] and first[2].startswith("> ")
    why = [line for c in cells[:3] if c["cell_type"] == "markdown" for line in c["source"] if line.strip()]
    assert len(why) >= 5, "it opens with why"
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    lengths = sorted(c.count("\n") + 1 for c in code)
    assert lengths[len(lengths) // 2] < 12
    assert sum("assert " in c for c in code if not c.startswith("#| export")) >= 3
    assert not any(o["output_type"] == "error" for c in cells for o in c.get("outputs", []))


@pytest.mark.parametrize("page", sorted((REPO / "nbs").glob("[!_0-9]*/*.ipynb")), ids=lambda p: p.stem)
def test_pages_are_thin_drivers(page):
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"]).splitlines()
    assert first[0].startswith("# ") and first[2].startswith("> ")
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert not any("#| export" in c or "#| default_exp" in c for c in code)
    assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for c in code for n in ast.walk(ast.parse(c)))
    assert sum("assert " in c for c in code) >= 2
    assert not any(o["output_type"] == "error" for c in cells for o in c.get("outputs", []))


@pytest.mark.parametrize("page", sorted((REPO / "nbs" / "effects").glob("*.ipynb")), ids=lambda p: p.stem)
def test_pages_on_effects_show_the_common_figure_first(page):
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    drawing = [c for c in cells if any("image/png" in o.get("data", {}) for o in c.get("outputs", []))]
    first = "".join(drawing[0]["source"])
    assert "show_effect(" in first or "draw_pair(" in first
    assert "**What the pipeline does about it.**" in "".join(cells[-1]["source"])
