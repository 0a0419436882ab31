"""What onset and verdict are worth on ramps of a simulator that shares nothing with calami's (`tests/foreign.py`).

    python tests/campaigns/foreign_physics.py [--programs 100] [--laws linear,own] [--nuisances clean] [--seed 1]

A program: one filter, two pointings, four depths each to 48 ke- at the peak, about 1e8 photons an exposure. For each
law and nuisance: level over truth at 0.5, 1, 2 and 3 % (instantaneous), its pull (deviation of the logarithm in units
of half the 68 % interval), coverage of the 68 and 95 % intervals with the p of a binomial test, widths, how often the
answer was flagged, how often a limit was wrong, and verdicts. It prints a table and, with ``--out``, writes all rows as
JSON.

With ``--verdicts`` only false claims are counted: the nuisances of a program disturb the same reads, and nothing is
resampled. A line after every 20 programs.

    nice python tests/campaigns/foreign_physics.py --verdicts --laws none --programs 400
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import foreign

from calami.instrument import niriss
from calami.migration.kernel import migration_or_nonlinearity
from calami.migration.onset import quantify
from calami.migration.ramps import statistics_of

BANDS = tuple(foreign.BANDS)


def physics_of(law, nuisance):
    """A law with a nuisance added."""
    return replace(foreign.LAWS[law], **foreign.NUISANCES[nuisance])


def run(seed, law, nuisance, n_bootstrap=300, verdict=True, **sizes):
    """Facts of one program: for each threshold what came out and what is true, flags, verdict."""
    band = BANDS[seed % len(BANDS)]
    program = foreign.program_of(seed, physics_of(law, nuisance), band, **sizes)
    stats = [statistics_of(r, **facts) for r, facts in zip(program.ramps, program.facts, strict=True)]
    onset = quantify(stats, thresholds=foreign.THRESHOLDS, n_bootstrap=n_bootstrap, seed=seed)
    result = onset.filters[band]
    true, rows = program.levels(result.weights), []
    for c in result.crossings(foreign.THRESHOLDS, ["instantaneous"]):
        truth = true[c.threshold] / niriss.GAIN
        inside = truth < 0.97 * result.reach_adu
        rows.append([c.threshold, truth if inside else None, c.level_adu, c.limit,
                     *(c.lo68_adu, c.hi68_adu, c.lo95_adu, c.hi95_adu)])  # fmt: skip
    facts = {"rows": rows, "law": result.law, "flagged": list(getattr(result, "flags", ()))}
    facts["fit"] = [result.chi2, result.dof] if hasattr(result, "chi2") else None
    if verdict:
        found = migration_or_nonlinearity(onset.statistics, n_bootstrap=100)
        facts |= {"verdict": found.answer, "log10_odds": found.log10_odds, "superlinear": found.superlinear}
    return facts


def disturbed(reads, physics, rng):
    """Reads of a clean exposure, ADU, with a nuisance: that of `foreign.reads_of`, after the noise."""
    seen, at = reads * np.float32(foreign.GAIN), np.arange(1, reads.shape[1] + 1)[:, None, None]
    if physics.nonlinear or physics.cubic:
        seen -= physics.nonlinear * seen**2 + physics.cubic * seen**3
    if physics.persistence:
        released = physics.persistence * reads[:, -1].mean(axis=0) * foreign.GAIN
        seen += released.astype("float32") * (1 - np.exp(-at / physics.persistence_groups)).astype("float32")
    if physics.first:
        seen += (physics.first * np.exp(-(at - 1) / physics.first_groups)).astype("float32")
    if physics.stripes:
        shape = (*seen.shape[:2], 1, seen.shape[3])
        seen += physics.stripes * rng.standard_normal(shape, dtype=np.float32)
        seen += physics.stripes / 2 * rng.standard_normal((*shape[:2], 1, 1), dtype=np.float32)
    seen /= np.float32(foreign.GAIN)
    if physics.converter:
        bias = np.random.default_rng(5).uniform(0, 1024, (64, 64))[: seen.shape[2], : seen.shape[3]]
        seen += physics.converter * np.sin(2 * np.pi / 1024 * (seen + bias.astype("float32")))
    return seen


def verdicts(seed, law, nuisances):
    """Verdict on one program for each nuisance."""
    program, found = foreign.program_of(seed, foreign.LAWS[law], BANDS[seed % len(BANDS)]), {}
    for number, nuisance in enumerate(nuisances):
        rng, physics = np.random.default_rng([seed, number]), physics_of(law, nuisance)
        ramps = [disturbed(r, physics, rng) if nuisance != "clean" else r for r in program.ramps]
        stats = [statistics_of(r, **facts) for r, facts in zip(ramps, program.facts, strict=True)]
        found[nuisance] = migration_or_nonlinearity(stats, n_bootstrap=0).answer
    return found


def print_verdicts(law, nuisances, seeds):
    """How often each verdict was given, after every 20 programs."""
    counts = {nuisance: Counter() for nuisance in nuisances}
    for number, seed in enumerate(seeds, 1):
        for nuisance, answer in verdicts(seed, law, nuisances).items():
            counts[nuisance][answer] += 1
        if number % 20 == 0 or number == len(seeds):
            words = (f"{name}: {', '.join(f'{k} {v}' for k, v in c.most_common())}" for name, c in counts.items())
            print(f"{law}, {number} programs; {'; '.join(words)}", flush=True)


def summary(cell):
    """One line of a table from the programs of a cell."""
    from scipy.stats import binomtest

    rows = [row for facts in cell for row in facts["rows"]]
    out = []
    for threshold in foreign.THRESHOLDS:
        own = [r for r in rows if r[0] == threshold and r[1] is not None and not r[3]]
        wrong = sum(bool(r[3]) and r[1] is not None and r[2] > r[1] for r in rows if r[0] == threshold)
        if len(own) < 0.2 * len(cell):
            out.append({"threshold": threshold, "measured": len(own), "wrong_limits": wrong})
            continue
        _, truth, level, _, lo68, hi68, lo95, hi95 = (np.array(v) for v in zip(*own, strict=True))
        truth, level = truth.astype(float), level.astype(float)
        width = np.log(hi68.astype(float) / np.maximum(lo68.astype(float), 1)) / 2
        held = [np.sum((lo <= truth) & (truth <= hi)) for lo, hi in ((lo68, hi68), (lo95, hi95))]
        out.append({
            "threshold": threshold, "measured": len(own), "wrong_limits": wrong,
            "bias": float(np.median(level / truth) - 1), "width": float(np.median(width)),
            "pull": float(np.median(np.log(level / truth) / width)),
            "in68": float(held[0] / len(own)), "in95": float(held[1] / len(own)),
            "p68": float(binomtest(int(held[0]), len(own), 0.683).pvalue),
            "p95": float(binomtest(int(held[1]), len(own), 0.954).pvalue),
        })  # fmt: skip
    return out


def line(law, nuisance, cell):
    """The cell as a row of a table for display."""
    words = []
    for one in summary(cell):
        if "bias" not in one:
            words.append("-")
            continue
        bias, width, in68, in95 = (100 * one[key] for key in ("bias", "width", "in68", "in95"))
        words.append(f"{bias:+.1f} ± {width:.0f} ({one['pull']:+.1f}; {in68:.0f}/{in95:.0f})")
    flagged = f"{100 * np.mean([bool(f['flagged']) for f in cell]):.0f}"
    verdicts = Counter(f.get("verdict", "-") for f in cell)
    laws = Counter(f["law"] for f in cell)
    told = [law, nuisance, len(cell), *words, flagged]
    told += [" ".join(f"{k} {v}" for k, v in c.most_common()) for c in (verdicts, laws)]
    return "| " + " | ".join(map(str, told)) + " |"


def main():
    """Run all cells that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--laws", default=",".join(foreign.LAWS))
    parser.add_argument("--nuisances", default=",".join(foreign.NUISANCES))
    parser.add_argument("--no-verdict", action="store_true")
    parser.add_argument("--verdicts", action="store_true", help="count verdicts only")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("error")
    began, every, numbers = perf_counter(), {}, range(1000 * asked.seed, 1000 * asked.seed + asked.programs)
    if asked.verdicts:
        for law in asked.laws.split(","):
            print_verdicts(law, asked.nuisances.split(","), numbers)
        return
    print("| law | nuisance | N | 0.5 % | 1 % | 2 % | 3 % | flagged [%] | verdicts | laws of the fit |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for law in asked.laws.split(","):
        for nuisance in asked.nuisances.split(","):
            cell = [run(seed, law, nuisance, verdict=not asked.no_verdict) for seed in numbers]
            every[f"{law}/{nuisance}"] = cell
            print(line(law, nuisance, cell), flush=True)
    print(f"\nbias [%] ± half the 68 % interval [%] (pull; coverage of 68/95 %); {perf_counter() - began:.0f} s")
    if asked.out:
        asked.out.write_text(json.dumps(every), encoding="utf-8")


if __name__ == "__main__":
    main()
