"""calami.process.engine: processes that end with the program that started them."""

import ast
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from toys import variants

import calami
from calami.core.problems import CalamiError
from calami.process.engine import Engine, LostWorker

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
    from multiprocessing import forkserver
    forkserver.set_forkserver_preload([])  # nothing is imported ahead
    forkserver.ensure_running()
    with Engine(workers=2).running(jwst={jwst}) as ready:
        for _ in range(4):
            ready.executor.submit(call_by_name, *{work})
        ready.executor.submit(call_by_name, "time:sleep", 60).result()
"""


CARDS = """
import sys
from calami.process.engine import Engine
from calami.process.offline import call_by_name
if __name__ == "__main__":
    with Engine(workers=1).running(jwst=False) as ready:
        header = ready.executor.submit(call_by_name, "astropy.io.fits:getheader", sys.argv[1], "sci").result()
        print(header["LONG"] + "|" + str(header["DP1.AXIS"]) + "|" + header["PAD"] + "|")
"""


def test_workers_read_headers_as_everyone_does(tmp_path):
    from astropy.io import fits

    table = fits.ImageHDU(name="SCI")
    table.header["LONG"], table.header["PAD"] = "a text " * 20, "padded   "
    table.header.append(("DP1", "AXIS: 2"))
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "x.fits")
    header = fits.getheader(tmp_path / "x.fits", "sci")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", CARDS, str(tmp_path / "x.fits")], capture_output=True, text=True
    )
    assert run.stdout == f"{header['LONG']}|{header['DP1.AXIS']}|{header['PAD']}|\n", run.stderr


def children(pid):
    """Processes below a process, each with the moment it began, so that a number used again is not it."""
    found = {}
    for folder in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", folder, "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(words[1]) == pid and words[0] != "Z":
            found |= {int(folder): words[19], **children(int(folder))}
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
@pytest.mark.parametrize(
    ("work", "jwst"),
    variants((("math:factorial", 3_000_000), False), (("time:sleep", 60), False), (("time:sleep", 60), True)),
)
def test_workers_end_with_the_program(stop, work, jwst, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKING.format(work=work, jwst=jwst))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    program = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while (
            len(children(program.pid)) < 4 and time.monotonic() < deadline
        ):  # two workers, what tracks their memory, and what forks
            time.sleep(0.02)
        time.sleep(1.5)
        started = children(program.pid)
        assert len(started) >= 4
    finally:
        program.send_signal(stop)
        program.wait()
    deadline = time.monotonic() + 5
    while (left := alive(started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


FORKED = """
import os
import resource
import sys
from multiprocessing import forkserver
from calami.core.ahead import import_ahead
from calami.process.engine import Engine
from calami.process.offline import call_by_name
if __name__ == "__main__":
    if "ahead" in sys.argv:
        import_ahead()
    else:
        forkserver.set_forkserver_preload(["numpy"])
        forkserver.ensure_running()
    os.environ["SAID_LATER"] = "yes"
    resource.setrlimit(resource.RLIMIT_FSIZE, (123456, resource.RLIM_INFINITY))
    for _ in range(2):
        with Engine(workers=1).running(jwst=True) as ready:
            ask = lambda *what: ready.executor.submit(call_by_name, *what).result()
            facts = ask("os:getenv", "SAID_LATER"), ask("os:getenv", "CALAMI_IMPORTS_AHEAD"), ask("numpy:random.rand")
            limit = ask("resource:getrlimit", resource.RLIMIT_FSIZE)[0]
            there = "jwst.pipeline" in ask("builtins:eval", "list(__import__('sys').modules)")
            print(*facts, there, ask("os:getppid"), limit)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks on Linux only")
@pytest.mark.parametrize("ahead", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_forked_workers_take_over_what_was_said_later_and_have_random_numbers_of_their_own(ahead, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FORKED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(script), *(["ahead"] if ahead else [])]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = (line.split() for line in said.stdout.splitlines())
    assert first[:2] == second[:2] == ["yes", "None"] and first[2] != second[2]
    assert (first[3], second[3]) == (str(ahead), str(ahead)) and first[4:] == second[4:]
    assert first[5] == "123456"
    assert said.stderr == "" and not Path("/proc", first[4]).exists()  # it has ended with the program


# ---- Many jobs


JOBS = """
import os
import time
from pathlib import Path

def work(job):
    folder, name = job
    with (Path(folder) / "began").open("a") as file:
        file.write(f"{name} {os.getpid()}\\n")
    time.sleep(1.0 if name == "victim" else 0.1)  # results of earlier jobs have left the worker by then
    if name == "deadly" or (name == "victim" and not (Path(folder) / "killed").exists()):
        (Path(folder) / "killed").touch()
        os.kill(os.getpid(), 9)
    if name == "wrong":
        raise ValueError("wrong")
    return name.upper()
"""

ENGINES = [pytest.param({"workers": 2}, id="processes"), pytest.param({"workers": 2, "dask": "local"}, id="dask")]


def needs_dask(how):
    if "dask" in how and find_spec("distributed") is None:
        pytest.skip("needs dask[distributed], the extra 'dask'")


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    (tmp_path / "working.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda *names: [(str(tmp_path), name) for name in names]


@pytest.mark.parametrize("how", ENGINES)
def test_a_worker_that_is_killed_in_the_middle_costs_one_job(how, jobs, tmp_path):
    needs_dask(how)
    names = [*"abcd", "victim", *"efgh", "wrong"]
    with socket.socket() as taken:
        with contextlib.suppress(OSError):
            taken.bind(("", 8787))  # where another cluster has its page
            taken.listen()
        found = list(Engine(**how).each("working:work", jobs(*names)))
    assert sorted(name for (_, name), _ in found) == sorted(names)  # nothing lost, nothing twice
    results = {name: result for (_, name), result in found}
    assert isinstance(results.pop("wrong"), ValueError)
    assert results == {name: name.upper() for name in results}
    began = [line.split()[0] for line in (tmp_path / "began").read_text().splitlines()]
    assert began.count("victim") == 2
    assert len(began) <= len(names) + (1 if "dask" in how else 3)  # a pool of processes breaks as a whole


@pytest.mark.parametrize("how", ENGINES[:1])
def test_a_job_that_kills_its_workers_stops_nothing_else(how, jobs):
    found = dict(Engine(**how).each("working:work", jobs("a", "deadly", "b", "c")))
    assert {name: result for (_, name), result in found.items() if name != "deadly"} == {"a": "A", "b": "B", "c": "C"}
    assert [type(r) for (_, name), r in found.items() if name == "deadly"] == [LostWorker]


def test_jobs_are_taken_when_there_is_a_worker_for_them():
    taken = []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    with ThreadPoolExecutor(2) as pool:
        for job, result in Engine(executor=pool).each("math:sqrt", endless()):
            assert result == job**0.5 and len(taken) <= job + 8
            if job > 50:
                break


def test_a_job_waits_until_it_may_start():
    room, most = [], []

    def may_start(job):
        most.append(len(room))
        return len(room) < 2

    def begun():
        for number in range(20):
            room.append(number)
            yield number

    with ThreadPoolExecutor(8) as pool:
        for job, _ in Engine(executor=pool).each("math:sqrt", begun(), may_start=may_start):
            room.remove(job)
    assert max(most) <= 3


def test_a_cluster_that_is_not_there_is_named():
    needs_dask({"dask": ""})
    with pytest.raises(CalamiError, match="no Dask scheduler answers at nowhere"), Engine(dask="nowhere").running():
        pass


def test_workers_of_a_local_cluster_keep_their_memory():
    """Dask would let them give back each array that is freed, and ask for it again."""
    needs_dask({"dask": "local"})
    names = ["MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS"]
    with Engine(workers=1, dask="local", progress=False).running() as ready:
        found = dict(ready.each("os:getenv", names))
    assert found == {names[0]: os.environ.get(names[0]), names[1]: "1"}
