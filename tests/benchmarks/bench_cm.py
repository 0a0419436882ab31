"""How long `calami cm` takes from raw exposures to the report: cold, with another threshold, with nothing changed.

Simulates the demonstration's exposures of program 1516 (its first six) and, with ``--small``, the 33 of the small plan,
builds their references, and calls the command as a user does. Seconds of the clock are for an idle machine; seconds of
processor are those of all processes. The cache of calami is a new one, so that nothing is known from before.

    python tests/benchmarks/bench_cm.py [--small] [--workers 2] [--folder DIR]
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

CALL = "import sys; from calami.cli import main; sys.argv[0] = 'calami'; main()"
#: What is wanted on two idle cores, s.
WANTED = {"six exposures": 40, "another threshold": 5, "33 exposures": 180}
OTHER = [word for level in (8000, 13000, 16000, 20000, 25000) for word in ("-t", str(level))]
REFERENCES = """
import sys
from pathlib import Path
from calami.simulate.exposures import simulated_cache
simulated_cache(sorted(Path(sys.argv[1]).glob("*_uncal.fits")))
"""


def calami(*words, code=CALL):
    """Call the command; seconds by the clock and of processor."""
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(what, *words):
    load = os.getloadavg()[0]
    wall, seconds = calami("cm", *words)
    wanted = f"wanted {WANTED[what]:3d}" if what in WANTED else ""
    print(f"{what:20} {wall:7.1f} s {seconds:7.1f} s of processor   load before {load:4.1f}   {wanted}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="also the 33 exposures of the small plan")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    wish = parser.parse_args()
    print(f"{os.cpu_count()} processors, Python {platform.python_version()}, jwst {version('jwst')}, {time.ctime()}")
    with tempfile.TemporaryDirectory(dir=wish.folder) as folder:
        folder = Path(folder)
        os.environ["CALAMI_CACHE"] = str(folder / "cache")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled
        for scale in ("demo", *(["small"] if wish.small else [])):
            calami("simulate", "1516", "-o", folder / scale, "--scale", scale)
            calami(folder / scale, code=REFERENCES)
        for path in (folder / "demo").glob("jw01516003*"):
            path.unlink()
        common = (folder / "demo", "-o", folder / "out", "--workers", wish.workers)
        measured("six exposures", *common)
        measured("nothing changed", *common)
        measured("another threshold", *common, *OTHER)
        measured("nothing changed", *common, *OTHER)
        if wish.small:
            measured("33 exposures", folder / "small", "-o", folder / "small_out", "--workers", wish.workers)


if __name__ == "__main__":
    main()
