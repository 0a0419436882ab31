"""All ratios in one table: what calami takes against what others take, or an older calami, in one run.

    python -m tests.benchmarks                       # those of seconds; the others with the date of their last run
    python -m tests.benchmarks --long                # also those
    python -m tests.benchmarks fringes simulate      # only these
    python -m tests.benchmarks --old ../calami-0.2   # against another checkout instead of peers

Both sides of a row take turns in one process (with ``--old`` in a process each), and the shortest processor time of
each counts, so that the load of the machine touches them alike; rows marked *wall* wait or work in other processes,
and count the clock.
The last figures of every row are kept in ``last.json`` next to this file, and written into the page
``nbs/validation/benchmarks.ipynb``. It prints and does not judge; a bar that is missed is marked.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LAST, PAGE = HERE / "last.json", HERE.parent.parent / "nbs" / "validation" / "benchmarks.ipynb"
sys.path[:0] = [str(HERE), str(HERE.parent)]


class Row(NamedTuple):
    """One comparison."""

    name: str
    peer: str
    bar: float  # the ratio that is wanted, peer over ours
    make: Callable[[Path], tuple[Callable, Callable, float]]  # peer, ours, and how many times more the peer had to do
    long: bool = False
    wall: bool = False
    rounds: int = 3
    unit: str = "s"  # of what is compared; MB: each way gives how much memory it took


def headers(folder):
    """Keywords of 100 files against astropy's getheader."""
    import bench_headers

    from calami.exposures.cards import read_keywords

    paths = bench_headers.make_files(folder, 100, 1)
    return lambda: [*map(bench_headers.getheader, paths)], lambda: [*map(read_keywords, paths)], 1.0


def look(folder):
    """Second look at a folder of 300 files against opening its headers."""
    import bench_dataset

    bench_dataset.make_files(folder, 300)
    os.environ["CALAMI_CACHE"] = str(folder.parent / "cache")
    past = time.time() - 60
    for path in folder.iterdir():
        os.utime(path, (past, past))
    bench_dataset.second_look(folder)
    return lambda: bench_dataset.getheader(folder), lambda: bench_dataset.second_look(folder), 1.0


def fringes(mode, few, many=60):
    """Fits of integrations against the stock code on a few of them."""

    def make(folder):
        from toys import fringe_cube, fringe_images

        from calami.fringes import fitting

        cube, error, dq = fringe_cube(fringe_images("F480M", seed=1, size=69), many, seed=1)
        told = {"filter": "F480M", "scale": 65.6, "oversample": 3}
        count = many if mode == "fast" else 6

        def fit(kind, n):
            return fitting.fit(cube[:n], kind, error=error[:n], dq=dq[:n], **told)

        fit("jwst", 1)
        return lambda: fit("jwst", few), lambda: fit(mode, count), few / count

    return make


def contrast(folder):
    """Map of 10 by 10 cells against the textbook."""
    import bench_contrast
    import numpy as np

    from calami.fringes.limits import detection_map
    from calami.fringes.observables import add_noise, point_source

    data = add_noise(point_source("F430M", 1e8), np.random.default_rng(1))
    few = np.linspace(-400, 400, 10)
    return (
        lambda: bench_contrast.plain_map(data, few, "absil"),
        lambda: detection_map(data, "absil", size=80, covariance="diagonal"),
        100 / 6400,
    )


def clean(folder):
    """Cleaning of a ramp of 600 by 10 reads against numpy's median of it."""
    import bench_prep
    import numpy as np
    from astropy.io import fits

    bench_prep.write(folder)
    path = folder / bench_prep.NAMES["float32"]
    values = fits.getdata(path).astype("float32")
    ours = bench_prep.Clean()
    return lambda: np.median(values, axis=0), lambda: bench_prep.prepared(path, ours, folder / "out"), 1.0


def correction(folder):
    """Correction of each integration against the same, one by one over the whole image."""
    import bench_correction
    import numpy as np

    from calami.instrument import niriss
    from calami.instrument.migration import charge_ramp, find_migration, interpixel_capacitance
    from calami.instrument.optics import psf
    from calami.migration.correction import correct_ramp

    times, flight = niriss.SUB80.frame_time * np.arange(1, 13), find_migration("flight")
    ramp = interpixel_capacitance(charge_ramp(4.4e6 * psf("F480M", (40.2, 45.1), (80, 80)), times, flight))
    reads = (ramp + np.random.default_rng(0).normal(0, 16, (10, *ramp.shape))).astype(np.float32)
    return (
        lambda: bench_correction.straightforward(reads, flight),
        lambda: correct_ramp(reads, flight, mode="each"),
        1.0,
    )


def onset(folder):
    """Onset of three exposures against reading their files and summing them once."""
    import bench_onset

    paths = [folder / f"jw01516001001_{3102 + k:05d}_00001_nis_ramp.fits" for k in range(3)]
    for k, path in enumerate(paths):
        bench_onset.write_ramp(path, 400, 8 + 2 * k, seed=k)
    return lambda: bench_onset.read_and_sum(paths), lambda: bench_onset.quantify(paths, n_bootstrap=1000), 1.0


def images(folder):
    """Image of a star against the model of jwst.ami."""
    import bench_simulate
    import numpy as np

    from calami.instrument import optics

    wavelength, weight = optics.sample_passband("F480M", count=12)
    theirs = bench_simulate.their_model(79, 3, np.column_stack((weight, wavelength * 1e-6)))
    return theirs, lambda: optics.psf("F480M", None, (79, 79), count=12, oversample=3), 1.0


def download(folder):
    """Fetching 6 files of 8 MB from this machine against curl."""
    import bench_archive

    served, out = folder / "served", folder / "out"
    served.mkdir()
    names = bench_archive.make_files(served, 6, 8)
    size = (served / names[0]).stat().st_size
    server, url = bench_archive.start_server(served)
    download.server = server

    def fresh(work, *arguments):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        work(url, names, out, *arguments)

    return lambda: fresh(bench_archive.by_curl, 4), lambda: fresh(bench_archive.by_calami, 4, size), 1.0


def one_and_two(**how):
    """Engines of one worker and of two, next to each other; they end with the row."""
    from contextlib import ExitStack

    from calami.process.engine import Engine

    one_and_two.stack = ExitStack()
    engines = [Engine(workers=count, progress=False, **how) for count in (1, 2)]
    return [one_and_two.stack.enter_context(engine.running(jwst="cache" in how)) for engine in engines]


def workers(load, dask=None, many=12):
    """Jobs on two workers against one: on a Dask cluster of this machine, or in processes."""

    def make(folder):
        def run(engine, load, count):
            results = [result for _, result in engine.each("bench_dask:work", [(load, k) for k in range(count)])]
            assert len(results) == count and not any(isinstance(one, Exception) for one in results)

        one, two = one_and_two(dask=dask)
        run(one, "pixels", 2), run(two, "pixels", 4)  # imports
        return lambda: run(one, load, many), lambda: run(two, load, many), 1.0

    return make


def machine(folder):
    """The same jobs in two processes against one, with nothing of calami between them: what the machine allows."""
    from contextlib import ExitStack
    from multiprocessing import get_context

    import bench_dask

    one_and_two.stack = ExitStack()
    pools = [one_and_two.stack.enter_context(get_context("spawn").Pool(count)) for count in (1, 2)]
    jobs = [("pixels", number) for number in range(12)]
    one, two = (lambda pool=pool: pool.map(bench_dask.work, jobs, chunksize=1) for pool in pools)
    return one, two, 1.0


def piped(dask=None, many=6):
    """Raw exposures through `detector1` on two workers against one."""

    def make(folder):
        from bench_pipeline import make_exposures

        from calami.process import references
        from calami.process.pipeline import pipe_data

        paths, places = make_exposures(folder / "raw", many, 12, 20), iter(range(1000))
        one, two = one_and_two(dask=dask, cache=references.default_cache())

        def run(engine, paths):
            pipe_data(paths, "detector1", None, folder / f"{next(places)}", engine=engine).raise_failures()

        run(one, paths[:2]), run(two, paths[:4])  # imports
        return lambda: run(one, paths), lambda: run(two, paths), 1.0

    return make


def demo_exposures(folder):
    """Two raw exposures of the demonstration, and an engine with the references of their detector."""
    from calami.dataset import Dataset
    from calami.process import references
    from calami.process.engine import Engine
    from calami.simulate.exposures import Instrument, simulate_exposure
    from calami.simulate.plans import ready_plan

    instrument = Instrument.default(1, "flight")
    for exposure in ready_plan("1516", "demo").exposures[:2]:
        simulate_exposure(exposure, folder / "raw", instrument)
    return Dataset(folder / "raw"), Engine(cache=references.default_cache(instrument.detector), progress=False)


def versions(folder):
    """Two exposures in five versions by the stock pipeline, each by itself, against one process for each exposure."""
    from dataclasses import replace

    from calami.migration.mitigation import process_versions, with_step, without_step

    raw, engine = demo_exposures(folder)
    wanted, places = [without_step(), *map(with_step, (9000.0, 12000.0, 16000.0, 20000.0))], iter(range(1000))

    def make(stock):
        for run in process_versions(
            raw, wanted, folder / f"{next(places)}", engine=replace(engine, stock=stock)
        ).values():
            run.raise_failures()

    return lambda: make(True), lambda: make(False), 1.0


def threshold(folder):
    """The three answers, with the report, from the raw exposures on against one other threshold of the step."""
    from calami.migration.answers import answer_questions, write_answers
    from calami.migration.mitigation import standard_versions

    raw, engine = demo_exposures(folder)
    places, levels = iter(range(1000)), iter(range(9000, 25000, 500))

    def answer(place, level):
        with engine.running() as ready:
            found = answer_questions(raw, folder / place, standard_versions((float(level), 20000.0)), engine=ready)
            write_answers(found, raw, folder / place / "report", engine=ready)

    answer("kept", next(levels))
    return lambda: answer(f"{next(places)}", 9000), lambda: answer("kept", next(levels)), 1.0


def memory(folder):
    """Memory of 3,000 integrations through the pipeline in parts against the stock pipeline at once."""
    import bench_large

    path = bench_large.write_raw(folder, 3000)

    def most(stock):
        shutil.rmtree(folder / "out", ignore_errors=True)
        return bench_large.peak_of(bench_large.PIPE, path, folder / "out", stock, False)[2]

    return lambda: most(True), lambda: most(False), 1.0


ROWS = (
    Row("headers", "astropy getheader", 10, headers),
    Row("second look", "astropy getheader", 20, look),
    Row("fringes fast", "jwst.ami", 100, fringes("fast", 2)),
    Row("fringes exact", "jwst.ami", 10, fringes("exact", 2)),
    Row("contrast map", "textbook", 300, contrast),
    Row("clean", "numpy median", 0.5, clean),
    Row("correct each", "one by one", 1.5, correction),
    Row("onset", "read and sum", 0.5, onset, rounds=2),
    Row("image of a star", "jwst.ami", 1, images),
    Row("download", "curl", 0.8, download, wall=True),
    Row("versions", "stock pipeline", 1.5, versions, wall=True, long=True, rounds=1),
    Row("a changed threshold", "all from raw", 3, threshold, wall=True, long=True, rounds=1),
    Row("memory of a long exposure", "stock pipeline", 2, memory, long=True, rounds=0, unit="MB"),
    Row("two processes as such", "one process", 1.8, machine, long=True, wall=True, rounds=2),
    Row("dask 2, waiting", "one worker", 1.8, workers("wait", "local", 24), long=True, wall=True, rounds=2),
    Row("dask 2, computing", "one worker", 1.8, workers("pixels", "local"), long=True, wall=True, rounds=2),
    Row("dask 2, raw exposures", "one worker", 1.8, piped("local"), long=True, wall=True, rounds=2),
    Row("processes 2, computing", "one worker", 1.8, workers("pixels"), long=True, wall=True, rounds=2),
    Row("processes 2, raw exposures", "one worker", 1.8, piped(), long=True, wall=True, rounds=2),
)


def clock(row):
    """The clock that counts for a row."""
    return time.perf_counter if row.wall else processor


def processor():
    """Seconds of processor of this process and of those that have ended below it."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(row, ways):
    """Shortest time of each way, seconds; they take turns."""
    best, now = [float("inf")] * len(ways), clock(row)
    for turn in range(row.rounds + 1):
        for k, way in enumerate(ways):
            began = now()
            found = way()
            if row.unit != "s":
                best[k] = min(best[k], found)
            elif turn:  # the first is for imports and caches
                best[k] = min(best[k], now() - began)
    return best


def peer_against_ours(row):
    """Times of the peer and of calami, seconds (or what else is compared)."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "data"
        folder.mkdir()
        peer, ours, more = row.make(folder)
        try:
            times = timed(row, (peer, ours))
        finally:
            for made in (getattr(download, "server", None), getattr(one_and_two, "stack", None)):
                (getattr(made, "kill", None) or getattr(made, "close", lambda: None))()
            download.server = one_and_two.stack = None
        return times[0] / more, times[1]


def old_against_new(row, old):
    """Times of another checkout and of this one, seconds, in turns; a process each."""
    best = {}
    for _ in range(2):
        for key, checkout in (("old", old), ("new", HERE.parent.parent)):
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), *sys.path[3:]])}
            words = [sys.executable, str(HERE / "__main__.py"), "--seconds", row.name]
            said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd=checkout)
            best[key] = min(best.get(key, float("inf")), float(said.stdout.split()[-1]))
    return best["old"], best["new"]


def packages():
    """Versions that matter."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("numpy", "scipy", "astropy", "jwst")
    }


def table(known):
    """Heads and lines of the table, all text."""
    heads = ("what", "against", "theirs", "ours", "ratio", "wanted", "date", "load")
    lines = []
    for row in ROWS:
        last = known.get(row.name)
        if last is None:
            lines.append((row.name, row.peer, "", "", "not measured", f"{row.bar:g}", "", ""))
            continue
        mark, clocks = "" if last["ratio"] >= row.bar else " missed", " (wall)" if row.wall else ""
        theirs, ours = (f"{last[key]:{'.4g' if row.unit == 'MB' else '.3g'}} {row.unit}" for key in ("theirs", "ours"))
        ratio = f"{last['ratio']:.3g}{mark}"
        when = (last["date"], f"{last['load']:.1f}")
        lines.append((row.name + clocks, row.peer, theirs, ours, ratio, f"{row.bar:g}", *when))
    return heads, lines


def show(known):
    """Print the table."""
    heads, lines = table(known)
    widths = [max(len(line[k]) for line in (heads, *lines)) for k in range(len(heads))]
    for line in (heads, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def markdown(known):
    """Write the table as Markdown, with the versions of the last run."""
    heads, lines = table(known)
    rows = ["| " + " | ".join(line) + " |" for line in (heads, ("---",) * len(heads), *lines)]
    newest = max(known.values(), key=lambda one: one["date"])["versions"] if known else {}
    said = ", ".join(f"{name} {number}" for name, number in sorted(newest.items()))
    return "\n".join([*rows, "", f"Versions: {said}."])


def write_page(known):
    """Put the table into its page."""
    import nbformat

    page = nbformat.read(PAGE, 4)
    cell = next(cell for cell in page.cells if cell.source.startswith("| what | against |"))
    cell.source = markdown(known)
    nbformat.write(page, PAGE)


def main():
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="rows that begin so; all if not given")
    parser.add_argument("--long", action="store_true", help="also rows that take minutes")
    parser.add_argument("--old", type=Path, help="another checkout to compare with")
    parser.add_argument("--last", action="store_true", help="show and write the last figures, measure nothing")
    parser.add_argument("--seconds", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.seconds:
        row = next(row for row in ROWS if row.name == asked.seconds)
        print(peer_against_ours(row._replace(rounds=2))[1])
        return
    known = json.loads(LAST.read_text()) if LAST.exists() else {}
    chosen = [row for row in ROWS if not asked.names or row.name.startswith(tuple(asked.names))]
    chosen = [] if asked.last else [row for row in chosen if asked.long or asked.names or not row.long]
    for row in chosen:
        print(f"… {row.name}", file=sys.stderr, flush=True)
        theirs, ours = old_against_new(row, asked.old) if asked.old else peer_against_ours(row)
        found = {"theirs": theirs, "ours": ours, "ratio": theirs / ours, "load": round(os.getloadavg()[0], 1)}
        if asked.old:
            words = f"{theirs:9.3g} {row.unit} before  {ours:9.3g} {row.unit} now  {theirs / ours:6.2f} times"
            print(f"{row.name:26} {words}")
            continue
        known[row.name] = found | {"date": time.strftime("%Y-%m-%d"), "versions": packages()}
        LAST.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    if not asked.old:
        show(known)
        write_page(known)


if __name__ == "__main__":
    main()
