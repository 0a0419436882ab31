"""Time and memory of cleaning, dicing and slicing.

    python tests/benchmarks/bench_prep.py [FOLDER]

Writes a ramp of 600 integrations × 10 groups × 80 × 80 (77 MB as uint16, 154 MB as float32) into FOLDER (a temporary
one by default) and prints, each the best of several runs that take turns:

- cleaning (find outliers, flag them, write the product) over one `numpy.median` over integrations of the same array;
- the largest memory of a process that cleans, less that of one that has imported the same, over the size of the array;
  the mapped input file is counted in, though the system may take its pages back;
- dicing and slicing, with hash and record, over copying the file: by reading and writing all bytes, and as
  `shutil.copyfile` does it inside the kernel.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from astropy.io import fits

from calami.process.clean import Clean
from calami.process.prep import prep_data
from calami.process.recipes import Dice, Slice

NAMES = {"uint16": "jw01516001001_03101_00001_nis_uncal.fits", "float32": "jw01516001001_03102_00001_nis_ramp.fits"}
CARDS = {
    "TELESCOP": "JWST",
    "INSTRUME": "NIRISS",
    "DETECTOR": "NIS",
    "EXP_TYPE": "NIS_AMI",
    "NINTS": 600,
    "NGROUPS": 10,
}
CARDS |= {"TGROUP": 0.07544, "EFFINTTM": 0.7544, "EFFEXPTM": 452.64, "DURATION": 500.0, "DATAMODL": "RampModel"}


def write(folder):
    rng = np.random.default_rng(1)
    ramp = 9000 + 300 * np.arange(10)[:, None, None] + rng.normal(0, 40, (600, 10, 80, 80)).astype("float32")
    for kind, name in NAMES.items():
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(ramp.astype(kind), name="SCI")]
        if kind == "float32":
            hdus.append(fits.ImageHDU(np.zeros((80, 80), "uint32"), name="PIXELDQ"))
            hdus.append(fits.ImageHDU(np.zeros(ramp.shape, "uint8"), name="GROUPDQ"))
        hdus[0].header.update(CARDS)
        fits.HDUList(hdus).writeto(folder / name, overwrite=True)


def seconds(task):
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def prepared(path, recipe, out):
    shutil.rmtree(out, ignore_errors=True)
    return seconds(lambda: prep_data(path, recipe, out))


def read_and_write(path, copy):
    copy.write_bytes(path.read_bytes())


def memory(path, recipe, out):
    code = f"""
from pathlib import Path
from calami.process.clean import Clean
from calami.process.prep import prep_data
import astropy.io.fits, scipy.ndimage, tqdm.auto
def most():  # ru_maxrss would begin with that of the parent
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = most()
prep_data({str(path)!r}, {recipe}, {str(out)!r})
print((most() - before) * 1024)
"""
    shutil.rmtree(out, ignore_errors=True)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main(folder):
    write(folder)
    for kind, name in NAMES.items():
        path, out = folder / name, folder / "out"
        values = fits.getdata(path).astype(kind)
        for recipe in (Clean(), Clean(replace=True)):
            times = [(prepared(path, recipe, out), seconds(lambda v=values: np.median(v, axis=0))) for _ in range(3)]
            clean, median = np.min(times, axis=0)
            used = memory(path, recipe, out) / values.nbytes
            print(f"{kind:8s} clean (replace={recipe.replace}): {clean:.2f} s, median {median:.2f} s", end=", ")
            print(f"ratio {clean / median:.2f}; memory {used:.2f} of the array ({values.nbytes / 1e6:.0f} MB)")
        del values
        copy = folder / "copy.fits"
        for recipe in (Dice(2), Dice(5), Slice(2), Slice(alternate=2)):
            rounds = []
            for _ in range(7):
                plain = seconds(partial(read_and_write, path, copy))
                rounds.append((prepared(path, recipe, out), plain, seconds(partial(shutil.copyfile, path, copy))))
            cut, plain, kernel = np.min(rounds, axis=0)
            told = (
                f"{kind:8s} {str(recipe)[:36]:36s} {cut:.3f} s; read and write {plain:.3f} s, ratio {cut / plain:.2f}"
            )
            print(f"{told}; copyfile {kernel:.3f} s, ratio {cut / kernel:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
