"""24 exposures on a Dask cluster of one worker and of two: what computing gains, and where the rest of the time goes.

    python tests/benchmarks/bench_dask.py                  # 24 raw exposures through detector1, and fits of 24 cubes
    python tests/benchmarks/bench_dask.py --work fit --rounds 3
    python tests/benchmarks/bench_dask.py --simulate       # 16 and 256 workers, from overheads that were measured

Clusters of one and of two workers stand next to each other and take turns; the shortest time of each counts. Before
anything is measured, each worker has done two jobs (imports, references). Printed are, of the clock,

- *gain*: the time of one worker over that of two, all overheads included; wanted is 1.8
- *computing*: what a job takes in its worker with one at work, over what it takes with two (memory and caches that are
  shared, processors that are busy): the most that two workers can gain is twice that
- *overhead*: what is left of a job's time beside its computing: sending, waiting, receiving
- the *start* of a cluster with its first jobs, and the processor of client and scheduler for a job that does nothing

It means something on an idle machine only: the load before is shown. ``--simulate`` works off the archive with any
number of workers from such overheads: jobs wait for their worker, and for the one client that sends them.
"""

import argparse
import functools
import heapq
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


@functools.cache
def star():
    """A cube of a star, made once in each process."""
    from toys import fringe_cube, fringe_images

    return fringe_cube(fringe_images("F480M", seed=1, size=69), 60, seed=1)


def work(job):
    """Wait for half a second, or fit the fringes of a cube some times; what comes back is one number."""
    load, number = job
    if load == "wait":
        time.sleep(0.5)
        return number
    from calami.fringes.fitting import fit

    cube, error, dq = star()
    for _ in range(2):
        found = fit(cube, error=error, dq=dq, filter="F480M", scale=65.6)
    return float(found.v2.mean())


def timed_work(job):
    """The same; seconds of the clock and of the processor that it took in its worker."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(job)
    return time.perf_counter() - wall, time.process_time() - cpu


class Run(NamedTuple):
    """What a number of jobs took: of the clock in all, and each in its worker, s."""

    wall: float
    jobs: list


def fits_of(engine, count):
    """Fit cubes."""
    began = time.perf_counter()
    jobs = [found[0] for _, found in engine.each("bench_dask:timed_work", [("pixels", k) for k in range(count)])]
    return Run(time.perf_counter() - began, jobs)


def raw_of(engine, paths, out):
    """Process raw exposures."""
    from calami.process.pipeline import pipe_data

    began = time.perf_counter()
    run = pipe_data(paths, "detector1", None, out, engine=engine, products="rate").raise_failures()
    return Run(time.perf_counter() - began, [outcome.seconds for outcome in run.outcomes])


def compare(name, runs, rounds, seconds_wanted=1.8):
    """Let both clusters work in turns, and print the line of the best."""
    best = {}
    for turn in range(rounds):
        for count, run in runs.items():
            found = run(turn)
            if count not in best or found.wall < best[count].wall:
                best[count] = found
    one, two = best[1], best[2]
    each = {count: statistics.mean(best[count].jobs) for count in best}
    overhead = {count: 1e3 * (best[count].wall * count / len(best[count].jobs) - each[count]) for count in best}
    gain = one.wall / two.wall
    print(
        f"{name}: {len(one.jobs)} exposures, one worker {one.wall:.2f} s, two {two.wall:.2f} s: gain {gain:.3f}"
        f"{'' if gain >= seconds_wanted else ' (missed)'}; computing {each[1] / each[2]:.3f} (a job {each[1]:.3f} s "
        f"with one at work, {each[2]:.3f} s with two); overhead {overhead[1]:.0f} and {overhead[2]:.0f} ms a job",
        flush=True,
    )


def measure(asked):
    """Start both clusters, and compare."""
    from bench_pipeline import make_exposures

    from calami.process import references
    from calami.process.engine import Engine

    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, load before {os.getloadavg()[0]:.1f}")
    with ExitStack() as stack:
        folder, engines = Path(stack.enter_context(tempfile.TemporaryDirectory())), {}
        cache = references.default_cache()
        paths = make_exposures(folder / "raw", asked.n, 12, 20) if asked.work != "fit" else []
        for count in (1, 2):
            began = time.perf_counter()
            how = {"cache": cache, "workers": count, "progress": False, "dask": "local"}
            engines[count] = engine = stack.enter_context(Engine(**how).running())
            if asked.work != "pipe":
                fits_of(engine, 2 * count)
            if paths:
                raw_of(engine, paths[: 2 * count], folder / f"first{count}")
            cpu, many = time.process_time(), 200
            started = time.perf_counter() - began
            list(engine.each("time:sleep", [0.0] * many))
            used = 1e3 * (time.process_time() - cpu) / many
            print(f"{count} worker(s): start {started:.1f} s; client and scheduler {used:.2f} ms a job", flush=True)
        if asked.work != "pipe":
            compare("fits", {n: lambda turn, e=e: fits_of(e, asked.n) for n, e in engines.items()}, asked.rounds)
        if paths:
            raw = {n: lambda turn, n=n, e=e: raw_of(e, paths, folder / f"{n}-{turn}") for n, e in engines.items()}
            compare("detector1", raw, asked.rounds)


class Overheads(NamedTuple):
    """What a job costs besides its computing, s."""

    client: float  # of the one client and scheduler, for each job
    sending: float = 0.002  # from there to the worker, and back
    start: float = 3.0  # of the cluster, with its imports


def simulate(workers, jobs, overheads):
    """How long jobs (seconds each) take on so many workers, s: each has one job waiting, and one client serves all."""
    free = [(overheads.start, 0.0)] * workers  # when a worker ends its last job, and the one before
    heapq.heapify(free)
    client = overheads.start
    for seconds in jobs:
        last, before = heapq.heappop(free)
        client = max(client, before) + overheads.client  # not sooner than one of its two places is free
        heapq.heappush(free, (max(last, client + overheads.sending) + seconds, last))
    return max(last for last, _ in free) + overheads.sending


def extrapolate(asked):
    """Print what the archive takes."""
    overheads = Overheads(asked.client / 1e3)
    kinds = {"images": asked.image, "fits of 7,000 integrations": asked.fit, "raw, 7,000 integrations": asked.raw}
    for name, seconds in kinds.items():
        for workers in asked.workers:
            took = simulate(workers, [seconds] * asked.archive, overheads)
            share = seconds * asked.archive / workers / took
            print(
                f"{asked.archive} {name}, {seconds:g} s each, {workers} workers: {took:.1f} s, efficiency {share:.3f}, "
                f"{1e3 * took * workers / asked.archive:.0f} ms of a worker an exposure"
            )


def main():
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=("fit", "pipe", "both"), default="both")
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--archive", type=int, default=1500, help="exposures")
    parser.add_argument("--workers", type=json.loads, default=[1, 2, 16, 256])
    parser.add_argument("--client", type=float, default=6.0, help="of client and scheduler for an exposure, ms")
    parser.add_argument("--image", type=float, default=0.12, help="processor of an image, s")
    parser.add_argument("--fit", type=float, default=14.0, help="of a fit of 7,000 integrations, s")
    parser.add_argument("--raw", type=float, default=210.0, help="of 7,000 integrations from raw, s")
    asked = parser.parse_args()
    extrapolate(asked) if asked.simulate else measure(asked)


if __name__ == "__main__":
    # Workers import this module by its name.
    sys.path[:0] = here = [str(HERE), str(HERE.parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])])
    main()
