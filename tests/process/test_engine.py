"""calami.process.engine: processes that end with the program that started them."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import calami

REPO = Path(calami.__file__).resolve().parent
MAKERS = {"ProcessPoolExecutor", "Process", "Pool", "get_context", "fork", "Popen", "spawnv", "posix_spawn"}


def called(path):
    """Last words of all that is called in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", ""))


def test_one_place_makes_processes():
    found = {str(p.relative_to(REPO)): sorted(MAKERS & set(called(p))) for p in REPO.rglob("*.py")}
    assert {k: v for k, v in found.items() if v} == {"process/offline.py": ["ProcessPoolExecutor", "get_context"]}


WORKING = """
import sys
from calami.process.engine import Engine
from calami.process.offline import call_by_name
if __name__ == "__main__":
    with Engine(workers=2).running() as ready:
        for _ in range(4):
            ready.executor.submit(call_by_name, *{work})
        ready.executor.submit(call_by_name, "time:sleep", 60).result()
"""


def children(pid):
    """Processes that a process has started, each with the moment it began, so that a number used again is not it."""
    found = {}
    for folder in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", folder, "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(words[1]) == pid and words[0] != "Z":
            found[int(folder)] = words[19]
    return found


def alive(known):
    """Which of some processes still run."""
    left = []
    for pid, began in known.items():
        try:
            words = Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if words[19] == began and words[0] != "Z":
            left.append(pid)
    return left


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("work", [("time:sleep", 60), ("math:factorial", 3_000_000)])
def test_workers_end_with_the_program(stop, work, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKING.format(work=work))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    program = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while (
            len(children(program.pid)) < 3 and time.monotonic() < deadline
        ):  # two workers and what tracks their memory
            time.sleep(0.02)
        time.sleep(1.5)
        started = children(program.pid)
        assert len(started) >= 3
    finally:
        program.send_signal(stop)
        program.wait()
    deadline = time.monotonic() + 5
    while (left := alive(started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
