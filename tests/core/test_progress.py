"""One bar for everything, with the time left; shown in terminals and in JupyterLab."""

import io
import sys
import time

import pytest

from calami.core.progress import live_html, one_bar, print_above, progress_bar
from calami.process.engine import Engine


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(monkeypatch):
    """What a terminal receives that stands for standard error; as a fixture, it would be replaced by pytest's."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_bar_shows_where_somebody_is_looking(monkeypatch):
    seen = terminal(monkeypatch)
    assert list(progress_bar(range(3), desc="reading")) == [0, 1, 2]
    assert "reading" in seen.getvalue() and "3/3" in seen.getvalue()
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    assert list(progress_bar(range(3), desc="reading")) == [0, 1, 2] and file.getvalue() == ""
    list(progress_bar(range(3), desc="reading", show=True))
    assert "3/3" in file.getvalue()


def test_one_bar_counts_all_stages_and_shows_no_other(monkeypatch):
    seen = terminal(monkeypatch)
    with one_bar({"reading": (2, 1.0), "fitting": (3, 6.0)}, "demo"):
        list(Engine().bar(range(2), desc="reading"))
        with Engine().bar(total=2, desc="fitting") as bar:
            bar.update()
        print_above("a line")
        list(progress_bar(range(5), desc="measuring peaks"))
        with one_bar({"other": (1, 1.0)}, "inner"):
            list(progress_bar(range(2), desc="fitting"))
    text = seen.getvalue()
    assert "demo: reading" in text and "demo: fitting" in text and "a line\n" in text
    assert "measuring" not in text and "inner" not in text
    assert text.split("\r")[-1].startswith("demo 100%") and "left" in text
    assert sum(line.strip() != "" for line in text.split("\n")) == 2  # the line above, and the bar


def test_what_is_there_already_counts_as_done(monkeypatch):
    seen = terminal(monkeypatch)
    with one_bar({"simulating": (6, 1.0), "processing": (6, 4.0)}, "demo"):
        list(progress_bar(range(3), desc="processing"))
        last = seen.getvalue().split("\r")[-1]
        list(progress_bar(range(9), desc="processing"))  # more than was announced
    assert "demo: processing" in last and "100%" not in last
    assert "demo 100%" in seen.getvalue()


def test_a_failure_closes_the_bar(monkeypatch):
    seen = terminal(monkeypatch)
    with pytest.raises(ValueError, match="no"), one_bar({"reading": (2, 1.0)}, "demo"):
        raise ValueError("no")
    assert "100%" not in seen.getvalue()
    list(progress_bar(range(3), desc="reading"))
    assert "3/3" in seen.getvalue()


@pytest.mark.parametrize("named", [True, False])
def test_a_notebook_shows_it_if_a_server_has_named_it(monkeypatch, named):
    import IPython

    class ZMQInteractiveShell:
        pass

    class Handle:
        def update(self, data, raw):
            seen.append(data["text/plain"])

    def display(data, raw, display_id):
        seen.append(data["text/plain"])
        return Handle()

    seen = []
    monkeypatch.setattr(IPython, "get_ipython", ZMQInteractiveShell)
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if named:
        monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/Untitled.ipynb")
    list(progress_bar(range(3), desc="reading"))
    assert bool(seen) == named
    assert not named or ("reading:   0%" in seen[0] and "reading: 100%" in seen[-1] and "3/3" in seen[-1])
    list(progress_bar(range(3), desc="reading", show=False))
    assert bool(seen) == named


@pytest.fixture
def front_end(monkeypatch):
    """What a front end is given to show, in order."""
    import IPython

    class Handle:
        def update(self, html):
            seen.append(html.data)

    def display(html, display_id):
        seen.append(html.data)
        return Handle()

    seen = []
    monkeypatch.setattr(IPython, "get_ipython", type("ZMQInteractiveShell", (), {}))
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/Untitled.ipynb")
    return seen


def test_html_is_made_anew_while_something_runs_and_goes_afterwards(front_end):
    texts = iter(["0", "0", "1", *"2" * 999])
    with pytest.raises(ValueError, match="no"), live_html(lambda: next(texts), every=0.01):
        while front_end[-1] != "2":
            time.sleep(0.01)
        raise ValueError("no")
    assert front_end == ["0", "1", "2", ""]
    with live_html(lambda: "3", show=False):
        pass
    assert front_end[-1] == ""


def test_a_fault_of_what_is_shown_is_none_of_the_work(front_end):
    def faulty():
        if front_end:
            raise OSError("gone")
        return "0"

    with live_html(faulty, every=0.01):
        time.sleep(0.1)
    assert front_end == ["0", ""]
