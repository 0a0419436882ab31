"""Make small mistakes in copies of the source, one at a time, and see whether the tests notice.

    python tests/mutants.py                    all of them
    python tests/mutants.py onset kernel       those whose label contains one of the words
    python tests/mutants.py --list             what there is

Each mistake is put into a temporary copy of the package and of the tests; the checkout is not touched. Before that, the
same tests must pass on a copy without mistakes. A mistake that is not noticed points to a property that users rely on
and that no test states.
"""

import argparse
import os
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


# The label starts with the module. `before` holds as much of the line as makes it unique: lines move, files too.
MUTANTS = [
    *_of(
        "test_onset.py",
        # Nearly equivalent: it moves a batch that begins a block into the block before.
        ("onset block side", 'np.searchsorted(self.edges, start, side="right")',
         'np.searchsorted(self.edges, start, side="left")'),
        ("onset saturated fraction", "<= MOST_SATURATED * self.nints", "<= 20 * MOST_SATURATED * self.nints"),
        ("onset read noise", "/ niriss.GAIN + 2 * (niriss.READ_NOISE_E", "/ niriss.GAIN + 1 * (niriss.READ_NOISE_E"),
        ("onset levelling", "LEVELLING = 1.0", "LEVELLING = 0.0"),
        ("onset widening", "WIDENING = 1.12", "WIDENING = 1.0"),
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
        ("onset jump", "jump = flags[:, 1:] & JUMP_DET", "jump = flags[:, :-1] & JUMP_DET"),
        ("onset charge loss", "(niriss.CHARGELOSS | niriss.SATURATED) == 0", "niriss.SATURATED == 0"),
    ),
    *_of(
        "test_kernel.py",
        ("kernel own signal", "found[4] = -current * (before + after)", "found[4] = -current * (2 * before)"),
        ("kernel bootstrap", "right += (1 + (drawn - 1) * np.sqrt(n / (n - 1))) @ blocks",
         "right += (1 + (drawn - 1) * 1.0) @ blocks"),
        ("kernel chi2 scale", "max(min(fits.values()) / max(eq.freedom - 4, 1), 1.0)", "1.0"),
        ("kernel uphill", "[0][0][:2].sum() <= 0:", "[0][0][:2].sum() <= -1e9:"),
    ),
    *_of(
        "test_oifits.py",
        ("oifits trace", "covariance * (variances.sum() / np.trace(covariance))", "covariance * 1.0"),
        ("oifits shrinkage", "round(count / (1 - shrinkage) ** 2)", "round(count / (1 - shrinkage))"),
        ("oifits phase error", "phase = n_holes / np.sqrt(2 * n_photons)", "phase = n_holes / np.sqrt(n_photons)"),
        # Equivalent: signs are only compared with each other.
        ("oifits parity", "(k < i) == 2 else -1", "(k < i) == 1 else -1"),
        ("oifits distance", "chosen = 1 / (away + 1 / 24)", "chosen = 1 / (away + 1.0)"),
        ("oifits between", "(away**2).sum(axis=0).mean() / (len(values) - 1)",
         "(away**2).sum(axis=0).mean() / len(values)"),
        ("oifits closure variance", "matrix @ matrix.T * (cp / 3)", "matrix @ matrix.T * cp"),
        ("oifits reference", "gain = one * cal_v2 / ref_v2", "gain = one * cal_v2"),
    ),
    *_of(
        "test_headers.py",
        ("headers PCOUNT", '_whole(values, "PCOUNT", 0)', "0"),
        ("headers END", "CARD_SIZE] != _END_CARD:", 'CARD_SIZE] == b"impossible":'),
    ),
    *_of(
        "test_archive.py",
        ("archive hash", "or digest.hexdigest() != sha:", "or False:"),
        ("archive token", "_origin(url) == self.home:", "True:"),
        ("archive progress", "1 if gained >= _PROGRESS else", "1 if gained >= 0 else"),
    ),
    *_of(
        "test_prep.py",
        ("prep middle", "k = count // 2 + 1", "k = count // 2"),
        ("prep late", "first * step, (ngroups - last) * step", "first * step, 0.0"),
        ("prep rejected", 'JUMP_DET if of == "differences" else niriss.DO_NOT_USE', "niriss.DO_NOT_USE"),
    ),
    *_of(
        "test_contrast.py",
        ("contrast phase", "np.exp(-2j * np.pi * turns)", "np.exp(2j * np.pi * turns)"),
        ("contrast floor", "matrix @ matrix.T * (floor**2 / 3)", "matrix @ matrix.T * (floor**2)"),
        ("contrast angle", "[y / separation**2, -x / separation**2]", "[y / separation**2, x / separation**2]"),
        ("contrast truncation", "norm.logsf(sigma) + log_ndtr(best / error))", "norm.logsf(sigma))"),
    ),
    *_of(
        "test_fringes.py",
        ("fringes rotation", "sine, cosine = -parity *", "sine, cosine = parity *"),
        ("fringes rare jumps", "RARE_JUMPS = 0.1", "RARE_JUMPS = 0.9"),
        ("fringes T3AMP", "relative = sides / (2 *", "relative = sides / (1 *"),
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


# The copy, not what is installed, must be tested: said by the run itself, so that it cannot be wrong unseen.
GUARD = """from pathlib import Path

import calami

assert Path(calami.__file__).is_relative_to(Path(__file__).resolve().parent), calami.__file__
"""


def copy_to(folder: Path) -> Path:
    """Copy what a run of the tests needs."""
    folder = folder.resolve() / "copy"
    for name in ("calami", "tests"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "pyproject.toml", folder)
    (folder / "conftest.py").write_text(GUARD, encoding="utf-8")
    return folder


def run_tests(folder: Path, names: Iterable[str], limit: float) -> tuple[str, str]:
    """Run the test files of a copy; gives ``passed``, ``failed``, ``time limit`` or ``trouble``, and what was said."""
    paths = [str(path.relative_to(folder)) for path in files_of(names, folder / "tests")]
    own = {"PYTHONPATH": str(folder), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "CI": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths]
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | own, timeout=limit, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return "time limit", ""
    return {0: "passed", 1: "failed"}.get(done.returncode, "trouble"), done.stdout + done.stderr


def try_one(mutant: Mutant, limit: float) -> tuple[str, float, str]:
    """Make the mistake in a new copy; gives the verdict, the seconds and what the tests said."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        folder = copy_to(Path(work))
        try:
            path = find(mutant.before, folder / "calami")
        except Trouble as problem:
            return "NOT FOUND", 0.0, str(problem)
        path.write_text(path.read_text(encoding="utf-8").replace(mutant.before, mutant.after), encoding="utf-8")
        outcome, said = run_tests(folder, mutant.tests, limit)
    verdict = {"passed": "UNNOTICED", "failed": "noticed", "time limit": "TIME LIMIT", "trouble": "TROUBLE"}[outcome]
    return verdict, time.monotonic() - began, said


def check_unchanged(names: Iterable[str], limit: float) -> None:
    """Refuse to go on unless the tests pass on a copy without mistakes."""
    with tempfile.TemporaryDirectory() as work:
        outcome, said = run_tests(copy_to(Path(work)), names, limit)
    if outcome != "passed":
        raise Trouble(f"on an unchanged copy the tests end with {outcome}:\n{said[-3000:]}")


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
    parser.add_argument("--list", action="store_true", help="show the mistakes and where they would be made")
    return parser.parse_args()


def main() -> int:
    """Try the mistakes; 0 if all are noticed."""
    options = asked()
    chosen = [m for m in MUTANTS if not options.words or any(word in m.label for word in options.words)]
    if not chosen:
        raise Trouble(f"no label contains {' or '.join(options.words)}; see --list")
    if options.list:
        for m in chosen:
            print(f"{m.label:26} {find(m.before, REPO / 'calami').relative_to(REPO)}: {m.before}  →  {m.after}")
        return 0
    names = sorted({name for m in chosen for name in m.tests})
    check_unchanged(names, options.limit * len(names))
    print(f"unchanged: {', '.join(names)} pass", flush=True)
    verdicts = []
    with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        for m, (verdict, seconds, said) in zip(
            chosen, pool.map(lambda m: try_one(m, options.limit), chosen), strict=True
        ):
            verdicts.append(verdict)
            more = first_failure(said) if verdict == "noticed" else said[-1500:] if verdict.isupper() else ""
            print(f"{m.label:26} {verdict:10} {seconds:6.1f} s  {more if verdict != 'UNNOTICED' else ''}", flush=True)
    print(f"{verdicts.count('noticed')} of {len(verdicts)} noticed")
    return 0 if set(verdicts) == {"noticed"} else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Trouble as problem:
        sys.exit(str(problem))
