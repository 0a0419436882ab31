"""What calami does with damaged files: thousands of them, changed at random, through every public reader.

Run it as ``python tests/campaigns/fuzz.py`` (``--count 12000`` and ``--seed 1`` if not given; a quarter of an hour). A
reader may give what is in the file or refuse it with a `CalamiError`. Counted are: other exceptions; values that are
not those that astropy, csv or json find in a file that they read without a warning; a reader that takes more than ten
seconds of processor; files that are not, byte for byte, what they were; a good file that is lost since a damaged one
lies next to it; and the largest memory of the process. It prints a table and ends with 1 if anything was found.

`tests/test_fuzz.py` runs a short one.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from time import monotonic

import numpy as np
from astropy.io import fits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toys import age, fringe_cube, fringe_images, rootname, write_exposure

from calami.archive.apt import read_apt
from calami.archive.download import MANIFEST, check_whole, read_manifest, verify
from calami.calutil import Data
from calami.core.ahead import import_slow
from calami.core.headers import hdu_walk
from calami.core.problems import CalamiError
from calami.dataset import Dataset
from calami.exposures.cards import read_keywords
from calami.exposures.columns import SUMMARY_COLUMNS
from calami.fringes.fitting import fit
from calami.fringes.observables import from_samples, point_source
from calami.fringes.oifits import list_parts, read_oifits, write_oifits
from calami.migration.ramps import RampStatistics, ramp_statistics
from calami.process.audit import count_flags, nondefault, step_table
from calami.process.piece import read_piece
from calami.process.record import is_current, read_sidecar, records_in, write_sidecar
from calami.simulate.exposures import read_truth, truth_path
from calami.simulate.plan_apt import plan_from_apt
from calami.simulate.plan_files import plan_from_table, write_plan
from calami.simulate.plans import ready_plan

SECONDS, MEMORY = 10, 1e9
NAME = rootname(1)
GOOD = rootname(2)
POINTING = {"ROLL_REF": 171.7, "V3I_YANG": 0.56, "VPARITY": -1, "CDELT1": 1.82e-5, "CDELT2": 1.82e-5, "BUNIT": "DN/s"}
# What damaged, hostile or careless files have in the place of a value
ODD = """T F 0 -1 1 5.0 -0.0 1_000 0x10 NaN nan Inf 1E400 1e-400 1.5D3 (1,2) 'text 'N/A' '' 'é' '$\\frac{1}{$'
    99999999999999999999 9223372036854775808 2147483648 4294967295 -9223372036854775809 65536 null ~ true [] {} [[[[
    !!set &a *a # / ' " \\ % @ 2022-13-45 2022-06-05T25:61:00 jw01516001001_03101_00001_nis ../../x C:\\x '<script>'
    \x00 \ufeff \u202e""".split()
STRUCTURE = """SIMPLE BITPIX NAXIS NAXIS1 NAXIS2 NAXIS3 NAXIS4 EXTEND PCOUNT GCOUNT TFIELDS TFORM1 TFORM5 TFORM6
    TTYPE1 TTYPE5 TUNIT5 TDIM5 TZERO1 TSCAL5 TNULL1 TDISP5 BSCALE BZERO BLANK XTENSION EXTNAME EXTVER END CONTINUE
    ZIMAGE FILENAME FILTER NINTS NGROUPS EFFINTTM TGROUP EXPMID EXSEGTOT INSNAME ARRNAME OI_REVN DATE-OBS PUPIL SUBARRAY
    BUNIT PHOTMJSR""".split()
APT = """<?xml version="1.0"?><JwstProposal schemaVersion="46" APTVersion="Version 26.2"
xmlns="http://www.stsci.edu/JWST/APT" xmlns:n="http://www.stsci.edu/JWST/APT/Template/NirissAmi"><ProposalInformation>
<ProposalID>1516</ProposalID><Title>A title</Title></ProposalInformation><Targets><Target><Number>1</Number>
<TargetName>AB-DOR</TargetName><TargetArchiveName>HD 36705</TargetArchiveName><AnnualParallax>0.0659</AnnualParallax>
<EquatorialCoordinates Value="05 28 44.9 -65 26 55.2"/></Target></Targets><DataRequests><ObservationGroup>
<Observation><Number>1</Number><Label>star</Label><TargetID>1 AB-DOR</TargetID><Template><n:NirissAmi>
<n:AcqMode>AMIBRIGHT</n:AcqMode><n:PrimaryDithers>NONE</n:PrimaryDithers><n:SubpixelPositions>NONE</n:SubpixelPositions>
<n:PsfReference>false</n:PsfReference><n:ExposureList><n:Exposure><n:Filter>F480M</n:Filter>
<n:ReadoutPattern>NISRAPID</n:ReadoutPattern><n:Groups>5</n:Groups><n:Integrations>20</n:Integrations></n:Exposure>
</n:ExposureList></n:NirissAmi></Template></Observation></ObservationGroup></DataRequests></JwstProposal>"""


# Files to begin with


def seeds(folder: Path) -> dict[str, Path]:
    """One good file of each kind, by a name for the table."""
    cube, error, dq = fringe_cube(fringe_images("F480M", seed=3, size=80), 3, seed=1)
    dq[:, :4] |= 1
    images = {"SCI": cube.astype("f4"), "ERR": error.astype("f4"), "DQ": dq.astype("u4")}
    ramps = (cube[:, None] * np.arange(1, 5)[:, None, None] * (3000 / cube.max()) + 1e4).astype("f4")
    made = {}
    for kind in ("rateints", "calints", "rate", "cal"):
        arrays = images if kind.endswith("ints") else {key: value[0] for key, value in images.items()}
        unit = {} if "rate" in kind else {"BUNIT": "MJy/sr", "PHOTMJSR": 0.4}
        cards = {"NINTS": 3, "EFFINTTM": 0.3772, "CAL_VER": "3.0.0", "S_RAMP": "COMPLETE"}
        made[kind] = write_exposure(folder / f"{NAME}_{kind}.fits", arrays, POINTING | unit, **cards)
    cards = {"NINTS": 3, "NGROUPS": 4, "EFFINTTM": 0.3018}
    made["uncal"] = write_exposure(folder / f"{NAME}_uncal.fits", {"SCI": ramps.astype("u2")}, **cards)
    flags = {"PIXELDQ": dq[0].astype("u4"), "GROUPDQ": np.zeros(ramps.shape, "u1")}
    made["ramp"] = write_exposure(folder / f"{NAME}_ramp.fits", {"SCI": ramps, **flags}, **cards)
    star, rng = point_source("F480M", name=NAME), np.random.default_rng(1)
    phase = 0.01 * rng.normal(size=(6, 21))
    samples = {"v2": 1 + 0.02 * rng.normal(size=(6, 21)), "cp": phase @ star.triangle_matrix.T, "phase": phase}
    data = from_samples(_with(star, samples={**samples, "amplitude": np.sqrt(samples["v2"])}, mjd=59735.5))
    made["ami-oi"] = write_oifits(data, folder / f"{NAME}_ami-oi.fits")
    made["amimulti-oi"] = write_oifits(data, folder / f"{NAME}_amimulti-oi.fits", per_integration=True)
    made |= _texts(folder, made["rate"])
    made["ramps.npz"] = ramp_statistics(made["ramp"]).save(folder / "ramps.npz")
    for kind in ("rate", "ami-oi"):
        made[f"{kind}.gz"] = folder / f"{made[kind].name}.gz"
        made[f"{kind}.gz"].write_bytes(gzip.compress(made[kind].read_bytes(), 1))
    return made


def _with(data, **changes):
    from dataclasses import replace

    return replace(data, **changes)


def _texts(folder: Path, product: Path) -> dict[str, Path]:
    made = {"apt.xml": folder / "1516.xml", "apt.aptx": folder / "1516.aptx"}
    made["apt.xml"].write_text(APT)
    with zipfile.ZipFile(made["apt.aptx"], "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("1516.xml", APT)
    made["names.txt"], made["names.yaml"] = folder / "names.txt", folder / "names.yaml"
    made["names.txt"].write_text(f"# names\nstar {NAME}\nother targprop=AB-DOR observtn=2\n")
    made["names.yaml"].write_text(f"star: {NAME}\nother: {GOOD}\n")
    plan = ready_plan("1504", "small")
    for kind in ("csv", "ecsv", "yaml"):
        made[f"plan.{kind}"] = write_plan(plan, folder / f"plan.{kind}")
    facts = {
        "operation": "prep",
        "fingerprint": "abc",
        "inputs": [{"name": product.name, "size": 5, "sha256": "0"}],
        "parameters": {"sigma": 3.0},
    }
    made["record.json"] = write_sidecar(folder / f"{NAME}_rate.fits", facts)
    made["truth.json"] = truth_path(folder, NAME)
    made["truth.json"].write_text(
        json.dumps({"rate": [[1.0, 2.0], [3.0, 4.0]], "light": [[[1.0]], [[2.0]], [[3.0]]], "crossings": {}})
    )
    made["manifest.json"] = folder / MANIFEST
    entry = {"size": 5, "sha256": "0" * 64, "when": "2026-01-01", "from": "mast"}
    made["manifest.json"].write_text(json.dumps({"files": {product.name: entry}}))
    made["index.json"] = folder / "index.json"  # its content is made for each folder
    made["index.json"].write_text("{}")
    return made


# Changes


def change_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, blank, repeat or move some of the bytes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        if not data:
            break
        at, width = rng.randrange(len(data)), rng.choice((1, 4, 80, 512, 2880))
        how = rng.randrange(6)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + width] = bytes(min(width, len(data) - at))
        elif how == 2:
            data[at : at + width] = rng.randbytes(min(width, len(data) - at))
        elif how == 3:
            del data[at : at + width]
        elif how == 4:
            data[at:at] = data[at : at + width]
        else:
            del data[rng.choice((at, at // 2880 * 2880)) :]
    return bytes(data)


def change_cards(data: bytes, rng: random.Random) -> bytes:
    """Give cards other values, take them out, or put new ones in; some cards describe the structure."""
    data, places = bytearray(data), []
    for at in range(0, len(data) - 79, 80):
        if re.match(rb"[A-Z0-9_-]{1,8} *= ", data[at : at + 10]):
            places.append(at)
    for _ in range(rng.choice((1, 1, 2, 5))):
        named = [at for at in places if data[at : at + 8].decode("latin-1").strip() in STRUCTURE]
        at = rng.choice(named if named and rng.random() < 0.6 else places or [0])
        keyword = data[at : at + 8].decode("latin-1")
        value = rng.choice(
            [*ODD, "", str(rng.randrange(10)), str(rng.randrange(-(2**66), 2**66)), str(rng.gauss(0, 1e3))]
        )
        keyword = rng.choice((keyword, keyword, keyword, rng.choice(STRUCTURE).ljust(8)))
        card = f"{keyword}= {value:>20} / changed".encode("latin-1", "replace")
        data[at : at + 80] = rng.choice((card, card, card, b"", b"COMMENT " + card)).ljust(80)[:80]
    return bytes(data)


def change_text(data: bytes, rng: random.Random) -> bytes:
    """Put odd words for words and numbers, drop, repeat and nest parts, or change bytes."""
    if rng.random() < 0.15:
        return change_bytes(data, rng)
    text = data.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 1, 2, 6))):
        tokens = [m.span() for m in re.finditer(r"[\w.+-]+|[^\w\s]", text)] or [(0, 0)]
        (a, b), odd = rng.choice(tokens), rng.choice(ODD)
        how = rng.choices(range(7), (5, 1, 1, 2, 2, 1, 0.5))[0]
        if how == 0 and re.fullmatch(r"[-+.\de]+", text[a:b]) and rng.random() < 0.7:
            odd = rng.choice([str(rng.randrange(100)), f"{rng.gauss(0, 10):.3f}", f"{10 ** rng.uniform(-3, 30):.4g}"])
        new = {0: odd, 1: "", 2: text[a:b] * 3, 3: f"{odd} {text[a:b]}", 4: rng.choice("\n\t:,'\"{}[]<>#&=")}.get(how)
        if how == 5:  # a part of it once more, elsewhere
            c = rng.choice(tokens)[0]
            new = text[a : a + 200] if c else odd
        elif how == 6:
            new = rng.choice(("[", "{a: ", "<a>", "(", '{"a":', "- ")) * rng.choice((3, 2000, 20000))
        text = text[:a] + new + text[b:]
    return text.encode("utf-8", "surrogatepass")


def changed(kind: str, data: bytes, rng: random.Random) -> bytes:
    """A changed file of a kind."""
    if kind.endswith(".gz"):
        if rng.random() < 0.3:
            return change_bytes(data, rng)
        return gzip.compress(changed(kind[:-3], gzip.decompress(data), rng), 1)
    if kind == "ramps.npz":
        return change_bytes(data, rng)
    if kind == "apt.aptx":
        if rng.random() < 0.4:
            return change_bytes(data, rng)
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            inside = {name: packed.read(name) for name in packed.namelist()}
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, text in inside.items():
                packed.writestr(name, change_text(text, rng))
        return made.getvalue()
    if "." in kind:
        return change_text(data, rng)
    return change_cards(data, rng) if rng.random() < 0.7 else change_bytes(data, rng)


# Readers, and what they may give


class Late(BaseException):
    """A reader has taken too long."""


def _late(*_):
    raise Late


class Tally:
    """What was found."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.files, self.calls, self.refused, self.compared = Counter(), Counter(), Counter(), Counter()
        self.faults: list[tuple[str, str, int, str]] = []

    def fault(self, what: str, kind: str, number: int, detail: str) -> None:
        """Note one."""
        self.faults.append((what, kind, number, detail))

    def count(self, what: str) -> int:
        """How many there are of a kind."""
        return sum(fault[0] == what for fault in self.faults)

    def call(self, kind: str, number: int, reader, *args, **options):
        """Call a reader; None if it refuses."""
        self.calls[kind] += 1
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            return reader(*args, **options)
        except CalamiError as problem:
            self.refused[kind] += 1
            if not str(problem).strip():
                self.fault("exception", kind, number, "an error without words")
        except Late:
            name = getattr(reader, "__qualname__", str(reader))
            self.fault("hang", kind, number, name)
        except Exception:
            lines = traceback.format_exc().splitlines()
            where = [line.strip() for line in lines if "/calami/" in line][-2:]
            self.fault("exception", kind, number, " | ".join([lines[-1][:160], *where]))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return None

    def compare(self, kind: str, number: int, what: str, same: bool) -> None:
        """Note whether a value is as another reader has it."""
        self.compared[kind] += 1
        if not same:
            self.fault("silent change", kind, number, what)


@contextlib.contextmanager
def astropy_reads(path: Path):
    """Yield what astropy makes of a file, or nothing if it complains."""
    good = None
    with path.open("rb") as file, warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("error")
        with contextlib.suppress(Exception):
            hdus = stack.enter_context(fits.open(file, memmap=False))
            hdus.verify("exception")
            _ = [hdu.data for hdu in hdus]
            if path.name.endswith(".gz") or path.stat().st_size % 2880 == 0:
                good = hdus
        yield good


def equal(one, other) -> bool:
    """Whether two values are the same, in value and kind."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=np.asarray(other).dtype.kind == "f")
    if isinstance(one, float) and isinstance(other, float) and np.isnan(one):
        return bool(np.isnan(other))
    return isinstance(other, bool) == isinstance(one, bool) and one == other


def exposure(tally: Tally, kind: str, number: int, path: Path) -> None:
    """All that looks at one exposure."""
    call = lambda *args: tally.call(kind, number, *args)  # noqa: E731
    walked = call(hdu_walk, path)
    call(check_whole, path)
    keywords = call(read_keywords, path)
    data = Data(path)
    arrays = {name: call(data.array, name) for name in ("SCI", "ERR", "DQ")}
    for what in ("facts", "header", "sci_header", "dq", "effective_time", "per_adu", "name", "filetype"):
        call(getattr, data, what)
    for what in (data.rate, data.peak):
        call(what)
    for reader in (step_table, nondefault, count_flags):
        call(reader, path)
    call(read_piece, path)
    if kind in ("uncal", "ramp"):
        call(ramp_statistics, path)
    elif number % 60 == 0:
        call(fit, path)
    if walked is None:  # astropy itself has no bounds: NAXIS = 10^9 takes it minutes and gigabytes
        return
    with astropy_reads(path) as hdus:
        if hdus is None or "SCI" not in hdus:
            return
        for name, array in arrays.items():
            if array is not None and name in hdus:
                tally.compare(kind, number, name, equal(array, hdus[name].data))
        for column in SUMMARY_COLUMNS if keywords is not None else ():
            header = hdus[0 if column.hdu == "PRIMARY" else "SCI"].header
            told = {problem.keyword for problem in keywords.problems}
            if column.keyword in header and column.keyword not in told:
                value = header[column.keyword]
                value = None if isinstance(value, fits.card.Undefined) else value
                same = equal(keywords.get(column.keyword), value)
                tally.compare(kind, number, f"{column.keyword}: {keywords.get(column.keyword)!r}, {value!r}", same)


def oifits(tally: Tally, kind: str, number: int, path: Path) -> None:
    """All that looks at OIFITS."""
    tally.call(kind, number, hdu_walk, path)
    tally.call(kind, number, list_parts, path)
    tally.call(kind, number, read_oifits, path, repair=True)
    data = tally.call(kind, number, read_oifits, path)
    if data is None:
        return
    with astropy_reads(path) as hdus:
        for table, column, key in (("OI_VIS2", "VIS2DATA", "v2"), ("OI_T3", "T3PHI", "cp")):
            found = [hdu for hdu in hdus or () if hdu.name == table and column in hdu.columns.names]
            if len(found) != 1 or found[0].columns[column].unit not in (None, "deg"):
                continue
            theirs = np.asarray(found[0].data[column], float)
            theirs = np.radians(theirs) if key == "cp" else theirs
            ours = data.samples[key].T if key in data.samples else getattr(data, key)
            if theirs.shape == ours.shape:
                known = np.isfinite(ours)  # the others are flagged
                tally.compare(kind, number, column, np.array_equal(ours[known], theirs[known]))
    tally.call(kind, number, write_oifits, data, path.parent / "written" / "x.fits")


def text(tally: Tally, kind: str, number: int, path: Path) -> None:
    """What looks at files that people and calami write."""
    if kind.startswith("apt"):
        tally.call(kind, number, read_apt, path)
        tally.call(kind, number, plan_from_apt, path, {"AB-DOR": {"F480M": 5.0}})
    elif kind.startswith("plan"):
        plan = tally.call(kind, number, plan_from_table, path)
        if plan is not None and kind == "plan.csv":
            lines = (line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip("\ufeff ,\t"))
            rows = list(csv.reader(line for line in lines if not line.startswith("#")))
            tally.compare(
                kind, number, f"{len(plan.exposures)} of {len(rows) - 1} rows", len(plan.exposures) == len(rows) - 1
            )
    elif kind == "record.json":
        record = tally.call(kind, number, read_sidecar, path)
        tally.call(kind, number, is_current, path.parent / f"{NAME}_rate.fits", "abc")
        tally.call(kind, number, lambda: list(records_in(path.parent)))
        if record is not None:
            tally.compare(kind, number, "record", record == json.loads(path.read_text(encoding="utf-8")))
    elif kind == "ramps.npz":
        tally.call(kind, number, RampStatistics.load, path)
    elif kind == "truth.json":
        tally.call(kind, number, read_truth, path.parent, NAME)
    elif kind == "manifest.json":
        tally.call(kind, number, read_manifest, path.parent)
        tally.call(kind, number, verify, path.parent)
    elif kind.startswith("names"):
        dataset = Dataset(path.parent.parent / "good")
        tally.call(kind, number, dataset.create_mapping, path)


def folder(tally: Tally, kind: str, number: int, path: Path, good: Path) -> None:
    """A folder with a good file and a damaged one: the good one is found."""
    shutil.copy2(good, path.parent)
    dataset = tally.call(kind, number, Dataset, path.parent)
    if dataset is not None:
        table = tally.call(kind, number, getattr, dataset, "summary")
        tally.call(kind, number, dataset.info)
        tally.call(kind, number, getattr, dataset, "problems")
        if table is None or GOOD not in dataset.rootlist:
            tally.fault("lost", kind, number, "the good file next to it is not found")
    else:
        tally.fault("lost", kind, number, "no data set")


def index(tally: Tally, number: int, rng: random.Random, work: Path) -> None:
    """A damaged index of a folder: nothing but the files themselves may decide."""
    cache = Path(os.environ["CALAMI_CACHE"])
    truth = _summary(work / "good")
    for path in (p for p in cache.rglob("*") if p.is_file()):
        path.write_bytes(change_text(path.read_bytes(), rng))
    found = tally.call("index.json", number, _summary, work / "good")
    if found is not None:
        tally.compare("index.json", number, f"summary {found[:300]}", found == truth)
    shutil.rmtree(cache, ignore_errors=True)
    _summary(work / "good")


def _summary(where: Path) -> str:
    table = Dataset(where).summary
    return "\n".join(table.pformat(max_lines=-1, max_width=-1))


# The campaign


def campaign(count: int, seed: int = 1, kinds: str = "", seconds: float = np.inf, report=None) -> Tally:
    """
    Change `count` files and read them.

    Parameters
    ----------
    count : int
        Files.
    seed : int
        Of the changes: file n of a seed is always the same.
    kinds : str
        Only kinds that this regular expression finds; all if empty.
    seconds : float
        End after so long, if not all files have been read.
    report : callable, optional
        Called with a line now and then.

    Returns
    -------
    Tally
        What was found.
    """
    import_slow()  # it takes as long as it takes, and is no file's fault; stopped half way it would leave half of it
    tally, logger = Tally(), logging.getLogger("calami")
    old, level = signal.signal(signal.SIGPROF, _late), logger.level
    logger.setLevel(logging.CRITICAL + 1)
    cache = os.environ.get("CALAMI_CACHE")
    try:
        with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.environ["CALAMI_CACHE"] = str(Path(work) / "cache")
            _run(tally, range(count), seed, kinds, monotonic() + seconds, Path(work), report)
    finally:
        signal.signal(signal.SIGPROF, old)
        logger.setLevel(level)
        os.environ.pop("CALAMI_CACHE") if cache is None else os.environ.update(CALAMI_CACHE=cache)
    return tally


def _run(tally: Tally, numbers: range, seed: int, only: str, end: float, work: Path, report) -> None:
    (work / "seeds").mkdir()
    (work / "good").mkdir()
    files = seeds(work / "seeds")
    for name in (NAME, GOOD):
        write_exposure(work / "good" / f"{name}_rate.fits")
    age(work / "good")
    age(work / "seeds")
    _summary(work / "good")
    kinds = [*files, *[k for k in files if "." not in k]]  # exposures and OIFITS twice as often
    kinds = [kind for kind in kinds if re.search(only, kind)]
    contents = {kind: path.read_bytes() for kind, path in files.items()}
    known, memory = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        if monotonic() > end:
            break
        rng, kind = random.Random(seed * 10**9 + number), kinds[number % len(kinds)]
        tally.files[kind] += 1
        place = work / "trial"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if kind == "index.json":
            index(tally, number, rng, work)
            continue
        path = place / files[kind].name
        data = changed(kind, contents[kind], rng)
        path.write_bytes(data)
        if "oi" in kind:
            oifits(tally, kind, number, path)
        elif "." in kind and not kind.endswith(".gz"):
            text(tally, kind, number, path)
        else:
            exposure(tally, kind, number, path)
            if number % 5 == 0:
                folder(tally, kind, number, path, work / "good" / f"{GOOD}_rate.fits")
        if not path.exists() or path.read_bytes() != data:
            tally.fault("input changed", kind, number, path.name)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if peak > memory + 100_000:
            tally.fault("memory" if peak * 1024 > MEMORY else "more memory", kind, number, f"{peak / 1e6:.2f} GB")
        memory = max(peak, memory)
        for fault in tally.faults[known:] if report else ():
            report(" ".join(map(str, fault)))
        known = len(tally.faults)
        if report and number % 500 == 499:
            report(f"{number + 1} files, {len(tally.faults)} faults, {memory / 1e6:.2f} GB")


def table(tally: Tally) -> str:
    """What was found, as a table in Markdown."""
    lines = ["| kind | files | calls | refused | values compared |", "|---|---:|---:|---:|---:|"]
    for kind in tally.files:
        numbers = (f"{c[kind]:,}" for c in (tally.files, tally.calls, tally.refused, tally.compared))
        lines.append(f"| {kind} | {' | '.join(numbers)} |")
    all_of = (f"{c.total():,}" for c in (tally.files, tally.calls, tally.refused, tally.compared))
    return "\n".join([*lines, f"| all | {' | '.join(all_of)} |"])


def main() -> int:
    """Run the campaign."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--count", type=int, default=12_000)
    given.add_argument("--seed", type=int, default=1)
    given.add_argument("--kinds", default="", help="only these, a regular expression")
    given.add_argument("--seconds", type=float, default=np.inf, help="end after so long")
    words = given.parse_args()
    report = partial(print, file=sys.stderr, flush=True)
    tally = campaign(words.count, words.seed, words.kinds, words.seconds, report)
    print(table(tally))
    for what in ("exception", "silent change", "hang", "input changed", "lost", "memory"):
        print(f"{what}: {tally.count(what)}")
    print(f"largest memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    same = Counter((what, kind, re.sub(r"[0-9.]+", "N", detail)[:250]) for what, kind, _, detail in tally.faults)
    first = {}
    for what, kind, number, detail in tally.faults:
        first.setdefault((what, kind, re.sub(r"[0-9.]+", "N", detail)[:250]), (number, detail))
    for key, times in same.most_common(60):
        number, detail = first[key]
        print(f"{times} × {key[0]}, {key[1]}, file {number}: {detail}")
    return any(fault[0] != "more memory" for fault in tally.faults)


if __name__ == "__main__":
    sys.exit(main())
