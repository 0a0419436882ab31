"""Tests of calami.exposures.cards: names, columns, and a header reader that has to agree with astropy."""

import contextlib
import dataclasses
import gzip
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from toys import examples

from calami.core import headers
from calami.core.headers import hdu_walk
from calami.core.problems import CalamiError, FileProblem, NameProblem
from calami.exposures import names as exposures_names
from calami.exposures.cards import read_keywords
from calami.exposures.columns import PRIMARY_KEYWORDS, SCI_KEYWORDS, SUMMARY_COLUMNS
from calami.exposures.names import DETECTORS, ExposureName, OtherName, parse_name

# Names --------------------------------------------------------------------------------------------

REAL_NAMES = """
jw01093012001_03105_00001_nis_cal.fits
jw01093012001_03105_00001_nis
jw01093012001_03105_00001-seg003_nis_uncal.fits
jw01093012001_03105_00001_nis_c1000_crf.fits
jw01093012001_03105_00001_nis_a3001_crfints.fits
jw01093012001_03105_00001_nis_dice1of2_uncal.fits
jw01093012001_03105_00001_nis_psf-ami-oi.fits
jw01093012001_03105_00001_nis_rateints.fits.gz
jw01093012001_03105_00001_nis_dq_init.fits
jw01093012001_03105_00001_nis_jhat.fits
jw01067454001_0210n_00001_nrca1_uncal.fits
jw01349006001_03102_00001_nis_norm_jw01349005001_03102_00001_nis_aminorm-oi.fits
jw93065002001_02101_00001_nrca1_rate.fits
jw01093-c1000_t001_niriss_f380m-nrm-sub80_amiavg.fits
jw01093-c1000_t001_niriss_f480m-nrm-sub80_psf-ami-oi.fits
jw01093-o012_t001_niriss_f480m-nrm_aminorm-oi.fits
jw87600-a3001_t001_niriss_f480m-nrm_amiavg.fits
jw80600-o009_s00001-epoch1_miri_f1130w_i2d.fits
jw54321-o066_b000123456_nirspec_f170lp-g235m_s2d.fits
jw01234-c1001_t001_nircam_f212n-wlp8-nrca3_wfscmb-05.fits
jw01093-o012_20220714t075823_image2_003_asn.json
jw01093-c1000_20230626t181341_ami3_00001_asn.json
jw01093-o012_20220714t075823_tso-image2_00003_asn.json
jw01093-a3001_ami3_00001_asn.json
jw01093_20220714t075823_pool.csv
jw01029001001_gs-acq1_2022142180746_uncal.fits
jw01029001001_gs-acq2_2022142180746_cal.fits
jw01029001001_gs-track_2022142180746_cal.fits
jw01029001001_gs-fg_2022142181502-seg002_guider_cds.fits
jw01029001001_gs-id_1_stacked_uncal.fits
jw88600073001_gs-id_7_image-uncal.fits
jw01029001001_gs-id_1_image
""".split()

BAD_NAMES = """
abc.fits jw.fits jw01093012001.fits jw01093012001_3105_00001_nis_cal.fits jw01093012001_03105_00001.fits
jw01093012001_03105_00001_uncal.fits jw01093012001_03105_00001-seg000_nis_cal.fits
jw01093012001_03105_00001-seg01_nis_cal.fits jw01093012001_03105_00001_nis_.fits
jw01093012001_03105_00001_nis__cal.fits jw01093012001_03105_00001_nis_cal.fits.part.1
jw01373017001_04102_00003_0001_nis_calslope.fits jw1093012001_03105_00001_nis_cal.fits
jw01093012001_031é5_00001_nis_cal.fits jw01093-o12_t001_niriss_f480m-nrm_amiavg.fits
jw01093-o012_t1_niriss_f480m-nrm_amiavg.fits jw01093-o012_20220714_image2_003_asn.json
jw01029001001_gs-id_9_image_cal.fits jw01029001001_gs-fg_2022_cal.fits
jw01093_20220714t075823_image2_003_asn.json
""".split()


@pytest.mark.parametrize("name", REAL_NAMES)
def test_real_names_are_read_and_written_back(name):
    parsed = parse_name(name)
    assert str(parsed) == name == parsed.filename
    assert parse_name(str(parsed)) == parsed
    assert parse_name(PurePosixPath("/some/Folder") / name.upper()) == parsed
    assert parse_name("C:\\data\\" + name) == parsed
    assert len({parsed, parse_name(name)}) == 1
    assert pickle.loads(pickle.dumps(parsed)) == parsed
    assert type(parsed).__name__ in repr(parsed)


@pytest.mark.parametrize("name", [*BAD_NAMES, "", "/", "jw01093012001_03105_00001_nis_cal.fits\n"])
def test_other_names_are_refused_with_the_name_in_the_message(name):
    with pytest.raises(NameProblem) as caught:
        parse_name(name)
    assert repr(name) in str(caught.value) and isinstance(caught.value, ValueError)


def test_parts_of_an_exposure_name():
    name = parse_name("jw01093012001_03105_00001-seg002_nis_dice1of2_uncal.fits")
    assert name == ExposureName(
        "01093", "012", "001", "03", "1", "05", "00001", "nis", "uncal", 2, None, "dice1of2", ".fits"
    )
    assert name.rootname == "jw01093012001_03105_00001_nis" and name.visit_id == "01093012001"
    assert parse_name(REAL_NAMES[3]).association == "c1000" and parse_name(REAL_NAMES[3]).product == "crf"
    assert parse_name(REAL_NAMES[8]).product == "dq_init" and parse_name(REAL_NAMES[8]).tag == ""


@pytest.mark.parametrize(
    ("name", "kind", "product"),
    [
        ("jw80600-o009_s00001-epoch1_miri_f1130w-sub64_i2d-05.fits", "stage 3", "i2d"),
        ("jw01093-c1000_t001_niriss_f480m-nrm-sub80_psf-ami-oi.fits", "stage 3", "psf-ami-oi"),
        ("jw01093-c1000_t001_niriss_f480m-nrm-sub80", "stage 3", ""),
        ("jw01093-a3001_ami3_00001_asn.json", "association", ""),
        ("jw01093_20220714t075823_pool.csv", "pool", ""),
        ("jw01029001001_gs-id_1_stacked_uncal.fits", "guide star", "uncal"),
        ("jw01029001001_gs-fg_2022142181502-seg002_guider_cds.fits", "guide star", "guider_cds"),
    ],
)
def test_kinds_of_other_names(name, kind, product):
    assert parse_name(name) == OtherName(name, kind, product)


@pytest.mark.parametrize(
    "change",
    [
        {"program": "1093"},
        {"observation": 12},
        {"activity": "0Z"},
        {"detector": "uncal"},
        {"segment": 0},
        {"segment": True},
        {"segment": 1000},
        {"association": "c10"},
        {"tag": "x", "product": ""},
        {"product": "c1000"},
        {"tag": "o012", "product": "cal"},
        {"tag": "dq", "product": "init"},
        {"product": "a_cal"},
        {"extension": "fits"},
        {"visit_group": "٠٣"},
        {"program": None},
    ],
)
def test_parts_of_an_exposure_name_are_checked(change):
    with pytest.raises(NameProblem, match="expected"):
        parse_name(REAL_NAMES[0]).replace(**change)


def test_names_are_frozen():
    with pytest.raises(AttributeError):
        parse_name(REAL_NAMES[0]).program = "01094"


def pattern(text):
    """Strategy for text that matches a pattern."""
    return st.from_regex(text, fullmatch=True)


WORD = pattern("[0-9a-z]{1,6}(-[0-9a-z]{1,4}){0,2}")
WORDS = st.lists(WORD, max_size=3).map("_".join) | st.sampled_from(["dq_init", "x_ramp_fit", "c1000", "o012_cal"])
NUMBER = st.none() | st.integers(1, 999)
EXTENSION = st.sampled_from(["", ".fits", ".fits.gz", ".json"])
ASSOCIATION = pattern("o[0-9]{3}|[acr][0-9]{4}")


def made(parts):
    """The name of these parts; None if they do not pass the checks."""
    with contextlib.suppress(NameProblem):
        return ExposureName(**parts)


NAMES = (
    st.fixed_dictionaries(
        {
            "program": pattern("[0-9]{5}"),
            "observation": pattern("[0-9]{3}"),
            "visit": pattern("[0-9]{3}"),
            "visit_group": pattern("[0-9]{2}"),
            "sequence": pattern("[0-9]"),
            "activity": pattern("[0-9a-z]{2}"),
            "exposure": pattern("[0-9]{5}"),
            "detector": st.sampled_from(DETECTORS),
            "product": WORDS,
            "tag": WORDS,
            "segment": NUMBER,
            "association": st.none() | ASSOCIATION,
            "extension": EXTENSION,
        }
    )
    .map(made)
    .filter(bool)
)


@settings(
    max_examples=examples(600), deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
@given(NAMES)
def test_any_valid_name_comes_back_from_its_text(name):
    assert parse_name(str(name)) == name
    assert parse_name(str(name).upper()) == name
    assert str(parse_name(str(name))) == str(name)
    assert hash(parse_name(str(name))) == hash(name)


@settings(max_examples=examples(400), deadline=None)
@given(st.sampled_from(REAL_NAMES), st.integers(0, 60), pattern("[-_.a-z0-9 ]{0,2}"))
def test_altered_names_are_refused_or_mean_what_they_say(name, place, insert):
    altered = name[:place] + insert + name[place + 1 :]
    try:
        parsed = parse_name(altered)
    except NameProblem:
        return
    assert str(parsed) == altered
    parts = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed)}
    assert type(parsed)(**parts) == parsed  # the parser makes nothing that the checks refuse


def test_lists_of_words_agree_with_the_installed_jwst():
    suffix = pytest.importorskip("jwst.lib.suffix")
    assert exposures_names._STEP_PRODUCTS.split("|") == sorted(word for word in suffix.KNOW_SUFFIXES if "_" in word)


# Columns ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema():
    """Keyword to (hdu, type) pairs, and the detectors, of the installed data model schemas."""
    yaml = pytest.importorskip("yaml")
    stdatamodels = pytest.importorskip("stdatamodels")
    folder = Path(stdatamodels.__file__).parent / "jwst" / "datamodels" / "schemas"
    found: dict[str, list] = {}

    def collect(node):
        if isinstance(node, dict):
            if "fits_keyword" in node:
                found.setdefault(node["fits_keyword"], []).append(node)
            for child in node.values():
                collect(child)
        elif isinstance(node, list):
            for child in node:
                collect(child)

    for name in ["core", "wcsinfo", "bunit", "photometry", "pixelarea", "keyword_photmjsr", "keyword_pixelarea"]:
        collect(yaml.safe_load((folder / f"{name}.schema.yaml").read_text()))
    return found


OWN = ("S_MIGCOR",)  # keywords that calami writes
FORMER = {"S_UNDSMP"}  # keywords of versions of jwst that are no more


@pytest.mark.parametrize(
    "column", [c for c in SUMMARY_COLUMNS if c.keyword not in {*FORMER, *OWN}], ids=lambda c: c.keyword
)
def test_columns_agree_with_the_schemas(column, schema):
    kinds = {"string": str, "integer": int, "number": float, "boolean": bool}
    nodes = [node for node in schema[column.keyword] if node.get("fits_hdu", "PRIMARY") == column.hdu]
    assert {kinds[node["type"]] for node in nodes} == {column.kind}
    for node in nodes:
        if node["title"].startswith("["):
            assert units.Unit(node["title"][1:].split("]")[0]) == units.Unit(column.unit)
    if column.unit:
        units.Unit(column.unit)
        assert column.kind is float
    assert column.description and column.group and column.hdu in ("PRIMARY", "SCI")


def test_detectors_agree_with_the_schema(schema):
    listed = next(node["enum"] for node in schema["DETECTOR"] if "enum" in node)
    assert {name.lower() for name in listed} - {"any", "n/a", "multiple"} == set(DETECTORS)


def test_columns_are_those_of_the_keywords():
    keywords = [column.keyword for column in SUMMARY_COLUMNS]
    assert len(set(keywords)) == len(keywords) == len(PRIMARY_KEYWORDS) + len(SCI_KEYWORDS)


# Reading: what astropy says -----------------------------------------------------------------------


def astropy_says(header, keywords):
    """Values of keywords, and those that astropy raises on or has no proper card for."""
    values, bad = {}, set()
    for keyword in keywords:
        if keyword not in header:
            continue
        try:
            values[keyword] = header[keyword]
        except Exception:
            bad.add(keyword)
    return values, bad


def same(ours, theirs):
    """Whether two dictionaries hold the same values of the same types."""
    return ours.keys() == theirs.keys() and all(
        type(ours[key]) is type(theirs[key]) and repr(ours[key]) == repr(theirs[key]) for key in ours
    )


def assert_like_astropy(path, primary=PRIMARY_KEYWORDS, sci=SCI_KEYWORDS):
    """Read a sound file in both ways."""
    ours = read_keywords(path, primary, sci)
    with warnings.catch_warnings(), fits.open(path) as hdus:
        warnings.simplefilter("ignore")
        theirs, bad = astropy_says(hdus[0].header, primary)
        if sci:
            more, worse = astropy_says(hdus["SCI"].header, sci)
            theirs |= more
            bad |= worse
            assert ours.sci_shape == hdus["SCI"].shape
            assert ours.sci_bitpix == hdus["SCI"].header["BITPIX"]
        assert ours.extnames == tuple(hdu.name.replace("PRIMARY", "") for hdu in hdus)
        walked = hdu_walk(path)
        for place, hdu in zip(walked, hdus, strict=True):
            info = hdu.fileinfo()
            assert (place.header_start, place.data_start) == (info["hdrLoc"], info["datLoc"])
            assert place.data_end == info["datLoc"] + info["datSpan"]
            assert place.ver == hdu.ver
            assert place.bitpix == hdu.header["BITPIX"]
            assert place.shape == tuple(hdu.header[f"NAXIS{n}"] for n in range(hdu.header["NAXIS"], 0, -1))
    assert same(dict(ours), theirs)
    assert {problem.keyword for problem in ours.problems} == bad
    return ours


TITLE = "A title that is longer than a card can hold, so that it has to go on in a card that is named CONTINUE"


@pytest.fixture(scope="module")
def exposure():
    """Make an exposure as the pipeline writes it, in small: all columns, every kind of extension."""
    rng = np.random.default_rng(1)
    made = {str: "COMPLETE", int: 13, float: 0.07543999999999999, bool: False}
    primary = fits.PrimaryHDU()
    primary.header["TITLE"] = (TITLE, "Proposal title")
    sci = fits.ImageHDU(rng.normal(size=(3, 8, 8)).astype("f4"), name="SCI")
    for number, column in enumerate(SUMMARY_COLUMNS):
        header = primary.header if column.hdu == "PRIMARY" else sci.header
        if number % 9 == 0:
            header.add_blank()
            header.add_blank("        Some section")
        if column.keyword != "TITLE":
            header[column.keyword] = (made[column.kind], column.description[:30])
    primary.header["EXPMID"] = 59735.57456044768
    primary.header["XOFFSET"] = -2.9841490731164e-13
    primary.header["PI_NAME"] = "O'Neill, Grace"
    primary.header.add_history("a first line of history")
    times = fits.BinTableHDU.from_columns([fits.Column("int_num", "J", array=[1, 2, 3])], name="INT_TIMES")
    more = [fits.ImageHDU(np.zeros((3, 8, 8), "f4"), name=name) for name in ("ERR", "VAR_POISSON")]
    return fits.HDUList([primary, sci, *more, times])


@pytest.fixture
def path(exposure, tmp_path):
    """Write the exposure to a file of its own."""
    file = tmp_path / "jw01093012001_03105_00001_nis_calints.fits"
    exposure.writeto(file, checksum=False)
    return file


def test_made_exposure_like_astropy(path):
    keywords = assert_like_astropy(path)
    assert len(keywords) == len(SUMMARY_COLUMNS) and keywords["TITLE"] == TITLE and keywords.problems == ()
    assert keywords.extnames == ("", "SCI", "ERR", "VAR_POISSON", "INT_TIMES")
    assert keywords.size == path.stat().st_size and keywords.path == path
    copy = pickle.loads(pickle.dumps(keywords))
    assert copy == keywords and copy.sci_shape == (3, 8, 8) and copy.extnames == keywords.extnames


def test_gzipped_file(path):
    packed = path.with_suffix(".fits.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert same(assert_like_astropy(packed), read_keywords(path))
    assert read_keywords(packed, structure=False) == read_keywords(path)
    assert hdu_walk(packed) == hdu_walk(path)
    assert read_keywords(packed).size is None
    path.write_bytes(packed.read_bytes())  # told by its content, whatever its name
    assert read_keywords(path)["NINTS"] == 13


def test_real_and_simulated_files_like_astropy(shared_data):
    paths = [*shared_data.glob("jw01093/*.fits"), *shared_data.glob("headers/*.fits")]
    paths += [shared_data / "simulated" / "hdr_niriss_mirage.fits", *shared_data.glob("simulated/jw*.fits")]
    assert len(paths) >= 38
    for path in paths:
        keywords = assert_like_astropy(path)
        assert len(keywords) > 40


def test_every_keyword_of_real_files_like_astropy(shared_data):
    paths = [*shared_data.glob("jw01093/*_nis_cal.fits")][::6]
    paths += [*shared_data.glob("oifits/*"), *shared_data.glob("reference/*.fits*"), *shared_data.glob("simulated/*")]
    skipped = {"", "COMMENT", "HISTORY", "CONTINUE"}
    for path in paths:
        with fits.open(path) as hdus:
            primary = sorted(set(hdus[0].header) - skipped)
            sci = sorted(set(hdus["SCI"].header) - skipped - set(primary)) if "SCI" in hdus else ()
        assert_like_astropy(path, primary, sci)


def test_header_texts_like_astropy(shared_data, tmp_path):
    names = ["real_jw01373017001_04102_00002_nis_ramp_primary_header.txt", "real_jw01093_amiavg_primary_header.txt"]
    for name in names:
        lines = (shared_data / "headers" / name).read_text().splitlines()
        begin = next(n for n, line in enumerate(lines) if line.startswith("SIMPLE"))
        text = "".join(line[:80].ljust(80) for line in lines[begin:]) + "END".ljust(80)
        path = tmp_path / name
        path.write_bytes(text.encode().ljust(-(-len(text) // 2880) * 2880))
        assert len(assert_like_astropy(path, sci=())) > 50


def test_oifits_needs_no_sci(shared_data):
    for path in shared_data.glob("oifits/*fits"):
        keywords = read_keywords(path, sci=())
        assert "OI_VIS2" in keywords.extnames and keywords.sci_shape is None
        with pytest.raises(FileProblem, match="no SCI extension"):
            read_keywords(path)


# Reading: unusual cards ---------------------------------------------------------------------------


def block(*cards, naxis=0, end="END"):
    """Bytes of a primary header made of cards as they stand."""
    first = ["SIMPLE  =                    T", "BITPIX  =                    8", f"NAXIS   = {naxis:20}"]
    text = "".join(card.ljust(80) for card in [*first, *cards, end])
    return text.encode("latin1").ljust(-(-len(text) // 2880) * 2880)


# fmt: off
UNUSUAL_CARDS = [
    "FILTER  = 'F480M   '", "FILTER  ='F480M'", "FILTER  = 'O''Neill'", "FILTER  = ''",
    "FILTER  = '' / it's", "FILTER  = '' / it' s", "FILTER  = ''''", "FILTER  = '   '",
    "FILTER  = 'a' b", "FILTER  = 'a''", "FILTER  = 'a", "FILTER  = 'AXIS.1: 2.5'",
    "FILTER  = 'AXIS: 2' / x", "FILTER  = 'A: b'", "FILTER  = 'http: //x'", "FILTER  =",
    "FILTER  = / nothing", "FILTER  =                    T", "FILTER  = TRUE", "FILTER  = F/x",
    "FILTER  = 007", "FILTER  = -0", "FILTER  = +12 / x", "FILTER  = 1.", "FILTER  = .5",
    "FILTER  = 1.5D3", "FILTER  = 1.5e-3", "FILTER  = 1E5", "FILTER  = 1E400", "FILTER  = -.5E-5",
    "FILTER  = 1 2", "FILTER  = 12 .5", "FILTER  = - 5", "FILTER  = 1_000", "FILTER  = 0x10",
    "FILTER  = nan", "FILTER  = inf", "FILTER  = (1, 2.5)", "FILTER  = 13,5", "FILTER    13",
    "FILTER    'F480M'", "FILTER", "filter  = 'low'", " FILTER = 'shifted'", "FILTER= 'early'",
    "FILTER =  'late'", "HIERARCH FILTER = 'hier'", "HIERARCH ESO TEL = 5", "FILTER  = 'caf\xe9'",
    "FILTER  = 'a\x00b'", "FILTER  = 'tab\there'", "FILTER  = 5 / caf\xe9", "F\xcfLTER  = 5",
    "FILTER  =  = 5", "FILTER  = '= 5'", "FILTER  = 5 /", "FILTER  = 5/", "FILTER  = 'a'/b",
    "FILTER  = 'a' /b/c'd", "FILTER\x00 = 5", "FILTER\t = 5", "FILTER  = 99999999999999999999999",
    "FILTER  = 1.7976931348623157E+308", "FILTER  = 5.\xa0", "FILTER  = ",
]
# fmt: on


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("card", UNUSUAL_CARDS)
def test_unusual_cards_like_astropy(card, twice, tmp_path):
    path = tmp_path / "a.fits"
    path.write_bytes(block("PUPIL   = 'NRM     '", card, *(["FILTER  = 'second'"] if twice else []), "COMMENT x"))
    compare_with_astropy(path, ["FILTER", "PUPIL"])


@pytest.mark.parametrize("name", ["FILTER", "HISTORY", "COMMENT", ""])
@pytest.mark.parametrize(
    "pieces",
    [
        ["= 'one &'", "'two'"],
        ["= 'one &' / about one", "'two &'", "'three' / about three"],
        ["= 'one&'", "''"],
        ["= 'one&'", "'' / about"],
        ["= 'one'", "'two'"],
        ["= 'o''ne&'", "'t''wo'"],
        ["= 'a: b &'", "'1: 2'"],
        ["= 'A: 2&'", "' '"],
        ["= 5", "'two'"],
        ["= 'one&'", "two"],
        ["= 'one&'", ""],
        ["= '&'", "'&'", "'&'"],
        ["= '&'", "''"],
        ["= 'one&&'", "'two&'"],
        ["= 'one & '", "'two'"],
        ["  'one&'", "'two'"],
        ["= ''", "'x'"],
        ["= 'one&'", "'it' / isn't"],
        ["= 'one&' / isn't it' so", "'two'"],
        ["= 'sp   &'", "'   x   '"],
    ],
)
def test_long_text_like_astropy(name, pieces, tmp_path):
    first, *rest = pieces
    cards = [f"{name:8}{first}", *(f"CONTINUE  {piece}" for piece in rest), "PUPIL   = 'NRM'"]
    path = tmp_path / "a.fits"
    path.write_bytes(block(*cards))
    compare_with_astropy(path, ["FILTER", "PUPIL"])
    path.write_bytes(block(*cards).replace(b"CONTINUE  ", b"CONTINUE= ").replace(b"PUPIL", b"GRISM"))
    compare_with_astropy(path, ["FILTER", "PUPIL"])


def compare_with_astropy(path, primary, sci=()):
    """Ours is astropy's value, or ours complains: only where astropy raises, warns, or guesses."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with fits.open(path) as hdus:
                theirs, bad = astropy_says(hdus[0].header, primary)
                if sci:
                    more, worse = astropy_says(hdus["SCI"].header, sci)
                    theirs |= more
                    bad |= worse
        except Exception as error:
            theirs, bad = error, set()
    try:
        ours = read_keywords(path, primary, sci)
    except FileProblem as problem:
        return problem
    complained = {problem.keyword for problem in ours.problems}
    assert not isinstance(theirs, Exception), theirs
    assert bad <= complained
    if complained - bad:
        assert any("invalid or follows" in str(warning.message) for warning in caught)
    assert same(dict(ours), {key: value for key, value in theirs.items() if key not in complained})
    return None


def test_bad_card_is_reported_and_the_rest_is_read(path):
    path.write_bytes(path.read_bytes().replace(b"NGROUPS =                   13", b"NGROUPS =                 13,5", 1))
    keywords = read_keywords(path)
    assert "NGROUPS" not in keywords and keywords["NINTS"] == 13
    (problem,) = keywords.problems
    assert (problem.hdu, problem.keyword) == ("PRIMARY", "NGROUPS") and "13,5" in str(problem)
    with pytest.raises(FileProblem, match="NGROUPS"):
        read_keywords(path, strict=True)
    assert read_keywords(path, ["NINTS"], strict=True)["NINTS"] == 13


def test_odd_header_with_structure(exposure, tmp_path):
    path = tmp_path / "a.fits"
    hdus = fits.HDUList([hdu.copy() for hdu in exposure])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hdus[0].header["HIERARCH ESO OBS NAME"] = "x"
        hdus[1].header["HIERARCH ESO DET WIN"] = 5
    hdus.writeto(path)
    keywords = assert_like_astropy(path, ["FILTER", "ESO OBS NAME"], ["PA_V3", "ESO DET WIN"])
    assert keywords["ESO DET WIN"] == 5


def test_keyword_of_both_headers(path):
    with fits.open(path, mode="update") as hdus:
        hdus[0].header["ROLL_REF"] = 1.5
    keywords = read_keywords(path, ["FILTER", "ROLL_REF", "PA_V3"], ["ROLL_REF", "BUNIT", "PA_V3"])
    assert set(keywords) == {"FILTER", "ROLL_REF", "SCI.PA_V3", "SCI.ROLL_REF", "BUNIT"}
    assert keywords["ROLL_REF"] == 1.5 and keywords["SCI.ROLL_REF"] == 0.07543999999999999


@pytest.mark.parametrize("keyword", ["HISTORY", "COMMENT", "", "CONTINUE", "END"])
def test_keywords_without_a_single_value_are_refused(path, keyword):
    with pytest.raises(ValueError, match="single value"):
        read_keywords(path, [keyword])


def test_sci_need_not_come_first(exposure, tmp_path):
    path = tmp_path / "a.fits"
    order = [exposure[0], exposure[2], exposure[4], exposure[1], exposure[3]]
    fits.HDUList([hdu.copy() for hdu in order]).writeto(path)
    assert_like_astropy(path)
    assert read_keywords(path, structure=False).sci_shape == (3, 8, 8)


def test_first_of_several_sci(tmp_path):
    path = tmp_path / "a.fits"
    cubes = [fits.ImageHDU(np.zeros((n, 2, 2)), name="SCI", ver=n) for n in (1, 2)]
    cubes[0].header["PA_V3"], cubes[1].header["PA_V3"] = 1.0, 2.0
    fits.HDUList([fits.PrimaryHDU(), *cubes]).writeto(path)
    keywords = read_keywords(path)
    assert keywords["PA_V3"] == 1.0 and keywords.sci_shape == (1, 2, 2)
    assert [hdu.ver for hdu in hdu_walk(path)] == [1, 1, 2]


def test_primary_with_data_and_table_with_heap(tmp_path):
    path = tmp_path / "a.fits"
    ragged = fits.Column("x", "PJ()", array=np.array([[1], [2, 3]], dtype=object))
    hdus = [fits.PrimaryHDU(np.zeros((5, 7))), fits.BinTableHDU.from_columns([ragged], name="HEAP")]
    fits.HDUList([*hdus, fits.ImageHDU(np.zeros(3, "u1"), name="sci")]).writeto(path)
    assert_like_astropy(path, ["BITPIX"], ["NAXIS1"])


def test_random_groups(tmp_path):
    path = tmp_path / "a.fits"
    data = fits.GroupData(np.zeros((4, 1, 2, 3), "f4"), parnames=["a", "b"], pardata=[[0, 1, 2, 3]] * 2, bitpix=-32)
    fits.HDUList([fits.GroupsHDU(data)]).writeto(path)
    (groups,) = hdu_walk(path)
    assert groups.data_end == path.stat().st_size


def test_very_long_headers(exposure, tmp_path):
    path = tmp_path / "a.fits"
    hdus = fits.HDUList([hdu.copy() for hdu in exposure])
    for number in range(3000):
        hdus[0].header[f"A{number}"] = number
    for number in range(700):
        hdus[1].header[f"B{number}"] = number
        hdus[2].header[f"C{number}"] = number
    hdus.writeto(path)
    assert_like_astropy(path, [*PRIMARY_KEYWORDS, "A2999"], [*SCI_KEYWORDS, "B699"])


def test_what_is_remembered_is_bounded(path):
    for keywords in (["FILTER"], ["NGROUPS", "EXPMID"], PRIMARY_KEYWORDS):
        for _ in range(3):
            assert_like_astropy(path, keywords)
    for number in range(5):
        path.write_bytes(block(*["COMMENT x"] * number, "FILTER  = 'F480M'"))
        assert read_keywords(path, ["FILTER"], ()) == {"FILTER": "F480M"}
        hdu_walk(path)
    assert len(headers._value_of.__self__) <= headers._MOST_VALUES <= 20_000
    for memo in (headers._plain_long_value, headers._layout, headers._odd_card):
        assert memo.cache_info().maxsize <= 20_000


def test_extension_name_on_two_cards(path):
    content = path.read_bytes()
    hdus = hdu_walk(path)
    begin, end = hdus[2].header_start, hdus[2].data_start
    header = content[begin:end]
    cards = [header[n : n + 80] for n in range(0, len(header), 80)]
    place = next(n for n, card in enumerate(cards) if card.startswith(b"EXTNAME"))
    cards[place] = b"EXTNAME = 'E&'".ljust(80)
    cards.insert(place + 1, b"CONTINUE  'RR'".ljust(80))
    path.write_bytes(content[:begin] + b"".join(cards)[: end - begin] + content[end:])
    assert read_keywords(path).extnames[2] == "ERR"
    assert hdu_walk(path)[2].name == "ERR"


def test_structure_of_many_sizes_in_one_layout(tmp_path):
    path = tmp_path / "a.fits"
    for size in (1, 2, 3, 4, 5, 1):
        path.write_bytes(block(f"NAXIS1  = {size:20}", naxis=1) + bytes(2880))
        assert hdu_walk(path)[0].shape == (size,)


def test_threads(path, exposure, tmp_path):
    odd = tmp_path / "odd.fits"
    odd.write_bytes(path.read_bytes().replace(b"PUPIL   = ", b"PUPIL   =x", 1).replace(b"COMMENT", b"HIERARCH"))
    wanted = read_keywords(path), read_keywords(odd)
    with ThreadPoolExecutor(8) as pool:
        for keywords, expected in zip(pool.map(read_keywords, [path, odd] * 100), wanted * 100, strict=True):
            assert keywords == expected and keywords.problems == expected.problems


# Reading: altered headers -------------------------------------------------------------------------

MUTATION = st.tuples(
    st.integers(0, 2**20),
    st.one_of(
        st.sampled_from([b"'", b"/", b"=", b" ", b"T", b"E", b"D", b".", b"-", b"0", b"&", b": ", b"''", b"= "]),
        st.binary(min_size=1, max_size=3),
        pattern("[ -~]{1,12}").map(str.encode),
        st.sampled_from(
            [b"CONTINUE  '", b"HIERARCH ", b"HISTORY ", b"COMMENT ", b"        ", b"FILTER  ", b"NGROUPS = "]
        ),
    ),
    st.booleans(),
)


def mutate(content, first, last, mutations):
    """Overwrite bytes between two offsets; structural cards stay as they are."""
    content = bytearray(content)
    kept = (b"SIMPLE", b"XTENSION", b"BITPIX", b"NAXIS", b"PCOUNT", b"GCOUNT", b"EXTNAME", b"EXTEND", b"EXTVER")
    for place, text, at_card in mutations:
        place = first + place % (last - first)
        if at_card:
            place -= place % 80
        card = place - place % 80
        text = text[: card + 80 - place]
        old = bytes(content[card : card + 80])
        new = bytearray(old)
        new[place - card : place - card + len(text)] = text
        if not old.startswith(kept) and bytes(new[:3]) != b"END" and not bytes(new).lstrip().startswith(kept):
            content[card : card + 80] = new
    return bytes(content)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Name a file to write altered headers to."""
    return tmp_path_factory.mktemp("altered") / "altered.fits"


def end_of(content, start=0):
    """Offset of the END card."""
    while content[start : start + 80] != b"END".ljust(80):
        start += 80
    return start


def compare_altered(content, scratch, mutations):
    """Alter the two headers of a file, cut the file after the SCI HDU, and compare."""
    first = end_of(content)
    second = -(-(first + 80) // 2880) * 2880
    content = mutate(content, 0, end_of(content, second), mutations)
    scratch.write_bytes(content)
    problem = compare_with_astropy(scratch, PRIMARY_KEYWORDS, SCI_KEYWORDS)
    # what is left is a file of which the header itself cannot be told
    assert problem is None or any(words in str(problem) for words in ("header", "no SCI", "CONTINUE"))


ALTERED = settings(
    max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ALTERED
@given(st.lists(MUTATION, min_size=1, max_size=6))
@example([(80 * 6 + 10, b"'AXIS.1: 2'", False)])
def test_altered_made_headers_like_astropy(exposure, scratch, mutations):
    buffer = scratch.with_suffix(".made")
    if not buffer.exists():
        exposure.writeto(buffer)
    compare_altered(buffer.read_bytes(), scratch, mutations)


@ALTERED
@given(st.integers(0, 34), st.lists(MUTATION, min_size=1, max_size=6))
def test_altered_real_headers_like_astropy(shared_data, scratch, number, mutations):
    path = sorted(shared_data.glob("jw01093/*.fits"))[number]
    compare_altered(path.read_bytes(), scratch, mutations)


KEYED = st.sampled_from(["FILTER", "NGROUPS", "EXPMID", "IS_PSF", "TITLE"])
TEXT_CARD = st.tuples(KEYED, st.sampled_from(["= ", "=", "  "]), pattern(r"[ -~]{0,70}")).map(
    "{0[0]:8}{0[1]}{0[2]}".format
)
QUOTED_CARD = st.tuples(KEYED, pattern("[ &':/ab.=1-]{0,20}"), pattern("[ '/ab&:1]{0,10}")).map(
    lambda parts: f"{parts[0]:8}= '{parts[1]}'{parts[2]}"
)
NUMBER_CARD = st.tuples(KEYED, pattern("[ ]{0,3}[-+.0-9EeDd ]{0,25}"), pattern("( */[ -~]{0,9})?")).map(
    lambda parts: f"{parts[0]:8}= {parts[1]}{parts[2]}"
)
CONTINUE_CARD = st.tuples(pattern("[ &':/ab]{0,20}"), pattern("( */[ -~]{0,9})?")).map(
    lambda parts: f"CONTINUE  '{parts[0]}'{parts[1]}"
)
CARDS = st.lists(TEXT_CARD | QUOTED_CARD | NUMBER_CARD | CONTINUE_CARD, min_size=1, max_size=6)


@settings(max_examples=examples(1500), deadline=None)
@given(CARDS)
def test_any_cards_like_astropy(scratch, cards):
    assume(not any(card.startswith("END") for card in cards))
    scratch.write_bytes(block("PUPIL   = 'NRM     '", *(card[:80] for card in cards)))
    assert compare_with_astropy(scratch, ["FILTER", "NGROUPS", "EXPMID", "IS_PSF", "TITLE"]) is None


# Reading: damaged files ---------------------------------------------------------------------------


def refusal(path, function=read_keywords, **options):
    """Message of the problem with a file."""
    with pytest.raises(FileProblem) as caught:
        function(path, **options)
    problem = caught.value
    assert isinstance(problem, CalamiError) and problem.path == Path(path) and problem.reason and problem.remedy
    copy = pickle.loads(pickle.dumps(problem))
    assert str(copy) == str(problem) and str(problem).startswith(Path(path).name)
    return str(problem)


@pytest.mark.parametrize("function", [read_keywords, hdu_walk])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello", "not a FITS file"),
        (b"\x00" * 10000, "not a FITS file"),
        (b"\x1f\x8b", "gzip"),
        (b"SIMPLE  =                    T", "no END card"),
        (block()[:80], "no END card"),
        (block(*["COMMENT"] * 40)[:2880], "no END card"),
        (block("END=5"), "damaged END"),
        (block(end="END x"), "END"),
        (block(end="END".ljust(20) + "x"), "END card of a header is damaged"),
        (block("NAXIS   = 0", "CONTINUE  'x'").replace(b"NAXIS ", b"AXES  ", 1), "followed by CONTINUE"),
        (block()[:1000], "cut short"),
        (block(naxis=1), "NAXIS1 is missing"),
        (block(naxis=1000), "NAXIS is 1000"),
        (block("NAXIS1  = 1000000000000000000", naxis=1), "cut short"),
        (block("NAXIS1  = -1", naxis=1), "NAXIS1 is -1"),
        (block("NAXIS1  = 1.5", naxis=1), "NAXIS1 is 1.5"),
        (block("BITPIX  = 16"), "BITPIX is given twice"),
        (block().replace(b"                   8", b"                   7"), "BITPIX is 7"),
        (block().replace(b"                   8", b"                 8,5"), "BITPIX is None"),
        (block().replace(b"=                    T", b"=                    F"), "does not conform"),
        (block() + b"x" * 2880, "neither data nor a header"),
        (block() + b"\x00" * 100, "neither data nor a header"),
        (
            block() + block().replace(b"SIMPLE  =                    T", b"XTENSION=                    @"),
            "neither data",
        ),
        (block("XTENSION= 'IMAGE'"), "no END card"),
        (block(*["COMMENT"] * 36001), "no END card within"),
        (block("hierarch = 5", "naxis1  = 5", naxis=1), "cut short"),
        (block("PCOUNT  = 5.5", "NAXIS1  = 1", naxis=1), "PCOUNT"),
    ],
)
def test_damaged_files(function, content, words, tmp_path):
    path = tmp_path / "jw01093012001_03105_00001_nis_cal.fits"
    path.write_bytes(content)
    assert words in refusal(path, function)
    if content[:6] == b"SIMPLE":
        path.write_bytes(gzip.compress(content))
        assert words in refusal(path, function)


def test_no_sci(tmp_path):
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(name="ERR")]).writeto(path)
    assert "no SCI extension" in refusal(path)
    assert read_keywords(path, sci=()).extnames == ("", "ERR")


def test_places_that_are_no_files(tmp_path, monkeypatch):
    assert "is a folder" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "a.fits")
    assert "is a pipe or a device" in refusal("/dev/zero")
    os.mkfifo(tmp_path / "pipe.fits")
    assert "is a pipe or a device" in refusal(tmp_path / "pipe.fits")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(headers.os, "open", denied)
    assert "permission denied" in refusal(tmp_path / "a.fits")


@pytest.mark.parametrize("cut", [1, 2879, 2880, 5000, 2880 * 5])
def test_files_cut_short(path, cut):
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    refusal(path)
    refusal(path, hdu_walk)
    if cut % 2880:
        assert "cut short" in refusal(path, structure=False)


def test_every_cut_is_seen(path):
    content = path.read_bytes()
    ends = {hdu.data_end for hdu in hdu_walk(path)}
    for size in range(len(content) - 480, 0, -480):
        path.write_bytes(content[:size])
        if size in ends:  # a file that lost whole HDUs is still a good FITS file
            continue
        refusal(path)
        refusal(path, hdu_walk)


def test_what_the_quick_check_does_not_see(path):
    content = path.read_bytes()
    hdus = hdu_walk(path)
    path.write_bytes(content[: hdus[1].data_end])
    assert read_keywords(path).extnames == ("", "SCI")
    path.write_bytes(content + b"x" * 2880)
    assert read_keywords(path, structure=False).extnames == ()
    assert "neither data nor a header" in refusal(path)


def test_damaged_gzip(path, tmp_path):
    packed = tmp_path / "a.fits.gz"
    content = gzip.compress(path.read_bytes())
    for damaged in (content[:-1], content[:500], content[:9], content[:200] + b"\x00" * 50 + content[250:]):
        packed.write_bytes(damaged)
        assert "gzip" in refusal(packed)
        assert "gzip" in refusal(packed, hdu_walk)


@settings(max_examples=examples(200), deadline=None)
@given(st.integers(0, 40000), st.binary(min_size=1, max_size=100), st.integers(0, 40000))
def test_no_rubbish_gets_another_error(exposure, scratch, place, rubbish, length):
    buffer = scratch.with_suffix(".made")
    if not buffer.exists():
        exposure.writeto(buffer)
    content = bytearray(buffer.read_bytes())
    content[place : place + len(rubbish)] = rubbish
    scratch.write_bytes(bytes(content[: max(len(content) - length, 1)]))
    for function in (read_keywords, hdu_walk):
        with contextlib.suppress(FileProblem):
            function(scratch)


def test_nothing_stays_open(path, tmp_path):
    bad = tmp_path / "bad.fits"
    bad.write_bytes(b"\x1f\x8b rubbish")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0
    for _ in range(20):
        read_keywords(path)
        refusal(bad)
    if before:
        assert len(list(descriptors.iterdir())) == before


# The module ---------------------------------------------------------------------------------------


def test_import_is_light():
    code = "import sys, calami.exposures.cards; print([m for m in sys.modules if m in ('astropy', 'jwst', 'gwcs')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_plain_headers_need_no_astropy(path):
    path.write_bytes(path.read_bytes().replace(b"O''Neill", b"O Neill "))
    code = "import sys; from calami.exposures.cards import read_keywords; print(len(read_keywords(sys.argv[1])), "
    code += "'astropy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(len(SUMMARY_COLUMNS)), "False"]
