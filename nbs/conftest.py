"""Let plain `pytest` test the package with the cells of the notebooks.

Each notebook gives a test `cells`, or, if it has cells flagged `#| shared` and the shared data are at hand, `shared`
(all of `cells` and those), and `slow` (also those flagged `#| slow`). Cells that export code are not run: the names of
the exported module are put in their place, so what is tested is the package as installed. (`nbdev-test` runs the cells
as written.)
"""

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from pathlib import Path

import pytest
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb
from nbdev.test import nb_test_cells

HERE = Path(__file__).resolve().parent
EXPORTS = ["export", "exporti", "exports"]
#: Folders whose pages `nbdev-test` does not run in `.ci/run`; it runs the cells of all others as written.
PAGES_ONLY = {"analyses", "effects", "howto", "validation"}
#: Pages that work out again what real exposures say, that process exposures as tests do, or that draw much: about ten
#: seconds each where the machine is slow, and more. They run with --run-slow.
LONG_PAGES = {
    "abdor_c", "correction_1093", "flight_preset", "migration_1093", "wr137", "jwst_ami_defects",
    "a_quickstart", "what_was_done", "rearrange", "dice_and_slice",
    "a_mask_filter", "c_pistons", "d_companions_discs", "g_nonlinearity", "h_noise", "i_one_over_f", "j_flat_dark_bad",
}  # fmt: skip
#: Pages whose cells that need the shared data take as long; the other cells are always run.
LONG_SHARED = {
    "02_optics", "16_audit", "07_pairsfile", "05_level1b", "11_references", "01_reading", "06_view", "10_report",
}  # fmt: skip
# What each test leaves out, besides the cells that export.
SKIPS = {"cells": ["notest", "slow", "shared"], "shared": ["notest", "slow"], "slow": ["notest"]}

NO_SHARED = "needs the shared data: ../shared next to the checkout, or CALAMI_SHARED naming it"


def pytest_addoption(parser):
    # tests/conftest.py has the same option, so that either folder can be tested alone.
    with contextlib.suppress(ValueError):
        parser.addoption("--run-slow", action="store_true", help="also run what is marked slow")


def pytest_collect_file(file_path, parent):
    inside = file_path.relative_to(HERE).parts
    if file_path.suffix == ".ipynb" and not any(part.startswith(("_", ".")) for part in inside):
        return Notebook.from_parent(parent, path=file_path)
    return None


def shared_is_missing():
    shared = Path(os.environ.get("CALAMI_SHARED", HERE.parent.parent / "shared"))
    return not (shared / "data" / "jw01093").is_dir()


class Notebook(pytest.File):
    def exports(self, flags):
        return self.path.parent.name not in PAGES_ONLY and bool(flags & set(EXPORTS))

    def put_off(self, name):
        page = self.path.stem
        long = name == "slow" or page in LONG_PAGES or (name == "shared" and page in LONG_SHARED)
        return long and not self.config.getoption("--run-slow")

    def collect(self):
        cells = read_nb(self.path).cells
        flags = {flag for cell in cells if cell.cell_type == "code" for flag in cell.directives}
        for name in SKIPS:
            if name != "cells" and name not in flags:
                continue
            if name == "cells" and "shared" in flags and not (shared_is_missing() or self.put_off("shared")):
                continue  # `shared` runs these too
            if name == "cells" and os.environ.get("CALAMI_CELLS") == "as written" and self.exports(flags):
                continue  # the step of .ci/run that runs the same cells as written follows
            item = NotebookCells.from_parent(self, name=name)
            if name != "cells":
                item.add_marker(name)
            if self.put_off(name):
                item.add_marker(pytest.mark.skip(reason="slow: give --run-slow to run these cells"))
            elif name != "cells" and "shared" in flags and shared_is_missing():
                item.add_marker(pytest.mark.skip(reason=NO_SHARED))
            yield item


class CellError(Exception):
    """A cell failed; the message is the report."""


class NotebookCells(pytest.Item):
    def reportinfo(self):
        return self.path, 0, f"{self.path.relative_to(HERE)}: {self.name}"

    def repr_failure(self, excinfo, style=None):
        if isinstance(excinfo.value, CellError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def runtest(self):
        numbers = {c.id: n for n, c in enumerate(code_cells(self.path), 1)}
        # The shell adds a filter that would let DeprecationWarning pass in cells, and a folder to sys.path.
        with contextlib.chdir(self.path.parent), keep(sys.path), warnings.catch_warnings():
            filters = warnings.filters[:]
            shell = CaptureShell(self.path)
            warnings.filters[:] = filters
            try:
                draw_once(shell)
                shell.user_ns.update(exported_names(self.path))
                for cell in nb_test_cells(self.path, SKIPS[self.name] + EXPORTS):
                    outputs = shell.run(cell.source)
                    if shell.exc is not None:
                        raise CellError(self.report(cell, numbers[cell.id], outputs, shell.exc)) from None
            finally:
                shell.close()
                shell.loop.close()
                if "matplotlib.pyplot" in sys.modules:
                    sys.modules["matplotlib.pyplot"].close("all")

    def report(self, cell, number, outputs, error):
        text = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")
        # Frames above the cell's own are the machinery that ran it.
        tb = error.__traceback__
        while tb and "<ipython-input" not in tb.tb_frame.f_code.co_filename:
            tb = tb.tb_next
        lines = traceback.format_exception(type(error), error, tb or error.__traceback__)
        head = f"code cell {number} (id {cell.id}) of {self.path.relative_to(HERE.parent)} failed"
        printed = f"\n--- printed by the cell\n{text}" if text else ""
        return f"{head}\n\n{cell.source}\n{printed}\n--- error\n{''.join(lines)}"


def code_cells(path):
    return [c for c in read_nb(path).cells if c.cell_type == "code"]


def exported_names(path):
    """All names of the module that a notebook exports, private and imported ones too."""
    modules = [c.directives["default_exp"] for c in code_cells(path) if "default_exp" in c.directives]
    if not modules:
        return {}
    module = importlib.import_module(f"calami.{modules[0]}")
    own = vars(importlib.import_module("calami")).keys() - {"__version__"}  # __name__, __file__ and the like
    return {name: value for name, value in vars(module).items() if not (name.startswith("__") and name in own)}


def draw_once(shell):
    """Draw figures, so that what is wrong with them is found, but make no picture, which takes two more drawings."""
    from matplotlib.figure import Figure

    def draw(figure):
        if figure.stale:
            figure.canvas.draw()

    shell.display_formatter.formatters["image/png"].for_type(Figure, draw)


@contextlib.contextmanager
def keep(items):
    """Put a list back as it was."""
    before = items[:]
    try:
        yield
    finally:
        items[:] = before
