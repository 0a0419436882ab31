import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import variants

from calami.core.problems import CalamiError
from calami.instrument import niriss
from calami.migration import saturation
from calami.migration.mitigation import Departure, Entry, Mitigation, ScanExposure, without_step
from calami.migration.saturation import advise, effective_saturation, meeting_level, rising, saturation_table


def scan_of(levels, bias, cp_bias, noise, scatter, rng, photons=1e8, filter="F480M"):
    """A scan whose bias is known; mean squares at each level, measured with a relative scatter."""
    entries = []
    for level, v2, cp in zip(levels, bias(levels) ** 2, cp_bias(levels) ** 2, strict=True):
        sigma = scatter * np.array([v2, cp])
        seen = np.array([v2, cp]) + sigma * rng.normal(size=2)
        draws = seen[:, None] + sigma[:, None] * rng.normal(size=(2, 300))
        facts = Departure(*seen, noise**2, noise**2, 0.0, 1e-4, *draws, draws[0])
        target = ScanExposure(f"jw{level}", f"{level}", "A", filter, float(level), photons)
        entries.append(Entry(without_step(), target, target, "shallowest", facts, *(np.ones(1),) * 3))
    return Mitigation(tuple(entries), np.array([150.0]), (without_step(),))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_rising_never_falls_and_keeps_the_mean(values):
    fit = rising(np.array(values))
    assert (np.diff(fit) >= -1e-9).all()
    assert math.isclose(fit.mean(), np.mean(values), abs_tol=1e-6)


def test_rising_is_the_isotonic_regression_of_each_series():
    from scipy.optimize import isotonic_regression

    rng = np.random.default_rng(5)
    values, weights = np.linspace(0, 2, 6)[:, None] + rng.normal(size=(6, 300)), rng.uniform(0.5, 2, 6)
    known = np.column_stack([isotonic_regression(one, weights=weights).x for one in values.T])
    np.testing.assert_array_equal(rising(values, weights), known)
    assert (np.diff(values, axis=0) >= 0).all(axis=0).any()  # some rise as they are
    unknown = np.array([1.0, np.nan, 2.0])
    np.testing.assert_array_equal(rising(unknown), isotonic_regression(unknown).x)


@given(st.floats(1e-7, 1e-5), st.floats(1e-3, 0.5))
def test_the_level_of_a_bias_in_proportion_to_charge(slope, noise):
    levels = np.array([4e3, 1e4, 2e4, 4.5e4])
    found = meeting_level(levels, (slope * levels) ** 2, np.full(4, noise**2))
    assert math.isclose(found, noise / slope, rel_tol=1e-6) if noise / slope <= levels[-1] else found == math.inf


def test_intervals_contain_the_truth():
    # 400 draws.
    rng = np.random.default_rng(4)
    levels = np.linspace(5e3, 45e3, 9)
    inside = []
    for _ in range(400):
        scan = scan_of(levels, lambda q: 1e-6 * q, lambda q: 1e-9 * q, 0.02, 0.15, rng)
        (one,) = [x for x in effective_saturation(scan, [1e8]) if x.observable == "v2"]
        assert one.limit == ""
        inside.append([low <= 2e4 <= high for low, high in (one.interval68, one.interval95)])
    share = np.mean(inside, axis=0)
    assert abs(share[0] - 0.68) < 0.05 and abs(share[1] - 0.95) < 0.03, share


@pytest.mark.parametrize(("photons", "true"), [(1e8, 2e4), (4e8, 1e4)])
def test_the_error_of_a_level_agrees_with_a_numerical_jacobian(photons, true):
    # Errors of the mean squares at each depth, taken through the level by moving one of them after the other.
    levels, scatter = np.linspace(5e3, 45e3, 11), 0.03
    bias, noise = 1e-4 + (1e-6 * levels) ** 2, np.full(11, 0.02**2 * 1e8 / photons)
    assert meeting_level(levels, bias, noise) == pytest.approx(true, rel=1e-3)
    step = 1e-3 * bias
    slopes = [
        (meeting_level(levels, bias + own, noise) - meeting_level(levels, bias - own, noise)) / (2 * own.sum())
        for own in np.diag(step)
    ]
    error = np.sqrt(np.sum((np.array(slopes) * scatter * bias) ** 2))
    rng = np.random.default_rng(7)
    widths = []
    for _ in range(40):
        scan = scan_of(levels, lambda q: np.hypot(0.01, 1e-6 * q), lambda q: 1e-9 * q, 0.02, scatter, rng)
        (one,) = [x for x in effective_saturation(scan, [photons]) if x.observable == "v2"]
        widths.append((one.interval68[1] - one.interval68[0]) / 2)
    assert np.mean(widths) == pytest.approx(error, rel=0.06)


def test_a_lower_limit_is_seldom_above_the_truth():
    # 250 draws: bias meets noise at 25,000 ADU, not far below the deepest exposure, and errors are large.
    rng = np.random.default_rng(8)
    levels, limits = np.linspace(5e3, 30e3, 6), []
    for _ in range(250):
        scan = scan_of(levels, lambda q: 8e-7 * q, lambda q: 1e-9 * q, 0.02, 0.4, rng)
        (one,) = [x for x in effective_saturation(scan, [1e8]) if x.observable == "v2"]
        limits.append(one.level if one.limit else 0.0)
    assert np.mean(np.array(limits) > 0) > 0.05  # some draws give limits
    assert np.mean(np.array(limits) > 25e3) < 0.05


def test_what_is_not_reached_is_a_lower_limit():
    rng = np.random.default_rng(5)
    scan = scan_of(np.array([1e4, 3e4]), lambda q: 1e-7 * q, lambda q: 1e-9 * q, 0.05, 0.1, rng)
    for one in effective_saturation(scan, [1e8]):
        assert one.limit == ">" and one.level <= 3e4 and one.interval95[1] == math.inf and str(one)[0] == ">"
    table = saturation_table(effective_saturation(scan, [1e8]))
    assert set(table["limit"]) == {">"} and str(table["level_adu"].unit) == "adu"


def test_more_photons_lower_the_level():
    rng = np.random.default_rng(6)
    scan = scan_of(np.linspace(5e3, 45e3, 9), lambda q: 1e-6 * q, lambda q: 1e-7 * q, 0.02, 0.01, rng)
    v2 = [x.level for x in effective_saturation(scan, np.geomspace(5e7, 5e8, 5)) if x.observable == "v2"]
    assert (np.diff(v2) < 0).all() and math.isclose(v2[0] / v2[-1], 10**0.5, rel_tol=0.1)


def test_a_scan_without_such_entries():
    rng = np.random.default_rng(6)
    scan = scan_of(np.array([1e4, 3e4]), lambda q: 1e-6 * q, lambda q: 1e-7 * q, 0.02, 0.01, rng)
    with pytest.raises(CalamiError, match="matched"):
        effective_saturation(scan, [1e8], rule="matched")
    with pytest.raises(CalamiError, match="step 5"):
        effective_saturation(scan, [1e8], versions=["step 5"])


@given(
    st.sampled_from(["F277W", "F380M", "F430M", "F480M"]), st.floats(3, 10), st.floats(1e6, 1e10),
    st.floats(5e3, 4e4),
)  # fmt: skip
def test_advice_keeps_below_the_limit_and_collects_what_is_wanted(filter, magnitude, photons, limit):
    plan = advise(filter, magnitude, photons, limit_adu=limit)
    assert plan.photons >= photons * (1 - 1e-9) and plan.ngroups >= 2
    if not plan.remarks:
        assert plan.peak_e <= niriss.to_electrons(limit) * (1 + 1e-9)
        more = plan.peak_e * (plan.ngroups + 1) / plan.ngroups
        assert more > niriss.to_electrons(limit) or plan.ngroups == 800
    assert math.isclose(
        advise(filter, rate=plan.peak_e / plan.ngroups / niriss.SUB80.frame_time).magnitude, magnitude, abs_tol=1e-6
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("F999W", 5.0), "F277W"),
        (("F480M",), "one of the two"),
        (("F480M", 5.0, -1.0), "above 0"),
        (("F480M", math.nan), "magnitude"),
    ],
)
def test_what_cannot_be_planned(words, told):
    with pytest.raises(CalamiError, match=told):
        advise(*words)
    with pytest.raises(CalamiError, match="ADU above 0"):
        advise("F480M", 5.0, limit_adu=-3)


def test_advice_from_a_scan_says_so():
    rng = np.random.default_rng(6)
    scan = scan_of(np.linspace(5e3, 45e3, 9), lambda q: 1e-6 * q, lambda q: 1e-9 * q, 0.02, 0.01, rng)
    levels = effective_saturation(scan, [1e8])
    plan = advise("F480M", 6.0, 1e8, levels=levels)
    assert math.isclose(plan.limit_e, niriss.to_electrons(2e4), rel_tol=0.03) and "1e8 photons" in plan.limit_from
    with pytest.raises(CalamiError, match="no effective saturation of F430M"):
        advise("F430M", 6.0, 1e8, levels=levels)
    table = saturation.recommendation_table(levels, {"F480M": 9000.0})
    assert table["groups_6mag"][0] == plan.ngroups and table["one_percent_adu"][0].value == 9000


def test_parameter_files_are_accepted_by_crds_and_used_by_jwst(tmp_path):
    import asdf

    (path,) = saturation.write_parameter_files({"F430M": 11000.0}, tmp_path)
    with asdf.open(path) as tree:
        assert tree["parameters"]["signal_threshold"] == 11000.0 and tree["parameters"]["skip"] is False
        assert "ChargeMigrationStep" in tree["class"]
    from jwst.charge_migration import ChargeMigrationStep

    step = ChargeMigrationStep.from_config_file(str(path))
    assert step.signal_threshold == 11000.0 and not step.skip
    with pytest.raises(CalamiError, match="F999"):
        saturation.write_parameter_files({"F999W": 1.0}, tmp_path)


# A bias that is none, or that has nothing to do with charge.


def noisy_scan(levels, rng, bias=lambda q: 0.0, floor=0.0, photons=1e8):
    """A scan in which deviations of 21 V² and 35 closure phases are drawn, as are their resamples."""
    entries = []
    for level in levels:
        facts = {}
        for key, size, sigma in (("v2", 21, 7 * math.sqrt(2 / photons)), ("cp", 35, 7 * math.sqrt(1.5 / photons))):
            away = math.hypot(bias(level), floor) * np.sign(np.sin(1.0 + np.arange(size)))
            seen = away + sigma * rng.standard_normal(size)
            again = seen + sigma * rng.standard_normal((200, size))
            facts[key] = (seen**2).mean() - sigma**2, sigma**2, (again**2).mean(axis=1) - 2 * sigma**2
        v2, cp = facts["v2"], facts["cp"]
        departure = Departure(v2[0], cp[0], v2[1], cp[1], 0.0, 1e-4, v2[2], cp[2], v2[2])
        target = ScanExposure(f"jw{level}", f"{level}", "A", "F480M", float(level), photons)
        entries.append(Entry(without_step(), target, target, "shallowest", departure, *(np.ones(1),) * 3))
    return Mitigation(tuple(entries), np.array([150.0]), (without_step(),))


@pytest.mark.parametrize("floor", variants(3e-3, 0.0))
def test_noise_gives_no_level_at_any_number_of_photons(floor):
    # 150 scans each; 3e-3 is three times the noise.
    rng, levels = np.random.default_rng(11), np.array([5e3, 9e3, 14e3, 20e3, 30e3])
    counts = np.zeros(3)
    for _ in range(150):
        found = effective_saturation(noisy_scan(levels, rng, floor=floor), [1e7, 1e8, 1e9])
        counts += [x.measured for x in found if x.observable == "both"]
        assert all(x.level <= 30e3 for x in found if x.limit == ">")
    assert counts.max() <= 0.025 * 150, counts


def test_a_floor_does_not_move_the_level():
    # Bias of 1e-7 per ADU meets the noise of 1e8 photons at 9,899 ADU; the floor is as large as the bias there.
    rng, levels = np.random.default_rng(12), np.array([4e3, 7e3, 11e3, 16e3, 25e3])
    true, inside, ratio = 7 * math.sqrt(2 / 1e8) / 1e-7, [], []
    for _ in range(150):
        scan = noisy_scan(levels, rng, lambda q: 1e-7 * q, floor=1e-3, photons=1e9)
        (one,) = [x for x in effective_saturation(scan, [1e8]) if x.observable == "v2"]
        if one.measured:
            ratio.append(one.level / true)
            inside.append([low <= true <= high for low, high in (one.interval68, one.interval95)])
    assert len(ratio) > 100 and abs(np.median(ratio) - 1) < 0.1, (len(ratio), np.median(ratio))
    assert np.mean(inside, axis=0)[0] > 0.55 and np.mean(inside, axis=0)[1] > 0.9, np.mean(inside, axis=0)


def test_one_depth_and_far_too_many_photons_are_refused_in_words():
    rng = np.random.default_rng(13)
    alone = effective_saturation(noisy_scan(np.array([20e3]), rng, lambda q: 1e-6 * q), [1e8])
    assert {x.limit for x in alone} == {"?"} and "1 depth" in str(alone[0]) and math.isnan(alone[0].level)
    scan = noisy_scan(np.array([5e3, 12e3, 20e3]), rng, lambda q: 1e-7 * q)
    few, many = (effective_saturation(scan, [count])[0] for count in (1e8, 1e10))
    assert few.measured and few.n_depths == 3 and many.limit == "?" and "1e10 photons" in many.reason
    text = advise("F480M", 6.0, 1e10, levels=effective_saturation(scan, [1e10])).remarks
    assert "not sampled" in text[0]


def test_a_level_below_the_shallowest_depth_is_an_upper_limit():
    rng = np.random.default_rng(14)
    scan = noisy_scan(np.array([15e3, 22e3, 30e3]), rng, lambda q: 1e-6 * q)
    (one,) = [x for x in effective_saturation(scan, [1e8]) if x.observable == "v2"]
    assert one.limit == "<" and one.level == 15e3 and str(one) == "< 15,000 ADU"
    assert saturation_table([one])["n_depths"][0] == 3
