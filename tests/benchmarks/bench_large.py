"""How long a fit of a long exposure takes, and how much memory.

Run it as ``python tests/benchmarks/bench_large.py [1000 3000 7000] [--folder DIR]``.

For each number of integrations a file as calwebb_detector1 and calwebb_image2 make it (80 by 80 pixels; SCI, ERR and
the variances as 32-bit floats, DQ with static bad pixels and 5e-4 of the samples hit) is written into a temporary
folder, and fitted in a process that does nothing else. Printed are seconds of `fit` by the clock and of the processor,
without imports, and the largest memory of the process, imports and arrays together. It prints and does not judge;
wanted are at most 30 s and 1000 MB for 7,000 integrations, and seconds that grow as the number.
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


def main() -> None:
    """Print one line for each number of integrations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nints", nargs="*", type=int, default=[1000, 3000, 7000])
    parser.add_argument("--folder", help="where to write the files (some GB); a temporary one by default")
    options = parser.parse_args()
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
