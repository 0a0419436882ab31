"""How fast a folder of exposures is summarised, against peers measured in the same run.

Makes its own files (1 to 5 MB, 230 cards in the primary header, 150 in that of SCI, and the other extensions of a
`rateints` product), then measures, best of several rounds with the contenders taking turns:

- open, read and close the header bytes: the limit no reader can beat
- `Dataset(folder).summary`, first look (no index) and second look
- `astropy.io.fits.getheader` of PRIMARY and SCI
- `ccdproc.ImageFileCollection` (if installed), PRIMARY only

    python tests/benchmarks/bench_dataset.py [--n 2000] [--rounds 3] [--folder KEEP]

It prints; it judges nothing.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits

from calami.core import files as core_files
from calami.dataset import Dataset
from calami.exposures.columns import SUMMARY_COLUMNS

CARDS = {"PRIMARY": 230, "SCI": 150}
TEXT = {"FILTER": "F480M", "PUPIL": "NRM", "EXP_TYPE": "NIS_AMI", "INSTRUME": "NIRISS", "TELESCOP": "JWST"}


def make_header(hdu, header):
    """Fill a header with every summary keyword and pad it to the size of a real one."""
    columns = [c for c in SUMMARY_COLUMNS if c.hdu == hdu]
    for k, column in enumerate(columns):
        value = {str: TEXT.get(column.keyword, "OK"), int: k, float: k + 0.123456789, bool: False}[column.kind]
        header[column.keyword] = (value, column.description[:30])
    for k in range(CARDS[hdu] - len(header)):
        header[f"PAD{k:05d}"] = (k * 0.5, "something else")


def make_files(folder, count):
    """Write `count` exposures; every file has its own numbers, dates and texts."""
    rng = np.random.default_rng(1)
    primary, science = fits.PrimaryHDU(), fits.ImageHDU(name="SCI")
    make_header("PRIMARY", primary.header)
    for n in range(count):
        nints = int(rng.integers(8, 40))
        pixels = np.zeros((nints, 80, 80), "float32")
        names = ("ERR", "DQ", "VAR_POISSON", "VAR_RNOISE")
        if n == 0:
            science = fits.ImageHDU(pixels, name="SCI")
            make_header("SCI", science.header)
        science = fits.ImageHDU(pixels, science.header, name="SCI")
        observation, exposure = n // 100 + 1, n % 100 + 1
        told = {
            "PROGRAM": "01516",
            "OBSERVTN": f"{observation:03d}",
            "VISIT": "001",
            "NINTS": nints,
            "EXPOSURE": str(exposure),
        }
        told |= {"TARGPROP": f"STAR-{n % 7}", "NGROUPS": int(rng.integers(2, 30)), "IS_PSF": bool(n % 2)}
        told |= {"TGROUP": 0.07544, "EFFINTTM": told["NGROUPS"] * 0.07544, "NFRAMES": 1, "TFRAME": 0.07544}
        told |= {"DATE-BEG": f"2026-01-{n % 28 + 1:02d}T{n % 24:02d}:00:00.{n:05d}", "EXPMID": 6e4 + rng.random()}
        told["FILENAME"] = f"jw01516{observation:03d}001_03101_{exposure:05d}_nis_rateints.fits"
        primary.header.update(told)
        science.header.update({"RA_REF": 80 + rng.random(), "PA_V3": 360 * rng.random()})
        others = [fits.ImageHDU(pixels, name=name) for name in names]
        fits.HDUList([primary, science, *others]).writeto(folder / told["FILENAME"])
    then = time.time() - 60
    for path in folder.iterdir():
        os.utime(path, (then, then))


def header_bytes(path):
    with fits.open(path) as hdus:
        return hdus["SCI"]._data_offset


def limit(folder, size):
    for path in os.scandir(folder):
        descriptor = os.open(path.path, os.O_RDONLY)
        os.read(descriptor, size)
        os.close(descriptor)


def forget(folder):
    """Have the system drop what it keeps of the files in memory (where it can)."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_look(folder):
    shutil.rmtree(core_files.cache_folder(), ignore_errors=True)
    assert len(Dataset(folder).summary) == len(os.listdir(folder))


def second_look(folder):
    assert len(Dataset(folder).summary) == len(os.listdir(folder))


def getheader(folder):
    for path in folder.iterdir():
        fits.getheader(path, 0), fits.getheader(path, "SCI")


def ccdproc_collection(folder):
    from ccdproc import ImageFileCollection

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(ImageFileCollection(folder).summary) == len(os.listdir(folder))


def seconds(what, *args):
    began = time.perf_counter()
    what(*args)
    return time.perf_counter() - began


def import_time(code):
    """Best of five, in a new Python, less the start of Python itself."""

    def once(c):
        return seconds(lambda: subprocess.run([sys.executable, "-c", c], check=True, capture_output=True))

    return min(once(code) for _ in range(5)), min(once("pass") for _ in range(5))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="use (and keep) the files in this folder; made if missing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CALAMI_CACHE"] = str(Path(scratch) / "cache")
        folder = options.folder or Path(scratch) / "files"
        if not folder.exists():
            folder.mkdir(parents=True)
            make_files(folder, options.n)
        run(folder, options.rounds)


def run(folder, rounds):
    files = sorted(folder.iterdir())
    size, total = header_bytes(files[0]), sum(f.stat().st_size for f in files)
    print(
        f"{len(files)} files, {total / len(files) / 1e6:.1f} MB each, {size} header bytes; "
        f"Python {platform.python_version()}"
    )
    Dataset(folder).summary  # noqa: B018  imports what is imported once
    contenders = {
        "open, read, close": (limit, folder, size),
        "calami, first look": (first_look, folder),
        "calami, second look": (second_look, folder),
        "astropy getheader": (getheader, folder),
    }
    try:
        import ccdproc  # noqa: F401

        contenders["ccdproc collection"] = (ccdproc_collection, folder)
    except ImportError:
        print("ccdproc is not installed: pip install ccdproc to compare with it")
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, (what, *args) in contenders.items():
            # The quick ones run three times in a row, so that what they read is in memory for each of them.
            for _ in range(3 if what in (limit, first_look, second_look) else 1):
                best[name] = min(best[name], seconds(what, *args))
    ours, floor = best["calami, first look"], best["open, read, close"]
    for name, took in best.items():
        print(f"{name:22s} {took:8.3f} s   {took / ours:7.2f} × ours   {took / floor:8.1f} × the limit")
    print(f"allowed for the first look: 2.5 × the limit + 0.3 s = {2.5 * floor + 0.3:.3f} s; it took {ours:.3f} s")
    forget(folder)
    cold = seconds(limit, folder, size)
    forget(folder)
    print(
        f"from disk, not from memory: the limit {cold:.2f} s, calami's first look {seconds(first_look, folder):.2f} s"
    )
    print(f"growth of the peak memory by a first look, in a new process: {memory_growth(folder) / 1024:.1f} MB")
    commands = {
        "import calami.dataset": "import calami.dataset",
        "calami --help": "from calami.cli import app; app(['--help'], standalone_mode=False)",
    }
    for name, code in commands.items():
        took, python = import_time(code)
        print(f"{name:22s} {took:8.3f} s   of which Python itself {python:.3f} s")


def memory_growth(folder):
    """Growth of the peak resident memory by a first look, KiB, once everything is imported (Linux)."""
    code = (
        "import re, sys, pathlib, astropy.table, astropy.units, calami.mapping\n"
        "from calami.dataset import Dataset\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1])\n"
        "before = peak(); summary = Dataset(sys.argv[1]).summary; print(peak() - before)"
    )
    shutil.rmtree(core_files.cache_folder(), ignore_errors=True)
    answer = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    return int(answer.stdout)


if __name__ == "__main__":
    main()
