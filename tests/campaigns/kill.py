"""
What is left when calami is killed at any moment, and whether the same command, given again, finishes.

Each work is a command, run twice without being disturbed. Then it is run again and again, each time in a new folder,
and killed at a random moment (SIGKILL and SIGTERM in turn); 5 s later no process of its session may be left, and
nothing that is not whole may stand under a final name. The command is given again, must end well, leave nothing hidden
behind, and have made what the undisturbed run made.

    nice python tests/campaigns/kill.py                      # about an hour
    nice python tests/campaigns/kill.py --only prep,fetch --kills 3
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
CALAMI = [sys.executable, "-c", "from calami.cli import main; main()"]
AT = """
import sys
from astroquery.mast import conf
from astroquery.mast.services import ServiceAPI
url = sys.argv.pop(1)
conf.server, ServiceAPI.SERVICE_URL, ServiceAPI.MISSIONS_DOWNLOAD_URL = url, url, f"{url}/search/"
from calami.cli import main
main()
"""
#: What two equal runs may differ in, since it is the time of day or how long something took.
TIME_CARDS = ("DATE", "CHECKSUM", "DATASUM")
TIME_KEYS = ("made", "seconds", "when", "started", "finished")
#: Or in this: the manifest of downloads says of a file that was whole before it was noted that it was there.
OTHER_KEYS = ("from",)
#: Texts for people, which say when and how long: they must be there, their words are not compared.
WORDS = (".log", ".html", ".txt")


@dataclass
class Work:
    """One command that is killed."""

    name: str
    kills: int
    command: list[str]  # OUT stands for the folder of results
    environment: dict = field(default_factory=dict)
    prints: bool = False  # what it prints is a result, too
    apart: tuple = ()  # keys of records that are not compared

    def start(self, out, printed):
        words = [w.replace("OUT", str(out)) for w in self.command]
        environment = os.environ | {k: v.replace("OUT", str(out)) for k, v in self.environment.items()}
        with printed.open("wb") as stream, (out.parent / f"{out.name}.err").open("ab") as errors:
            return subprocess.Popen(words, stdout=stream, stderr=errors, env=environment, start_new_session=True)

    def run(self, out):
        """Run it to its end; its results."""
        printed = out.parent / f"{out.name}.printed"
        code = self.start(out, printed).wait()
        found = contents(out, self.apart)
        if self.prints:
            found["what it prints"] = hashlib.sha256(printed.read_bytes()).hexdigest()
        return code, found


def contents(out, apart=()):
    """What stands under final names in a folder: name to a digest of all but the time, and but the keys `apart`."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if not is_hidden(name):
            found[name] = digest(path, out, (*TIME_KEYS, *OTHER_KEYS, *apart))
    return found


def is_hidden(name):
    parts = [p for p in Path(name).parts if p not in (".checkpoints", ".calami")]
    return any(p.startswith(".") for p in parts) or ".part" in parts[-1]


def digest(path, out, apart):
    if path.suffix in WORDS:
        return "words"
    if path.suffix == ".fits":
        return digest_of_fits(path)
    content = path.read_bytes()
    if path.suffix == ".json":
        with suppress(ValueError):
            content = json.dumps(without(json.loads(content), apart), sort_keys=True).encode()
    # Two runs are in two folders.
    return hashlib.sha256(content.replace(str(out).encode(), b"OUT")).hexdigest()


def digest_of_fits(path):
    """All headers but the times, and the bytes of all arrays; the log of jwst in the ASDF extension is left out."""
    from astropy.io import fits

    mark = hashlib.sha256()
    try:
        with fits.open(path, memmap=False, do_not_scale_image_data=True) as hdus:
            hdus.verify("exception")
            for hdu in hdus:
                if hdu.name == "ASDF":
                    continue
                cards = [str(c) for c in hdu.header.cards if c.keyword not in TIME_CARDS]
                mark.update("\n".join(cards).encode())
                mark.update(b"" if hdu.data is None else hdu.data.tobytes())
    except Exception as error:
        return f"damaged: {error}"
    return mark.hexdigest()


def without(facts, apart):
    if isinstance(facts, dict):
        return {k: without(v, apart) for k, v in facts.items() if k not in apart}
    return [without(v, apart) for v in facts] if isinstance(facts, list) else facts


def of_session(session):
    """Processes of a session that run, by number."""
    found = []
    for folder in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            words = Path("/proc", folder, "stat").read_text().rsplit(")", 1)[1].split()
            if int(words[3]) == session and words[0] != "Z":
                found.append(int(folder))
    return found


def kill_once(work, out, seconds, stop, rng):
    """Start, wait, kill; what was wrong afterwards, or None if it had ended before."""
    moment = rng.uniform(0.0, seconds)
    process = work.start(out, out.parent / f"{out.name}.printed")
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
        return None
    workers = len(of_session(process.pid)) - 1
    process.send_signal(stop)
    process.wait()
    began, left = time.monotonic(), True
    while left and time.monotonic() - began < 5:
        time.sleep(0.05)
        left = of_session(process.pid)
    for pid in left:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return {"moment": moment, "workers": workers, "left": len(left), "ended": time.monotonic() - began}


def campaign(work, folder, kills, rng, tell):
    """Kill a work several times; a row of the table, and the faults in words."""
    folder.mkdir(parents=True)
    for name in ("whole", "again"):
        (folder / name).mkdir()
    began = time.perf_counter()
    code, wanted = work.run(folder / "whole")
    seconds = time.perf_counter() - began
    faults = [] if code == 0 else [f"{work.name}: the undisturbed run ended with {code}"]
    for name, mark in compare(work.run(folder / "again")[1], wanted):
        faults.append(f"{work.name}: two undisturbed runs differ in {name} ({mark})")
    row = {
        "work": work.name, "kills": 0, "seconds": round(seconds, 1), "workers": 0, "half-written": 0,
        "failed restarts": 0, "left after 5 s": 0, "other bytes": 0, "left behind": 0, "longest to end": 0.0,
    }  # fmt: skip
    while row["kills"] < kills:
        out = folder / f"kill{row['kills']}"
        out.mkdir()
        stop = (signal.SIGKILL, signal.SIGTERM)[row["kills"] % 2]
        what = kill_once(work, out, seconds, stop, rng)
        if what is None:
            shutil.rmtree(out)
            continue
        where = f"{work.name}, {stop.name} after {what['moment']:.2f} s"
        half = [name for name, mark in contents(out, work.apart).items() if mark != wanted.get(name)]
        code, made = work.run(out)
        other = compare(made, wanted)
        hidden = [str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and is_hidden(str(p.relative_to(out)))]
        row["kills"] += 1
        row["workers"] += what["workers"]
        row["longest to end"] = round(max(row["longest to end"], what["ended"]), 2)
        for key, bad in (
            ("half-written", half), ("failed restarts", [code] if code else []), ("other bytes", other),
            ("left after 5 s", [what["left"]] if what["left"] else []), ("left behind", hidden),
        ):  # fmt: skip
            row[key] += bool(bad)
            faults += [f"{where}: {key}: {bad[:3]}"] if bad else []
        tell(f"{where}: {'; '.join(f for f in faults if f.startswith(where)) or 'well'}")
        shutil.rmtree(out)
    return row, faults


def compare(found, wanted):
    """What two runs differ in."""
    names = sorted(set(found) | set(wanted))
    return [(n, f"{found.get(n)} for {wanted.get(n)}") for n in names if found.get(n) != wanted.get(n)]


def raw_exposures(folder, count, ngroups, nints, seed=1):
    """Simulated exposures of one star, each with other groups."""
    from calami.simulate.exposures import Instrument, simulate_exposure
    from calami.simulate.plans import SIMULATED_STARS, Observation, Setup, lay_out

    star = SIMULATED_STARS["SIM-G2V-A"]
    setups = tuple(Setup(star, "F480M", n, nints) for n in ngroups[:count])
    plan = lay_out("kills", "exposures to be killed", 1516, [Observation(1, "x", setups)])
    for exposure in plan:
        simulate_exposure(exposure, folder, Instrument.default(1), seed=seed)
    return folder


OFFLINE = ["--offline", "--workers", "2"]


def index(base, standin):
    from toys import age, rootname, write_exposure

    from calami.exposures.index import Index

    many = base / "many"
    many.mkdir()
    for k in range(300):
        write_exposure(many / f"{rootname(1 + k // 90, 1 + k % 90)}_cal.fits", NGROUPS=2 + k % 20)
    age(many)
    time.sleep(Index.SETTLED + 0.5)  # what was changed just now is not remembered: its dates may not say so
    return Work("index", 25, [*CALAMI, "summary", str(many)], {"CALAMI_CACHE": "OUT"}, prints=True)


def prep(base, standin):
    raw = raw_exposures(base / "raw", 3, (4, 6, 12), 20)
    return Work("prep", 25, [*CALAMI, "prep", str(raw), "clean", "slice:alternate=2", "-o", "OUT"])


def simulate(base, standin):
    return Work("simulate", 20, [*CALAMI, "simulate", "1516", "-o", "OUT", "--workers", "2"])


def pipe(base, standin):
    pair, cache = raw_exposures(base / "pair", 2, (4, 12), 8), references_of(base)
    return Work("pipe", 12, [*CALAMI, "pipe", str(pair), "detector1", "--keep", "ramp", *OFFLINE, "-o", "OUT"], cache)


def cm(base, standin):
    pair, cache = raw_exposures(base / "pair of cm", 2, (4, 8), 4), references_of(base)
    command = [*CALAMI, "cm", str(pair), "-t", "9000", *OFFLINE, "-o", "OUT"]
    # Records of what is made from products of jwst name these by digest and size; they hold the time of day.
    return Work("cm", 3, command, cache, apart=("sha256", "size", "fingerprint"))


def fetch(base, standin):
    return Work("fetch", 25, [sys.executable, "-c", AT, standin.url, "fetch", "1516", "--to", "OUT", "--types", ""])


def references_of(base):
    """Build the references of --offline, undisturbed; the settings with which they are found."""
    settings = {"CALAMI_CACHE": str(base / "cache")}
    code = "from calami.process.references import default_cache; default_cache()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | settings, check=True)
    return settings


WORKS = {work.__name__: work for work in (index, prep, simulate, pipe, cm, fetch)}


def standin_of_archive():
    """An archive that sends slowly, so that there is something to interrupt."""
    from mast_standin import StandIn, data_set, fits_bytes

    content = [
        (data_set(o), {"uncal": fits_bytes(o, (2, 5, 40, 40)), "calints": fits_bytes(100 + o, (5, 40, 40))})
        for o in range(1, 9)
    ]
    standin = StandIn(content, chunk=8192)
    standin.fault = lambda name: "slowly:0.05"
    return standin


def main(words=None):
    """Run the campaign; the number of faults."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="names of works, with commas")
    parser.add_argument("--kills", type=int, help="of each work, instead of its own number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the table")
    chosen = parser.parse_args(words)
    rows, faults = [], []
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, standin_of_archive() as standin:
        for name in chosen.only.split(",") if chosen.only else WORKS:
            work, place = WORKS[name](Path(folder), standin), Path(folder, f"out of {name}")
            rng = random.Random(f"{chosen.seed} {name}")
            row, wrong = campaign(work, place, chosen.kills or work.kills, rng, lambda line: print(line, flush=True))
            rows.append(row)
            faults += wrong
            print(json.dumps(row), flush=True)
            if chosen.json:
                chosen.json.write_text(json.dumps({"rows": rows, "faults": faults}, indent=1) + "\n")
    print(f"{sum(r['kills'] for r in rows)} kills, {len(faults)} faults")
    print(*faults, sep="\n")
    return len(faults)


if __name__ == "__main__":
    sys.exit(bool(main()))
