"""Files that contradict themselves, that are parts of one exposure, or that nobody expects among good ones."""

import gzip
import os
import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from toys import nrm_psf, rootname, write_exposure

from calami.core.problems import CalamiError, FileProblem, NameProblem
from calami.dataset import Dataset
from calami.exposures.exposure import Exposure, time_contradiction
from calami.exposures.names import parse_name


def reasons(ds):
    return "\n".join(ds.problems["reason"]) if len(ds.problems) else ""


def cube(count, shape=(8, 8), kind="float32"):
    return np.ones((count, *shape), kind)


# --- segments ---------------------------------------------------------------------------------------------------------


def write_segments(folder, product, counts, noise=0.0, **cards):
    """Write segments of one exposure: a star whose rate differs from integration to integration."""
    first, rng, star = 1, np.random.default_rng(3), nrm_psf()
    images = 1e5 * star + noise * rng.normal(size=(sum(counts), *star.shape))
    for segment, count in enumerate(counts, 1):
        part = images[first - 1 : first - 1 + count]
        value, error = (part, 1.0) if product.endswith("ints") else (part.mean(axis=0), 1 / np.sqrt(count))
        arrays = {
            "SCI": value.astype("f4"),
            "ERR": np.full(value.shape, error, "f4"),
            "DQ": np.zeros(value.shape, "u4"),
        }
        numbers = {"INTSTART": first, "INTEND": first + count - 1, "NINTS": sum(counts), "EXSEGNUM": segment}
        path = folder / f"jw01516001001_03101_00001-seg{segment:03d}_nis_{product}.fits"
        write_exposure(path, arrays, **numbers | cards)
        first += count
    return images


def test_segments_of_a_mean_are_one_exposure_with_one_peak(tmp_path):
    images = write_segments(tmp_path, "rate", (5, 3, 2), noise=30.0)
    ds = Dataset(tmp_path)
    assert len(ds) == 1 and ds.summary["segments"][0] == 3 and not reasons(ds)
    assert ds.facts(ds.names[0])["INTSTART"] == 1 and ds.facts(ds.names[0])["INTEND"] == 10
    rate, mean = ds[ds.names[0]].rate(), images.mean(axis=0)
    assert np.allclose(rate.value, mean, rtol=1e-5, atol=1e-2) and np.allclose(rate.error, 1 / np.sqrt(10))
    peak = ds[ds.names[0]].peak()
    assert peak.rate == pytest.approx(mean.max(), rel=1e-5) and (peak.row, peak.col) == (40, 45)


def test_segments_of_a_mean_leave_out_a_pixel_where_it_is_bad(tmp_path):
    images = write_segments(tmp_path, "rate", (6, 4), noise=30.0)
    path = sorted(tmp_path.iterdir())[1]
    with fits.open(path, mode="update") as hdus:
        hdus["SCI"].data[10, 10], hdus["DQ"].data[10, 10] = np.nan, 1
    rate = Exposure(sorted(tmp_path.iterdir())).rate()
    assert rate.good.all() and rate.value[10, 10] == pytest.approx(images[:6, 10, 10].mean(), rel=1e-4, abs=1e-2)
    assert rate.error[10, 10] == pytest.approx(1 / np.sqrt(6))


def test_segments_give_the_same_as_their_integrations(tmp_path):
    for product in ("rate", "rateints"):
        (tmp_path / product).mkdir()
        write_segments(tmp_path / product, product, (7, 4), noise=30.0)
    mean, many = (Exposure(sorted((tmp_path / product).iterdir())).rate() for product in ("rate", "rateints"))
    assert np.allclose(mean.value, many.value, rtol=1e-4, atol=1e-2) and np.allclose(mean.error, many.error, rtol=1e-4)


def test_segments_of_a_mean_without_their_numbers_are_refused(tmp_path):
    write_segments(tmp_path, "rate", (5, 3), INTSTART=None)
    with pytest.raises(FileProblem, match="INTSTART and INTEND are not known"):
        Exposure(sorted(tmp_path.iterdir())).rate()


def test_last_segments_that_are_missing_are_reported(tmp_path):
    write_segments(tmp_path, "rateints", (5, 3, 2))
    sorted(tmp_path.iterdir())[2].unlink()
    assert "segment 3 and on of this exposure is not here" in reasons(Dataset(tmp_path))


# --- the same exposure -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["rampfitstep", "rampfit", "ramp_fit"])
def test_products_of_the_ramp_fit_as_a_step_are_the_same_exposure(tmp_path, step):
    for product in (step, f"0_{step}", "rate"):
        write_exposure(tmp_path / f"{rootname()}_{product}.fits")
    ints = {"SCI": cube(20), "ERR": cube(20), "DQ": cube(20, kind="uint32")}
    write_exposure(tmp_path / f"{rootname()}_1_{step}.fits", ints)
    ds = Dataset(tmp_path)
    assert len(ds) == 1 and not reasons(ds)
    assert ds.types(ds.names[0]) == (step, f"1_{step}", f"0_{step}", "rate") and ds.image_type(ds.names[0]) == "rate"
    name = parse_name(f"{rootname()}_dice1of2_0_{step}.fits")
    assert (name.tag, name.product) == ("dice1of2", f"0_{step}") and name.rootname == rootname()


# --- contradictions ---------------------------------------------------------------------------------------------------


TIMES = {"EFFINTTM": 0.3772, "NGROUPS": 5, "TGROUP": 0.07544}


@pytest.mark.parametrize(
    ("cards", "reason"),
    [
        ({"EFFINTTM": 3.3772}, "EFFINTTM is 3.3772 s, but NGROUPS × TGROUP"),
        ({"NGROUPS": 500}, "EFFINTTM is 0.3772 s, but NGROUPS × TGROUP = 500"),
        ({"TGROUP": 0.7544}, "EFFINTTM is 0.3772 s"),
        ({"NGROUPS": -5}, "NGROUPS is -5"),
        ({"NGROUPS": 0}, "NGROUPS is 0"),
        ({"NGROUPS": 5.5}, "NGROUPS is 5.5"),
    ],
)
def test_times_that_contradict_each_other_are_listed_and_not_used(tmp_path, cards, reason):
    path = write_exposure(tmp_path / f"{rootname()}_rate.fits", **TIMES | cards)
    assert reason in reasons(Dataset(tmp_path))
    with pytest.raises(FileProblem, match="NGROUPS"):
        _ = Exposure(path).effective_time


@pytest.mark.parametrize("cards", [{}, {"NGROUPS": 5.0}, {"EFFINTTM": 0.37720001}, {"EFFINTTM": None}])
def test_times_that_agree_are_used(tmp_path, cards):
    path = write_exposure(tmp_path / f"{rootname()}_rate.fits", **TIMES | cards)
    ds = Dataset(tmp_path)
    assert not reasons(ds) and Exposure(path).effective_time == pytest.approx(0.3772)
    assert ds.summary["ngroups"][0] == 5 and "_5g_" in ds.names[0] and type(ds.facts(ds.names[0])["NGROUPS"]) is int


def test_real_times_agree(shared_data):
    for path in (shared_data / "jw01093").glob("*.fits"):
        assert not time_contradiction(Exposure(path).facts)


SHAPES = {
    "DQ": ("rate", {"DQ": np.zeros((4, 8), "uint32")}, "its DQ has the shape (4, 8), its SCI (8, 8)"),
    "ERR": ("rateints", {"ERR": cube(3)}, "its ERR has the shape (3, 8, 8)"),
    "VAR": ("rateints", {"VAR_FLAT": np.ones((8, 8))}, "its VAR_FLAT has the shape (8, 8)"),
    "NINTS": ("rateints", {"SCI": cube(3), "ERR": cube(3), "DQ": cube(3)}, "holds 3 integrations, its header says 20"),
    "dimensions": ("rate", {"SCI": cube(2), "ERR": cube(2), "DQ": cube(2)}, "has 3 dimensions, a rate product has 2"),
}


@pytest.mark.parametrize("what", SHAPES)
def test_shapes_that_contradict_each_other_are_listed(tmp_path, what):
    product, other, reason = SHAPES[what]
    size = (20, 8, 8) if product.endswith("ints") else (8, 8)
    arrays = {"SCI": np.ones(size), "ERR": np.ones(size), "DQ": np.zeros(size, "uint32")} | other
    path = write_exposure(tmp_path / f"{rootname()}_{product}.fits", arrays)
    assert reason in reasons(Dataset(tmp_path))
    if what in ("DQ", "ERR"):
        with pytest.raises(FileProblem, match="has the shape"):
            Exposure(path).rate()


def test_a_table_of_other_integrations_is_listed(tmp_path):
    size = (20, 8, 8)
    arrays = {"SCI": np.ones(size), "ERR": np.ones(size), "DQ": np.zeros(size, "uint32")}
    path = write_exposure(tmp_path / f"{rootname()}_rateints.fits", arrays)
    times = fits.BinTableHDU.from_columns(
        [fits.Column("integration_number", "J", array=np.arange(7))], name="INT_TIMES"
    )
    with fits.open(path, mode="append") as hdus:
        hdus.append(times)
    assert "its INT_TIMES table has 7 rows, NINTS is 20" in reasons(Dataset(tmp_path))


# --- one file never stops many ----------------------------------------------------------------------------------------


def test_a_name_inside_that_is_a_number(tmp_path):
    write_exposure(tmp_path / f"{rootname()}_rate.fits")
    for k, value in enumerate((5, True, 1.5, "", "N/A")):
        write_exposure(tmp_path / f"copy{k}.fits", FILENAME=value)
    ds = Dataset(tmp_path)
    assert len(ds) == 1 and len(ds.problems) == 5
    with pytest.raises(NameProblem, match="no JWST name"):
        parse_name(5)
    assert Exposure(tmp_path / "copy0.fits").rootname == "copy0"


def test_folders_beyond_counting(tmp_path):
    write_exposure(tmp_path / f"{rootname()}_rate.fits")
    depth = min(1500, (4000 - len(str(tmp_path))) // 2 - 30)
    deepest = f"{tmp_path}{'/d' * depth}"
    subprocess.run(["mkdir", "-p", deepest], check=True)
    write_exposure(f"{deepest}/{rootname(2)}_rate.fits")
    assert len(Dataset(tmp_path)) == 2 and depth > 1100
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest's own way recurses


def test_places_that_are_no_files_are_listed(tmp_path):
    write_exposure(tmp_path / f"{rootname()}_rate.fits")
    os.mkfifo(tmp_path / f"{rootname(2)}_rate.fits")
    (tmp_path / f"{rootname(3)}_rate.fits").symlink_to("/dev/zero")
    ds = Dataset(tmp_path)
    assert len(ds) == 1 and reasons(ds).count("is a pipe or a device") == 2
    for name in ("none\0", "n" * 300):
        with pytest.raises(CalamiError, match="no such file or folder"):
            Dataset(tmp_path / name)


def damage(content, rng):
    """One of the ways in which a file goes bad."""
    kind, content = rng.randrange(8), bytearray(content)
    if kind == 0:
        return bytes(content[: rng.randrange(len(content))])
    if kind == 1:
        return b""
    if kind == 2:
        return rng.randbytes(5000)
    if kind == 3:
        return gzip.compress(content)[:-200]
    key, value = rng.choice(
        [("NAXIS", 10**20), ("NAXIS1", 2**63), ("BITPIX", 7), ("NAXIS2", -1), ("NGROUPS", "1_000"), ("FILTER", 5)]
    )
    start = content.index(f"{key:8}=".encode(), 5760 * (kind % 2))
    content[start : start + 80] = f"{key:8}= {value:>20}".ljust(80).encode()
    return bytes(content)


def test_three_thousand_bad_files_among_a_hundred_good_ones(tmp_path, monkeypatch):
    good = write_exposure(tmp_path / f"{rootname()}_rate.fits").read_bytes()
    for number in range(2, 101):
        write_exposure(tmp_path / f"{rootname(number)}_rate.fits")
    rng, bad = random.Random(1), 0
    for number in range(3000):
        name = f"{rootname(number % 900 + 100, 1 + number // 900)}_cal.fits" if number % 3 else f"mine{number}.fits"
        try:
            content = damage(good, rng)
        except ValueError:
            content = b"SIMPLE"
        (tmp_path / name).write_bytes(content)
    bad = len(list(tmp_path.iterdir())) - 100
    began = time.perf_counter()
    ds = Dataset(tmp_path)
    table, problems = ds.info(), ds.problems
    assert time.perf_counter() - began < 10
    listed = {Path(path).name for path in problems["file"]}
    assert bad > 2900 and all(f"{rootname(number)}" in table for number in range(1, 101))
    shown = {path.name for name in ds.names for kind in ds.types(name) for path in ds.paths(name, kind)}
    assert {path.name for path in tmp_path.iterdir()} == listed | shown
