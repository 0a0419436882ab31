"""How long a person looks at an empty frame: views in JupyterLab, from Shift+Enter to a painted canvas.

    python tests/benchmarks/bench_views.py [ROUNDS] [FOLDER]

It needs playwright with a Chromium, as the test of the views does, and an idle machine: kernel, server and browser
share its processors. Each round opens a page and a kernel of its own for every line; the lines take turns, and the
median of ROUNDS (3) is printed. The peers are figures of ipympl with nothing in them: three panels, of the size of the
ramps, and two, a little smaller than the companion; ipympl's own canvas draws them more than once. Columns: the time of
the cell as the kernel measures it, and what is seen, both for the first figure of a kernel and page and for the second;
and for our views the answer to a click on their first panel, from the click to other pixels.
"""

import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lab import browser, jupyterlab, open_notebook, when_idle, write_notebook
from toys import rootname, write_star

#: The kernel's time of each cell goes into a file.
CLOCK = """
import json, time
from pathlib import Path
began, took = [], []
def begin(info): began.append(time.perf_counter())
def end(result):
    took.append(time.perf_counter() - began[-1] if began else 0)
    Path("took.json").write_text(json.dumps(took))
get_ipython().events.register("pre_run_cell", begin)
get_ipython().events.register("post_run_cell", end)
"""
OURS = """
from calami import Dataset
from calami.widgets import blink, explore
from calami.fringes.observables import point_source
ds = Dataset("data")
one, two = (ds[root] for root in ds.rootlist[:2])
ramps, star = next(ds[root] for root in ds.rootlist if "uncal" in ds.types(root)), point_source("F480M", 1e8)
"""
PLAIN = """
import matplotlib
matplotlib.use("module://ipympl.backend_nbagg")
import matplotlib.pyplot as plt
plt.ioff()
plt.subplots()[0].canvas.draw()
plt.close("all")
"""
#: Name, preparation, and what a cell shows.
LINES = {
    "one empty panel, by ipympl": (PLAIN, "plt.subplots()[0].canvas"),
    "pair": (OURS, "blink(one, two)"),
    "three empty panels": (PLAIN, "plt.subplots(1, 3, figsize=(11.9, 3.7), dpi=90)[0].canvas"),
    "ramps": (OURS, "ramps.explore(kernel='flight', thresholds=(12_000,))"),
    "two empty panels": (PLAIN, "plt.subplots(1, 2, figsize=(9.5, 3.4), dpi=90)[0].canvas"),
    "companion": (OURS, "explore(star, start=(150, 70, 6))"),
}
#: In the page: when the canvas of the cell that was run, or clicked, shows other pixels than before.
WATCH = """() => {
  const seen = () => {
    const cell = document.querySelectorAll('.jp-Notebook .jp-Cell')[watched.cell];
    const canvas = cell.querySelector('.jupyter-widgets canvas');
    if (!canvas || !canvas.width || !canvas.height) return 0;
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let hash = 0;
    for (let i = 3; i < data.length; i += 4 * 37)
      if (data[i]) hash = (31 * hash + data[i - 1] + 256 * data[i - 3] + 1) | 0;
    return hash;
  };
  window.watched = {cell: 1, from: null, before: 0, after: null};
  const begin = () => { if (watched.from === null) { watched.from = performance.now(); watched.before = seen(); } };
  document.addEventListener('keydown', e => { if (e.key === 'Enter' && e.shiftKey) begin(); }, true);
  document.addEventListener('mousedown', begin, true);
  const look = () => {
    if (watched.from !== null && watched.after === null && seen() !== watched.before)
      watched.after = performance.now() - watched.from;
    requestAnimationFrame(look);
  };
  look();
}"""


def seconds(page, act, cell):
    """From what is done to what is seen of it."""
    page.evaluate(f"() => Object.assign(watched, {{cell: {cell}, from: null, after: null}})")
    act()
    page.wait_for_function("() => watched.after !== null", timeout=60_000)
    return page.evaluate("watched.after") / 1e3


def measured(play, address, place, line):
    """One line in a kernel and a page of its own."""
    before, call = LINES[line]
    (place / "took.json").unlink(missing_ok=True)
    write_notebook(place / "line.ipynb", [CLOCK + before, f"first = {call}\nfirst", f"second = {call}\nsecond", "0"])
    page = play.new_context(viewport={"width": 1500, "height": 1800}).new_page()
    open_notebook(page, address, "line.ipynb")
    page.locator(".jp-Notebook .jp-Cell").first.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    page.wait_for_timeout(1000)
    when_idle(page)
    page.wait_for_timeout(4000)  # what is made ready when the kernel is idle
    page.evaluate(WATCH)
    found = []
    for cell in (1, 2):
        found.append(seconds(page, lambda: page.keyboard.press("Shift+Enter"), cell))
        page.wait_for_timeout(3000)
    box = page.locator(".jp-Notebook .jp-Cell").nth(2).locator(".jupyter-widgets canvas").last.bounding_box()
    answer = None
    if before == OURS and "explore(star" not in call:  # no click on a plot of visibilities changes anything
        place_of = box["x"] + 0.15 * box["width"], box["y"] + 0.45 * box["height"]
        answer = seconds(page, lambda: page.mouse.click(*place_of), 2)
    page.context.close()
    kernel = json.loads((place / "took.json").read_text())[-2:]
    return [*kernel, *found, answer]


def main(rounds, place):
    """Print the table."""
    from calami.simulate.exposures import Instrument, simulate_exposure
    from calami.simulate.plans import ready_plan

    (place / "data").mkdir(parents=True)
    for number, groups in ((1, 5), (2, 13)):
        path = place / "data" / f"{rootname(1, number)}_rate.fits"
        write_star(path, groups, seed=number, edge=2e-6, NINTS=60)
    simulate_exposure(ready_plan("1516", "demo").exposures[1], place / "data", Instrument.default(1, "flight"), seed=1)
    rows = {line: [] for line in LINES}
    with jupyterlab(place) as address, browser() as play:
        for _ in range(rounds):
            for line in LINES:
                rows[line].append(measured(play, address, place, line))
    print(f"{'seconds':28s}{'cell, kernel':>14s}{'second':>8s}{'seen':>8s}{'second':>8s}{'click':>8s}")
    for line, values in rows.items():
        middle = [statistics.median(v) if None not in v else None for v in zip(*values, strict=True)]
        words = "".join(
            f"{'' if v is None else format(v, '.2f'):>{n}s}" for v, n in zip(middle, (14, 8, 8, 8, 8), strict=True)
        )
        print(f"{line:28s}{words}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        folder = tempfile.mkdtemp()
        try:
            main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, Path(folder) / "lab")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
