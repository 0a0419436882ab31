"""
What a Dask cluster costs besides the work: jobs that only wait, so that one machine can stand for many.

    nice python tests/campaigns/cluster.py --workers 1,2,4,8,16 --wait 1.0 --each 8

For each number of workers a local cluster is started, and each worker gets so many jobs that wait. Efficiency is the
time that was waited over that of all workers together; the processor of the client (with the scheduler, which runs in
it) is what a job costs there. It prints and does not judge.
"""

import argparse
import os
import platform
import time

from calami.process.engine import Engine


def main():
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4,8,16")
    parser.add_argument("--wait", type=float, default=1.0)
    parser.add_argument("--each", type=int, default=8)
    asked = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}", flush=True)
    for count in map(int, asked.workers.split(",")):
        with Engine(dask="local", workers=count, progress=False).running() as ready:
            list(ready.each("time:sleep", [0.0] * (4 * count)))  # imports
            jobs = asked.each * count
            began, cpu = time.perf_counter(), time.process_time()
            assert len(list(ready.each("time:sleep", [asked.wait] * jobs))) == jobs
            wall, used = time.perf_counter() - began, time.process_time() - cpu
        print(
            f"{count:3d} workers, {jobs:4d} jobs of {asked.wait:g} s: {wall:.2f} s, efficiency "
            f"{jobs * asked.wait / count / wall:.3f}; client and scheduler {1e3 * used / jobs:.2f} ms a job; "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
