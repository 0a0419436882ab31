"""One effect at a time: the measures, the quiet detectors, the figure, and the fringes."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import mean_of_two

from calami.core.problems import CalamiError
from calami.instrument import niriss
from calami.instrument.detector import DEAD, EFFECTS, HOT, Detector
from calami.instrument.migration import charge_ramp
from calami.instrument.optics import Pupil, psf
from calami.simulate.effects import (
    RATE,
    STAR,
    closure_phases,
    departure_from_straight,
    draw_pair,
    expose,
    late_minus_early,
    mean_rate,
    only,
    show_effect,
    visibilities,
)

FRAME = niriss.SUB80.frame_time
numbers = st.floats(-1e4, 1e4)


@pytest.fixture(scope="module")
def star():
    return psf("F480M", STAR)


def ramp(level, slope, bend, groups):
    k = np.arange(1.0, groups + 1)
    return (level + slope * k + bend * k**2)[:, None, None]


# --- measures along the ramp


@given(numbers, numbers, st.floats(-50, 50), st.integers(3, 15))
def test_departure_of_a_parabola_is_its_bend(level, slope, bend, groups):
    k = np.arange(1, groups + 1)
    found = departure_from_straight(ramp(level, slope, bend, groups))[:, 0, 0]
    assert np.allclose(found, bend * k**2, atol=1e-6)


def test_departure_uses_the_first_reads_only():
    broken = ramp(0, 1000, 0, 10)
    broken[7:] += 500
    assert np.allclose(departure_from_straight(broken)[:, 0, 0], [0] * 7 + [500] * 3)
    assert not np.allclose(departure_from_straight(broken, first=10)[:7, 0, 0], 0, atol=1)


@given(numbers, numbers, st.floats(-50, 50), st.integers(3, 15))
def test_late_minus_early_sees_only_the_bend(level, slope, bend, groups):
    half = (groups - 1) // 2
    found = late_minus_early(ramp(level, slope, bend, groups), frame_time=1.0).item()
    assert np.isclose(found, 2 * bend * (groups - 1 - half), atol=1e-6)  # the middles of the halves are that far apart


def test_the_step_in_the_middle_belongs_to_neither_half():
    jump = np.zeros((6, 1, 1))
    jump[3:] = 100.0  # between the third and the fourth of six reads
    assert late_minus_early(jump).item() == 0
    jump[4] = jump[5] = 200.0
    assert np.isclose(late_minus_early(jump, frame_time=0.5).item(), 100 / (2 * 0.5))


@pytest.mark.parametrize("measure", [departure_from_straight, late_minus_early, mean_rate])
def test_measures_take_many_integrations_as_one(measure):
    cube = np.random.default_rng(1).normal(size=(3, 7, 4, 5)).cumsum(axis=1)
    assert np.allclose(measure(cube), [measure(one) for one in cube])


@pytest.mark.parametrize(
    "measure, groups",
    [(departure_from_straight, 2), (late_minus_early, 2), (mean_rate, 1)],
    ids=["departure_from_straight", "late_minus_early", "mean_rate"],
)
def test_too_few_reads_are_refused(measure, groups):
    with pytest.raises(CalamiError, match=str(groups)):
        measure(np.zeros((groups, 2, 2)))


@pytest.mark.parametrize("first", [2, 11])
def test_departure_refuses_a_number_of_reads_that_is_not_there(first):
    with pytest.raises(CalamiError, match=str(first)):
        departure_from_straight(np.zeros((10, 2, 2)), first=first)


# --- quiet detectors


def fields(detector):
    return {k: np.asarray(v) for k, v in vars(detector).items() if k not in ("migration", "subarray", "flags")}


@pytest.mark.parametrize("effect", [e for e in EFFECTS if e not in ("adc_wave", "bad_pixels")])
def test_only_has_one_effect_as_the_whole_detector_has_it_and_no_other(effect):
    whole, quiet, one = Detector.default(migration="flight"), only(), only(effect)
    changed = {k for k in fields(one) if not np.array_equal(fields(one)[k], fields(quiet)[k])}
    if effect == "migration":
        assert not changed and one.migration == whole.migration != quiet.migration
        return
    assert one.migration == quiet.migration
    assert changed == {"cosmic_ray_rate" if effect == "cosmic_rays" else effect}
    sound = whole.flags == 0
    (name,) = changed
    ours, theirs = fields(one)[name], fields(whole)[name]
    assert np.array_equal(ours[sound], theirs[sound]) if ours.shape == sound.shape else np.array_equal(ours, theirs)


def test_bad_pixels_are_bad_though_flat_and_dark_are_off():
    whole, bad = Detector.default(), only("bad_pixels")
    dead, hot = (whole.flags & flag != 0 for flag in (DEAD, HOT))
    assert dead.any() and hot.any() and np.array_equal(bad.flags, whole.flags)
    assert (bad.flat[dead] == 0).all() and (bad.dark[hot] > 100).all()
    assert (bad.flat[~dead & ~bad.reference] == 1).all() and not bad.dark[~hot].any()


@pytest.mark.parametrize("call", [lambda: only("gravity"), lambda: show_effect("gravity"), lambda: show_effect()])
def test_unknown_or_no_effect_is_refused_with_the_list(call):
    with pytest.raises(CalamiError, match="nonlinearity"):
        call()


def test_a_perfect_detector_counts_the_light(star):
    reads = expose(star, only(), ngroups=4, nints=2)
    light = RATE * star * FRAME * np.arange(1, 5)[:, None, None]
    light[:, :4] = 0  # reference pixels
    assert np.abs(reads - light).max() <= 0.51 * niriss.GAIN
    assert np.array_equal(reads[0], reads[1])


def test_the_seed_decides(star):
    noisy = only("photon_noise")
    first, again, other = (expose(star, noisy, 3, 1, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


# --- fringes


@given(st.lists(st.floats(-3, 3), min_size=7, max_size=7))
def test_phases_of_holes_cancel_in_closure_phases(phases):
    first, second = np.triu_indices(7, k=1)
    fringes = np.exp(1j * np.subtract(np.take(phases, second), np.take(phases, first)))
    assert np.abs(closure_phases(fringes)).max() < 1e-9


def test_closure_phases_come_in_the_order_of_triangles():
    rng = np.random.default_rng(2)
    matrix = np.ones((7, 7), complex)
    first, second = np.triu_indices(7, k=1)
    matrix[first, second] = np.exp(1j * rng.uniform(-3, 3, 21))
    expected = [matrix[i, j] * matrix[j, k] / matrix[i, k] for i, j, k in combinations(range(7), 3)]
    assert np.allclose(closure_phases(matrix[first, second]), np.degrees(np.angle(expected)))


def test_visibilities_of_an_image_turned_by_half_a_turn_are_conjugate():
    image = np.random.default_rng(3).random((41, 41))
    there, back = (visibilities(i, position=(20, 20)) for i in (image, image[::-1, ::-1]))
    assert np.allclose(back, np.conj(there)) and np.abs(there.imag).max() > 1e-4


def test_a_piston_turns_the_six_fringes_of_its_hole(star):
    pistons = np.array([0, 0, 20.0, 0, 0, 0, 0])
    turned = np.angle(visibilities(psf("F480M", STAR, pupil=Pupil(pistons=pistons))) / visibilities(star))
    touched = [2 in pair for pair in combinations(range(7), 2)]
    assert np.allclose(np.abs(np.degrees(turned)), np.where(touched, 360 * 20 / 4817, 0), atol=0.03)


# What `science.md` of the project tells of a 26 ke- peak and the h4rg kernel, %.
@pytest.mark.parametrize("name, longest", [("F380M", -1.5), ("F430M", -1.2), ("F480M", -1.0)])
def test_migration_lowers_visibilities_as_computed_before(name, longest):
    image = psf(name, STAR)
    times = 26_000 / image.max() * np.arange(1, 7) / 6
    held = charge_ramp(image, times, "h4rg", light=mean_of_two(image))[-1]
    change = 100 * (np.abs(visibilities(held, name) / visibilities(image, name)) ** 2 - 1)
    length = np.hypot(*niriss.baselines().T)
    assert np.isclose(change[length.argmax()], longest, rtol=0.1)
    assert -0.3 <= change[length.argmin()] < 0


def test_migration_of_a_centred_star_and_perfect_pupil_makes_no_closure_phase(star):
    held = charge_ramp(RATE * star, FRAME * np.arange(1, 13), "flight")[-1]
    assert np.abs(closure_phases(visibilities(held)) - closure_phases(visibilities(star))).max() < 1e-5
    crooked = psf("F480M", STAR, pupil=Pupil().with_errors(30, seed=4))
    held = charge_ramp(RATE * crooked, FRAME * np.arange(1, 13), "flight")[-1]
    assert np.abs(closure_phases(visibilities(held)) - closure_phases(visibilities(crooked))).max() > 0.02


# --- the figure


@pytest.fixture
def close_figures():
    import matplotlib

    matplotlib.use("agg")
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def panels(figure):
    axes = [ax for ax in figure.axes if ax.get_title()]
    return {ax.get_title().split("\n")[0]: ax for ax in axes}


def test_the_figure_shows_what_is_measured(star, close_figures):
    pair = [expose(star, only(*e)) for e in ((), ("nonlinearity",))]
    shown = panels(draw_pair(*pair, "bend"))
    assert list(shown) == [
        "without bend",
        "with bend",
        "with − without",
        "ramps",
        "late − early, without",
        "late − early, with",
    ]
    halves = [shown[f"late − early, {w}"].images[0] for w in ("without", "with")]
    assert halves[0].get_clim() == halves[1].get_clim() and sum(halves[0].get_clim()) == 0
    percent = 100 / mean_rate(pair[0][0]).max()
    near = np.s_[STAR[1] - 8 : STAR[1] + 9, STAR[0] - 8 : STAR[0] + 9]
    assert np.allclose(halves[1].get_array(), percent * late_minus_early(pair[1][0])[near])
    lines = {line.get_label(): line for line in shown["ramps"].lines}
    bend = departure_from_straight(pair[1][0])[:, STAR[1], STAR[0]] / 1e3
    assert np.allclose(lines["peak"].get_ydata(), bend)
    assert (
        f"{percent * late_minus_early(pair[1][0])[STAR[1], STAR[0]]:.2f}".replace("-", "−")
        in shown["late − early, with"].get_title()
    )


def test_the_figure_averages_integrations_and_follows_the_peak(star, close_figures):
    quiet = expose(star, only(), ngroups=4, nints=2)
    lifted = quiet + np.array([-300.0, 300.0])[:, None, None, None] * np.arange(4)[:, None, None]
    shown = panels(draw_pair(quiet, lifted, center=(40, 42), half=12))
    assert np.allclose(shown["with − without"].images[0].get_array(), 0, atol=1e-9)
    assert "peak" in shown["with − without"].get_title() and shown["ramps"].get_xlabel().endswith("(s)")


def test_the_figure_at_the_border_shows_what_there_is(star, close_figures):
    reads = expose(star, only(), ngroups=4)
    shown = panels(draw_pair(reads, reads, center=(79, 4), half=6))
    image = shown["with − without"].images[0]
    assert image.get_array().shape == (11, 7) and image.get_extent() == [72.5, 79.5, -0.5, 10.5]


def test_show_effect_compares_with_nothing(star, close_figures):
    shown = panels(show_effect("saturation", ngroups=6, rate=3 * RATE, label="full wells"))
    without, with_full = (shown[f"{w} full wells"].images[0].get_array() for w in ("without", "with"))
    assert with_full.max() < 0.9 * without.max() and np.isclose(without.max() * 1e3, 3 * RATE * star.max(), rtol=1e-3)
