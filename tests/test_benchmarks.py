"""`python -m tests.benchmarks`, and the page of its last figures."""

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def test_the_page_has_the_last_figures():
    before = (REPO / "nbs" / "validation" / "benchmarks.ipynb").read_text(encoding="utf-8")
    words = [sys.executable, "-m", "tests.benchmarks", "--last"]
    try:
        said = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=True).stdout
        after = (REPO / "nbs" / "validation" / "benchmarks.ipynb").read_text(encoding="utf-8")
    finally:
        (REPO / "nbs" / "validation" / "benchmarks.ipynb").write_text(before, encoding="utf-8")
    text = ["".join(cell["source"]) for cell in json.loads(before)["cells"]]
    assert text == ["".join(cell["source"]) for cell in json.loads(after)["cells"]], (
        "run python -m tests.benchmarks --last"
    )
    known = json.loads((REPO / "tests" / "benchmarks" / "last.json").read_text(encoding="utf-8"))
    assert len(said.splitlines()) > len(known) and all(name in said for name in known)


def test_simulated_workers_wait_for_their_jobs_and_for_the_one_client():
    sys.path.insert(0, str(REPO / "tests" / "benchmarks"))
    try:
        from bench_dask import Overheads, simulate
    finally:
        sys.path.pop(0)
    nothing = Overheads(0.0, 0.0, 0.0)
    assert simulate(1, [2.0] * 10, nothing) == 20 and simulate(5, [2.0] * 10, nothing) == 4
    assert simulate(2, [3.0, 1.0, 1.0, 1.0], nothing) == 3
    slow = Overheads(client=0.5, sending=0.0, start=7.0)
    assert simulate(1, [2.0] * 10, slow) == 7 + 0.5 + 20  # what waits at the worker is sent while it works
    assert simulate(100, [2.0] * 10, slow) == 7 + 10 * 0.5 + 2  # no faster than the client sends
