"""calami.process.rearrange: what may be put together, and what it then says of itself."""

import numpy as np
import pytest
from astropy.io import fits
from stdatamodels.jwst import datamodels
from toys import rootname, write_exposure, write_star

from calami.core.problems import CalamiError
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.process import recipes
from calami.process.prep import prep_data
from calami.process.rearrange import MUST_AGREE, Join, Regroup, StackDithers, alike, differences, rearrange_data
from calami.process.recipes import Dice, Slice
from calami.process.record import read_sidecar
from calami.program.pairing import pair_references
from calami.simulate.exposures import Instrument, simulate_exposure
from calami.simulate.level1b import timing
from calami.simulate.plans import SIMULATED_STARS, Observation, Setup, lay_out


@pytest.fixture(scope="module")
def raws(tmp_path_factory):
    """Two exposures alike, one in another filter."""
    star = SIMULATED_STARS["SIM-G2V-A"]
    setups = tuple(Setup(star, name, 4, nints) for name, nints in (("F480M", 5), ("F480M", 3), ("F430M", 3)))
    plan = lay_out("toy", "toy", 1516, [Observation(1, "x", setups)])
    folder, quiet = tmp_path_factory.mktemp("raw"), Instrument.default(1).without("migration")
    return [simulate_exposure(e, folder, quiet)[0] for e in plan]


def test_joined_exposures_are_one_for_stdatamodels(raws, tmp_path):
    (product,) = rearrange_data(raws[:2], Join(), tmp_path)
    first, second = (fits.getheader(p) for p in raws[:2])
    with datamodels.open(product) as model:
        facts = model.meta.exposure
        assert np.array_equal(model.data, np.concatenate([fits.getdata(p) for p in raws[:2]]))
        assert (facts.nints, facts.integration_start, facts.integration_end, facts.ngroups) == (8, 1, 8, 4)
        assert facts.exposure_time == pytest.approx(8 * timing(4, 8).integration, abs=1e-3)
        assert facts.duration == pytest.approx(first["DURATION"] + second["DURATION"])
        assert facts.start_time == first["EXPSTART"] and facts.end_time == second["EXPEND"]
        assert model.int_times["integration_number"].tolist() == list(range(1, 9))
        assert np.all(np.diff(model.int_times["int_start_MJD_UTC"]) > 0)
        assert model.group["integration_number"].tolist() == np.repeat(np.arange(1, 9), 4).tolist()
        assert model.meta.observation.date_end == second["DATE-END"]
    assert len(read_sidecar(product)["inputs"]) == 2


def test_time_order_does_not_depend_on_the_order_given(raws, tmp_path):
    (one,) = rearrange_data(raws[:2], Join("time"), tmp_path / "a")
    (other,) = rearrange_data(raws[1::-1], Join("time"), tmp_path / "b")
    assert np.array_equal(fits.getdata(one), fits.getdata(other))
    (given,) = rearrange_data(raws[1::-1], Join(), tmp_path / "c")
    assert np.array_equal(fits.getdata(given)[:3], fits.getdata(raws[1]))
    assert fits.getheader(given)["EXPSTART"] == fits.getheader(raws[0])["EXPSTART"]


@pytest.mark.parametrize("recipe", [Slice(alternate=2), Slice(3), Slice(alternate=3)])
def test_slices_joined_by_number_are_the_original(recipe, raws, tmp_path):
    parts = prep_data(raws[0], recipe, tmp_path / "parts")
    (whole,) = rearrange_data(parts[::-1], Join("number"), tmp_path)
    with fits.open(whole) as again, fits.open(raws[0]) as original:
        assert again["SCI"].data.tobytes() == original["SCI"].data.tobytes()
        for table in ("INT_TIMES", "GROUP"):
            for name in original[table].columns.names:
                assert np.array_equal(again[table].data[name], original[table].data[name]), name
        assert again[0].header["INTEND"] == 5
        for key in ("NINTS", "EFFINTTM", "EFFEXPTM", "DURATION", "DATE-BEG", "DATE-END"):
            new, old = again[0].header[key], original[0].header[key]
            assert new == (old if isinstance(old, str) else pytest.approx(old, abs=2e-3)), key


def test_what_does_not_belong_together_is_refused(raws, tmp_path):
    early, late = prep_data(raws[0], Dice(2), tmp_path / "dice")
    for files, words in (
        ((raws[0], raws[2]), r"filter \(FILTER\): F480M in .*, F430M in"),
        ((early, late), r"groups of the exposure \(CLMGRPS\): 1-2 of 4 in .*, 3-4 of 4"),
        ((raws[0], early), r"groups \(NGROUPS\): 4"),
        ((), "no exposure given"),
    ):
        with pytest.raises(CalamiError, match=words):
            rearrange_data(list(files), Join(), tmp_path / "out")
    with pytest.raises(CalamiError, match="not different parts of one exposure"):
        rearrange_data(raws[:2], Join("number"), tmp_path / "out")
    image = write_exposure(tmp_path / f"{rootname()}_cal.fits")
    with pytest.raises(CalamiError, match="one image and no integrations"):
        rearrange_data([image, image], Join(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_offsets_and_targets_count():
    one = {"TARGPROP": "A", "XOFFSET": 0.0, "YOFFSET": 0.0, "PATT_NUM": 1}
    keys = {"TARGPROP": "target", "XOFFSET": "x", "PATT_NUM": "dither"}
    assert differences([one, one | {"XOFFSET": 0.0001}], "ab", keys) == []
    assert len(differences([one, one | {"XOFFSET": 0.0163}], "ab", keys)) == 1
    assert len(differences([one, one | {"TARGPROP": "B"}], "ab", keys)) == 1
    assert len(differences([one, {"TARGPROP": "A"}], "ab", keys)) == 2  # missing is not equal
    unknown = one | {"XOFFSET": float("nan")}
    assert len(differences([one, unknown], "ab", keys)) == 1 and not differences([unknown, unknown], "ab", keys)


TOGETHER = {"ROLL_REF": 171.7650, "V3I_YANG": 0.5613, "RA_REF": 82.18735, "DEC_REF": -65.44754}


@pytest.mark.parametrize(
    ("change", "words", "for_dithers"),
    [
        ({}, "", False),
        ({"ROLL_REF": 171.7656}, "", False),  # what it varies by within one observation
        ({"ROLL_REF": 171.8230}, r"roll of the telescope \(ROLL_REF\).*at most 0.02 deg", True),  # the next observation
        ({"ROLL_REF": None}, "ROLL_REF", True),
        ({"V3I_YANG": -0.57}, "V3I_YANG", True),
        ({"RA_REF": 82.18735 + 1e-6}, "", False),
        ({"RA_REF": 82.18735 + 1e-5}, r"pointing \(RA_REF, DEC_REF\): .* 15.0 mas apart \(at most 5\)", False),
        ({"DEC_REF": -65.4480}, "pointing", False),
        ({"APERNAME": "NIS_AMI2"}, r"aperture \(APERNAME\)", True),
    ],
)
def test_rolls_pointings_and_apertures_count_in_every_arrangement(change, words, for_dithers, tmp_path):
    files = []
    for k, wcs in enumerate((TOGETHER, TOGETHER | change), 1):
        aperture = {"APERNAME": wcs.pop("APERNAME", "NIS_AMI1")}
        arrays = {key: np.ones((2, 9, 9), kind) for key, kind in (("SCI", "f4"), ("ERR", "f4"), ("DQ", "u4"))}
        arrays["DQ"][:] = 0
        wcs = {key: value for key, value in wcs.items() if value is not None}
        cards = aperture | {"XOFFSET": 0.0, "YOFFSET": 0.0, "NINTS": 2}
        (tmp_path / "in").mkdir(exist_ok=True)
        files.append(write_exposure(tmp_path / "in" / f"{rootname(exposure=k)}_calints.fits", arrays, wcs, **cards))
    together = {False: not words, True: not (words and for_dithers)}
    for arrangement in (Join(), Regroup(2), Join(dithers=True), StackDithers(), StackDithers("cube")):
        out = tmp_path / repr(arrangement)
        if together[arrangement.dithers]:
            assert rearrange_data(files, arrangement, out)
        else:
            with pytest.raises(CalamiError, match=words):
                rearrange_data(files, arrangement, out)
            assert not out.exists()
    for dithers, fine in together.items():
        assert len(alike(Dataset(tmp_path / "in"), dithers)) == (1 if fine else 2)


def test_a_roll_has_no_beginning():
    assert not differences([{"ROLL_REF": 359.995}, {"ROLL_REF": 0.005}], "ab", MUST_AGREE)
    assert differences([{"ROLL_REF": 179.0}, {"ROLL_REF": 359.0}], "ab", MUST_AGREE)


def test_regrouping(raws, tmp_path):
    parts = rearrange_data(raws[:2], Regroup(3), tmp_path)
    whole = np.concatenate([fits.getdata(p) for p in raws[:2]])
    assert [np.array_equal(fits.getdata(p), whole[3 * k : 3 * k + 3]) for k, p in enumerate(parts)] == [True, True]
    assert read_sidecar(parts[0])["report"]["integrations_left_out"] == 2
    assert "the last 2 in no part" in "".join(fits.getheader(parts[1])["HISTORY"])
    (odd,) = rearrange_data(raws[:2], Regroup(sets=[[8, 1, 4]]), tmp_path)
    assert np.array_equal(fits.getdata(odd), whole[[7, 0, 3]])
    for wrong, words in ((Regroup(9), "do not make a part of 9"), (Regroup(sets=[[0, 9]]), "0,9 are not among 1 to 8")):
        with pytest.raises(CalamiError, match=words):
            rearrange_data(raws[:2], wrong, tmp_path / "x")
    for make in (lambda: Regroup(), lambda: Regroup(sets=[[]]), lambda: Regroup(0), lambda: Join("size")):
        with pytest.raises(CalamiError):
            make()


def dithered(folder, count=3, ndim=2, bad=()):
    """Images of one star, moved by whole pixels and a bit; row and column of the star 10 + k, 20 - 2 k."""
    paths = []
    for k in range(count):
        image = np.zeros((40, 44), "float32")
        image[10 + k, 20 - 2 * k] = 100 + k
        image[9 + k : 12 + k, 19 - 2 * k : 22 - 2 * k] += 10
        flags = np.zeros(image.shape, "uint32")
        if k in bad:
            flags[10 + k, 20 - 2 * k], image[10 + k, 20 - 2 * k] = 1, np.nan
        arrays = {"SCI": image, "ERR": np.full(image.shape, 2, "float32"), "DQ": flags}
        if ndim == 3:
            arrays = {key: np.stack([a, a]) for key, a in arrays.items()}
        steps = np.array([-2 * k, k + 0.2 * (k > 0)]) * niriss.PIXEL_SCALE_MAS / 1e3
        name = f"{rootname(exposure=k + 1)}_{'rate' if ndim == 2 else 'rateints'}.fits"
        cards = {"PATT_NUM": k + 1, "XOFFSET": steps[0], "YOFFSET": steps[1], "EFFEXPTM": 10.0, "EFFINTTM": 0.5}
        paths.append(write_exposure(folder / name, arrays, **cards, DATAMODL="ImageModel", INTSTART=1, INTEND=20))
    return paths


@pytest.mark.parametrize("align", ["header", "peak"])
def test_dithers_are_stacked_on_the_star(align, tmp_path):
    bad = (1,) if align == "header" else ()  # a star whose brightest pixel is bad is not found by its peak
    (product,) = rearrange_data(dithered(tmp_path, bad=bad), StackDithers(align=align), tmp_path / "out")
    with fits.open(product) as hdus:
        assert hdus["SCI"].data[10, 20] == pytest.approx(111)  # a flagged one is left out
        assert hdus["SCI"].data[9, 20] == pytest.approx(10)
        assert hdus["ERR"].data[10, 20] == pytest.approx(2 / np.sqrt(3 - len(bad)))
        assert hdus["ERR"].data[9, 20] == pytest.approx(2 / np.sqrt(3))
        assert hdus["DQ"].data[10, 20] == 0
        assert hdus[0].header["NINTS"] == 60 and hdus[0].header["EFFEXPTM"] == 30.0
    report = read_sidecar(product)["report"]["stack"]
    assert report["moved_by"] == [[0, 0], [2, -1], [4, -2]]
    assert report["left_over"][1] == ([0.0, 0.2] if align == "header" else [0.0, 0.0])


def test_a_cube_of_dithers(tmp_path):
    (product,) = rearrange_data(dithered(tmp_path), StackDithers("cube"), tmp_path / "out")
    with datamodels.open(product) as model:
        assert type(model).__name__ == "CubeModel" and product.name.endswith("_stack3_rateints.fits")
        assert model.data[:, 10, 20].tolist() == [110, 111, 112]
        assert (model.dq[2, -1] & 1 == 1).all() and np.isnan(model.data[2, -1]).all()
        assert (model.meta.exposure.nints, model.meta.exposure.integration_end) == (3, 3)
    (product,) = rearrange_data(dithered(tmp_path, ndim=3), StackDithers("cube"), tmp_path / "out3")
    assert fits.getdata(product).shape == (6, 40, 44) and fits.getheader(product)["NINTS"] == 6
    (product,) = rearrange_data(dithered(tmp_path, ndim=3), StackDithers(), tmp_path / "out4")
    assert fits.getdata(product)[10, 20] == pytest.approx(111)


def test_stacks_that_cannot_be(raws, tmp_path):
    paths = dithered(tmp_path)
    fits.setval(paths[1], "XOFFSET", value=5.0)
    for files, words in ((paths, "no common part"), (paths[:1], "two exposures or more"), (raws[:2], "holds ramps")):
        with pytest.raises(CalamiError, match=words):
            rearrange_data(files, StackDithers(), tmp_path / "out")


def test_a_dataset_finds_what_belongs_together(raws, tmp_path):
    ds = Dataset(raws)
    assert sorted(len(s) for s in alike(ds)) == [1, 2]
    made = ds.rearrange_data(Join("time"), tmp_path)
    assert len(made) == 1 and made[made.names[0]].shape == (8, 4, 80, 80)
    with pytest.raises(CalamiError, match="do not belong together"):
        ds.rearrange_data(Join(), tmp_path, ds.names)
    with pytest.raises(CalamiError, match="no two exposures"):
        ds.select(filter="F430M").rearrange_data(Join(), tmp_path)


def night(folder):
    """A target at two dithers, and references that win by different rules."""
    stars = [
        ("target", 1, 1, 1.0, 0.0, False, "F480M"),
        ("near", 2, 2, 0.3, 0.1, True, "F480M"),  # nearest in time
        ("equal", 3, 2, 1.05, 3.0, True, "F480M"),  # nearest in peak
        ("same", 4, 1, 0.5, 5.0, True, "F480M"),  # same dither position
        ("blue", 5, 1, 1.0, 0.01, True, "F430M"),  # another filter
    ]
    for name, observation, dither, flux, hours, is_psf, filt in stars:
        path = folder / f"{rootname(observation)}_rate.fits"
        cards = {"PATT_NUM": dither, "EXPMID": 59735.0 + hours / 24, "IS_PSF": is_psf, "FILTER": filt, "TARGPROP": name}
        write_star(path, 5, flux=flux, seed=observation, **cards)
    return Dataset(folder)


@pytest.mark.parametrize(
    "rules, best",
    [
        (("dither", "peak", "time"), "same"),
        (("peak",), "equal"),
        (("time", "peak"), "near"),
        (("peak", "time"), "equal"),
    ],
)
def test_the_first_rule_decides(rules, best, tmp_path):
    (row,) = pair_references(night(tmp_path), rules)
    assert row["reference"].startswith(best + "_") and row["target"].startswith("target_")
    assert row["reason"].startswith("best of 3 in F480M by " + ", ".join(rules))


def test_pairs_tell_how_well_they_fit(tmp_path):
    ds = night(tmp_path)
    table = pair_references(ds, ("peak", "time"), count=5)
    assert [r.split("_")[0] for r in table["reference"]] == ["equal", "same", "near"]
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["peak_ratio"][0] == pytest.approx(1.05, abs=0.02) and table["hours"][0] == pytest.approx(3)
    assert pair_references(ds, ("peak", "time"), peak_step=5.0)["reference"][0].startswith("near")  # all peaks alike
    lonely = pair_references(ds.select(targprop=("target", "blue")))
    assert lonely["reference"][0] == "" and lonely["reason"][0] == "no reference in F480M"
    with pytest.raises(CalamiError, match="not colour"):
        pair_references(ds, ("colour",))
    with pytest.raises(CalamiError, match="no target"):
        pair_references(ds.select(is_psf=True))


def test_joined_products_can_be_prepared_again(raws, tmp_path):
    (joined,) = rearrange_data(raws[:2], Join(), tmp_path)
    parts = prep_data(joined, [Slice(2), recipes.Truncate(3)], tmp_path)
    assert [fits.getheader(p)["CLMINTS"] for p in parts] == ["1-4 of 8", "5-8 of 8"]
    assert parts[0].name == joined.name.replace("_uncal", "_slice1of2_first3_uncal")
