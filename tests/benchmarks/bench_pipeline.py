"""How long exposures take on one and on two processes, and what a checkpoint saves.

Simulates one exposure, copies it under many names, and measures

- `pipe_data(..., "detector1")` of all of them on one process and on two, in that order, then both again
- the last step changed: everything again, and `reprocess` from the model kept before it

    python tests/benchmarks/bench_pipeline.py [--n 24] [--groups 12] [--integrations 20] [--rounds 1] [--folder KEEP]

It prints, with the load of the machine before each run; it judges nothing.
"""

import argparse
import dataclasses
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

from calami.process import references
from calami.process.pipeline import pipe_data, reprocess
from calami.simulate.exposures import Instrument, simulate_exposure
from calami.simulate.plans import ready_plan


def make_exposures(folder, count, groups, integrations):
    """One exposure under `count` names; each file is a copy, so each is read and hashed on its own."""
    plan = dataclasses.replace(ready_plan("1516", "demo").exposures[0], ngroups=groups, nints=integrations)
    (first,) = simulate_exposure(plan, folder, Instrument.default(1, "flight"), seed=1)
    paths = [first]
    for number in range(2, count + 1):
        paths.append(folder / first.name.replace("_00001_nis", f"_{number:05d}_nis"))
        shutil.copy(first, paths[-1])
    return paths


def timed(what, run, *args, **kwargs):
    load = os.getloadavg()[0]
    started = time.perf_counter()
    result = run(*args, **kwargs).raise_failures()
    seconds = time.perf_counter() - started
    print(f"{what:46} {seconds:7.1f} s   {result.steps_run:4d} steps run   load before {load:.1f}", flush=True)
    return result, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--integrations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=told.folder) as folder:
        folder = Path(folder)
        paths = make_exposures(folder / "raw", told.n, told.groups, told.integrations)
        cache = references.default_cache()
        size = f"{told.n} exposures of {told.integrations} integrations x {told.groups} groups"
        print(f"{size}; {os.cpu_count()} processors, Python {platform.python_version()}")
        best = {1: float("inf"), 2: float("inf")}
        for number in range(told.rounds):
            for workers in best:
                out = folder / f"out{number}{workers}"
                options = {"cache": cache, "workers": workers, "progress": False}
                what = f"detector1, {workers} process(es)"
                _, seconds = timed(what, pipe_data, paths, "detector1", {}, out, **options)
                best[workers] = min(best[workers], seconds)
        print(f"two processes are {best[1] / best[2]:.2f} times as fast as one")
        few = paths[: min(4, told.n)]
        options = {"workers": 1, "progress": False}
        whole = options | {"cache": cache}
        what = f"{len(few)} exposures, keep='jump'"
        kept, _ = timed(what, pipe_data, few, "detector1", {}, folder / "kept", keep="jump", **whole)
        change = {"jump.rejection_threshold": 6}
        what = "jump changed, everything again"
        _, all_ = timed(what, pipe_data, few, "detector1", change, folder / "all", **whole)
        _, late = timed("jump changed, reprocess", reprocess, kept, change, folder / "late", **options)
        print(f"reprocess takes {late / all_:.2f} of the time")


if __name__ == "__main__":
    main()
