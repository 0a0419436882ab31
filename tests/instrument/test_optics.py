"""The image through the mask against brute force, against its symmetries, and against the pipeline's own model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import closure_phases, examples, visibilities

from calami.core.problems import CalamiError
from calami.instrument import niriss, optics
from calami.instrument.optics import (
    COMMISSIONING,
    DWARF_TEMPERATURES,
    MAS,
    Distortion,
    Pupil,
    Source,
    blackbody,
    hexagon_transform,
    monochromatic,
    passband,
    pixel_response,
    psf,
    sample_passband,
    star_spectrum,
    star_temperature,
    tabulated,
    three_rhombi,
)

FILTERS = list(niriss.FILTERS)
SMALL = {"shape": (41, 41), "count": 4, "oversample": 3}
CENTER = (20.0, 20.0)

# --- the hexagon -----------------------------------------------------------------------------------------------------


def transform_by_summation(u, v, flat_to_flat, matrix, n=400):
    """Fourier integral over a hexagon with corners on the x axis, summed strip by strip, at one frequency (u, v)."""
    y = (np.arange(n) + 0.5) / n * flat_to_flat - flat_to_flat / 2
    half = flat_to_flat / np.sqrt(3) - np.abs(y) / np.sqrt(3)  # the hexagon reaches from -half to half at y
    x = ((np.arange(n) + 0.5) / n * 2 - 1)[:, None] * half
    (a, b), (c, d) = matrix
    phase = -2 * np.pi * (u * (a * x + b * y) + v * (c * x + d * y))
    return (np.exp(1j * phase) * 2 * half / n).sum() * flat_to_flat / n * abs(a * d - b * c)


affine = st.tuples(*[st.floats(-0.2, 0.2)] * 4).map(lambda v: np.eye(2) + np.reshape(v, (2, 2)))


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.3, 1.2), affine)
@settings(max_examples=examples(40))
def test_hexagon_by_brute_force(u, v, flat_to_flat, matrix):
    ours = hexagon_transform(np.array([u]), np.array([v]), flat_to_flat, matrix)
    assert ours.shape == (1, 1)
    assert abs(ours[0, 0] - transform_by_summation(u, v, flat_to_flat, matrix)) < 3e-4 * flat_to_flat**2


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.01, 5))
def test_hexagon_has_the_symmetries_of_one(u, v, flat_to_flat):
    value = hexagon_transform(np.array([u]), np.array([v]), flat_to_flat)[0, 0]
    area = np.sqrt(3) / 2 * flat_to_flat**2
    assert abs(value) <= area * (1 + 1e-12)
    for angle in (60, 120, 180):
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        turned = hexagon_transform(np.array([c * u - s * v]), np.array([s * u + c * v]), flat_to_flat)[0, 0]
        assert np.isclose(turned, value, rtol=0, atol=1e-9 * area * (1 + flat_to_flat * np.hypot(u, v)))


def test_rhombi_near_the_lines_where_a_phase_vanishes():
    sides = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]])  # of a hexagon that is a little flattened
    hexagon = np.sqrt(3), np.diag([1.0, 0.8 / np.sqrt(0.75)])
    u = v = np.array([0, 1e-12, -1e-9, 1e-7, 3e-5, 1e-4, -0.3, 2.0, 7.0])
    phases = [np.add.outer(v * y, u * x) for x, y in sides]
    (a, b, c), (d, e, f) = ([part(p) for p in phases] for part in (np.sinc, lambda p: np.cos(np.pi * p)))
    assert np.abs(three_rhombi(u, v, *hexagon) - (a * b * f + b * c * d + c * a * e)).max() < 1e-13
    assert three_rhombi(u, v, *hexagon)[0, 0] == 3


# --- filters and spectra ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILTERS)
def test_curves_of_the_filters(name):
    wavelength, throughput = passband(name)
    assert wavelength.shape == throughput.shape == (72,)
    assert np.allclose(np.diff(wavelength), np.diff(wavelength).mean(), atol=2e-4)  # rounding of the table
    assert 0.9 < throughput.max() < 1.05 and throughput.min() > 0
    pivot = np.sqrt((throughput * wavelength).sum() / (throughput / wavelength).sum())
    assert abs(pivot / niriss.FILTERS[name].pivot - 1) < 0.003


# Half-power points, µm, from the project's science notes.
HALF_POWER = {"F277W": (2.413, 3.142), "F380M": (3.726, 3.931), "F430M": (4.182, 4.395), "F480M": (4.669, 4.971)}


@pytest.mark.parametrize("name", FILTERS)
def test_half_power_points(name):
    wavelength, throughput = passband(name)
    above = wavelength[throughput > throughput.max() / 2]
    step = np.diff(wavelength).mean()
    assert np.allclose((above[0], above[-1]), HALF_POWER[name], atol=2 * step)


def test_nobody_can_spoil_a_curve():
    passband("F480M")[1][:] = 0
    assert passband(" f480m ")[1].max() > 0.9
    with pytest.raises(CalamiError, match="F277W, F380M, F430M, F480M"):
        passband("F200W")


@given(st.floats(1500, 60_000), st.floats(1500, 60_000))
def test_the_hotter_black_body_is_bluer_and_brighter(one, other):
    cool, hot = sorted((one, other))
    at = np.array([2.8, 4.8])
    (c1, c2), (h1, h2) = blackbody(cool)(at), blackbody(hot)(at)
    assert h1 >= c1 and h2 >= c2 and h1 / h2 >= c1 / c2 * (1 - 1e-12)


def test_black_body_by_hand():
    h, c, k = 6.62607015e-34, 2.99792458e8, 1.380649e-23
    lam = np.array([2.8e-6, 4.8e-6])
    planck = 2 * h * c**2 / lam**5 / np.expm1(h * c / (lam * k * 5770))  # energy per wavelength
    photons = planck * lam / (h * c)
    assert np.allclose(blackbody(5770)(lam * 1e6) / photons, blackbody(5770)(2.8) / photons[0], rtol=1e-9)
    assert blackbody(0.5)(4.8) == 0  # too cold for a number, and no warning


@pytest.mark.parametrize("temperature", [0, -5, float("nan")])
def test_no_temperature(temperature):
    with pytest.raises(CalamiError, match="above 0 K"):
        blackbody(temperature)


@given(st.sampled_from("BAFGKM"), st.floats(0, 9.9))
def test_temperatures_fall_along_the_sequence(letter, subclass):
    text = f"{letter}{subclass:.1f}V"
    if letter == "M" and float(text[1:4]) > 5:
        with pytest.raises(CalamiError, match="later than M5"):
            star_temperature(text)
        return
    later = f"{letter}{float(text[1:4]) + 0.1:.1f}V" if float(text[1:4]) < 4.9 else text
    assert 3060 <= star_temperature(later) <= star_temperature(text) <= 31_400


def test_types_of_the_table_have_its_temperatures():
    for name, temperature in DWARF_TEMPERATURES.items():
        assert star_temperature(name) == star_temperature(f" {name.lower()}V ") == temperature
    assert star_temperature("K1.5III") == pytest.approx(5270 - 0.75 * 170)


@pytest.mark.parametrize("text", ["", "G", "GV", "O5V", "L2", "WN5", "2G", "G.5"])
def test_types_that_are_not_understood(text):
    with pytest.raises(CalamiError, match="not understood"):
        star_spectrum(text)


def test_a_table_as_spectrum():
    spectrum = tabulated([2, 4, 6], [1, 3, 0])
    assert np.allclose(spectrum([2, 3, 5, 6]), [1, 2, 1.5, 0])
    for at in (1.9, 6.1, [3, 7]):
        with pytest.raises(CalamiError, match="µm is needed; give a longer table"):
            spectrum(at)
    with pytest.raises(CalamiError, match="longer table"):
        psf("F480M", spectrum=tabulated([4, 4.8], [1, 1]), **SMALL)


@pytest.mark.parametrize(
    ("wavelength", "flux", "words"),
    [
        ([1, 2, 2], [1, 1, 1], "increase"),
        ([3, 2], [1, 1], "increase"),
        ([1, 2], [1, 1, 1], "as many"),
        ([], [], "as many"),
        ([1, np.nan, 3], [1, 1, 1], "increase"),
        ([1, 2, np.inf], [1, 1, 1], "increase"),
        ([1, 2, 3], [1, -1, 1], "from 0 up"),
        ([1, 2, 3], [1, np.nan, 1], "from 0 up"),
    ],
)
def test_tables_that_are_no_spectrum(wavelength, flux, words):
    with pytest.raises(CalamiError, match=words):
        tabulated(wavelength, flux)


@given(st.sampled_from(FILTERS), st.integers(-3, 100), st.floats(2500, 40_000))
def test_samples_of_a_filter_keep_its_photons(name, count, temperature):
    spectrum = blackbody(temperature)
    wavelength, weight = sample_passband(name, spectrum, count)
    assert len(wavelength) == len(weight) == min(max(count, 1), 72)
    assert np.isclose(weight.sum(), 1) and (weight > 0).all() and (np.diff(wavelength) > 0).all()
    fine, throughput = passband(name)
    photons = throughput * spectrum(fine)
    assert np.isclose((wavelength * weight).sum(), (fine * photons).sum() / photons.sum(), rtol=1e-12)


def test_a_spectrum_with_gaps():
    edges = [2, 4.7, 4.71, 4.9, 4.91, 6]
    line = tabulated(edges, [0, 0, 1, 1, 0, 0])
    wavelength, weight = sample_passband("F480M", line)
    assert 0 < len(wavelength) < 12 and np.isfinite(wavelength).all() and np.isclose(weight.sum(), 1)
    assert ((wavelength > 4.69) & (wavelength < 4.92)).all()
    with pytest.raises(CalamiError, match="no photons in F277W"):
        psf("F277W", spectrum=line, **SMALL)


# --- pupil -----------------------------------------------------------------------------------------------------------


@given(st.floats(0.9, 1.1), st.floats(0.9, 1.1), st.floats(-0.05, 0.05), st.floats(-0.05, 0.05))
def test_the_distortion_and_its_inverse(mx, my, sx, sy):
    distortion = Distortion(mx, my, sx, sy)
    inverse = np.array([[my, sy], [sx, mx]])
    assert np.allclose(distortion.matrix @ inverse, np.eye(2))
    assert np.isclose(np.linalg.det(distortion.matrix), 1 / distortion.determinant)


@given(st.floats(0, 500), st.floats(0, 50), st.integers(0, 2**32))
def test_errors_of_the_pupil(piston_rms, tilt_rms, seed):
    one, other = (Pupil().with_errors(piston_rms, tilt_rms, seed) for _ in range(2))
    assert np.array_equal(one.pistons, other.pistons) and np.array_equal(one.tilts, other.tilts)
    assert np.isclose(one.pistons.std(), piston_rms) and abs(one.pistons.mean()) < 1e-12 * (1 + piston_rms)
    assert one.tilts.shape == (7, 2) and one.tilts.any() == (tilt_rms > 0)
    assert np.isclose(one.area, 7 * np.sqrt(3) / 2 * 0.64)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pistons": np.zeros(6)},
        {"tilts": np.zeros((7, 1))},
        {"centers": np.zeros((6, 2))},
        {"pistons": np.full(7, np.nan)},
        {"tilts": np.full((7, 2), np.inf)},
        {"flat_to_flat": 0.0},
        {"distortion": Distortion(0.0, 1.0)},
    ],
)
def test_pupils_that_cannot_be(wrong):
    with pytest.raises(CalamiError, match="pupil"):
        Pupil(**wrong)


def test_all_light_is_there():
    axis = np.arange(-16_000, 16_000, 40.0)
    for pupil in (Pupil(), Pupil(distortion=Distortion()), Pupil().with_errors(80, 15, seed=2)):
        total = monochromatic(4.8, axis, axis, pupil).sum() * 40**2
        assert 0.98 < total < 1.0  # the rest is in the wings of the hexagons


def test_a_tilt_moves_the_spot_of_a_hole():
    alone = {"centers": np.zeros((1, 2)), "pistons": np.zeros(1)}
    still = Pupil(tilts=np.zeros((1, 2)), **alone)
    moved = Pupil(tilts=np.array([[65.0, -130.0]]), **alone)
    axis = np.arange(-20, 21) * 65.0
    a, b = (monochromatic(4.3, axis, axis, p) for p in (still, moved))
    assert np.allclose(np.roll(a, (-2, 1), (0, 1))[4:-4, 4:-4], b[4:-4, 4:-4], rtol=1e-9, atol=1e-20)


def test_equal_tilts_and_equal_pistons_do_nothing_to_the_fringes():
    axis = np.arange(-20, 21) * 65.0
    plain = monochromatic(4.3, axis, axis, Pupil())
    assert np.allclose(monochromatic(4.3, axis, axis, Pupil(pistons=np.full(7, 33.0))), plain, rtol=1e-9)
    barely = Pupil(tilts=np.full((7, 2), 1e-9))  # the other branch of the code, the same image
    assert np.allclose(monochromatic(4.3, axis, axis, barely), plain, rtol=1e-6, atol=1e-6 * plain.max())


# --- the image -------------------------------------------------------------------------------------------------------

places = st.tuples(st.floats(15, 25), st.floats(15, 25))


@given(st.sampled_from(FILTERS), places, st.floats(0, 60), st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=25)
def test_images_are_positive_and_hold_most_of_the_light(name, place, diffusion, seed, oversample):
    pupil = Pupil().with_errors(50, 5, seed)
    image = psf(name, place, (41, 41), pupil=pupil, diffusion=diffusion, oversample=oversample, count=2)
    assert image.shape == (41, 41) and (image >= 0).all() and np.isfinite(image).all()
    if oversample > 2 or name != "F277W":
        assert 0.75 < image.sum() < 1
    peak = np.unravel_index(image.argmax(), image.shape)
    assert max(abs(peak[1] - place[0]), abs(peak[0] - place[1])) < 1.5


@given(st.sampled_from(FILTERS), st.floats(0, 60), st.booleans())
@settings(max_examples=20)
def test_a_perfect_pupil_makes_a_symmetric_image(name, diffusion, distorted):
    pupil = Pupil() if distorted else Pupil(distortion=Distortion())
    image = psf(name, pupil=pupil, diffusion=diffusion, **SMALL)
    assert np.abs(image - image[::-1, ::-1]).max() < 1e-12 * image.max()
    assert np.abs(closure_phases(visibilities(image, name, CENTER))).max() < 1e-9


@pytest.mark.parametrize("name", FILTERS)
def test_pistons_show_in_the_phases_and_hardly_in_the_closure_phases(name):
    pupil = Pupil().with_errors(50, seed=3)
    seen = visibilities(psf(name, shape=(81, 81), pupil=pupil, oversample=3), name, (40, 40))
    wave = niriss.FILTERS[name].pivot * 1e3
    expected = {(i, j): 360 * (pupil.pistons[j] - pupil.pistons[i]) / wave for i, j in seen}
    errors = [np.degrees(np.angle(value)) + expected[pair] for pair, value in seen.items()]
    closure = np.abs(closure_phases(seen)).max()
    if name == "F277W":  # the long baselines are aliased in pixels of this size
        assert closure > 1
    else:
        # The sign of jwst.ami: a piston p turns a hole's phase by -2π p / λ; here the pair's by the difference.
        assert np.std(errors) < 0.05
        assert 1e-3 < closure < 0.1


@given(st.sampled_from(FILTERS), places, st.integers(-4, 4), st.integers(-4, 4))
@settings(max_examples=20)
def test_a_star_moved_by_whole_pixels(name, place, dx, dy):
    one = psf(name, place, **SMALL)
    other = psf(name, (place[0] + dx, place[1] + dy), **SMALL)
    inner = np.s_[5:-5, 5:-5]
    assert np.abs(np.roll(one, (dy, dx), (0, 1)) - other)[inner].max() < 1e-6 * one.max()


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.sampled_from(FILTERS[1:]))
@settings(max_examples=20)
def test_a_star_moved_by_less_than_a_pixel(dx, dy, name):
    both = [
        visibilities(psf(name, at, (61, 61), count=4, oversample=3), name, (30, 30))
        for at in ((30, 30), (30 + dx, 30 + dy))
    ]
    holes = Pupil().centers @ Pupil().distortion.matrix.T
    per_pixel = 2 * np.pi / (niriss.FILTERS[name].pivot * 1e-6) * MAS * np.array(niriss.PIXEL_SCALE_MAS)
    design = np.array([-(holes[i] - holes[j]) * per_pixel for i, j in both[0]])
    phases = [np.angle(both[1][pair] / both[0][pair]) for pair in both[0]]
    found = np.linalg.lstsq(design, phases, rcond=None)[0]
    assert np.allclose(found, (dx, dy), atol=0.004)


@given(places, st.floats(-8, 8), st.floats(-8, 8), st.floats(0.001, 1))
@settings(max_examples=8)
def test_a_companion_stands_where_asked(place, dx, dy, contrast):
    seen = psf("F430M", place, source=Source().with_companion(dx, dy, contrast), **SMALL)
    wide = SMALL | {"shape": (81, 81)}
    star = psf("F430M", (place[0] + 20, place[1] + 20), **wide)
    other = psf("F430M", (place[0] + 20 + dx, place[1] + 20 + dy), **wide)
    expected = ((star + contrast * other) / (1 + contrast))[20:-20, 20:-20]
    assert np.abs(seen - expected).max() < 1e-6 * expected.max()


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.01, 1)), min_size=1, max_size=4))
@settings(max_examples=8)
def test_the_image_is_linear_in_its_sources(points):
    points = np.array(points)
    shares = points[:, 2] / points[:, 2].sum()
    together = psf("F380M", source=Source(points[:, :2], shares), **SMALL)
    singly = sum(
        share * psf("F380M", source=Source(place[None, :], np.ones(1)), **SMALL)
        for place, share in zip(points[:, :2], shares, strict=True)
    )
    assert np.allclose(together, singly, rtol=0, atol=1e-6 * together.max())


def test_sources_one_after_the_other_add_up():
    disc = Source().with_image(np.array([[0.1, 0.0], [0.2, 0.3]]), 2.0, (1.0, -1.0))
    assert np.allclose(disc.weights, np.array([1, 0.1, 0.2, 0.3]) / 1.6)
    assert np.allclose(disc.offsets, [(0, 0), (0, -2), (0, 0), (2, 0)])
    both = Source().with_companion(1, 2, 0.5).with_companion(-3, 0, 0.5)
    assert np.allclose(both.weights, np.array([1, 0.5, 0.75]) / 2.25)  # the second: half of star and first together


@pytest.mark.parametrize("name", FILTERS)
def test_blur_only_spreads_the_light(name):
    given = {"shape": (61, 61), "count": 4, "oversample": 3}
    images = {d: psf(name, diffusion=d, jitter=0.0, **given) for d in (0.0, 10.0, 20.0, 40.0)}
    sums = np.array([image.sum() for image in images.values()])
    assert np.ptp(sums) < 5e-4 * sums[0]  # at the border of the array something comes and goes
    peaks = [image.max() for image in images.values()]
    assert peaks == sorted(peaks, reverse=True)
    both, single = psf(name, diffusion=12, jitter=16, **SMALL), psf(name, diffusion=20, jitter=0, **SMALL)
    assert np.allclose(both, single, rtol=1e-12)


@given(st.floats(0, 1), st.integers(1, 9))
def test_the_response_of_a_pixel(depth, oversample):
    response = pixel_response(depth, oversample)
    assert response.shape == (oversample, oversample)
    assert np.isclose(response.mean(), 1)
    assert (response >= 0).all() and np.allclose(response, response.T) and np.allclose(response, response[::-1])
    corner, middle = response[0, 0], response[oversample // 2, oversample // 2]
    assert corner <= middle


@pytest.mark.parametrize("depth", [-0.1, 1.1, float("nan")])
def test_a_response_that_cannot_be(depth):
    with pytest.raises(CalamiError, match="from 0 to 1"):
        pixel_response(depth)


def test_a_response_weighs_the_light_within_a_pixel():
    gain = {}
    for place in (CENTER, (20.5, 20.5)):
        images = [psf("F277W", place, (41, 41), count=4, response=pixel_response(depth)) for depth in (0.0, 0.3)]
        assert np.allclose(images[0], psf("F277W", place, (41, 41), count=4), rtol=1e-12)
        at = np.unravel_index(images[0].argmax(), images[0].shape)
        gain[place] = images[1][at] / images[0][at]
        assert abs(images[1].sum() / images[0].sum() - 1) < 0.002
    assert gain[CENTER] > 1.006 and gain[CENTER] > gain[20.5, 20.5] + 0.003


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILTERS)
def test_a_finer_grid_changes_nothing(name):
    # What a pixel holds is the integral over its area, whatever the grid: the means over the steps are exact.
    place, shape = (20.3, 19.8), (41, 41)
    fine = psf(name, place, shape, oversample=15, count=3)
    for oversample, tolerance in ((3, 1e-6), (4, 1e-8), (5, 1e-9)):
        image = psf(name, place, shape, oversample=oversample, count=3)
        assert np.abs(image - fine).max() < tolerance * fine.max()
    sharp = [psf(name, place, shape, oversample=n, count=3, diffusion=0, jitter=0) for n in (5, 15)]
    assert np.abs(sharp[0] - sharp[1]).max() < 1e-6 * sharp[1].max()


@pytest.mark.parametrize("name", FILTERS)
def test_pixels_hold_the_integral_over_their_area(name):
    # Against plain summation of 45 × 45 points a pixel, without Fourier transform and at one wavelength.
    (wavelength,), _ = sample_passband(name, count=1)
    fine = ((np.arange(15 * 45) + 0.5) / 45 - 0.5 - 7.2) * niriss.PIXEL_SCALE_MAS[0]
    points = monochromatic(wavelength, fine, fine, Pupil()) * (niriss.PIXEL_SCALE_MAS[0] / 45) ** 2
    pixels = points.reshape(15, 45, 15, 45).sum(axis=(1, 3))
    scale = (niriss.PIXEL_SCALE_MAS[0],) * 2
    ours = psf(name, (7.2, 7.2), (15, 15), scale=scale, diffusion=0, jitter=0, count=1)
    assert np.abs(ours - pixels).max() < 2e-4 * pixels.max()  # that summation is good to 1e-4


def test_response_within_the_pixel_converges():
    images = [
        psf("F480M", (20.3, 19.8), **SMALL | {"oversample": n}, response=pixel_response(0.1, n)) for n in (5, 9, 21)
    ]
    errors = [np.abs(image - images[-1]).max() / images[-1].max() for image in images[:2]]
    assert errors[0] < 6e-4 and errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("name", FILTERS)
def test_the_default_number_of_wavelengths_is_enough(name):
    given = {"shape": (41, 41), "oversample": 3, "spectrum": star_spectrum("M2V")}
    images = [psf(name, CENTER, count=n, **given) for n in (None, 72, 3)]
    errors = [np.abs(image - images[1]).max() / images[1].max() for image in images]
    assert errors[0] < 1.5e-4 and errors[2] > 5 * errors[0]
    ours, exact = (np.array(list(visibilities(i, name, CENTER).values())) for i in images[:2])
    assert np.abs(ours - exact).max() < 1e-3 * np.abs(exact).max()


# --- against the pipeline --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pistons", [(0,) * 7, (40.0, -20, 30, 0, -55, -25, 30)])
def test_one_wavelength_as_in_jwst_ami(pistons):
    from jwst.ami import analyticnrm2
    from jwst.ami.utils import Affine2d, rebin

    affine = Affine2d(mx=0.99282, my=0.99854, sx=6.18605e-3, sy=-7.27008e-3, xo=0.0, yo=0.0)
    centers = optics.detector_centers()[:, ::-1]  # rows first, as there
    phi = np.array(pistons) * 1e-9
    theirs = analyticnrm2.psf(65.6 * MAS, 25, 3, centers, 0.8, 4.3e-6, phi, (0, 0), affine, shape="hex")
    theirs = rebin(theirs, (3, 3))
    fine = ((np.arange(25 * 3) + 0.5) / 3 - 12.5) * 65.6
    pupil = Pupil(pistons=np.array(pistons, dtype=float), distortion=COMMISSIONING)
    ours = monochromatic(4.3, fine, fine, pupil).reshape(25, 3, 25, 3).sum(axis=(1, 3))
    assert np.abs(ours / ours.sum() - theirs / theirs.sum()).max() < 1e-8 * (ours / ours.sum()).max()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(-0.6, 5), (5, -0.6), (40.6, 5), (5, 30.6), (np.nan, 5)])
def test_a_star_outside(place):
    with pytest.raises(CalamiError, match="outside 41 × 31"):
        psf("F480M", place, (31, 41), count=1)


@pytest.mark.parametrize("place", [(-0.5, -0.5), (40.5, 30.5)])
def test_a_star_on_the_very_corner(place):
    assert 0.15 < psf("F480M", place, (31, 41), count=1).sum() < 0.3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"filter_name": "F1000W"}, "no throughput curve"),
        ({"response": np.ones((3, 3))}, "shape"),
        ({"response": np.ones((5, 1))}, "shape"),
        ({"response": np.ones(5)}, "shape"),
        ({"oversample": 0}, "oversample"),
        ({"diffusion": -1.0}, "diffusion"),
        ({"jitter": float("nan")}, "diffusion"),
        ({"scale": (0.0, 65.0)}, "scale"),
    ],
)
def test_numbers_that_make_no_image(wrong, words):
    with pytest.raises(CalamiError, match=words):
        psf(**({"filter_name": "F480M", "shape": (11, 11), "count": 1} | wrong))


@pytest.mark.parametrize(
    ("offsets", "weights"),
    [
        (np.zeros((2, 2)), np.ones(1)),
        (np.zeros(2), np.ones(1)),
        (np.full((1, 2), np.nan), np.ones(1)),
        (np.zeros((1, 2)), np.array([3.0])),
        (np.zeros((2, 2)), np.array([1.5, -0.5])),
        (np.zeros((1, 2)), np.array([np.nan])),
    ],
)
def test_sources_that_cannot_be(offsets, weights):
    with pytest.raises(CalamiError, match="source"):
        Source(offsets, weights)


@pytest.mark.parametrize("image", [[1.0], [[-1.0]], [[np.nan]], [[np.inf]]])
def test_pictures_that_are_no_source(image):
    with pytest.raises(CalamiError, match="two-dimensional, finite and nowhere negative"):
        Source().with_image(np.array(image), 1.0)
