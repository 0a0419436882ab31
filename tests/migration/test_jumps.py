"""Cosmic rays in straight, bent and corrected ramps, as the pipeline's jump step finds them."""

import numpy as np
import pytest
from migration.test_correction import FLOW, NEAR, STRAIGHT, bent
from stcal.jump.twopoint_difference import find_crs
from stcal.jump.twopoint_difference_class import TwoPointParams

from calami.migration.correction import correct_ramp

READ_NOISE = 16.0  # e-
NAMES = ("straight", "bent", "corrected")


def flags(reads):
    """What the step flags with its default parameters; reads in e-."""
    rules = TwoPointParams()
    rules.normal_rej_thresh, rules.two_diff_rej_thresh, rules.three_diff_rej_thresh = 4.0, 6.0, 5.0
    rules.flag_4_neighbors, rules.max_jump_to_flag_neighbors, rules.min_jump_to_flag_neighbors = True, 1000.0, 10.0
    rules.fl_good, rules.fl_dnu, rules.fl_sat, rules.fl_jump, rules.fl_ngv, rules.fl_ref = 0, 1, 2, 4, 8, 16
    rules.after_jump_flag_n1 = rules.after_jump_flag_n2 = 0
    rules.minimum_groups, rules.minimum_sigclip_groups, rules.only_use_ints = 3, 100, True
    rules.min_diffs_single_pass, rules.nframes = 10, (1,)
    groups = reads.shape[1] - 1
    rules.dt_group, rules.n_reads_groupdiff = np.ones(groups, np.float32), np.ones(groups, np.float32)
    quality = np.zeros(reads.shape, np.uint8)
    noise = np.full(reads.shape[-2:], READ_NOISE, np.float32)
    return find_crs(reads.astype(np.float32), quality, noise, rules)[0] & rules.fl_jump != 0


def hit_ramps(nints, sizes, seed):
    """Straight and bent ramps with the same noise and the same hits, and where these are."""
    rng = np.random.default_rng(seed)
    noise = np.cumsum(rng.normal(0, np.sqrt(np.diff(STRAIGHT, axis=0, prepend=0)), (nints, *STRAIGHT.shape)), axis=1)
    noise += rng.normal(0, READ_NOISE, noise.shape)
    sigma = np.sqrt(STRAIGHT[0] + 2 * READ_NOISE**2)  # of a difference of two groups
    rows, columns = np.argwhere(NEAR)[rng.permutation(NEAR.sum())].T
    hits = []
    for number in range(nints):
        # far from each other within an integration: one of each size
        for k, size in enumerate(sizes):
            pixel = (number * len(sizes) + k) % len(rows)
            at = (number, int(rng.integers(2, STRAIGHT.shape[0] - 1)), rows[pixel], columns[pixel])
            noise[number, at[1] :, at[2], at[3]] += size * sigma[at[2:]]
            hits.append((size, at))
    return {"straight": STRAIGHT + noise, "bent": bent(FLOW) + noise}, hits


def found_and_false(nints, sizes, seed, mode="mean"):
    """Parts of the hits found, by size, and of the other differences near the star that are flagged."""
    ramps, hits = hit_ramps(nints, sizes, seed)
    ramps["corrected"] = correct_ramp(ramps["bent"], FLOW, mode=mode)
    away = np.broadcast_to(NEAR, ramps["bent"].shape).copy()
    away[:, 0] = False
    for _, (number, _, row, column) in hits:
        away[number, :, row - 1 : row + 2, column - 1 : column + 2] = False
    seen = {name: flags(ramp) for name, ramp in ramps.items()}
    parts = {n: {s: np.mean([f[at] for size, at in hits if size == s]) for s in sizes} for n, f in seen.items()}
    return parts, {name: f[away].mean() for name, f in seen.items()}, int(away.sum())


@pytest.mark.parametrize("mode", ["mean", "each"])
def test_hits_near_the_threshold_are_found_as_in_ramps_that_never_bent(mode):
    parts, false, count = found_and_false(60, (3.5, 4.0, 5.0, 6.0, 10.0), 1, mode)
    print(parts, false, count)
    straight, corrected = parts["straight"], parts["corrected"]
    # 60 hits of each size; the same noise, so that what differs is the correction alone
    assert all(abs(corrected[size] - straight[size]) <= 0.06 for size in straight)
    assert min(corrected[6.0], corrected[10.0]) >= 0.95 and 0.25 < straight[4.0] < 0.75
    # Two in 30,000 lie beyond 4 sigma
    assert abs(false["corrected"] - false["straight"]) < 3 * np.sqrt(false["straight"] / count)
    assert false["straight"] < 2e-4


def test_bent_ramps_raise_false_jumps_and_miss_true_ones():
    parts, false, _ = found_and_false(60, (4.0, 5.0), 2)
    assert false["bent"] > 10 * false["straight"] and false["bent"] > 10 * false["corrected"]
    assert abs(parts["bent"][5.0] - parts["straight"][5.0]) < 0.2  # most pixels hardly bend
