"""Effects of the detector: each alone against its definition, the noise against what was put in, and the sums kept."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import closure_phases, examples, mean_of_two, variants, visibilities

from calami.core.problems import CalamiError
from calami.instrument import niriss
from calami.instrument.converter import ADC_WAVE
from calami.instrument.detector import (
    DEAD,
    EFFECTS,
    HOT,
    Detector,
    classical_nonlinearity,
    cosmic_rays,
    simulate_ramps,
    stripes,
)
from calami.instrument.migration import (
    IPC_KERNEL,
    MIGRATION_PRESETS,
    Migration,
    charge_ramp,
    collect,
    crossings,
    departure,
    find_migration,
    interpixel_capacitance,
    light_between,
    migration_flow,
)
from calami.instrument.optics import Pupil, fine_psf, psf, within_pixels

FRAME = niriss.SUB80.frame_time
DEFAULT = Detector.default()
NOISE = ("photon_noise", "reset_noise", "read_noise", "one_over_f", "cosmic_rays")
# Everything off, the frame of reference for each effect alone.
BARE = DEFAULT.without(*EFFECTS)

seeds = st.integers(0, 2**32 - 1)
coefficients = st.floats(0, 1e-5)


def only(*effects):
    """The default detector with nothing but these effects; `photon_noise` and the like included on request only."""
    return DEFAULT.without(*(set(EFFECTS) - set(effects)))


def star(peak, filt="F480M", place=(45, 40)):
    """A photo-current with a given peak, e-/s."""
    image = psf(filt, place, count=3, oversample=3)
    return image * (peak / image.max())


# --- migration -------------------------------------------------------------------------------------------------------


@given(seeds, coefficients, coefficients, st.floats(0, 1e-4), st.floats(0.3, 4), st.sampled_from([(), (3,), (2, 2)]))
@settings(max_examples=examples(60))
def test_migration_conserves_charge(seed, edge, diagonal, growth, power, batch):
    rng = np.random.default_rng(seed)
    charge, current = rng.uniform(0, 7e4, (*batch, 9, 11)), rng.uniform(0, 1e5, (*batch, 9, 11))
    gain = migration_flow(charge, current, edge, diagonal, growth, power)
    assert gain.shape == charge.shape
    assert (np.abs(gain.sum(axis=(-1, -2))) <= 1e-12 * np.abs(gain).sum(axis=(-1, -2))).all()
    # Each image of a batch by itself, and nobody else's.
    last = (-1,) * len(batch)
    assert np.array_equal(gain[last], migration_flow(charge[last], current[last], edge, diagonal, growth, power))


@given(seeds, coefficients, coefficients, st.floats(0, 1e-4))
def test_migration_is_antisymmetric_in_the_contrast(seed, edge, diagonal, growth):
    rng = np.random.default_rng(seed)
    one, other, light = rng.uniform(0, 7e4), rng.uniform(0, 7e4), rng.uniform(0, 1e5, 2)
    forth = migration_flow(np.array([[one, other]]), light[None, :], edge, diagonal, growth)
    back = migration_flow(np.array([[other, one]]), light[None, :], edge, diagonal, growth)
    assert np.array_equal(forth, -back) and forth[0, 0] == -forth[0, 1]
    assert forth[0, 0] * (one - other) <= 0  # the fuller one loses


@given(seeds, coefficients, coefficients)
@settings(max_examples=30)
def test_migration_knows_no_direction(seed, edge, diagonal):
    rng = np.random.default_rng(seed)
    charge, current = rng.uniform(0, 7e4, (6, 7)), rng.uniform(0, 1e5, (6, 7))
    gain = migration_flow(charge, current, edge, diagonal)
    for turn in (np.flipud, np.fliplr, np.transpose, np.rot90):
        turned = migration_flow(turn(charge), turn(current), edge, diagonal)
        assert np.allclose(turned, turn(gain), rtol=0, atol=1e-12 * (1 + np.abs(gain).max()))


@given(st.floats(0, 1e5), st.floats(0, 1e-4), coefficients)
def test_equal_charges_do_not_move(level, growth, edge):
    light = np.random.default_rng(1).uniform(0, 1e5, (5, 5))
    assert not migration_flow(np.full((5, 5), level), light, edge, edge, growth).any()


def test_flow_between_pixels_by_hand():
    gain = migration_flow(np.array([[1000.0, 400.0]]), np.array([[10.0, 30.0]]), 1e-4, 1.0)
    assert np.allclose(gain, [[-1.2, 1.2]])  # 1e-4 × 600 × (10 + 30) / 2
    steep = migration_flow(np.array([[1000.0], [400.0]]), np.array([[10.0], [30.0]]), 1e-4, 1.0, 2e-3, 3.0)
    assert np.allclose(steep, [[-1.2 * 9], [1.2 * 9]])  # × 1 + (2e-3 × 1000)³
    corner = migration_flow(np.array([[1000.0, 0], [0, 400]]), np.array([[10.0, 0], [0, 30]]), 0.0, 1e-4)
    assert np.allclose(corner[0, 0], -0.6) and np.allclose(corner[1, 1], 0.6)  # (10 + 0 + 0 + 30) / 4 on the corner


@pytest.mark.parametrize(
    ("filt", "worst"), variants(("F480M", 0.005), ("F380M", 0.011), ("F430M", 0.008), ("F277W", 0.2))
)
def test_the_light_between_pixels_against_a_finer_image(filt, worst):
    for place in ((15.3, 14.8), (15.0, 15.5)):
        fine = fine_psf(filt, place, (31, 31), oversample=20)
        image = within_pixels(fine, 20)
        middle = np.add.reduceat(fine, np.arange(0, 620, 20), axis=0)  # rows summed, columns still fine
        between = 20 * (middle[:, 19:-1:20] + middle[:, 20::20]) / 2  # on either side of each edge
        found = light_between(image)
        inner = np.s_[5:-5, 5:-5]
        assert np.abs(found[0, 1] - between)[inner].max() < worst * image.max()
        if filt != "F277W":
            assert np.abs(mean_of_two(image)[0, 1] - between).max() > 10 * worst * image.max()
        # Three parts a pixel, as a simulated exposure has them, are as good as twenty.
        coarse = light_between(fine_psf(filt, place, (31, 31), oversample=3), 3)
        for step, light in light_between(fine, 20).items():
            assert np.abs(light - coarse[step])[inner].max() < 0.008 * image.max()
        assert np.abs(light_between(fine, 20)[0, 1] - between)[inner].max() < 2e-3 * image.max()


@given(seeds, st.integers(1, 4))
@settings(max_examples=20)
def test_light_between_pixels_of_a_flat_or_tilted_image(seed, points):
    level, slope_x, slope_y = np.random.default_rng(seed).uniform(0.5, 1, 3)
    rows, columns = np.indices((24 * points, 26 * points)) / points
    found = light_between((100 + level + slope_y * rows + slope_x * columns) / points**2, points)
    shift = 0.5 * (1 / points - 1)  # from the middle of a part to that of its pixel
    inner = np.s_[6:-6, 6:-6]
    for (dy, dx), light in found.items():
        y, x = np.indices(light.shape)
        corner_x = 0.5 if dx else 0.0
        expected = 100 + level + slope_y * (y - shift + 0.5 * dy) + slope_x * (x - shift + corner_x)
        assert np.allclose(light[inner], expected[inner], rtol=1e-9)
    with pytest.raises(CalamiError, match="parts"):
        light_between(np.ones((7, 8)), 2)


@given(seeds, st.sampled_from(sorted(MIGRATION_PRESETS)), st.integers(1, 5))
@settings(max_examples=30)
def test_ramps_keep_the_sum(seed, preset, steps):
    current = np.random.default_rng(seed).uniform(0, 1e5, (9, 11))
    times = FRAME * np.arange(1, 9)
    ramp = charge_ramp(current, times, preset, steps)
    assert np.allclose(ramp.sum(axis=(1, 2)), current.sum() * times, rtol=1e-13)
    assert (np.diff(ramp, axis=0).min() > 0) or preset != "none"


@pytest.mark.parametrize("preset", sorted(MIGRATION_PRESETS))
@pytest.mark.parametrize("filt", ["F277W", "F480M"])
def test_two_steps_a_group_are_enough(preset, filt):
    current = star(26_000 / (10 * FRAME), filt)[30:51, 35:56]
    times = FRAME * np.arange(1, 11)
    exact = charge_ramp(current, times, preset, 100)
    errors = [np.abs(charge_ramp(current, times, preset, n) - exact)[-1].max() for n in (1, 2, 4)]
    effect = np.abs(exact[-1] - current * times[-1]).max()
    if preset == "none":
        assert effect < 1e-9 and max(errors) < 1e-9
        return
    assert errors[1] < 4e-3 * effect and errors[1] < 3  # 3 e- of 26,000
    assert errors[0] > 1.2 * errors[1] > 1.4 * errors[2]


def test_the_effect_of_growth_is_that_of_the_formula():
    # One step from rest, so small that the midpoint is all that counts.
    migration = Migration(1e-6, 3e-7, 5e-5, 1.5)
    charge = np.random.default_rng(3).uniform(0, 5e4, (8, 8))
    current, step = np.random.default_rng(4).uniform(0, 1e5, (8, 8)), 1e-4
    after = charge.copy()
    collect(after, current * step, migration, 1)
    flow = migration_flow(charge + current * step / 2, current, 1e-6, 3e-7, 5e-5, 1.5)
    assert np.allclose(after - charge, (current + flow) * step, rtol=1e-9)


def test_nothing_flows_out_of_a_full_frame_edge():
    charge = np.zeros((5, 5))
    charge[0, 0] = 1e4
    gain = migration_flow(charge, np.ones((5, 5)), 1e-6, 1e-7)
    assert gain[0, 0] == pytest.approx(-(2 * 1e-6 + 1e-7) * 1e4) and (gain[2:] == 0).all()


def test_full_wells_take_no_more():
    ramp = charge_ramp(star(5e5)[30:51, 35:56], FRAME * np.arange(1, 7), "h4rg", full=30_000.0)
    assert ramp.max() == 30_000 and (ramp[-1] == 30_000).sum() > 1


# Signals, ke-, at which the peak has departed by 0.5, 1, 2, 3 % (instantaneous) and 0.5, 1 % (half against half):
# the project's science notes, h4rg, star on the centre of a pixel.
CROSSINGS = {
    "F277W": ((5.8, 11.6, 23, 35), (11.6, 23)),
    "F380M": ((6.4, 12.9, 26, 39), (12.9, 26)),
    "F430M": ((6.9, 13.9, 28, 42), (13.9, 28)),
    "F480M": ((7.6, 15.3, 31, 47), (15.3, 30.6)),
}
# Change of the squared visibility of the longest baseline, same source. It is reproduced by this definition: the mean
# rate from the reset to the read at which the peak holds 26 ke-, over the photo-current; a window of 41 × 41 pixels
# about the star, normalised to its sum; the pivot wavelength; charge diffusion on.
LONGEST_V2 = {"F277W": -0.043, "F380M": -0.015, "F430M": -0.012, "F480M": -0.010}


@pytest.mark.parametrize("filt", CROSSINGS)
def test_crossings_of_the_notes(filt):
    image = 1e6 * psf(filt, (20, 20), (41, 41))
    found = crossings(departure(image, (20, 20), light=mean_of_two(image)))
    instantaneous, half = CROSSINGS[filt]
    assert np.allclose(list(found["instantaneous"].values()), np.multiply(instantaneous, 1e3), rtol=0.1)
    assert np.allclose(list(found["half"].values())[:2], np.multiply(half, 1e3), rtol=0.1)
    assert np.isnan(found["half"][0.03]) or found["half"][0.03] > 60e3
    assert np.allclose(found["cumulative"][0.01], found["instantaneous"][0.02], rtol=0.03)


def ramp_to(peak, current, migration="h4rg", light=None):
    """Charge at 100 times, the last when the brightest pixel holds `peak`."""
    at = np.unravel_index(current.argmax(), current.shape)
    end = peak / current.max()
    for _ in range(20):
        ramp = charge_ramp(current, np.linspace(0, end, 101)[1:], migration, steps=1, light=light)
        end *= peak / ramp[-1][at]
    assert ramp[-1][at] == pytest.approx(peak, rel=1e-6)
    return ramp


@pytest.mark.parametrize("filt", LONGEST_V2)
def test_visibilities_of_the_notes(filt):
    current = psf(filt, (20, 20), (41, 41))
    ramp = ramp_to(26_000, current, light=mean_of_two(current))
    before = visibilities(current, filt, (20, 20))
    change = {}
    for name, image in (("cumulative", ramp[-1]), ("now", ramp[-1] - ramp[-2])):
        after = visibilities(image, filt, (20, 20))
        change[name] = {pair: abs(after[pair] / before[pair]) ** 2 - 1 for pair in before}
        assert np.abs(closure_phases(after)).max() < 1e-9  # a perfect pupil, a centred star: nothing to be seen
    holes = Pupil().centers
    longest, shortest = (f(before, key=lambda p: np.hypot(*(holes[p[0]] - holes[p[1]]))) for f in (max, min))
    assert change["cumulative"][longest] == pytest.approx(LONGEST_V2[filt], rel=0.1)
    assert -0.003 <= change["cumulative"][shortest] < 0
    assert change["now"][longest] == pytest.approx(2 * LONGEST_V2[filt], rel=0.1)  # at that moment, twice as much


def test_closure_phases_feel_migration_where_there_is_no_symmetry():
    pupil, place = Pupil().with_errors(30, seed=1), (20.3, 19.8)
    current = psf("F380M", place, (41, 41), pupil=pupil)
    change = closure_phases(visibilities(ramp_to(26_000, current)[-1], "F380M", place)) - closure_phases(
        visibilities(current, "F380M", place)
    )
    assert 0.005 < change.std() < 0.5


def test_departures_agree_with_a_ramp():
    current = star(3e5)
    path = departure(current, (40, 45), "flight")
    signal, times = path["signal"][120], None
    ramp = ramp_to(signal, current, "flight")[:, 40, 45]
    times = np.linspace(0, 1, 101)[1:] * signal / (1 + path["cumulative"][120]) / current.max()
    rate = np.gradient(ramp, times, edge_order=2)[-1]
    assert ramp[49] / ramp[-1] == pytest.approx(1 / (2 + path["half"][120]), rel=1e-3)
    assert rate / current.max() - 1 == pytest.approx(path["instantaneous"][120], rel=0.02)


def test_a_departure_that_is_not_reached_and_one_of_a_dark_pixel():
    found = crossings(departure(star(3e5), (40, 45), "none"))
    assert all(np.isnan(v) for values in found.values() for v in values.values())
    with pytest.raises(CalamiError, match="row 3, column 4"):
        departure(np.zeros((9, 9)), (3, 4))


def test_coefficients_by_name():
    assert find_migration("h4rg") is MIGRATION_PRESETS["h4rg"]
    own = Migration(1e-6, 0)
    assert find_migration(own) is own and Detector.default(migration=own).migration is own
    for wrong in ("h5rg", None, ["h4rg"]):
        with pytest.raises(CalamiError, match="h4rg_weak"):
            find_migration(wrong)


@pytest.mark.parametrize("wrong", [{"edge": -1e-9}, {"diagonal": np.nan}, {"growth": np.inf}, {"power": -1}])
def test_coefficients_that_cannot_be(wrong):
    with pytest.raises(CalamiError, match="from 0 up"):
        Migration(**({"edge": 1e-6, "diagonal": 1e-7} | wrong))


# --- the other effects, by themselves --------------------------------------------------------------------------------


@given(seeds, st.sampled_from([(), (2, 3)]))
@settings(max_examples=30)
def test_capacitance_keeps_the_sum(seed, batch):
    rng = np.random.default_rng(seed)
    charge, kernel = rng.uniform(0, 7e4, (*batch, 6, 7)), rng.uniform(0, 0.02, (3, 3))
    kernel[1, 1] = 1 - (kernel.sum() - kernel[1, 1])
    seen = interpixel_capacitance(charge, kernel)
    assert np.allclose(seen.sum(axis=(-1, -2)), charge.sum(axis=(-1, -2)), rtol=1e-12)
    # Inside it is the convolution, written out.
    expected = sum(
        kernel[1 + i, 1 + j] * charge[..., 1 - i : 5 - i, 1 - j : 6 - j] for i in (-1, 0, 1) for j in (-1, 0, 1)
    )
    assert np.allclose(seen[..., 1:5, 1:6], expected)
    assert np.allclose(interpixel_capacitance(np.full((4, 4), 5.0)), 5.0)
    whole = charge.astype("uint16")  # whose differences have no sign
    assert np.allclose(interpixel_capacitance(whole), interpixel_capacitance(whole.astype(float)), rtol=1e-6)


@given(st.floats(0, 7e4), st.floats(0, 1.4e-6))
def test_nonlinearity_takes_and_never_gives(charge, coefficient):
    shown = classical_nonlinearity(np.array(charge), coefficient)
    assert shown == charge - coefficient * charge**2 <= charge


def in_order(frames):
    """Samples of `stripes` in the order in which they were read: frames, lines (columns), samples along a line."""
    return frames.transpose(0, 2, 1)[:, ::-1, ::-1]


def test_one_over_f_comes_back():
    # A few slow waves make half of it, so a single stretch is off by several percent; the mean square is right.
    rng = np.random.default_rng(3)
    square = np.mean([np.mean(stripes(3, 7.0, seed=rng).astype(float) ** 2) for _ in range(300)])
    assert np.sqrt(square) == pytest.approx(7, rel=0.015)
    frames = 400
    read = in_order(stripes(frames, 7.0, seed=4)).astype(float)
    # Variance of the difference of two reads some samples apart, from a spectrum of slope -1: it knows the time
    # between pixels of a column (1), of neighbouring columns (92) and of frames (92 × 82).
    n = frames * 92 * 82
    k = np.arange(1, n // 2 + 1)
    for lag, pairs in {
        1: (read[:, :, 1:], read[:, :, :-1]),
        20: (read[:, :, 20:], read[:, :, :-20]),
        92: (read[:, 1:], read[:, :-1]),
        92 * 82: (read[1:], read[:-1]),
    }.items():
        expected = 2 * 49 * ((1 - np.cos(2 * np.pi * k * lag / n)) / k).sum() / (1 / k).sum()
        assert np.var(pairs[0] - pairs[1]) == pytest.approx(expected, rel=0.03), lag


def test_slope_of_the_noise_spectrum():
    read = in_order(stripes(100, 5.0, seed=5)).astype(float).reshape(-1, 80)
    power = np.mean(np.abs(np.fft.rfft((read - read.mean(axis=1, keepdims=True)) * np.hanning(80))) ** 2, axis=0)
    k = np.arange(4, 30)
    assert np.polyfit(np.log(k), np.log(power[4:30]), 1)[0] == pytest.approx(-1, abs=0.1)
    assert np.array_equal(stripes(3, 5.0, seed=1), stripes(3, 5.0, seed=1)) and not stripes(2, 0.0, seed=1).any()


def test_rate_of_cosmic_rays():
    shape, duration, rate = (40, 10, 80, 80), FRAME, 2e-3
    where, charge = cosmic_rays(shape, duration, rate, seed=2)
    expected = rate * duration * np.prod(shape)
    # Tracks of 1 to 4 pixels are 2.5 long on average; some pixels of them are off the array.
    assert len(charge) == len(where[0]) == pytest.approx(2.5 * expected, abs=0.02 * 2.5 * expected + 6 * expected**0.5)
    assert all((w >= 0).all() and (w < n).all() for w, n in zip(where, shape, strict=True))
    assert np.median(charge) == pytest.approx(2000, rel=0.05) and (charge > 0).all()
    where, charge = cosmic_rays(shape, duration, 0.0, seed=2)
    assert [len(w) for w in where] == [0] * 4 and len(charge) == 0


# --- the detector ----------------------------------------------------------------------------------------------------


def test_the_default_detector_is_what_the_notes_say():
    d, lit = DEFAULT, ~DEFAULT.reference
    assert (d.gain == niriss.GAIN).all() and d.reference.sum() == 4 * 80 and d.reference[:4].all()
    assert np.std(d.flat[lit & (d.flat > 0)]) == pytest.approx(0.021, rel=0.05)
    assert d.flat[lit & (d.flat > 0)].mean() == pytest.approx(1, abs=0.002)
    assert d.nonlinearity.min() >= 6e-7 and d.nonlinearity.max() <= 1.4e-6
    assert d.saturation.mean() == pytest.approx(niriss.SATURATION_E, rel=0.005)
    assert d.read_noise.mean() == pytest.approx(niriss.READ_NOISE_E, rel=0.005)
    good = lit & (d.flags == 0)
    assert d.dark[good].min() >= 0.02 and d.dark[good].max() <= 0.04
    assert IPC_KERNEL.sum() == pytest.approx(1)
    bad = d.flags & (DEAD | HOT) != 0
    assert (d.flags[bad] & niriss.DO_NOT_USE != 0).all() and not (d.flags[~bad & lit]).any()
    assert (d.flat[d.flags & DEAD != 0] == 0).all() and (d.dark[d.flags & HOT != 0] > 250).all()
    rows, columns = np.nonzero(bad)
    assert np.hypot(rows - 40, columns - 45).min() >= 7
    again, other = Detector.default(), Detector.default(2)
    assert np.array_equal(again.bias, d.bias) and not np.array_equal(other.bias, d.bias)


def test_nothing_on_is_light_times_time():
    current = star(2e5)
    raw = simulate_ramps(current, 5, 3, BARE, seed=1)
    times = FRAME * np.arange(1, 6)[:, None, None]
    light = np.where(BARE.reference, 0.0, current)
    expected = 1000 + light * times / niriss.GAIN
    assert np.abs(raw - expected).max() < 0.51
    assert (raw == raw[0]).all()


def expected_alone(effect, current, times):
    """What one effect by itself makes of a photo-current, ADU without rounding; None where that is not so simple."""
    d, charge = DEFAULT, np.where(DEFAULT.reference, 0.0, current) * times
    bare = 1000 + charge / niriss.GAIN
    lit = ~d.reference
    dead = d.flags & DEAD != 0
    if effect == "bias":
        return bare - 1000 + d.bias
    if effect == "flat":
        return 1000 + np.where(dead & lit, 1.0, d.flat) * charge / niriss.GAIN
    if effect == "dark":
        typical = np.median(d.dark[lit & (d.flags & HOT == 0)])
        return bare + lit * np.where(d.flags & HOT != 0, typical, d.dark) * times / niriss.GAIN
    if effect == "bad_pixels":
        return np.where(dead, 1000.0, bare + np.where(d.flags & HOT != 0, d.dark, 0.0) * times / niriss.GAIN)
    if effect == "nonlinearity":
        return 1000 + (charge - d.nonlinearity * charge**2) / niriss.GAIN
    if effect == "saturation":
        return 1000 + np.minimum(charge, d.saturation) / niriss.GAIN
    if effect == "ipc":
        return 1000 + np.where(d.reference, 0.0, interpixel_capacitance(charge)) / niriss.GAIN
    if effect == "adc_wave":
        return DEFAULT.adc_wave.distorted(bare)
    if effect == "migration":
        moved = charge_ramp(current[4:], times.ravel(), "h4rg")
        return 1000 + np.concatenate((0 * charge[:, :4], moved), axis=1) / niriss.GAIN
    return None


@pytest.mark.parametrize("effect", sorted(set(EFFECTS) - set(NOISE)))
def test_each_effect_alone_is_what_it_is_defined_to_be(effect):
    current = star(2.6e5) + 500
    times = FRAME * np.arange(1, 5)[:, None, None]
    raw = simulate_ramps(current, 4, 2, only(effect), seed=1)
    expected = expected_alone(effect, current, times)
    assert np.abs(raw - expected).max() < 0.53
    if effect != "adc_wave":  # off by default
        assert np.array_equal(raw[0], raw[1])


@pytest.mark.parametrize("effect", sorted(set(EFFECTS) - {"adc_wave"}))
def test_each_effect_makes_a_difference(effect):
    # Bright enough that the well is full at the end; the same random numbers, so only the effect differs.
    current = star(1.2e6) + 500
    detector = replace(only(effect), cosmic_ray_rate=0.02) if effect == "cosmic_rays" else only(effect)
    on, off = (simulate_ramps(current, 3, 2, d, seed=1) for d in (detector, BARE))
    assert not np.array_equal(on, off)
    lit = ~DEFAULT.reference
    if effect not in ("bias", "reset_noise", "read_noise", "one_over_f"):
        assert np.array_equal(on[..., ~lit], off[..., ~lit])


def test_effects_are_switched_off_in_any_order_and_leave_the_others():
    one, other = DEFAULT.without("dark", "bad_pixels", "flat"), DEFAULT.without("flat", "bad_pixels").without("dark")
    for name in ("flat", "dark", "flags", "bias", "gain", "read_noise"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert not one.dark.any() and set(np.unique(one.flat)) == {0.0, 1.0} and (one.flat == 0).sum() == 320
    flat_only = DEFAULT.without("flat")
    assert np.array_equal(flat_only.flat == 0, (DEFAULT.flags & DEAD != 0) | DEFAULT.reference)  # the dead stay dead
    assert np.array_equal(flat_only.flags, DEFAULT.flags) and flat_only.migration == DEFAULT.migration
    dark_only = DEFAULT.without("dark")
    assert np.array_equal(dark_only.dark > 0, DEFAULT.flags & HOT != 0)  # and the hot stay hot
    healed = DEFAULT.without("bad_pixels")
    assert set(np.unique(healed.flags)) == {0, niriss.REFERENCE_PIXEL} and healed.dark.max() <= 0.04
    assert DEFAULT.without("noise").read_noise.max() == 0 and DEFAULT.read_noise.min() > 0
    with pytest.raises(CalamiError, match="gravity"):
        DEFAULT.without("noise", "gravity")


def test_without_noise_all_integrations_are_the_same():
    raw = simulate_ramps(star(4e5), 6, 20, DEFAULT.without("noise"), seed=3)
    assert (raw == raw[0]).all()
    assert np.array_equal(raw[:3], simulate_ramps(star(4e5), 6, 3, DEFAULT.without("noise"), seed=99))


@pytest.mark.parametrize("preset", ["h4rg", "flight"])
def test_the_whole_chain_keeps_the_charge(preset):
    detector = replace(only("migration", "ipc"), migration=find_migration(preset))
    current = star(1e5) + np.random.default_rng(1).uniform(0, 2000, (80, 80))  # so that rounding is at random
    current[:8] = 0  # none may be lost to the reference rows
    raw = simulate_ramps(current, 8, 1, detector, seed=1).astype(float) - 1000
    charge = raw.sum(axis=(2, 3))[0] * niriss.GAIN
    light = current.sum() * FRAME * np.arange(1, 9)
    assert np.abs(charge - light).max() < 4 * 80 * niriss.GAIN / np.sqrt(12) + 1e-5 * light.max()  # rounding to ADU


def test_reference_rows_stay_dark():
    current = np.full((80, 80), 8e5)
    d = replace(DEFAULT.without("read_noise", "reset_noise", "one_over_f", "ipc"), cosmic_ray_rate=0.1)
    raw = simulate_ramps(current, 3, 4, d, seed=1)
    assert np.array_equal(raw[..., :4, :], np.broadcast_to(np.rint(d.bias[:4]).astype(np.uint16), (4, 3, 4, 80)))
    assert (raw[:, -1, 4:][:, d.flat[4:] > 0] > d.full_scale[4:][d.flat[4:] > 0] - 1).all()


def test_full_pixels_show_full_scale():
    d = DEFAULT.without("noise")
    raw = simulate_ramps(star(4e6), 6, 1, d, seed=1)[0]
    full = d.bias + (d.saturation - d.nonlinearity * d.saturation**2) / d.gain
    assert raw[-1, 40, 45] == np.rint(full[40, 45]) == raw[1, 40, 45]
    assert (raw <= np.rint(full)).all() and np.allclose(d.full_scale, full)
    noisy = simulate_ramps(star(4e6), 6, 4, DEFAULT, seed=1)
    assert (noisy <= np.rint(full)).all()  # not even with noise
    high = replace(d.without("saturation"), bias=np.full((80, 80), 64_000.0))
    assert simulate_ramps(star(4e5), 4, 1, high, seed=1).max() == 65_535


def test_the_wave_of_the_converter_is_seen_in_a_ramp():
    d = replace(only(), adc_wave=ADC_WAVE)
    raw, plain = (simulate_ramps(star(4e5), 10, 1, x, seed=1).astype(float) for x in (d, BARE))
    wave = raw * 1.24e-4 * np.sin(2 * np.pi * raw / 1024)
    assert np.abs(raw - plain - wave).max() < 1.01 and np.abs(raw - plain).max() >= 2


def test_a_wave_of_version_0_1_is_refused_by_its_new_name():
    for make in (lambda: replace(DEFAULT, adc_wave=(2.0, 1024.0)), lambda: replace(only(), adc_wave=None)):
        with pytest.raises(CalamiError, match=r"Converter\(\(1.24e-4, 0.0\)\)"):
            make()


def hits_per_pixel(rate, detector):
    raw = simulate_ramps(np.zeros((80, 80)), 10, 30, replace(detector, cosmic_ray_rate=rate), seed=8).astype(float)
    return np.mean(np.diff(raw, axis=1)[..., 4:, :] > 200)


def test_cosmic_rays_in_ramps():
    measured = hits_per_pixel(0.02, BARE)
    # 99 % of the charges are above 200 ADU; a track is 2.5 pixels long, but in one of nine it stays on its pixel.
    assert measured == pytest.approx(0.02 * FRAME * (2.5 * 8 / 9 + 1 / 9) * 0.98, rel=0.06)
    assert hits_per_pixel(0.0, BARE) == 0


# --- noise, measured back --------------------------------------------------------------------------------------------


def test_read_and_reset_noise_come_back():
    dark = simulate_ramps(np.zeros((80, 80)), 12, 160, only("read_noise", "reset_noise"), seed=3).astype(np.float32)
    dark *= niriss.GAIN
    rounding = niriss.GAIN**2 / 12
    read = np.diff(dark, axis=1)[:, ::2].var(axis=(0, 1)) / 2 - rounding
    assert np.sqrt(read.mean() / np.mean(DEFAULT.read_noise**2)) == pytest.approx(1, abs=0.005)
    # And in its place: a pixel's own read noise, not the average one.
    slope = np.polyfit(DEFAULT.read_noise.ravel(), np.sqrt(read).ravel(), 1)[0]
    assert slope == pytest.approx(1, abs=0.1)
    reset = dark.mean(axis=1).var(axis=0, ddof=1) - (np.square(DEFAULT.read_noise) + rounding) / 12
    assert np.sqrt(reset.mean()) == pytest.approx(DEFAULT.reset_noise, rel=0.01)


def test_one_over_f_comes_back_from_ramps():
    raw = simulate_ramps(np.zeros((80, 80)), 10, 24, replace(only("one_over_f"), one_over_f=12.0), seed=3)
    seen = raw.astype(float) * niriss.GAIN
    assert np.sqrt(seen.var() - niriss.GAIN**2 / 12) == pytest.approx(12, rel=0.04)
    along, across = (np.diff(seen, axis=a).var() for a in (2, 3))
    assert across > 1.5 * along  # stripes along columns


def photon_transfer(detector, rate=8_000.0, nints=150, seed=4):
    """Gain, e-/ADU, by the variance of differences of reads."""
    raw = simulate_ramps(np.full((80, 80), rate), 6, nints, detector, seed=seed)[..., 6:78, 2:78].astype(float)
    step = np.diff(raw, axis=1)
    return step.mean() / (step.var(axis=(0, 1), ddof=1).mean() - 2 / 12)


def test_gain_by_photon_transfer():
    assert photon_transfer(only("photon_noise")) == pytest.approx(niriss.GAIN, rel=0.004)
    # Capacitance spreads each electron over nine pixels and so hides a part of the noise that is known exactly.
    hidden = np.square(IPC_KERNEL).sum()
    assert 0.95 < hidden < 0.97
    assert photon_transfer(only("photon_noise", "ipc")) == pytest.approx(niriss.GAIN / hidden, rel=0.004)
    half = replace(only("photon_noise"), gain=np.full((80, 80), 0.8))
    assert photon_transfer(half) == pytest.approx(0.8, rel=0.004)


def test_photons_arrive_at_random_and_each_on_its_own():
    raw = simulate_ramps(np.full((80, 80), 9_000.0), 5, 200, only("photon_noise"), seed=6)[..., 4:, :] * niriss.GAIN
    step = np.diff(raw.astype(float), axis=1)
    left = (step - step.mean(axis=(0, 1))).reshape(-1, 76 * 80)
    assert np.mean(left**2) == pytest.approx(9_000 * FRAME + 2 * niriss.GAIN**2 / 12, rel=0.01)
    image = left.reshape(-1, 76, 80)
    assert abs((image[:, 1:] * image[:, :-1]).mean() / np.mean(left**2)) < 0.01


# --- random numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [7, [7, 1516, 1], np.random.SeedSequence(7), np.random.SeedSequence([7, 2])])
def test_the_same_seed_gives_the_same_reads(seed):
    one, other = (simulate_ramps(star(4e5), 2, 3, DEFAULT, seed=seed) for _ in range(2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, simulate_ramps(star(4e5), 2, 3, DEFAULT, seed=8))


def test_integrations_differ_and_more_of_them_begin_alike():
    raw = simulate_ramps(star(4e5), 2, 20, DEFAULT, seed=7)
    assert len({integration.tobytes() for integration in raw}) == 20
    assert np.array_equal(raw[:16], simulate_ramps(star(4e5), 2, 16, DEFAULT, seed=7))
    # The size of a block is part of what makes the numbers, as its description says; their statistics it is not.
    other = simulate_ramps(star(4e5), 2, 20, DEFAULT, seed=7, block=5)
    assert not np.array_equal(raw, other)
    assert np.allclose(raw.mean(axis=(0, 2, 3)), other.mean(axis=(0, 2, 3)), rtol=1e-3)
    quiet = DEFAULT.without("noise")
    assert np.array_equal(*(simulate_ramps(star(4e5), 2, 5, quiet, block=n) for n in (1, 8)))


def test_finer_steps_hardly_change_a_ramp():
    d = DEFAULT.without("noise")
    coarse, fine = (simulate_ramps(star(2e5), 4, 1, d, steps=n).astype(float) for n in (2, 30))
    assert np.abs(coarse - fine).max() <= 4  # ADU of 48,000


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"ngroups": 0}, {"ngroups": -1}, {"ngroups": 2.5}, {"nints": 0}, {"nints": "3"}, {"steps": 0}, {"block": 0},
        {"current": np.zeros((80, 81))}, {"current": np.zeros(80)}, {"current": np.full((80, 80), np.nan)},
        {"current": np.full((80, 80), -1.0)}, {"current": np.full((80, 80), np.inf)},
    ],
)  # fmt: skip
def test_ramps_that_cannot_be(wrong):
    with pytest.raises(CalamiError):
        simulate_ramps(**({"current": np.zeros((80, 80)), "ngroups": 2, "nints": 2, "detector": BARE} | wrong))


def test_a_group_of_no_steps():
    with pytest.raises(CalamiError, match="at least 1 step"):
        charge_ramp(np.ones((3, 3)), [1.0], "h4rg", steps=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gain", np.zeros((80, 80))), ("gain", 1.6), ("bias", np.full((80, 80), np.nan)), ("dark", np.zeros((80, 79))),
        ("read_noise", -np.ones((80, 80))), ("flat", np.full((80, 80), -0.1)), ("ipc", np.ones((5, 5))),
        ("flags", np.zeros(80, int)), ("reset_noise", -1.0), ("one_over_f", float("nan")), ("cosmic_ray_rate", -1e-5),
    ],
)  # fmt: skip
def test_detectors_that_cannot_be(name, value):
    with pytest.raises(CalamiError):
        replace(BARE, **{name: value})
