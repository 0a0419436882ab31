"""Rules of the house that a machine can check."""

import ast
import importlib
import inspect
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
# Each room may use those before it; the user's pages come last and may use all of them.
ROOMS = "core instrument exposures archive process fringes simulate program migration studies widgets".split()
TOP = "dataset mapping calutil cm_analysis demo cli".split()
# Where the names of version 0.1 are now: it stands below the rooms, since `import calami` uses it, and imports nothing.
GROUND = "00_moved.ipynb"


def order(path):
    """Where a notebook stands: its room, and its number in it."""
    room = path.parent.name
    return (ROOMS.index(room) if room in ROOMS else -1 if path.name == GROUND else len(ROOMS), path.name)


NOTEBOOKS = sorted(
    (p for p in (REPO / "nbs").rglob("[0-9]*.ipynb") if p.parent.name in ROOMS or p.parent.name == "nbs"), key=order
)
DOORS = sorted((REPO / "nbs").glob("*/index.ipynb"), key=order)


def module_of(notebook):
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if source.startswith("#| default_exp"):
            return source.split()[2]
    raise AssertionError(f"{notebook.name} exports nothing")


MODULES = [module_of(n) for n in NOTEBOOKS]


def file_of(name):
    return (REPO / "calami").joinpath(*name.split(".")).with_suffix(".py")


def imported(name):
    """Modules and rooms of calami that a module imports, anywhere in it."""
    package = ["calami", *name.split(".")[:-1]]
    for node in ast.walk(ast.parse(file_of(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name.removeprefix("calami.") for a in node.names if a.name.startswith("calami."))
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        whole = ".".join([*base, *([node.module] if node.module else [])])
        if whole == "calami" or whole.startswith("calami."):
            inside = [f"{whole}.{a.name}".removeprefix("calami.") for a in node.names]
            yield from (n if n in MODULES else whole.removeprefix("calami").strip(".") for n in inside)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    """No exception, and imports inside functions count, too."""
    above = MODULES[: MODULES.index(name)]
    rooms = {m.split(".")[0] for m in above if "." in m} - {name.split(".")[0]}
    assert set(imported(name)) - {""} <= set(above) | rooms


def test_every_module_has_a_notebook_and_every_room_a_door():
    have = {
        ".".join(p.relative_to(REPO / "calami").with_suffix("").parts)
        for p in (REPO / "calami").rglob("*.py")
        if p.name not in ("_modidx.py", "__init__.py")
    }
    assert have == set(MODULES)
    assert {module_of(d) for d in DOORS} == {f"{m.split('.')[0]}.__init__" for m in MODULES if "." in m}
    assert {m for m in MODULES if "." not in m} == {"moved", *TOP}


def test_notebooks_are_numbered_like_their_modules():
    for notebook, name in zip(NOTEBOOKS, MODULES, strict=True):
        room = () if notebook.parent.name == "nbs" else (notebook.parent.name,)
        assert (*room, notebook.stem.split("_", 1)[1]) == tuple(name.split("."))
    numbers = {}
    for notebook in NOTEBOOKS:
        if notebook.name != GROUND:
            numbers.setdefault(notebook.parent, []).append(int(notebook.name[:2]))
    assert all(n == list(range(1, len(n) + 1)) for n in numbers.values())


@pytest.mark.parametrize("room", [d.parent.name for d in DOORS])
def test_a_door_offers_the_public_names_of_its_room(room):
    door = importlib.import_module(f"calami.{room}")
    for name in door.__all__:
        assert getattr(door, name) is not None
        # A name that is also a page would be hidden by it.
        assert f"{room}.{name}" not in MODULES


@pytest.mark.parametrize("name", ["Dataset", "Data", "CalamiError", "quantify", "answer_questions"])
def test_the_first_names_are_had_from_calami_itself(name):
    import calami

    assert getattr(calami, name).__name__ == name and name in dir(calami)


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


@pytest.mark.parametrize("name", [*TOP, *ROOMS[:9]])
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
    if (
        inspect.isclass(getattr(sys.modules[thing.__module__], thing.__qualname__.split(".")[0]))
        and not doc["Parameters"]
        and len(text.splitlines()) == 1
    ):
        return  # a method told in one line
    assert documented == takes
    gives = inspect.signature(thing).return_annotation
    assert gives in (inspect.Signature.empty, None, "None") or doc["Returns"] or doc["Yields"]


def test_functions_are_short():
    for name in MODULES:
        for node in ast.walk(ast.parse(file_of(name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
                assert lines <= 60, f"{name}.{node.name} has {lines} lines"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_notebooks_read_as_pages(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"]).splitlines()
    assert first[0] == "# " + notebook.stem.split("_", 1)[1] and first[2].startswith("> ")
    prose = [w for c in cells[:4] if c["cell_type"] == "markdown" for line in c["source"] for w in line.split()]
    assert len(prose) >= 30, "it opens with why"
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert any("assert " in c for c in code if not c.startswith("#| export"))
    assert not any(o["output_type"] == "error" for c in cells for o in c.get("outputs", []))


def code_lines(source):
    """Lines of code of a cell: docstrings, comments and blank lines do not count."""
    tree, words = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            words |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for k, line in lines if k not in words and line.strip() and not line.strip().startswith("#"))


def test_cells_that_define_are_short():
    lengths, definitions = [], []
    for notebook in NOTEBOOKS + DOORS:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and source.startswith("#| export"):
                kinds = [isinstance(n, ast.FunctionDef | ast.ClassDef) for n in ast.parse(source).body]
                if any(kinds):
                    lengths.append(code_lines(source))
                    definitions.append(sum(kinds))
    assert statistics.median(lengths) <= 15 and statistics.quantiles(lengths, n=10)[-1] <= 40 and max(lengths) <= 80
    assert statistics.median(definitions) == 1 and statistics.quantiles(definitions, n=10)[-1] <= 3


def test_few_functions_take_many_parameters():
    many = []
    for name in set(MODULES) - {"cli"}:
        for node in ast.walk(ast.parse(file_of(name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                takes = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if len([a for a in takes if a.arg not in ("self", "cls")]) > 6:
                    many.append(f"{name}.{node.name}")
    assert len(many) <= 15, sorted(many)


@pytest.mark.parametrize(
    "page",
    [
        p
        for folder in ("analyses", "effects", "howto", "validation")
        for p in sorted((REPO / "nbs" / folder).glob("*.ipynb"))
    ],
    ids=lambda p: p.stem,
)
def test_pages_are_thin_drivers(page):
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"]).splitlines()
    assert first[0].startswith("# ") and first[2].startswith("> ")
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert not any("#| export" in c or "#| default_exp" in c for c in code)
    assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef) for c in code for n in ast.walk(ast.parse(c)))
    # A page of validation tells of campaigns, which stand elsewhere: it need not test anything.
    assert sum("assert " in c for c in code) >= 2 or page.parent.name == "validation"
    assert not any(o["output_type"] == "error" for c in cells for o in c.get("outputs", []))


@pytest.mark.parametrize("page", sorted((REPO / "nbs" / "effects").glob("*.ipynb")), ids=lambda p: p.stem)
def test_pages_on_effects_show_the_common_figure_first(page):
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    drawing = [c for c in cells if any("image/png" in o.get("data", {}) for o in c.get("outputs", []))]
    first = "".join(drawing[0]["source"])
    assert "show_effect(" in first or "draw_pair(" in first
    assert "**What the pipeline does about it.**" in "".join(cells[-1]["source"])
