"""Files load in other programs, and what these compute agrees; skipped without the extra `peers`."""

import shutil
import subprocess
import warnings
from dataclasses import replace

import numpy as np
import pytest

from calami.fringes.companions import add_companion
from calami.fringes.limits import detection_map
from calami.fringes.observables import add_noise, from_samples, point_source, wrap
from calami.fringes.oifits import write_oifits


@pytest.fixture
def binary(tmp_path):
    star = add_companion(point_source("F430M", 1e8, name="binary"), 150, 70, 0.01)
    data = add_noise(star, np.random.default_rng(1))
    return data, write_oifits(data, tmp_path / "binary.fits")


@pytest.fixture
def amical():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports are its own affair
        return pytest.importorskip("amical", reason="needs AMICAL: pip install calami[peers]")


@pytest.fixture
def virgil():
    """The package virgil-astro; another package has the name virgil."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("virgil.oidata", reason="needs virgil-astro: pip install calami[peers]")


def test_files_load_in_amical(amical, binary):
    data, path = binary
    seen = amical.loadc(path)
    assert seen.target == "binary" and np.allclose(seen.vis2, data.v2) and np.allclose(seen.e_vis2, data.v2_err)
    assert np.allclose(np.radians(seen.cp), data.cp) and np.allclose(np.radians(seen.e_cp), data.cp_err)
    assert np.allclose(seen.u, data.v2_uv[:, 0]) and np.allclose(seen.v1, data.cp_uv1[:, 1])
    assert np.allclose(seen.wl, data.wavelength) and not seen.flag_cp.any()
    assert amical.load(path)["info"]["FILT"] == "F430M"


def test_amical_has_the_same_sign_of_the_position_angle(amical):
    from amical.analysis.models import visBinary

    star = point_source("F430M", 1e8)
    data, there = add_companion(star, 150, 70, 0.01), {"sep": 150.0, "theta": 70.0, "dm": 5.0}
    sides = (data.cp_uv1, data.cp_uv2, -(data.cp_uv1 + data.cp_uv2))
    theirs = np.angle(np.prod([visBinary(*s.T, data.wavelength, there) for s in sides], axis=0))
    # Without the smearing of the band, a percent here, and with 2.5 for 10**0.4, another two
    assert np.abs(wrap(theirs - data.cp)).max() < 0.06 * np.abs(data.cp).max() < np.abs(theirs + data.cp).max()


def virgil_record(virgil, path):
    from virgil.oifits import read_oifits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return virgil.OIData(dict(read_oifits([str(path)])))


def test_files_load_in_virgil(virgil, binary):
    data, path = binary
    seen = virgil_record(virgil, path)
    assert np.isclose(np.hypot(np.asarray(seen.u), np.asarray(seen.v)).max(), data.baseline_length.max(), rtol=1e-5)
    assert seen.n_independent in (36, 56)


def test_virgil_has_the_same_absil_map(virgil, binary):
    from virgil.limits import absil_limits
    from virgil.models import PointSource, System

    data, path = binary
    seen = virgil_record(virgil, path)
    ours = detection_map(
        data, "absil", size=8, extent=280, covariance="auto" if seen.n_independent == 36 else "diagonal"
    )
    model = System(primary=PointSource(), companion=PointSource(flux=0.0, dra=0.0, ddec=0.0))
    samples = {"companion.dra": ours.axis, "companion.ddec": ours.axis, "companion.flux": np.geomspace(1e-4, 1, 21)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = np.asarray(absil_limits(seen, model, samples, sigma=3.0)).T  # rows: north
    assert np.median(np.abs(2.5 * np.log10(theirs / ours.contrast))) < 0.05  # its band is not smeared alike


@pytest.fixture
def forms(tmp_path):
    """An exposure of 12 integrations as a mean and with a row for each; the data and the two files."""
    rng, star = np.random.default_rng(2), point_source("F480M", 1e6, name="star")
    amplitude, phase = 1 + 0.01 * rng.standard_normal((12, 21)), 0.01 * rng.standard_normal((12, 21))
    samples = {"v2": amplitude**2, "amplitude": amplitude, "phase": phase, "cp": phase @ star.triangle_matrix.T}
    data = from_samples(replace(star, samples=samples, mjd=59735.5, int_time=26.0))
    single = replace(data, samples=samples)
    rows = write_oifits(single, tmp_path / "rows.fits", per_integration="rows")
    return data, write_oifits(data, tmp_path / "mean.fits"), rows


def peer(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports are its own affair
        return pytest.importorskip(name, reason=f"needs {name.split('.')[0]}: pip install calami[peers]")


def quietly(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **options)


def test_files_are_valid_for_oifits(forms):
    oifits = peer("oifits")
    for path, count in zip(forms[1:], (21, 252), strict=True):
        seen = quietly(oifits.open, str(path))
        assert quietly(seen.isvalid) and quietly(seen.isconsistent) and len(seen.vis2) == count
    assert len(quietly(oifits.open, str(forms[1])).corr) == 1


def test_fouriever_reads_the_covariances(forms):
    data, mean, rows = forms
    inst = peer("fouriever.inst")
    names, seen = quietly(inst.open, f"{mean.parent}/", mean.name, verbose=False)
    (one,) = seen[0]
    assert names == ["NIRISS"] and np.allclose(one["v2"][:, 0], data.v2) and np.allclose(one["cp"][:, 0], data.cp)
    assert np.allclose(one["v2cov"], data.v2_covariance) and np.allclose(one["cpcov"], data.cp_covariance)
    _, seen = quietly(inst.open, f"{rows.parent}/", rows.name, verbose=False)
    assert len(seen[0]) == 12 and np.allclose(seen[0][3]["v2"][:, 0], data.samples["v2"][3])


def test_files_load_in_pmoired(forms):
    data, mean, rows = forms
    pmoired = peer("pmoired")
    for path, count in ((mean, 1), (rows, 12)):
        (seen,) = quietly(pmoired.OI, str(path), verbose=False).data
        assert len(seen["OI_VIS2"]) == 21 and len(seen["OI_T3"]) == 35
        assert {one["V2"].shape for one in seen["OI_VIS2"].values()} == {(count, 1)}
        if count == 1:
            assert np.allclose(sorted(one["V2"][0, 0] for one in seen["OI_VIS2"].values()), sorted(data.v2))


def test_files_load_in_oimodeler(forms):
    _, mean, rows = forms
    oimodeler = peer("oimodeler")
    for path, count in ((mean, 1), (rows, 12)):
        seen = quietly(oimodeler.oimData, str(path))
        quietly(seen.prepareData)
        assert len(seen.data[0]["OI_VIS2"].data) == 21 * count and len(seen.vect_u) > 21 * count


def test_rows_load_in_amical_and_virgil(forms, amical, virgil):
    data, _, rows = forms
    seen = amical.loadc(rows)
    assert np.allclose(seen.vis2.reshape(12, 21), data.samples["v2"]) and seen.target == "star"
    assert virgil_record(virgil, rows).n_independent == 432


def test_files_pass_oifits_check(tmp_path):
    program = shutil.which("oifits-check")
    if program is None:
        pytest.skip("needs oifits-check of oifitslib on the PATH")
    rng, star = np.random.default_rng(2), point_source("F480M", 1e6, name="star")
    phase = 0.01 * rng.standard_normal((12, 21))
    samples = {"v2": np.full((12, 21), 0.81), "amplitude": np.full((12, 21), 0.9), "phase": phase}
    samples |= {"cp": phase @ star.triangle_matrix.T}
    single = replace(star, samples=samples, mjd=59735.5, int_time=26.0)
    for form, data in ((False, star), ("rows", single)):
        path = write_oifits(data, tmp_path / "x.fits", per_integration=form)
        said = subprocess.run([program, str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert "All checks passed" in said.stdout and " 1 OI_T3 tables" in said.stdout, said.stdout
