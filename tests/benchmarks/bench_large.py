"""How long a fit of a long exposure takes, and how much memory; and what the pipeline needs for it.

    python tests/benchmarks/bench_large.py [1000 3000 7000] [--folder DIR]   # fits
    python tests/benchmarks/bench_large.py 7000 --pipe [--correct] [--stock]  # from raw ramps of 4 groups to calints

For each number of integrations a file as calwebb_detector1 and calwebb_image2 make it (80 by 80 pixels; SCI, ERR and
the variances as 32-bit floats, DQ with static bad pixels and 5e-4 of the samples hit) is written into a temporary
folder, and fitted in a process that does nothing else. Printed are seconds of `fit` by the clock and of the processor,
without imports, and the largest memory of the process, imports and arrays together. It prints and does not judge;
wanted are at most 30 s and 1000 MB for 7,000 integrations, and seconds that grow as the number.

With ``--pipe`` the file is raw (4 groups, a star with noise, a hit in each 20,000 samples), and goes through detector1
and image2; with ``--stock`` as jwst does it, at once. With ``--correct`` its charge migration is then corrected, and
its fringes are fitted, each from file to file in a process of its own. Wanted are at most 2000 MB for 7,000
integrations in each.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CODE = """
import sys, time
from calami.fringes import fit
fit(sys.argv[2])  # imports, with a small file
start, busy = time.perf_counter(), time.process_time()
got = fit(sys.argv[1])
seconds, busy = time.perf_counter() - start, time.process_time() - busy
lines = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(seconds, busy, peak * 1024 / 1e6, got.n_integrations)
"""


def write_long(path: Path, nints: int, seed: int = 1, compressed: bool = False) -> Path:
    """Write a calints file of `nints` integrations, a few at a time."""
    from astropy.io import fits
    from toys import BASE, UNCAL_SCI, fringe_cube, fringe_images

    names = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
    star, shape = fringe_images("F480M", seed=3, size=80), (nints, 80, 80)
    rows = [np.memmap(f"{path}.{name}", ">i4" if name == "DQ" else ">f4", "w+", shape=shape) for name in names]
    for first in range(0, nints, 500):
        part = slice(first, min(first + 500, nints))
        cube, error, dq = fringe_cube(star, part.stop - first, seed=seed)
        flat = (0.002 * np.clip(cube, 0, None)) ** 2
        static = fringe_cube(star, 1, seed=seed)[2] & 1 if first == 0 else static  # noqa: F821
        dq, seed = dq & 4 | static, seed + 1
        planes = cube, np.sqrt(error**2 + flat), dq.astype("i8") - 2**31, error**2 - 625, np.full(cube.shape, 625), flat
        for array, values in zip(rows, planes, strict=True):
            array[part] = values
    primary = fits.PrimaryHDU()
    primary.header.update(BASE | {"NINTS": nints, "FILENAME": path.name})
    with path.open("wb") as file:
        file.write(primary.header.tostring().encode())
        for name, array in zip(names, rows, strict=True):
            header = fits.ImageHDU(np.zeros((1, 1, 1), "i4" if name == "DQ" else "f4"), name=name).header
            header["NAXIS3"], header["NAXIS2"], header["NAXIS1"] = shape
            if name == "SCI":
                header.update(UNCAL_SCI)
            if name == "DQ":
                header["BZERO"], header["BSCALE"] = 2**31, 1
            file.write(header.tostring().encode())
            array.tofile(file)
            file.write(bytes(-array.nbytes % 2880))
            Path(array.filename).unlink()
    return path


PEAK = """
import sys, time
from pathlib import Path
start, busy = time.perf_counter(), time.process_time()
{work}
seconds, busy = time.perf_counter() - start, time.process_time() - busy
lines = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(seconds, busy, peak * 1024 / 1e6)
"""
PIPE = """
from calami.process.engine import Engine
from calami.process.pipeline import pipe_data
from calami.process.references import default_cache
from calami.studies.survey import _Here
engine = Engine(default_cache(), executor=_Here(), progress=False, stock=sys.argv[3] == "True")
asked = {"charge_migration.skip": True} if sys.argv[4] == "True" else None
pipe_data([sys.argv[1]], ["detector1", "image2"], asked, sys.argv[2], engine=engine).raise_failures()
"""
CORRECT = """
from calami.migration.correction import Correct
from calami.process.prep import prep_data
prep_data(sys.argv[1], [Correct("flight")], sys.argv[2])
"""
FIT = """
from calami.fringes import fit
fit(sys.argv[1])
"""


def write_raw(folder: Path, nints: int, ngroups: int = 4, seed: int = 1) -> Path:
    """Write raw ramps: those of a few integrations of a simulated star, each with noise of its own, and hits."""
    from dataclasses import replace

    from astropy.io import fits

    from calami.simulate.exposures import Instrument, simulate_exposure
    from calami.simulate.level1b import write_level1b
    from calami.simulate.plans import ready_plan

    plan = replace(ready_plan("1516", "demo").exposures[0], ngroups=ngroups, nints=20)
    (first,) = simulate_exposure(plan, folder / "few", Instrument.default(1, "flight"), seed=1)
    few, rng = fits.getdata(first, "SCI"), np.random.default_rng(seed)
    ramps = np.empty((nints, *few.shape[1:]), np.uint16)
    for k in range(0, nints, 500):
        part = ramps[k : k + 500]
        part[:] = few[rng.integers(0, len(few), len(part))] + rng.integers(0, 30, part.shape, dtype=np.uint16)
    for place in rng.integers(0, ramps.size, ramps.size // 20_000):
        integration, group, row, column = np.unravel_index(place, ramps.shape)
        ramps[integration, group:, row, column] += 2000
    (path,) = write_level1b(ramps, replace(plan, nints=nints), folder)
    return path


def peak_of(work: str, *words) -> tuple[float, float, float]:
    """Seconds of the clock and of the processor, and MB at most, of work in a process of its own."""
    said = subprocess.run(
        [sys.executable, "-c", PEAK.format(work=work), *map(str, words)], check=True, capture_output=True
    )
    return tuple(map(float, said.stdout.split()[-3:]))


def pipe(folder: Path, nints: int, correct: bool = False, stock: bool = False) -> None:
    """Print a line for each process."""

    def shown(what, work, *words):
        seconds, busy, most = peak_of(work, *words)
        print(f"{nints:6d} integrations {what}: {seconds:.1f} s, {busy:.1f} s of the processor, at most {most:.0f} MB")

    shown("piped", PIPE, write_raw(folder, nints), folder / "out", stock, correct)
    if correct:
        (made,) = (folder / "out").glob("*_calints.fits")
        shown("corrected", CORRECT, made, folder / "corrected")
        (made,) = (folder / "corrected").glob("*_calints.fits")
        shown("fitted", FIT, made)


def main() -> None:
    """Print one line for each number of integrations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nints", nargs="*", type=int, default=[1000, 3000, 7000])
    parser.add_argument("--folder", help="where to write the files (some GB); a temporary one by default")
    parser.add_argument("--pipe", action="store_true", help="from raw ramps to calints, instead of fits")
    parser.add_argument("--correct", action="store_true", help="and correct charge migration, and fit fringes")
    parser.add_argument("--stock", action="store_true", help="all at once, as jwst does it")
    options = parser.parse_args()
    if options.pipe:
        for nints in options.nints:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                pipe(Path(folder), nints, options.correct, options.stock)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        small = write_long(Path(folder) / "jw01093012001_03102_00001_nis_calints.fits", 5)
        for number, nints in enumerate(options.nints, 2):
            path = write_long(Path(folder) / f"jw01093012001_03102_0000{number}_nis_calints.fits", nints)
            command = [sys.executable, "-c", CODE, str(path), str(small)]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, busy, peak, kept = map(float, text.split())
            size = path.stat().st_size / 1e6
            path.unlink()
            print(
                f"{nints:6d} integrations ({size:5.0f} MB on disk, {kept:.0f} kept): {seconds:6.2f} s, "
                f"{busy:6.2f} s of the processor ({1000 * busy / nints:.2f} ms an integration), at most {peak:4.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
