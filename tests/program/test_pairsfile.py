"""Pairs of targets and references: proposed, written, edited, read, and used by calibrate and ami3."""

import json

import pytest
import yaml
from toys import rootname, write_exposure, write_star

from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.fringes.fitting import fit
from calami.fringes.oifits import read_oifits, write_products
from calami.program.pairsfile import Pair, Reference, associate, calibrate_pairs, propose_pairs, read_pairs, write_pairs

TARGET, NEAR, FAR, OTHER = (rootname(k) for k in (1, 2, 3, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_star(folder / f"{TARGET}_cal.fits", 5, EXPMID=60000.0)
    star = {"IS_PSF": True, "TARGPROP": "HD-1"}
    write_star(folder / f"{NEAR}_cal.fits", 5, seed=2, EXPMID=60000.5, **star)
    write_star(folder / f"{FAR}_cal.fits", 5, seed=3, shift=0.8, EXPMID=60000.01, **star | {"TARGPROP": "HD-2"})
    write_star(folder / f"{OTHER}_cal.fits", 5, seed=4, EXPMID=60000.1, **star | {"FILTER": "F430M"})
    return folder


@pytest.fixture
def ds(folder):
    ds = Dataset(folder)
    ds.create_mapping()
    return ds


def test_the_place_on_the_detector_comes_before_time(ds):
    (pair,) = propose_pairs(ds)
    assert (pair.exposure, pair.filter) == (TARGET, "F480M")
    assert [one.exposure for one in pair.references] == [NEAR, FAR]  # FAR is nearer in time, and on another pixel
    near, far = pair.references
    assert near.apart_mas < 5 and far.apart_mas == pytest.approx(0.8 * 65.4, abs=3)
    assert near.apart_days == pytest.approx(0.5) and near.depth_ratio == pytest.approx(1, abs=0.05)
    assert "12.0 h later" in near.why and "commanded" not in near.why
    assert len(propose_pairs(ds, count=1)[0].references) == 1


def test_of_raw_exposures_the_commanded_places_count(tmp_path):
    for root, offset, psf in ((TARGET, 0.0, False), (NEAR, 0.0, True), (FAR, 0.13, True)):
        write_exposure(tmp_path / f"{root}_amimulti-oi.fits", XOFFSET=offset, YOFFSET=0.0, IS_PSF=psf)
    (pair,) = propose_pairs(Dataset(tmp_path))
    assert [one.exposure for one in pair.references] == [NEAR, FAR] and "(commanded)" in pair.references[1].why
    assert pair.references[1].apart_mas == pytest.approx(130, rel=0.01)


def test_without_a_target_there_is_nothing_to_pair(tmp_path):
    write_star(tmp_path / f"{NEAR}_cal.fits", 5, IS_PSF=True)
    with pytest.raises(CalamiError, match="no target"):
        propose_pairs(Dataset(tmp_path))


def test_what_is_written_is_read_again_and_what_is_edited_is_used(ds, tmp_path):
    pairs = propose_pairs(ds)
    file = write_pairs(tmp_path / "pairs.yaml", pairs)
    again = read_pairs(file, ds)
    assert again == read_pairs(file) and [p.exposure for p in again] == [TARGET]
    rows = yaml.safe_load(file.read_text())
    assert rows[0]["references"][0].keys() == {"name", "exposure", "why", "apart_mas", "apart_days", "depth_ratio"}
    rows[0]["references"] = [{"name": FAR}, rows[0]["references"][0]["name"]]  # by rootname, and as a bare name
    file.write_text(yaml.safe_dump(rows))
    assert [one.exposure for one in read_pairs(file, ds)[0].references] == [FAR, NEAR]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("target: a", "no list of targets"),
        ("- target: abdor\n  filtr: F480M", "did you mean filter"),
        ("- target: abdor\n  references: [hd9]", "no exposure is called 'hd9'"),
        ("- target: abdor\n- target: abdor", "given twice"),
        ("- target: abdor\n  references: [abdor]", "its own reference"),
        (f"- target: abdor\n  references: [{NEAR}, {NEAR}]", "one reference twice"),
        (f"- target: abdor\n  references: [{OTHER}]", "is in F480M, its reference"),
        ("- target: abdor\n  references: [{why: near}]", "reference 1: has no name"),
        ("- target: abdor\n  references: hd1", "references is no list"),
    ],
)
def test_a_mistake_is_named_with_its_place(ds, tmp_path, text, word):
    (tmp_path / "pairs.yaml").write_text(text)
    with pytest.raises(FileProblem) as caught:
        read_pairs(tmp_path / "pairs.yaml", ds)
    assert word in caught.value.reason and "pairs.yaml" in str(caught.value)


def test_ami3_gets_references_as_psf(ds, tmp_path):
    (path,) = associate(propose_pairs(ds), ds, tmp_path)
    product = json.loads(path.read_text())["products"][0]
    assert (
        path.name == f"{TARGET}_ami3_asn.json"
        and [m["exptype"] for m in product["members"]] == ["science"] + ["psf"] * 2
    )
    assert product["members"][1]["expname"].endswith(f"{NEAR}_cal.fits")
    assert associate([Pair("a", TARGET)], ds, tmp_path) == []


def test_calibrate_uses_the_references_of_the_file(ds, tmp_path):
    for name in ds.names:
        write_products(fit(ds[name]), tmp_path / "oi")
    pairs = [Pair("abdor", TARGET, references=(Reference("near", NEAR),)), Pair("lost", rootname(9), references=())]
    made, refused = calibrate_pairs(pairs, sorted((tmp_path / "oi").glob("*oi.fits")), tmp_path / "out")
    assert [p.name for p in made] == [f"{TARGET}_aminorm-oi.fits"] and "no OIFITS file of" in refused["lost"]
    assert read_oifits(made[0]).references == ("HD-1",)
