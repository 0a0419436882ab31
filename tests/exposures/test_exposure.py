import hashlib

import numpy as np
import pytest
from toys import rootname, write_exposure, write_star

from calami.calutil import Data
from calami.core.images import RateImage, find_peak
from calami.core.problems import CalamiError, FileProblem
from calami.exposures import exposure
from calami.instrument import niriss


@pytest.fixture
def star(tmp_path):
    return write_star(tmp_path / f"{rootname()}_rate.fits", 5, bad=[(39, 44), (60, 60)])


def test_the_file_is_never_modified(star):
    before = hashlib.sha256(star.read_bytes()).hexdigest(), star.stat().st_mtime_ns
    with Data(star) as exposure:
        exposure.header["NGROUPS"] = 99
        exposure.sci_header["BUNIT"] = "furlong"
        exposure.peak()
        with pytest.raises(ValueError, match="read-only"):
            exposure.science[:] = 0
    assert (hashlib.sha256(star.read_bytes()).hexdigest(), star.stat().st_mtime_ns) == before


def test_bad_pixels_are_ignored(star):
    peak = Data(star).peak()
    assert (peak.row, peak.col) == (40, 45) and 1e7 > peak.rate > 1e4


def test_an_unflagged_hot_pixel_is_not_the_star(tmp_path):
    path = write_star(tmp_path / f"{rootname()}_rate.fits", 5, bad=[(60, 60)])
    exposure = Data(path)
    image = exposure.rate()
    image.good[60, 60] = True
    assert image.value[60, 60] > 1e6
    assert (find_peak(image).row, find_peak(image).col) == (40, 45)


@pytest.mark.parametrize("place", [(0, 0), (0, 39), (39, 39), (20, 0)])
def test_a_star_at_the_edge(place):
    rows, cols = np.mgrid[:40, :40]
    value = 1e4 * np.exp(-0.5 * ((rows - place[0]) ** 2 + (cols - place[1]) ** 2) / 2.0)
    peak = find_peak(RateImage(value, np.ones_like(value), np.ones(value.shape, bool)))
    assert (peak.row, peak.col) == place


def test_all_pixels_bad(tmp_path):
    nothing = {"SCI": np.full((8, 8), np.nan, "float32"), "ERR": np.ones((8, 8)), "DQ": np.zeros((8, 8), "uint32")}
    path = write_exposure(tmp_path / f"{rootname()}_rate.fits", nothing)
    with pytest.raises(FileProblem, match="no usable pixel") as caught:
        Data(path).peak()
    assert caught.value.path == path


def test_a_product_without_errors_says_so(tmp_path):
    path = write_exposure(tmp_path / f"{rootname()}_uncal.fits", {"SCI": np.zeros((2, 3, 8, 8), "uint16")})
    exposure = Data(path)
    assert not exposure.dq.any() and exposure.dq.shape == exposure.shape
    with pytest.raises(FileProblem, match=r"has no ERR extension.*it has SCI"):
        _ = exposure.error


def test_a_file_cut_short(star):
    star.write_bytes(star.read_bytes()[:-2880])
    with pytest.raises(FileProblem):
        _ = Data(star).science
    with pytest.raises(FileProblem):
        _ = Data(star).header


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(FileProblem):
        _ = Data(tmp_path / "jw01516001001_03101_00001_nis_rate.fits").header


def test_an_extension_without_pixels(tmp_path):
    path = write_exposure(tmp_path / f"{rootname()}_rate.fits", {"SCI": np.zeros((8, 8)), "ERR": None})
    with pytest.raises(FileProblem, match="holds no pixels"):
        _ = Data(path).error


def test_no_file_at_all():
    with pytest.raises(ValueError, match="at least one file"):
        Data([])


def test_names(star, tmp_path):
    assert Data(star).rootname == rootname() and Data(star).filetype == "rate" and Data(star).name == rootname()
    assert Data(star, name="x").name == "x" and "x" in repr(Data(star, name="x"))
    odd = star.rename(tmp_path / "abdor.fits")
    assert Data(odd).rootname == rootname() and Data(odd).filetype == "rate", "told by the FILENAME card"
    stranger = write_exposure(tmp_path / "abdor_rate.fits")
    assert Data(stranger).rootname == "abdor_rate" and Data(stranger).filetype == "rate"


def test_cards_that_cannot_be_read_do_not_stop_anything(star):
    content = star.read_bytes()
    for card in (b"PATT_NUM= 1.2.3", b"FILTER  = 'F48"):
        start = content.index(card[:9])
        content = content[:start] + card.ljust(80) + content[start + 80 :]
    star.write_bytes(content)
    exposure = Data(star)
    assert (exposure.peak().row, exposure.peak().col) == (40, 45)
    assert "FILTER" not in exposure.facts and "PATT_NUM" not in exposure.facts and exposure.facts["NGROUPS"] == 5


@pytest.mark.parametrize("value", ["x", -0.5, 0, True])
def test_a_conversion_factor_that_is_none(tmp_path, value):
    arrays = {"SCI": np.full((9, 9), 50.0), "ERR": np.full((9, 9), 1.0), "DQ": np.zeros((9, 9), "uint32")}
    path = write_exposure(tmp_path / f"{rootname()}_cal.fits", arrays, {"BUNIT": "MJy/sr", "PHOTMJSR": value})
    with pytest.raises(FileProblem, match="no PHOTMJSR leads back"):
        Data(path).rate()


def test_pixels_without_a_positive_error_are_not_good(tmp_path):
    error = np.ones((9, 9))
    error[2, 2], error[3, 3], error[4, 4] = 0, -1, np.nan
    arrays = {"SCI": np.full((9, 9), 50.0), "ERR": error, "DQ": np.zeros((9, 9), "uint32")}
    image = Data(write_exposure(tmp_path / f"{rootname()}_cal.fits", arrays)).rate()
    assert image.good.sum() == 78


def test_saturated_groups_give_no_rate(tmp_path):
    path = ramp(tmp_path, "ramp", nints=4)
    exposure = Data(path)
    flags = np.zeros(exposure.shape, "uint8")
    flags[:, 1:, 5, 5] = niriss.SATURATED
    arrays = {"SCI": np.array(exposure.science), "GROUPDQ": flags, "PIXELDQ": np.zeros((20, 20), "uint32")}
    image = Data(write_exposure(path, arrays, NGROUPS=4)).rate()
    assert not image.good[5, 5] and image.good.sum() == 399


def test_segments_that_do_not_fit_together(tmp_path):
    names = [f"jw01516001001_03101_00001-seg00{k}_nis_rateints.fits" for k in (1, 2)]
    paths = [write_exposure(tmp_path / n, {"SCI": np.zeros((2, 8 * k, 8))}) for k, n in enumerate(names, 1)]
    with pytest.raises(FileProblem, match="do not fit together"):
        _ = Data(paths).science


def cube(value, nints=4, ngroups=None):
    shape = (nints, 20, 20) if ngroups is None else (nints, ngroups, 20, 20)
    return np.broadcast_to(np.asarray(value, "float32"), shape).copy()


def test_mean_over_integrations_leaves_flagged_samples_out(tmp_path):
    rng = np.random.default_rng(3)
    science, dq = cube(100.0) + rng.normal(0, 2, (4, 20, 20)).astype("float32"), np.zeros((4, 20, 20), "uint32")
    science[1, 5, 5], dq[1, 5, 5] = 1e9, niriss.DO_NOT_USE
    science[2, 6, 6] = np.nan
    dq[:, 7, 7] = niriss.DO_NOT_USE
    arrays = {"SCI": science, "ERR": cube(2.0), "DQ": dq}
    image = Data(write_exposure(tmp_path / f"{rootname()}_rateints.fits", arrays)).rate()
    assert np.isclose(image.value[5, 5], science[[0, 2, 3], 5, 5].mean())
    assert np.isclose(image.error[5, 5], 2 / np.sqrt(3)) and np.isclose(image.error[0, 0], 1.0)
    assert np.isclose(image.error[6, 6], 2 / np.sqrt(3))
    assert not image.good[7, 7] and image.good.sum() == 399


def test_the_error_of_the_flat_field_is_taken_out(tmp_path):
    arrays = {"SCI": np.full((9, 9), 100.0), "ERR": np.full((9, 9), 5.0), "DQ": np.zeros((9, 9), "uint32")}
    arrays["VAR_FLAT"] = np.full((9, 9), 16.0)
    image = Data(write_exposure(tmp_path / f"{rootname()}_cal.fits", arrays)).rate()
    assert np.allclose(image.error, 3.0)


def test_a_rate_opens_its_file_once(tmp_path, monkeypatch):
    shape = (16, 16)
    arrays = {name: np.ones(shape, "float32") for name in ("SCI", "ERR", "VAR_FLAT")}
    path = tmp_path / f"{rootname()}_rate.fits"
    write_exposure(path, arrays | {"DQ": np.zeros(shape, "uint32")})
    opened, whole = [], exposure.open_fits
    monkeypatch.setattr(exposure, "open_fits", lambda path, *a, **k: opened.append(path) or whole(path, *a, **k))
    assert Data(path).rate().good.all()
    assert opened == [path]


def test_the_unit_is_undone_in_rate_and_error(tmp_path):
    arrays = {"SCI": np.full((9, 9), 50.0), "ERR": np.full((9, 9), 1.0), "DQ": np.zeros((9, 9), "uint32")}
    sci = {"BUNIT": "MJy/sr", "PHOTMJSR": 0.5}
    image = Data(write_exposure(tmp_path / f"{rootname()}_cal.fits", arrays, sci)).rate()
    assert np.allclose(image.value, 100) and np.allclose(image.error, 2)
    odd = write_exposure(tmp_path / f"{rootname(2)}_cal.fits", arrays, {"BUNIT": "mJy"})
    with pytest.raises(FileProblem, match="no PHOTMJSR leads back"):
        Data(odd).rate()


def ramp(tmp_path, name="uncal", nints=200, ngroups=4, seed=4, **cards):
    """A ramp of 8,000 ADU/s with photon and read noise."""
    rng = np.random.default_rng(seed)
    step = rng.poisson(8000 * niriss.GAIN * 0.07544, (nints, ngroups, 20, 20))
    read = rng.normal(0, niriss.READ_NOISE_E, step.shape)
    counts = niriss.to_adu(np.cumsum(step, axis=1) + read) + 500
    arrays = {"SCI": np.rint(counts).astype("uint16")}
    path = tmp_path / f"{rootname()}_{name}.fits"
    return write_exposure(path, arrays, NGROUPS=ngroups, **cards)


def test_rate_and_error_of_a_ramp(tmp_path):
    image = Data(ramp(tmp_path)).rate()
    pull = (image.value - 8000) / image.error
    assert abs(pull.mean()) < 4 / np.sqrt(400) and abs(pull.std() - 1) < 4 / np.sqrt(800)


@pytest.mark.parametrize(
    "cards, match",
    [({"ngroups": 1}, "single group"), ({"TGROUP": "slow"}, "TGROUP is 'slow'"), ({"TGROUP": None}, "TGROUP")],
)
def test_ramps_without_a_rate(tmp_path, cards, match):
    with pytest.raises(FileProblem, match=match):
        Data(ramp(tmp_path, nints=2, **cards)).rate()


def test_flags_of_pixel_and_group_are_joined(tmp_path):
    arrays = {
        "SCI": cube(1.0, 2, 3),
        "PIXELDQ": np.zeros((20, 20), "uint32"),
        "GROUPDQ": np.zeros((2, 3, 20, 20), "uint8"),
    }
    arrays["PIXELDQ"][3, 3], arrays["GROUPDQ"][1, 0, 4, 4] = 1, 4
    dq = Data(write_exposure(tmp_path / f"{rootname()}_ramp.fits", arrays)).dq
    assert dq.shape == (2, 3, 20, 20) and (dq[:, :, 3, 3] == 1).all() and dq[1, 0, 4, 4] == 4 and dq.sum() == 10


def test_segments_are_joined_and_images_are_not(tmp_path):
    def write(n, array):
        return write_exposure(tmp_path / f"jw01516001001_03101_00001-seg00{n}_nis_{array.ndim}.fits", {"SCI": array})

    both = Data([write(1, cube(1.0, 2)), write(2, cube(2.0, 3))])
    assert both.shape == (5, 20, 20) and both.science[-1, 0, 0] == 2
    with pytest.raises(FileProblem, match="cannot be joined"):
        _ = Data([write(3, np.zeros((8, 8))), write(4, np.zeros((8, 8)))]).science


@pytest.mark.parametrize("cards", [{"EFFINTTM": 0.5}, {"NGROUPS": 5, "TGROUP": 0.1}])
def test_effective_time(tmp_path, cards):
    path = write_exposure(tmp_path / f"{rootname()}_rate.fits", **({"NGROUPS": None, "TGROUP": None} | cards))
    assert Data(path).effective_time == pytest.approx(0.5)


def test_effective_time_unknown(tmp_path):
    path = write_exposure(tmp_path / f"{rootname()}_rate.fits", TGROUP=None)
    with pytest.raises(FileProblem, match="neither EFFINTTM nor"):
        _ = Data(path).effective_time


def test_find_peak_of_nothing():
    with pytest.raises(CalamiError, match="no usable pixel"):
        find_peak(RateImage(np.ones((3, 3)), np.ones((3, 3)), np.zeros((3, 3), bool)))


def test_all_real_peaks_are_at_the_target(shared_data):
    for path in sorted((shared_data / "jw01093").glob("*_cal.fits")):
        peak = Data(path).peak()
        assert abs(peak.row - 40) <= 1 and abs(peak.col - 45) <= 1


def test_a_core_that_is_full_from_the_second_read_is_not_known(tmp_path):
    # Raw reads have no flags: what stands still near full well is full, and no faint pixel.
    y, x = np.mgrid[:20, :20]
    electrons = 4e5 * np.exp(-0.5 * ((x - 9) ** 2 + (y - 10) ** 2))  # a group
    reads = np.minimum(electrons * np.arange(1, 5)[:, None, None], niriss.SATURATION_E)
    arrays = {"SCI": np.rint(niriss.to_adu(reads) + 9000)[None].astype("uint16")}
    peak = Data(write_exposure(tmp_path / f"{rootname()}_uncal.fits", arrays, NGROUPS=4)).peak()
    assert peak.lost == "saturated" and np.isnan(peak.rate)


@pytest.mark.parametrize("extension", ["SCI", "ERR", "DQ"])
def test_what_is_no_image_of_numbers_is_refused(tmp_path, extension):
    path = write_exposure(tmp_path / f"{rootname()}_rate.fits")
    content = path.read_bytes()
    at = content.index(b"XTENSION", content.index(f"'{extension}".encode()) - 2880)
    if extension == "DQ":
        write_exposure(path, {"SCI": np.zeros((8, 8), "f4"), "DQ": np.zeros((8, 8), "f4")})
    else:
        path.write_bytes(content[: at + 10] + b"'OTHER   '" + content[at + 20 :])
    with pytest.raises(FileProblem, match=rf"its {extension} is no image of (whole )?numbers"):
        Data(path).array(extension)
