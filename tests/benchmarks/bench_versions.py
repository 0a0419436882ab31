"""What the versions of a scan cost in one process, against the stock pipeline making each by itself, in the same run.

Simulates exposures of the demonstration and makes of each the version without mitigation and some with the pipeline's
step, in turn: by the stock pipeline (`--stock`), in one process, and one threshold more. Seconds are those of the
clock, for an idle machine: the processor time of workers that are forked from a server is not seen here.
It compares all products bit by bit, and judges nothing else.

    python tests/benchmarks/bench_versions.py [--n 6] [--thresholds 8000 12000 16000 20000 25000] [--workers 2]
"""

import argparse
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from calami.dataset import Dataset
from calami.migration.mitigation import process_versions, with_step, without_step
from calami.process import references
from calami.process.engine import Engine
from calami.process.shared import difference
from calami.simulate.exposures import Instrument, simulate_exposure
from calami.simulate.plans import ready_plan


def timed(what, raw, versions, folder, engine):
    load, before = os.getloadavg()[0], time.perf_counter()
    runs = process_versions(raw, versions, folder, engine=engine)
    seconds = time.perf_counter() - before
    for run in runs.values():
        run.raise_failures()
    print(f"{what:34} {seconds:7.1f} s by the clock   load before {load:.1f}", flush=True)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--thresholds", nargs="+", type=float, default=[8000.0, 12000.0, 16000.0, 20000.0, 25000.0])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    wish = parser.parse_args()
    print(f"{os.cpu_count()} processors, Python {platform.python_version()}, jwst {version('jwst')}, {time.ctime()}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        instrument = Instrument.default(1, "flight")
        for exposure in ready_plan("1516", "demo").exposures[: wish.n]:
            simulate_exposure(exposure, folder / "raw", instrument)
        raw = Dataset(folder / "raw")
        versions = [without_step(), *map(with_step, wish.thresholds)]
        how = {"cache": references.default_cache(instrument.detector), "workers": wish.workers, "progress": False}
        print(f"{len(raw)} exposures, {len(versions)} versions")
        shared = timed("in one process", raw, versions, folder / "new", Engine(**how))
        one = timed("one threshold more", raw, [versions[0], with_step(9000.0)], folder / "new", Engine(**how))
        stock = timed("stock", raw, versions, folder / "old", Engine(**how, stock=True))
        print(f"stock / in one process: {stock / shared:.2f}; one threshold more / in one process: {one / shared:.2f}")
        made = [(p, folder / "new" / p.relative_to(folder / "old")) for p in (folder / "old").rglob("*_calints.fits")]
        print(f"{len(made)} products compared, {sum(bool(difference(*pair)) for pair in made)} differ")


if __name__ == "__main__":
    main()
