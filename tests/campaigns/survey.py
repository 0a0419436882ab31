"""
What a survey costs as it grows: processor time an exposure, memory of the client, a second look, a lost worker.

Small exposures (cal, 80 by 80 pixels) of a star are made under many names, surveyed in a program of their own, and
surveyed again, which measures nothing. ``--kill`` kills one worker of a local Dask cluster in the middle and counts
what was done again. ``--look`` looks twice at a folder of so many files.

    nice python tests/campaigns/survey.py --counts 200,2000
    nice python tests/campaigns/survey.py --counts 48 --kill
    nice python tests/campaigns/survey.py --counts "" --look 10000
    nice python tests/campaigns/survey.py --counts "" --faults 200
    nice python tests/campaigns/survey.py --counts "" --linear 500,1000,2000

``--linear``: what an exposure costs in surveys of so many, processor of client and workers without table and page. The
surveys take turns, and the cheapest of each counts, so that other work on the machine touches all alike.

``--faults``: so many exposures from a stand-in for the archive, half of them with one to three faults in a row (busy,
broken off, cut short, too long, corrupt, a page, gone), fetched by four workers within room for four files. Then again,
when the archive is well. Counted are rows, lines of the ledger, what was fetched twice without need, and the largest
number of bytes on the disc.

It prints and does not judge.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

WORK = """
import json, os, resource, signal, sys, threading, time
from pathlib import Path

def used(who):
    found = resource.getrusage(who)
    return found.ru_utime + found.ru_stime

def kill_one(rows, after):
    while not rows.exists() or rows.read_text().count("\\n") < after:
        time.sleep(0.05)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[1]
            words = Path("/proc", pid, "cmdline").read_text()
        except OSError:
            continue
        if int(parent) == os.getpid() and "spawn_main" in words:
            os.kill(int(pid), signal.SIGKILL)
            return

if __name__ == "__main__":
    from calami.studies.survey import run_survey
    import calami.studies.survey as module
    told = json.loads(sys.argv[1])
    if told["kill"]:
        threading.Thread(target=kill_one, args=(Path(told["out"]) / "rows.jsonl", told["kill"]), daemon=True).start()
    write = module.write_survey
    before = {}
    def written(found, facts):
        before.update(memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, cpu=used(resource.RUSAGE_SELF))
        before["wall"] = time.perf_counter()
        return write(found, facts)
    module.write_survey = written
    began = time.perf_counter()
    found = run_survey(told["folder"], told["out"], progress=False, **told["how"])
    print(json.dumps({
        "rows": len(found.table), "problems": len(found.problems), "wall": time.perf_counter() - began,
        "wall_page": time.perf_counter() - before["wall"],
        "client": used(resource.RUSAGE_SELF), "client_before_page": before["cpu"],
        "workers": used(resource.RUSAGE_CHILDREN), "memory_before_page": before["memory"] / 1024,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }))
"""


def make(folder, count):
    """Write the same small exposure under many names."""
    from toys import fringe_cube, fringe_images, write_exposure

    folder.mkdir()
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 1, seed=1)
    arrays = {"SCI": cube[0].astype("float32"), "ERR": error[0].astype("float32"), "DQ": dq[0]}
    first = write_exposure(folder.parent / "jw01093001001_03102_00001_nis_cal.fits", arrays, {"ROLL_REF": 10.0})
    data = first.read_bytes()
    for number in range(count):
        program = 1093 + number // 500
        name = f"jw{program:05d}{number % 500 // 25 + 1:03d}001_03102_{number % 25 + 1:05d}_nis_cal.fits"
        (folder / name).write_bytes(data)


def survey(folder, out, kill=0, **how):
    """Run it in a program of its own; what it printed."""
    script = out.parent / "work.py"
    script.write_text(WORK)
    told = {"folder": str(folder), "out": str(out), "how": how, "kill": kill}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(told)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def overhead(folder, counts):
    """Processor time of everything but the measuring, ms an exposure, best of three turns."""
    import calami.studies.survey as module
    from calami.dataset import Dataset

    make(folder, max(counts))
    paths = sorted(folder.iterdir())
    row = module.measure_exposure(paths[:1])
    module.measure_exposure = lambda paths, kernel: dict(row)
    best = dict.fromkeys(counts, float("inf"))
    for turn in range(3):
        for count in counts:
            data, out = Dataset(paths[:count]), folder.parent / f"{turn}_{count}"
            module.write_survey = lambda found, facts: found
            began = time.process_time()
            found = module.run_survey(data, out, workers=1, progress=False)
            best[count] = min(best[count], time.process_time() - began)
            assert len(found.table) == count
    return {count: 1e3 * seconds / count for count, seconds in best.items()}


def linear(work, counts, turns, workers):
    """Processor time of an exposure in surveys of so many, s, in turns; for each number of exposures what was found."""
    times = {count: [] for count in counts}
    for count in counts:
        make(work / f"data_{count}", count)
    for turn in range(turns):
        for count in counts:
            out = work / f"out_{turn}_{count}"
            found = survey(work / f"data_{count}", out, workers=workers)
            assert found["rows"] == count and not found["problems"]
            times[count].append((found["workers"] + found["client_before_page"]) / count)
            load = os.getloadavg()[0]
            print(f"{count:6d} exposures: {1e3 * times[count][-1]:.2f} ms an exposure; load {load:.1f}", flush=True)
            shutil.rmtree(out)
    return times


FAULTS = ("503", "429:0", "drop:30000", "shorter", "longer", "corrupt", "page", "no-length:9000", "404")


def faults(folder, count, seed=1):
    """Survey a stand-in for the archive that has faults, then the same when it is well; two lines of counts."""
    import random
    from collections import Counter
    from concurrent.futures import ThreadPoolExecutor
    from urllib.parse import unquote

    from mast_standin import Disc, StandIn, data_set

    import calami.studies.survey as module
    from calami.archive.mast import Patience

    module.write_survey = lambda found, facts: found
    random.seed(seed)
    make(folder, 1)
    (data,) = (path.read_bytes() for path in folder.glob("*.fits"))
    names = [(number % 900 + 1, number // 900 + 2) for number in range(count)]
    with StandIn([(data_set(*name), {"cal": data}) for name in names]) as home:
        for file in home.files:
            if random.random() < 0.5:
                home.faults[file] = random.choices(FAULTS, k=random.randint(1, 3))
        budget, before, wrong_before = 4 * len(data), Counter(), set()
        for turn in ("faults", "well"):
            with ThreadPoolExecutor(4) as pool, Disc(folder.parent / "out" / ".scratch") as disc:
                how = {"budget": budget, "patience": Patience(tries=3, backoff=0.01, longest=0.05), "executor": pool}
                found = module.run_survey(1516, folder.parent / "out", progress=False, **how)
            asked = Counter(unquote(p).rsplit("/", 1)[-1] for _, p, _ in home.requests if "retrieve_product" in p)
            lines = (folder.parent / "out" / "rows.jsonl").read_text().splitlines()
            wrong = {str(row["root"]) for row in found.problems}
            fresh = asked - before if turn == "well" else ()
            again = sum(file.rsplit("_", 1)[0] not in wrong_before for file in fresh)
            roots = len(set(found.table["root"]))
            print(
                f"{turn}: {len(found.table)} rows of {count}, {roots} different, {len(wrong)} with problems; "
                f"{len(lines)} lines; {sum((asked - before).values())} requests, {again} without need; "
                f"most on the disc {disc.most / budget:.3f} of the budget",
                flush=True,
            )
            before, wrong_before = asked, wrong


def look(folder, count):
    """Second look at a folder of many files, best of five: seconds of the clock and of the processor."""
    from toys import age

    from calami.dataset import Dataset

    make(folder, count)
    age(folder)
    Dataset(folder)
    times = []
    for _ in range(5):
        wall, cpu = time.perf_counter(), time.process_time()
        dataset = Dataset(folder)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return len(dataset), min(times)


def main():
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="200,2000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--look", type=int, default=0)
    parser.add_argument("--faults", type=int, default=0)
    parser.add_argument("--linear", default="", help="numbers of exposures, such as 500,1000,2000")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--overhead", default="", help="numbers of exposures, such as 250,500,1000,2000")
    asked = parser.parse_args()
    print(f"{platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}", flush=True)
    for count in map(int, filter(None, asked.counts.split(","))):
        with tempfile.TemporaryDirectory() as work:
            folder, out = Path(work) / "data", Path(work) / "out"
            make(folder, count)
            how = {"workers": asked.workers} | ({"dask": "local"} if asked.kill else {})
            found = survey(folder, out, kill=count // 3 if asked.kill else 0, **how)
            lines = [json.loads(line)["key"] for line in (out / "rows.jsonl").read_text().splitlines()]
            each = (found["workers"] + found["client_before_page"]) / count
            print(
                f"{count:6d} exposures: {found['rows']} rows, {found['problems']} with problems, {len(lines)} lines of "
                f"{len(set(lines))} exposures; {found['wall']:.1f} s, {found['wall_page']:.1f} s of it table and page; "
                f"processor {each:.4f} s an exposure, client {1e3 * found['client_before_page'] / count:.2f} ms of it; "
                f"memory of the client {found['memory_before_page']:.0f} MB, {found['memory']:.0f} MB with the page; "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            again = survey(folder, out, workers=asked.workers)
            print(
                f"{'again':>6}: {again['wall']:.1f} s, of these {again['wall_page']:.1f} s table and page; "
                f"{(out / 'rows.jsonl').read_text().count(chr(10)) - len(lines)} lines more",
                flush=True,
            )
    if asked.linear:
        with tempfile.TemporaryDirectory() as work:
            counts = [int(count) for count in asked.linear.split(",")]
            best = {n: min(t) for n, t in linear(Path(work), counts, asked.turns, asked.workers).items()}
            ratios = ", ".join(f"{n}: {1e3 * t:.2f} ms ({t / best[counts[0]]:.3f})" for n, t in best.items())
            print(f"cheapest of {asked.turns} turns, over that of {counts[0]}: {ratios}")
    if asked.overhead:
        with tempfile.TemporaryDirectory() as work:
            found = overhead(Path(work) / "data", [int(count) for count in asked.overhead.split(",")])
            print("; ".join(f"{count}: {each:.3f} ms" for count, each in found.items()), "an exposure beside measuring")
    if asked.faults:
        with tempfile.TemporaryDirectory() as work:
            faults(Path(work) / "data", asked.faults)
    if asked.look:
        with tempfile.TemporaryDirectory() as work:
            count, (wall, cpu) = look(Path(work) / "data", asked.look)
            print(f"second look at {count} files: {wall:.3f} s, processor {cpu:.3f} s; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
