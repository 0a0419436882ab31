"""How fast header reading is, on files made for the purpose.

Run it as ``python tests/benchmarks/bench_headers.py``. It makes NIRISS-like exposures in a temporary folder
(2.6 MB each, so the usual 2,000 need 5 GB for a moment; ``--ints 1`` makes them small) and times several ways
of reading in turns, so that a change in the load of the machine touches them alike:

- *limit*: open, read and close of the bytes that hold the two headers, and nothing else;
- *ours*: `calami.exposures.cards.read_keywords` with all summary columns, with and without the walk to the end;
- *getheader*: `astropy.io.fits.getheader` for PRIMARY and SCI;
- *fits.open*: opening lazily and touching the two headers.

Files are in the page cache, as on the second look at a folder. It prints and does not judge.
"""

import argparse
import os
import resource
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from astropy.io import fits

from calami.exposures.cards import hdu_walk, read_keywords
from calami.exposures.columns import SUMMARY_COLUMNS
from calami.exposures.names import parse_name

HEADER_BYTES = 48_960


def template(ints: int, seed: int) -> fits.HDUList:
    """Make one exposure: 230 cards in the primary header, 150 in SCI, the usual extensions."""
    rng = np.random.default_rng(seed)
    primary, sci = fits.PrimaryHDU(), fits.ImageHDU(np.zeros((ints, 80, 80), "f4"), name="SCI")
    values = {str: "COMPLETE", int: 13, float: 0.07543999999999999, bool: False}
    for column in SUMMARY_COLUMNS:
        header = primary.header if column.hdu == "PRIMARY" else sci.header
        header[column.keyword] = (values[column.kind], column.description[:30])
    primary.header["TITLE"] = "A title that goes on for longer than one card of eighty columns is able to hold"
    for header, count in ((primary.header, 230), (sci.header, 150)):
        while len(header) < count:
            header[f"X{len(header)}"] = (rng.normal(), "another keyword")
    shape = (ints, 80, 80)
    more = [fits.ImageHDU(np.zeros(shape, "f4"), name=name) for name in ("ERR", "VAR_POISSON", "VAR_RNOISE")]
    times = fits.BinTableHDU.from_columns([fits.Column("int_mid_MJD_UTC", "D", array=np.zeros(ints))], name="INT_TIMES")
    asdf = fits.BinTableHDU.from_columns(
        [fits.Column("ASDF_METADATA", "20000B", array=np.zeros((1, 20000), "u1"))], name="ASDF"
    )
    return fits.HDUList([primary, sci, *more, fits.ImageHDU(np.zeros(shape, "i4"), name="DQ"), times, asdf])


def make_files(folder: Path, count: int, ints: int) -> list[Path]:
    """Write the files; names, times and pointing differ from file to file."""
    made = template(ints, seed=1)
    rng = np.random.default_rng(2)
    paths = []
    for number in range(count):
        name = f"jw01093{number // 100:03d}001_03102_{number % 100 + 1:05d}_nis_calints.fits"
        header = made[0].header
        header.update({"FILENAME": name, "OBSERVTN": f"{number // 100:03d}", "EXPOSURE": str(number % 100 + 1)})
        header.update({"EXPMID": 59735 + rng.random(), "TARG_RA": 82 + rng.random(), "XOFFSET": rng.normal()})
        made["SCI"].header["PA_V3"] = 171 + rng.random()
        paths.append(folder / name)
        made.writeto(paths[-1])
    os.sync()  # or writing goes on while we measure
    return paths


def limit(path: Path) -> None:
    """Open, read, close."""
    descriptor = os.open(path, os.O_RDONLY)
    os.pread(descriptor, HEADER_BYTES, 0)
    os.close(descriptor)


def without_walk(path: Path) -> None:
    """Read the keywords only."""
    read_keywords(path, structure=False)


def getheader(path: Path) -> None:
    """Read the two headers with astropy's shortcut."""
    fits.getheader(path)
    fits.getheader(path, "SCI")


def lazy_open(path: Path) -> None:
    """Read the two headers with one open."""
    with fits.open(path) as hdus:
        hdus[0].header["FILENAME"], hdus["SCI"].header["PA_V3"]


def measure(paths: list[Path], ways: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Shortest time of each way over all files, seconds; the ways take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = perf_counter()
            for path in paths:
                way(path)
            best[name] = min(best[name], perf_counter() - start)
    return best


def memory(paths: list[Path]) -> tuple[float, float]:
    """Growth of Python's memory over one more pass, and largest resident size so far, MB."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for path in paths:
        read_keywords(path)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2000, help="number of files")
    parser.add_argument("--ints", type=int, default=20, help="integrations in a file; 20 make 2.6 MB")
    parser.add_argument("--rounds", type=int, default=3, help="turns; the shortest time counts")
    parser.add_argument("--no-astropy", action="store_true", help="leave out the slow ones")
    options = parser.parse_args()
    ways = {"limit": limit, "ours": read_keywords, "ours, no walk": without_walk, "hdu_walk": hdu_walk}
    ways |= {"parse_name": parse_name}
    if not options.no_astropy:
        ways |= {"getheader": getheader, "fits.open": lazy_open}
    with tempfile.TemporaryDirectory() as folder:
        paths = make_files(Path(folder), options.n, options.ints)
        size = paths[0].stat().st_size / 1e6
        keywords = len(read_keywords(paths[0]))
        print(f"{len(paths)} files of {size:.2f} MB, {keywords} keywords, {options.rounds} rounds")
        first = perf_counter()
        for path in paths:
            read_keywords(path)
        print(f"first pass of ours: {(perf_counter() - first) / len(paths) * 1e6:.1f} µs a file")
        best = measure(paths, ways, options.rounds)
        for name, seconds in best.items():
            each, ratio = seconds / len(paths) * 1e6, seconds / best["limit"]
            print(f"{name:14} {seconds:8.3f} s {each:9.1f} µs a file {ratio:8.1f} x limit")
        grown, resident = memory(paths)
        print(f"memory: {grown:+.2f} MB over one more pass, at most {resident:.0f} MB resident")


if __name__ == "__main__":
    main()
