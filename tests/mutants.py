"""Make small mistakes in copies of the source, one at a time, and see whether the tests notice.

    python tests/mutants.py                    all of them
    python tests/mutants.py onset kernel       those whose label contains one of the words
    python tests/mutants.py --notebooks        run the notebook that exports the module, too
    python tests/mutants.py --list             what there is

Each mistake is put into a temporary copy of the package and of the tests; the checkout is not touched. Before that, the
same tests must pass on a copy without mistakes. A mistake that is not noticed points to a property that users rely on
and that no test states.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent
REPO = TESTS.parent


@dataclass(frozen=True)
class Mutant:
    """A label, a piece of one line of the source that occurs once in the package, what it becomes, and its tests."""

    label: str
    before: str
    after: str
    tests: tuple[str, ...]


def _of(tests: str, *rows: tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(label, before, after, tuple(tests.split())) for label, before, after in rows]


# The label starts with the subject. `before` holds as much of the line as makes it unique: lines move, files too.
MUTANTS = [
    *_of(
        "test_reads.py",
        ("reads persistence shared", "blocks - np.outer(released, eq.unsure)",
         "blocks + np.outer(released, eq.unsure)"),
        ("reads sign", "total=stats.total - stats.count * added", "total=stats.total + stats.count * added"),
        ("reads converter", "return waves[1] - waves[0]", "return waves[1] + waves[0]"),
    ),
    *_of(
        "test_saturation.py",
        ("saturation floor", "return fit - fit[0] + np.minimum(below, np.maximum(fit[0], 0))",
         "return np.maximum(fit, 0)"),
    ),
    *_of(
        "test_onset.py",
        # Nearly equivalent: it moves a batch that begins a block into the block before.
        ("onset block side", 'np.searchsorted(self.edges, start, side="right")',
         'np.searchsorted(self.edges, start, side="left")'),
        ("onset saturated fraction", "<= MOST_SATURATED * self.nints", "<= 20 * MOST_SATURATED * self.nints"),
        ("onset read noise", "maximum(difference, 0.0) / niriss.GAIN + 2 *",
         "maximum(difference, 0.0) / niriss.GAIN + 1 *"),
        ("onset levelling", "LEVELLING = 1.0", "LEVELLING = 0.0"),
        ("onset parabola", "np.clip(-slope / (2 * bend)", "np.clip(slope / (2 * bend)"),
        ("onset BIC", 'fit["parameters"] * np.log(points)', 'fit["parameters"] * 2.0'),
        ("onset measured", "share >= 0.975 and", "share >= 0.5 and"),
        ("onset interval", "np.quantile(levels, [0.16, 0.84,", "np.quantile(levels, [0.25, 0.75,"),
        ("onset bootstrap", "weights[1:] += (drawn - 1) * np.sqrt(blocks / (blocks - 1))",
         "weights[1:] += (drawn - 1) * 1.0"),
        ("onset shared read", "shared = -read / np.maximum(", "shared = read / np.maximum("),
        ("onset steeper", "STEEPER = 6.0", "STEEPER = 60.0"),
        ("onset slope error", "np.std(fits[:, 1], ddof=1) / np.sqrt(stats.blocks)",
         "np.std(fits[:, 1], ddof=1) / stats.blocks"),
        ("onset jump", "jump = flags[:, 1:] & niriss.JUMP_DET", "jump = flags[:, :-1] & niriss.JUMP_DET"),
        ("onset charge loss", "(niriss.CHARGELOSS | niriss.SATURATED) == 0", "niriss.SATURATED == 0"),
    ),
    *_of(
        "test_kernel.py",
        ("kernel own signal", "found[4] = -current * (before + after)", "found[4] = -current * (2 * before)"),
        ("kernel bootstrap", "right += (drawn - 1) * np.sqrt(n / (n - 1)) @ blocks",
         "right += (drawn - 1) * 1.0 @ blocks"),
        ("kernel chi2 scale", "max(min(chi2.values()) / max(eq.freedom - 4, 1), 1.0)", "1.0"),
        ("kernel cubic", "before**2 + before * after + after**2", "before**2 + after**2"),
        ("kernel uphill", "[0][0][:2].sum() <= 0:", "[0][0][:2].sum() <= -1e9:"),
    ),
    *_of(
        "test_oifits.py test_observables.py",
        ("oifits trace", "covariance * (variances.sum() / np.trace(covariance))", "covariance * 1.0"),
        ("oifits shrinkage", "round(count / (1 - shrinkage) ** 2)", "round(count / (1 - shrinkage))"),
        ("oifits phase error", "phase = n_holes / np.sqrt(2 * n_photons)", "phase = n_holes / np.sqrt(n_photons)"),
        # Equivalent: signs are only compared with each other.
        ("oifits parity", "(k < i) == 2 else -1", "(k < i) == 1 else -1"),
        ("oifits distance", "return 1 / (away + 1 / 24)", "return 1 / (away + 1.0)"),
        ("oifits between", "(away**2).sum(axis=0).mean() / (len(values) - 1)",
         "(away**2).sum(axis=0).mean() / len(values)"),
        ("oifits closure variance", "triangle_matrix.T * (variance / 3)", "triangle_matrix.T * variance"),
        ("oifits reference", "else used * calibrated / reference", "else used * calibrated"),
    ),
    *_of(
        "test_cards.py",
        ("headers PCOUNT", '_whole(values, "PCOUNT", 0)', "0"),
        ("headers END", 'CARD_SIZE] != _END_CARD:', 'CARD_SIZE] == b"impossible":'),
    ),
    *_of(
        "test_download.py",
        ("archive hash", "or digest.hexdigest() != sha:", "or False:"),
        ("archive token", "_origin(url) == self.home:", "True:"),
        ("archive progress", "1 if gained >= _PROGRESS else", "1 if gained >= 0 else"),
    ),
    *_of(
        "test_prep.py",
        ("prep middle", "factor * _quantile(deviation, count, 0.5)", "factor * _quantile(deviation, count, 0.4)"),
        ("prep late", "first * float(step), (ngroups - last) * float(step)", "first * float(step), 0.0"),
        ("prep rejected", 'JUMP_DET if of == "differences" else niriss.DO_NOT_USE', "niriss.DO_NOT_USE"),
    ),
    *_of(
        "test_companions.py",
        ("contrast phase", "np.exp(-2j * np.pi * turns)", "np.exp(2j * np.pi * turns)"),
        ("contrast floor", "matrix @ matrix.T * (floor**2 / 3)", "matrix @ matrix.T * (floor**2)"),
        ("contrast angle", "[y / separation**2, -x / separation**2]", "[y / separation**2, x / separation**2]"),
        ("contrast truncation", "norm.logsf(sigma) + log_ndtr(best / error))", "norm.logsf(sigma))"),
    ),
    *_of(
        "test_calibration.py",
        ("systematics few", "measured = scatter[0], 2.0 * (scatter[1] - 1)",
         "measured = scatter[0], 200.0 * (scatter[1] - 1)"),
        ("systematics fringe", "error = 2 * values * np.sqrt(fringe *", "error = values * np.sqrt(2 * fringe *"),
        ("systematics reach", "np.hypot(1, away / self.reach)", "1.0"),
        ("systematics least scale", "else max(1.0, chi2 / alarm.freedom)", "else chi2 / alarm.freedom"),
        ("systematics trials", "else freedom * peak / np.maximum(whole - peak, 1e-9)", "else peak"),
        ("systematics limits", "max(1.0, min(reduced, 2 * reduced - 2))", "1.0"),
        ("systematics phases", "phase_error = np.sqrt(np.diag(turned) / n)",
         "phase_error = np.sqrt((turns**2).sum(axis=0) / (n - 1) / n)"),
        ("systematics shared", "1 + SHARED * (len(parts) - 1)", "1 + 0 * (len(parts) - 1)"),
    ),
    *_of(
        "test_fitting.py",
        ("fringes rotation", "sine, cosine = -parity *", "sine, cosine = parity *"),
        ("fringes rare jumps", "RARE_JUMPS = 0.1", "RARE_JUMPS = 0.9"),
        ("fringes T3AMP", "relative = sides / (2 *", "relative = sides / (1 *"),
        ("fringes pieces", "range(0, count, step)]", "range(0, count - count % step, step)]"),
    ),
    *_of(
        "test_sources.py",
        ("sources axes", 'np.hypot(along * given["fwhm"], across * given["width"])',
         'np.hypot(across * given["fwhm"], along * given["width"])'),
        ("sources scale", "] = scale * np.linalg.pinv(inner", "] = np.linalg.pinv(inner"),
        ("sources parameters", "+ len(self.names) * np.log(self.n_data))", "+ 0 * np.log(self.n_data))"),
        ("sources limit", "_ONE_SIDED = 2.706", "_ONE_SIDED = 0.2706"),
    ),
    *_of(
        "test_oifits.py",
        ("oifits correlations", "matrix[one[inside], two[inside]] = matrix[two[inside], one[inside]] =",
         "matrix[one[inside], two[inside]] ="),
    ),
]  # fmt: skip


class Trouble(Exception):
    """What keeps the script from giving an answer."""


def find(before: str, package: Path) -> Path:
    """Give the one file of the package with a text, which must occur once."""
    found = {path: path.read_text(encoding="utf-8").count(before) for path in sorted(package.rglob("*.py"))}
    holds = [path for path, times in found.items() if times]
    if sum(found.values()) != 1:
        where = ", ".join(f"{found[path]}× in {path.relative_to(package)}" for path in holds) or "nowhere"
        raise Trouble(f"{before!r} must be found once, and is found {where}: give more or other text of its line")
    return holds[0]


def files_of(names: Iterable[str], folder: Path) -> list[Path]:
    """Give the test files of these names, wherever below the folder they are."""
    found = {name: sorted(folder.rglob(name)) for name in names}
    if lost := [name for name, paths in found.items() if not paths]:
        raise Trouble(f"no test file {', '.join(lost)} below {folder.name}/")
    return sorted({path for paths in found.values() for path in paths})


def page_of(module: Path, package: Path, notebooks: Path) -> Path:
    """Give the notebook that exports a module."""
    name = ".".join(module.relative_to(package).with_suffix("").parts)
    cell = re.compile(rf"default_exp {re.escape(name)}\b")
    found = [path for path in sorted(notebooks.rglob("*.ipynb")) if cell.search(path.read_text(encoding="utf-8"))]
    if len(found) != 1:
        raise Trouble(f"{len(found)} notebooks export {name}")
    return found[0]


# The copy, not what is installed, must be tested: said by the run itself, so that it cannot be wrong unseen.
GUARD = """from pathlib import Path

import calami

assert Path(calami.__file__).is_relative_to(Path(__file__).resolve().parent), calami.__file__
"""


def snapshot(folder: Path) -> Path:
    """Copy what runs of the tests need, once: the checkout may change meanwhile."""
    for name in ("calami", "tests", "nbs"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_site"))
    shutil.copy(REPO / "pyproject.toml", folder)
    (folder / "conftest.py").write_text(GUARD, encoding="utf-8")
    return folder


def run_tests(folder: Path, paths: Iterable[Path], limit: float) -> tuple[str, str]:
    """Run test files of a copy; gives ``passed``, ``failed``, ``time limit`` or ``trouble``, and what was said."""
    own = {"PYTHONPATH": str(folder), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "CI": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [str(path.relative_to(folder)) for path in paths]
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | own, timeout=limit, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return "time limit", ""
    return {0: "passed", 1: "failed"}.get(done.returncode, "trouble"), done.stdout + done.stderr


def tests_of(mutant: Mutant, folder: Path, notebooks: bool) -> list[Path]:
    """Give the files that are run for a mistake."""
    paths = files_of(mutant.tests, folder / "tests")
    if notebooks:
        package = folder / "calami"
        paths.append(page_of(find(mutant.before, package), package, folder / "nbs"))
    return paths


def try_one(mutant: Mutant, unchanged: Path, notebooks: bool, limit: float) -> tuple[str, float, str]:
    """Make the mistake in a new copy; gives the verdict, the seconds and what the tests said."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work).resolve() / "copy"
        shutil.copytree(unchanged, folder, ignore=shutil.ignore_patterns("__pycache__"))
        path = find(mutant.before, folder / "calami")
        tests = tests_of(mutant, folder, notebooks)
        path.write_text(path.read_text(encoding="utf-8").replace(mutant.before, mutant.after), encoding="utf-8")
        outcome, said = run_tests(folder, tests, limit)
    verdict = {"passed": "UNNOTICED", "failed": "noticed", "time limit": "TIME LIMIT", "trouble": "TROUBLE"}[outcome]
    return verdict, time.monotonic() - began, said


def first_failure(said: str) -> str:
    """Give the name of the test that noticed."""
    lines = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" - ")[0].split("::")[-1] if lines else ""


def asked() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mistakes whose label contains one of these")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once (1)")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for the tests of one mistake (600)")
    parser.add_argument("--notebooks", action="store_true", help="run the notebook of the module, too")
    parser.add_argument("--list", action="store_true", help="show the mistakes and where they would be made")
    return parser.parse_args()


def choose(words: Iterable[str]) -> list[Mutant]:
    """Give the mistakes whose label contains one of the words; all of them without words."""
    chosen = [m for m in MUTANTS if not words or any(word in m.label for word in words)]
    if not chosen:
        raise Trouble(f"no label contains {' or '.join(words)}; see --list")
    return chosen


def try_all(chosen: Iterable[Mutant], unchanged: Path, options: argparse.Namespace) -> list[str]:
    """Print a line for each mistake; gives the verdicts."""
    verdicts = []
    with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        jobs = {m: pool.submit(try_one, m, unchanged, options.notebooks, options.limit) for m in chosen}
        for m, job in jobs.items():
            verdict, seconds, said = job.result()
            verdicts.append(verdict)
            more = {"noticed": first_failure(said), "UNNOTICED": ""}.get(verdict, said[-1500:])
            print(f"{m.label:26} {verdict:10} {seconds:6.1f} s  {more}".rstrip(), flush=True)
    return verdicts


def main() -> int:
    """Try the mistakes; 0 if all are noticed."""
    options = asked()
    chosen = choose(options.words)
    with tempfile.TemporaryDirectory() as work:
        unchanged = snapshot(Path(work).resolve() / "unchanged")
        places = {m: find(m.before, unchanged / "calami").relative_to(unchanged) for m in chosen}
        tests = sorted({path for m in chosen for path in tests_of(m, unchanged, options.notebooks)})
        if options.list:
            for m, path in places.items():
                print(f"{m.label:26} {path}: {m.before}  →  {m.after}")
            return 0
        outcome, said = run_tests(unchanged, tests, options.limit * len(tests))
        if outcome != "passed":
            raise Trouble(f"on an unchanged copy the tests end with {outcome}:\n{said[-3000:]}")
        print(f"unchanged: {', '.join(path.name for path in tests)} pass", flush=True)
        verdicts = try_all(chosen, unchanged, options)
    print(f"{verdicts.count('noticed')} of {len(verdicts)} noticed")
    return 0 if set(verdicts) == {"noticed"} else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as problem:
        sys.exit(str(problem))
