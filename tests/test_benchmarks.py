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
