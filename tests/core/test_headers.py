"""Files that would make a reader fill the memory or never end are refused, in words and soon."""

import gzip
import resource
import subprocess
import sys
import time

import pytest

from calami.core.fits import open_fits
from calami.core.headers import hdu_walk
from calami.core.problems import FileProblem
from calami.exposures.cards import read_keywords


def card(keyword, value):
    return f"{keyword:8}= {value:>20}".ljust(80)


def header(*cards):
    text = "".join([*cards, "END".ljust(80)])
    return text.ljust(-(-len(text) // 2880) * 2880).encode()


PRIMARY = header(card("SIMPLE", "T"), card("BITPIX", 8), card("NAXIS", 0))


def image(**cards):
    given = {"XTENSION": "'IMAGE   '", "BITPIX": 8, "NAXIS": 1, "NAXIS1": 0, "PCOUNT": 0, "GCOUNT": 1}
    return header(*(card(key, value) for key, value in (given | {"EXTNAME": "'SCI     '"} | cards).items()))


def table(**cards):
    return image(**{"XTENSION": "'BINTABLE'", "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 0, "TFIELDS": 1} | cards)


HOSTILE = {
    "NAXIS": image(NAXIS=10**20),
    "NAXIS1": image(NAXIS1=2**63),
    "a product of axes": image(NAXIS=3, NAXIS1=2**40, NAXIS2=2**40, NAXIS3=2**40),
    "TFIELDS": table(TFIELDS=10**20),
    "many of TFIELDS": table(TFIELDS=10**7),
    "ZNAXIS": table(ZIMAGE="T", ZNAXIS=10**20, ZBITPIX=8),
    "PCOUNT": image(PCOUNT=-(10**6)),  # would lead back to the header before
    "GCOUNT": image(GCOUNT=10**30, NAXIS1=8),
    "BITPIX": image(BITPIX=0),
    "NAXIS1 as text": image(NAXIS1="'many    '"),
}


@pytest.fixture
def little_memory():
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def touch(path):
    with open_fits(path) as hdus:
        for hdu in hdus:
            assert hdu.data is None or hdu.data.size >= 0


@pytest.mark.parametrize("reader", [hdu_walk, read_keywords, touch])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path, little_memory, what, packed, reader):
    content = PRIMARY + HOSTILE[what]
    path = tmp_path / ("a.fits.gz" if packed else "a.fits")
    path.write_bytes(gzip.compress(content) if packed else content)
    began = time.perf_counter()
    with pytest.raises(FileProblem) as caught:
        reader(path)
    assert caught.value.path == path and caught.value.reason and caught.value.remedy
    assert time.perf_counter() - began < 5


def test_a_file_of_headers_without_end_is_given_up(tmp_path):
    (tmp_path / "a.fits").write_bytes(PRIMARY + image() * 20_000)
    with pytest.raises(FileProblem, match="more than 10,000 HDUs"):
        hdu_walk(tmp_path / "a.fits")


def test_a_small_file_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("calami.core.headers._LARGEST_UNPACKED", 10**6)
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress(PRIMARY + image(NAXIS1=2 * 10**6) + bytes(2 * 10**6)))
    with pytest.raises(FileProblem, match="unpacks to more than 1,000,000 bytes"):
        hdu_walk(tmp_path / "a.fits.gz")


@pytest.mark.parametrize("keys", ["CONTINUE", "HIERARCH", "lower", "COMMENT"])
def test_the_longest_header_is_read_in_time(tmp_path, keys):
    cards = [f"{keys:8}  'text&'".ljust(80)] * 35_000
    (tmp_path / "a.fits").write_bytes(
        header(card("SIMPLE", "T"), card("BITPIX", 8), card("NAXIS", 0), card("A", "'a&'"), *cards)
    )
    began = time.perf_counter()
    try:
        read_keywords(tmp_path / "a.fits", ("A", "B"), ())
    except FileProblem as problem:
        assert problem.reason
    assert time.perf_counter() - began < 20


def test_a_folder_of_long_headers_does_not_stay_in_memory(tmp_path):
    code = "import sys, tracemalloc, astropy.io.fits; from calami.core.headers import hdu_walk; tracemalloc.start()\n"
    code += "for path in sys.argv[1:]: hdu_walk(path)\nprint(tracemalloc.get_traced_memory()[0])"
    paths = []
    for k in range(8):
        cards = [card(f"X{k}_{n}"[:8], n) for n in range(5000)]
        paths.append(tmp_path / f"{k}.fits")
        paths[-1].write_bytes(header(card("SIMPLE", "T"), card("BITPIX", 8), card("NAXIS", 0), *cards))
    kept = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True).stdout
    assert int(kept) < 1e5


@pytest.mark.parametrize("text", ["<!DOCTYPE html><html>401 Unauthorized</html>", '\n{"error": "Unauthorized"}'])
def test_an_error_page_is_called_one(tmp_path, text):
    path = tmp_path / "jw01516001001_03102_00001_nis_uncal.fits"
    path.write_text(text * 100)
    with pytest.raises(FileProblem) as caught:
        hdu_walk(path)
    assert "error page saved as a FITS file" in caught.value.reason and "token" in caught.value.remedy
