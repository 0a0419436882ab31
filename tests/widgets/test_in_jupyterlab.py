"""The views in a real JupyterLab: a click in the browser comes back as a value in Python.

It needs playwright with a Chromium (`pip install playwright`, and CALAMI_CHROMIUM naming the browser if it is not
playwright's own), and takes about a minute; without them it is skipped. With CALAMI_PICTURES naming a folder, it leaves
a picture of every view there.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from lab import browser, jupyterlab, open_notebook, write_notebook
from toys import rootname, write_star

pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")
pytest.importorskip("itables")

CELLS = [
    "import json, time, numpy as np\nfrom pathlib import Path\nfrom calami import Dataset\n"
    "from calami.widgets import blink, explore\nds = Dataset('data')\n"
    "from calami.core.progress import one_bar, progress_bar\n"
    "with one_bar({'reading': (2, 1), 'fitting': (3, 2)}, 'demo'):\n"
    "    for _ in [*progress_bar(range(2), desc='reading'), *progress_bar(range(3), desc='fitting')]:\n"
    "        time.sleep(0.05)",
    "pair = blink(ds['a'], ds['b'])\npair",
    "ramps = ds['a'].explore()\nramps",
    "folder = ds.explore('mine.txt')\nfolder",
    "from calami.fringes.observables import point_source\n"
    "companion = explore(point_source('F480M', 1e8), start=(150, 70, 6))\ncompanion",
    "1 / 0 if False else ds['none']",
]
#: What the browser does to a view, and what Python must say then.
ASKED = (
    "Path('state.json').write_text(json.dumps({'pair': pair.what.value, 'pixel': ramps.pixel, "
    "'pair_pixel': pair.pixel, 'selected': folder.selection.rootlist, 'separation': companion.separation.value, "
    "'words': companion.readout.value}))"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a notebook and two exposures."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "data").mkdir()
    cards = {"NINTS": 60}
    write_star(folder / "data" / f"{rootname(1, 1)}_rate.fits", 5, seed=1, edge=2e-6, **cards)
    write_star(folder / "data" / f"{rootname(1, 2)}_rate.fits", 13, seed=2, edge=2e-6, **cards)
    sources = [CELLS[0] + f"\nPath('names.txt').write_text('a {rootname(1, 1)}\\nb {rootname(1, 2)}\\n')\n", *CELLS[1:]]
    sources[0] += "ds.create_mapping('names.txt');"
    write_notebook(folder / "views.ipynb", sources)
    return folder


@pytest.fixture(scope="module")
def server(place):
    """JupyterLab on loopback."""
    with jupyterlab(place) as address:
        yield address


@pytest.fixture(scope="module")
def page(server):
    """JupyterLab in a browser, with all that was asked of the network and said in the console."""
    with browser() as play:
        opened = play.new_context(viewport={"width": 1500, "height": 2600}).new_page()
        opened.asked, opened.errors = [], []
        opened.on("request", lambda r: opened.asked.append(r.url))
        opened.on("console", lambda m: opened.errors.append(m.text) if m.type == "error" else None)
        open_notebook(opened, server, "views.ipynb")
        yield opened


def picture(page, name):
    if os.environ.get("CALAMI_PICTURES"):
        page.screenshot(path=Path(os.environ["CALAMI_PICTURES"]) / f"{name}.png")


def menu(page, *items):
    page.locator(f'.lm-MenuBar-itemLabel:has-text("{items[0]}")').first.click()
    page.locator(f'.lm-Menu-itemLabel:text-is("{items[1]}")').first.click()


def state(page, place):
    """What Python says of the views."""
    (place / "state.json").unlink(missing_ok=True)
    page.locator(".jp-Notebook .jp-Cell").last.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.type(ASKED)
    page.keyboard.press("Control+Enter")
    for _ in range(100):
        if (place / "state.json").exists():
            return json.loads((place / "state.json").read_text())
        page.wait_for_timeout(100)
    raise AssertionError("the kernel did not answer")


def canvas_of(page, number):
    return page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".jupyter-matplotlib-canvas-div canvas").last


def test_views_answer_clicks(page, server, place):
    menu(page, "Run", "Run All Cells")
    canvas_of(page, 4).wait_for(timeout=60_000)
    page.wait_for_timeout(1500)
    picture(page, "views")
    cell = page.locator(".jp-Notebook .jp-Cell")
    cell.nth(5).locator(".jp-OutputArea-output").first.wait_for(timeout=60_000)  # a view is shown before it is drawn
    fault = " ".join(cell.nth(5).locator(".jp-OutputArea-output").all_inner_texts())
    assert "no exposure is called 'none'" in fault and "Traceback" not in fault
    bar = " ".join(cell.nth(0).locator(".jp-OutputArea-output").all_inner_texts())
    assert "demo 100%" in bar and bar.rstrip().endswith("left") and bar.count("%") == 1
    cell.nth(1).locator('button:has-text("difference")').click()
    where = canvas_of(page, 2).bounding_box()
    page.mouse.click(where["x"] + 0.16 * where["width"], where["y"] + 0.40 * where["height"])
    row = cell.nth(3).locator("tbody tr:visible").nth(1)
    row.wait_for(timeout=60_000)
    row.click()
    cell.nth(3).locator(".widget-text input").fill("deep_one")
    cell.nth(3).locator(".widget-text input").press("Tab")
    cell.nth(3).locator('button:has-text("name it")').click()
    slider = cell.nth(4).locator(".noUi-handle").first
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(800)
    said = state(page, place)
    picture(page, "clicked")
    assert said["pair"] == "difference" and said["selected"] == [rootname(1, 2)]
    assert said["pixel"] != [40, 45] and said["separation"] > 150
    assert "χ²" in said["words"] and (place / "mine.txt").read_text() == f"deep_one  {rootname(1, 2)}\n"
    away = [u for u in page.asked if not u.startswith((server, "data:", "blob:", "ws:"))]
    assert not away and not [e for e in page.errors if "favicon" not in e]


def test_saved_and_reopened_without_a_kernel(page, server, place):
    """What is left of a view is its static form: a picture, and no line that says it was not found."""
    page.keyboard.press("Control+s")
    page.wait_for_timeout(1500)
    opened = page.context.new_page()
    shutil.copy(place / "views.ipynb", place / "again.ipynb")
    opened.goto(f"{server}/lab/tree/again.ipynb?reset", timeout=120_000)
    opened.wait_for_selector(".calami-static img", timeout=60_000)
    opened.wait_for_timeout(3000)
    picture(opened, "reopened")
    assert opened.locator(".calami-static img").first.is_visible()
    assert "model not found" not in opened.locator(".jp-Notebook").inner_text()
