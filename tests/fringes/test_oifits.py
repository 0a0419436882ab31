"""OIFITS files: what goes in comes out, what is wrong is said, and calibration keeps its error bars right."""

import itertools
import tracemalloc
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from calami.core.problems import CalamiError, FileProblem
from calami.fringes.calibration import calibrate, reference_weights, selfcal
from calami.fringes.observables import (
    OIData,
    OIFITSWarning,
    _sample_size,
    add_noise,
    closure_covariance,
    closure_matrix,
    from_observables,
    from_samples,
    mean_and_covariance,
    point_source,
    wrap,
)
from calami.fringes.oifits import as_read, find_defects, list_parts, read_oifits, write_oifits, write_products
from calami.fringes.plots import plot_cp, plot_uv, plot_v2
from calami.instrument import niriss

PAIRS = np.array(list(itertools.combinations(range(7), 2)))
TRIPLES = np.array(list(itertools.combinations(range(7), 3)))
MATRIX = closure_matrix(TRIPLES, PAIRS)


def with_samples(data, count, rng, v2=1.0, v2_scatter=0.02, phase_scatter=0.01, cp=0.0):
    """Integrations with independent noise on the baselines."""
    phases = phase_scatter * rng.normal(size=(count, 21))
    samples = {
        "v2": v2 + v2_scatter * rng.normal(size=(count, 21)),
        "cp": wrap(cp + phases @ MATRIX.T),
        "amplitude": 1 + v2_scatter / 2 * rng.normal(size=(count, 21)),
        "phase": phases,
        "flux": np.full(count, 1e6),
    }
    return from_samples(replace(data, samples=samples))


def damaged(tmp_path, change, data=None, name="x.fits"):
    """A file of ours with something changed in its HDU list."""
    path = write_oifits(data or point_source("F480M", name="x"), tmp_path / name)
    with fits.open(path, memmap=False) as hdus:
        result = change(hdus)
        (hdus if result is None else result).writeto(path, overwrite=True)
    return path


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_closure_covariance_of_independent_baselines_is_found(seed):
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0.5, 3, 21)
    truth = MATRIX @ np.diag(noise**2) @ MATRIX.T
    assert np.allclose(closure_covariance(np.sqrt(np.diag(truth)), MATRIX), truth, rtol=1e-6, atol=1e-6)


def test_closure_covariance_of_impossible_errors_is_still_one():
    errors = np.full(35, 1e-3)
    errors[0] = 1.0  # no baseline noise can do this
    covariance = closure_covariance(errors, MATRIX)
    assert np.isclose(np.trace(covariance), (errors**2).sum())
    assert np.sum(np.linalg.eigvalsh(covariance) > 1e-9 * np.trace(covariance)) == 15


def test_a_triangle_without_a_side_is_an_error():
    with pytest.raises(CalamiError, match="needs the baseline"):
        closure_matrix([(0, 1, 2)], [(0, 1), (1, 2)])


@settings(max_examples=30)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9))
def test_wrapped_angles_are_the_same_directions(angles):
    wrapped = wrap(np.array(angles))
    assert np.all(np.abs(wrapped) <= np.pi + 1e-9)
    assert np.allclose(np.exp(1j * wrapped), np.exp(1j * np.array(angles)), atol=1e-9)


def test_the_mean_of_angles_does_not_care_where_the_circle_is_cut():
    rng = np.random.default_rng(1)
    angles = 0.2 * rng.normal(size=(40, 5))
    mean, covariance = mean_and_covariance(angles, circular=True)
    turned, same = mean_and_covariance(wrap(angles + np.pi), circular=True)
    assert np.allclose(wrap(turned - np.pi), mean) and np.allclose(same, covariance)
    assert np.isnan(mean_and_covariance(angles[:1])[1]).all()


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_round_trip(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    data = add_noise(point_source("F380M", 1e6, rng.uniform(0, 360)), rng)
    flags = rng.random(21) < 0.2, rng.random(35) < 0.2
    data = replace(data, v2_flag=flags[0], cp_flag=flags[1], mjd=59735.5, int_time=26.0, references=("a", "b c"))
    data = replace(data, visamp=rng.random(21), visamp_err=rng.random(21), visphi=rng.random(21), n_samples=50)
    data = replace(data, header={"PI_NAME": "Somebody", "NINTS": 50, "TARG_RA": 82.2, "MU_RA": 0.03})
    path = tmp_path_factory.mktemp("oi") / "x.fits"
    back = read_oifits(write_oifits(data, path))
    for key in ("v2", "v2_err", "v2_uv", "cp_uv1", "cp_uv2", "v2_covariance", "cp_covariance", "visamp", "visamp_err"):
        assert np.array_equal(getattr(back, key), getattr(data, key)), key
    for key in ("cp", "cp_err", "visphi"):
        assert np.allclose(getattr(back, key), getattr(data, key), rtol=1e-14, atol=1e-16)
    for key in ("v2_stations", "cp_stations", "v2_flag", "cp_flag"):
        assert np.array_equal(getattr(back, key), getattr(data, key)), key
    for key in ("name", "target", "filter", "mjd", "int_time", "references", "n_samples", "stations"):
        assert getattr(back, key) == getattr(data, key), key
    assert data.header.items() <= back.header.items()
    assert np.isclose(back.wavelength, data.wavelength, rtol=1e-7) and back.origin == "calami"
    with fits.open(path) as hdus:
        assert np.isclose(hdus["OI_TARGET"].data["PMRA"][0], 0.03 / 3600)  # degrees a year, as the standard says
        assert hdus[0].header["CALIB"] == "a, b c"


# The tables and columns that OIFITS 2 wants (Duvert, Young and Hummel 2017, tables 3 to 9).
WANTED = {
    "OI_ARRAY": "TEL_NAME STA_NAME STA_INDEX DIAMETER STAXYZ FOV FOVTYPE",
    "OI_TARGET": "TARGET_ID TARGET RAEP0 DECEP0 EQUINOX RA_ERR DEC_ERR SYSVEL VELTYP VELDEF PMRA PMDEC PMRA_ERR "
    "PMDEC_ERR PARALLAX PARA_ERR SPECTYP",
    "OI_WAVELENGTH": "EFF_WAVE EFF_BAND",
    "OI_VIS": "TARGET_ID TIME MJD INT_TIME VISAMP VISAMPERR VISPHI VISPHIERR UCOORD VCOORD STA_INDEX FLAG",
    "OI_VIS2": "TARGET_ID TIME MJD INT_TIME VIS2DATA VIS2ERR UCOORD VCOORD STA_INDEX FLAG",
    "OI_T3": "TARGET_ID TIME MJD INT_TIME T3AMP T3AMPERR T3PHI T3PHIERR U1COORD V1COORD U2COORD V2COORD STA_INDEX FLAG",
}


def test_files_conform(tmp_path):
    data = with_samples(point_source("F480M"), 10, np.random.default_rng(1))
    path = write_oifits(replace(data, mjd=59735.5), tmp_path / "x.fits")
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert hdus[0].header["CONTENT"] == "OIFITS2"
        for key in "ORIGIN DATE DATE-OBS TELESCOP INSTRUME OBSERVER OBJECT INSMODE".split():
            assert hdus[0].header[key]
        for name, columns in WANTED.items():
            hdu = hdus[name]
            assert set(columns.split()) <= set(hdu.columns.names) and hdu.header["OI_REVN"] == 2
        for name in ("OI_VIS", "OI_VIS2", "OI_T3"):
            assert hdus[name].header["INSNAME"] == hdus["OI_WAVELENGTH"].header["INSNAME"]
            assert hdus[name].header["ARRNAME"] == hdus["OI_ARRAY"].header["ARRNAME"]
        assert hdus["OI_VIS2"].header["DATE-OBS"] == "2022-06-05"
        # The baselines are those of the stations on the sky.
        u = hdus["OI_ARRAY"].data["CTRS_EQT"][:, 1]
        first, second = (hdus["OI_VIS2"].data["STA_INDEX"] - 1).T
        assert np.allclose(u[first] - u[second], hdus["OI_VIS2"].data["UCOORD"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.fits"]
    first = path.read_bytes()
    assert write_oifits(replace(data, mjd=59735.5), path).read_bytes() == first  # the same again


@pytest.mark.parametrize("single", [False, True])
def test_jwst_opens_what_is_written(tmp_path, single):
    from stdatamodels.jwst.datamodels import AmiOIModel

    data = with_samples(point_source("F480M", name="star"), 10, np.random.default_rng(2))
    path = write_oifits(data, tmp_path / "star_ami-oi.fits", per_integration=single)
    with AmiOIModel(str(path)) as model:
        assert model.meta.target.proposer_name == "star" and model.meta.instrument.filter == "F480M"
        assert np.asarray(model.vis2["VIS2DATA"]).shape == ((21, 10) if single else (21,))
        assert np.allclose(model.t3["U1COORD"], data.cp_uv1[:, 0])
        if not single:
            model.validate()


def test_per_integration_files_come_back_as_averages(tmp_path):
    data = with_samples(point_source("F430M"), 12, np.random.default_rng(3), v2=0.8)
    back = read_oifits(write_oifits(data, tmp_path / "x_amimulti-oi.fits", per_integration=True))
    assert np.allclose(back.samples["cp"], data.samples["cp"]) and back.n_samples == 12
    assert np.allclose(back.v2, data.v2) and np.allclose(back.cp_covariance, data.cp_covariance)
    with pytest.raises(CalamiError, match="no values of single integrations"):
        write_oifits(point_source("F430M"), tmp_path / "y.fits", per_integration=True)


def jwst_model(samples, header=None, target="star"):
    """An AmiOIModel made by jwst's own averaging code from given integrations."""
    from jwst.ami.oifits import RawOifits

    count = len(samples["v2"])
    instrument = SimpleNamespace(
        nslices=count,
        ctrs_eqt=niriss.HOLE_CENTERS[:, ::-1],
        ctrs_inst=niriss.HOLE_CENTERS,
        lam_c=4.8e-6,
        lam_w=0.06,
        year="2022",
        month="06",
        day="05",
        pscale_mas=65.6,
        isz=80,
        telname="JWST",
        instrument="NIRISS",
        pi_name="P",
        proposer_name=target,
        objname=target,
        arrname="jwst_ami",
        pupil="NRM",
        roll_ref=0.0,
        v3iyang=0.0,
        vparity=-1,
        itime=1.0,
        **dict.fromkeys(("ra", "dec", "ra_uncertainty", "dec_uncertainty", "pmra", "pmdec"), 0.0),
    )
    raw = RawOifits(instrument)
    raw.initialize_obsarrays()
    amplitude, phase = samples["amplitude"], samples["phase"]
    place = {tuple(p): n for n, p in enumerate(PAIRS.tolist())}
    sides = np.array([[place[i, j], place[j, k], place[i, k]] for i, j, k in TRIPLES.tolist()])
    for i in range(count):
        raw.populate_obsarray(
            i,
            SimpleNamespace(
                fringephase=phase[i],
                fringeamp=amplitude[i],
                redundant_cps=MATRIX @ phase[i],
                t3_amplitudes=amplitude[i][sides].prod(axis=1),
                q4_phases=np.zeros(35),
                redundant_cas=np.ones(35),
                fringepistons=np.zeros(7),
                soln=np.zeros(44),
            ),
        )
    model = raw.make_oifits()
    model.meta.instrument.filter = "F480M"
    model.meta.exposure.nints = count
    model.meta.calibration_software_version = "3.0.0"
    return model


def jwst_samples(rng, count, level):
    return {
        "amplitude": level + 0.02 * rng.normal(size=(count, 21)),
        "phase": 0.05 * rng.normal(size=(count, 21)),
        "v2": np.zeros((count, 21)),
    }


def test_the_errors_of_jwst_files_are_found_and_mended(tmp_path):
    rng = np.random.default_rng(4)
    samples = jwst_samples(rng, 100, 0.6)
    path = tmp_path / "jw_ami-oi.fits"
    jwst_model(samples).save(str(path))
    with pytest.warns(OIFITSWarning, match="VIS2ERR is too small by a factor of 10"):
        plain = read_oifits(path)
    assert set(find_defects(plain)) == {"vis2err", "phase"} and plain.origin == "jwst" and plain.filter == "F480M"
    fixed = read_oifits(path, repair=True)
    v2_error = 2 * 0.6 * 0.02 / 10
    cp_error = np.sqrt(3) * 0.05 / 10
    assert np.isclose(np.median(fixed.v2_err), v2_error, rtol=0.05)
    assert np.isclose(np.median(fixed.cp_err), cp_error, rtol=0.1)
    assert np.isclose(np.median(fixed.visphi_err), 0.005, rtol=0.1)
    assert np.median(plain.v2_err) < 0.15 * v2_error and np.median(plain.cp_err) < 0.3 * cp_error
    assert all("fixed" in note for note in fixed.notes)


def test_calibrated_jwst_files_have_swapped_errors(tmp_path):
    from jwst.ami.oifits import CalibOifits

    rng = np.random.default_rng(5)
    noisy, quiet = jwst_samples(rng, 100, 0.5), jwst_samples(rng, 100, 0.9)
    noisy["amplitude"] += 0.1 * rng.normal(size=(100, 21))
    path = tmp_path / "jw_aminorm-oi.fits"
    calibrated = CalibOifits(jwst_model(noisy), jwst_model(quiet, target="ref")).calibrate()
    calibrated.save(str(path))
    with pytest.warns(OIFITSWarning, match="changed places"):
        read_oifits(path)
    fixed = read_oifits(path, repair=True)
    ratio = 0.5 / 0.9
    truth = 2 * ratio**2 * np.hypot(np.hypot(0.1, 0.02) / 0.5, 0.02 / 0.9) / 10
    assert np.isclose(np.median(fixed.v2_err), truth, rtol=0.1) and fixed.references


def test_old_jwst_files_give_the_scatter(shared_data):
    path = next((shared_data / "oifits").glob("jw01349006001_03102*"))
    with pytest.warns(OIFITSWarning, match="scatter of single integrations"):
        plain = read_oifits(path)
    fixed = read_oifits(path, repair=True)
    assert np.allclose(fixed.v2_err * 40, plain.v2_err) and np.allclose(fixed.cp_err * 40, plain.cp_err)
    assert np.isclose(plain.mjd, 59775.5269, atol=1e-4) and plain.target == "WR137" and plain.references


def test_a_2d_image_reduced_by_jwst_has_no_errors(tmp_path):
    path = tmp_path / "jw_ami-oi.fits"
    jwst_model(jwst_samples(np.random.default_rng(6), 1, 0.8)).save(str(path))
    with pytest.warns(OIFITSWarning, match="21 of 21 squared visibilities have no error"):
        data = read_oifits(path)
    assert not data.v2_good.any() and not data.cp_good.any() and not data.v2_flag.any()
    given = data.with_errors(v2=0.01, cp=0.02)
    assert given.v2_good.all() and given.cp_good.all()


def implaneia(hdus):
    """What ImPlaneIA writes: other keywords, no covariance, one wavelength repeated for each integration."""
    primary = fits.PrimaryHDU()
    for key, value in {"ORIGIN": "STSCI", "FILT": "F480M", "OBJECT": "bin_tgt", "CALIB": "cal"}.items():
        primary.header[key] = value
    wave = hdus["OI_WAVELENGTH"]
    count = hdus["OI_VIS2"].data["VIS2DATA"].shape[1]
    columns = [fits.Column(c, "E", array=np.repeat(wave.data[c], count)) for c in ("EFF_WAVE", "EFF_BAND")]
    waves = fits.BinTableHDU.from_columns(columns, name="OI_WAVELENGTH")
    kept = [hdus[n] for n in ("OI_TARGET", "OI_ARRAY", "OI_VIS", "OI_VIS2", "OI_T3")]
    return fits.HDUList([primary, waves, *kept])


def test_files_like_those_of_implaneia(tmp_path):
    data = with_samples(point_source("F480M", name="bin_tgt"), 9, np.random.default_rng(7))
    path = write_oifits(data, tmp_path / "x.oifits", per_integration=True)
    with fits.open(path, memmap=False) as hdus:
        implaneia(hdus).writeto(tmp_path / "y.oifits")
    back = read_oifits(tmp_path / "y.oifits")
    assert back.origin == "ImPlaneIA" and back.filter == "F480M" and back.n_samples == 9
    assert np.allclose(back.v2, data.v2) and np.allclose(back.cp_err, data.cp_err) and back.references == ("cal",)


def without(name):
    return lambda hdus: fits.HDUList([h for h in hdus if h.name != name])


def test_a_file_without_closure_phases_is_said(tmp_path):
    path = damaged(tmp_path, without("OI_T3"))
    with pytest.warns(OIFITSWarning, match="there are no closure phases"):
        data = read_oifits(path)
    assert len(data.cp) == 0 and len(data.v2) == 21
    with pytest.warns(OIFITSWarning, match="there are no closure phases"):
        again = read_oifits(write_oifits(data, tmp_path / "again.fits"))
    assert np.array_equal(again.v2, data.v2)


def test_a_file_without_v2_is_said(tmp_path):
    with pytest.warns(OIFITSWarning, match="there are no squared visibilities"):
        data = read_oifits(damaged(tmp_path, without("OI_VIS2")))
    assert len(data.v2) == 0 and data.cp_good.all() and data.full_cp_covariance().shape == (35, 35)


@pytest.mark.parametrize("value", [0.0, np.nan, -1.0, np.inf])
def test_errors_that_are_none_flag_the_value(tmp_path, value):
    def change(hdus):
        hdus["OI_T3"].data["T3PHIERR"][3] = value
        hdus["OI_VIS2"].data["VIS2ERR"][:2] = value

    with pytest.warns(OIFITSWarning, match="2 of 21 squared visibilities have no error"):
        data = read_oifits(damaged(tmp_path, change))
    assert data.v2_good.sum() == 19 and data.cp_good.sum() == 34
    again = read_oifits(write_oifits(data, tmp_path / "again.fits"))  # written with the flag: nothing to report
    assert again.v2_flag.sum() == 2 and again.cp_flag.sum() == 1


def test_a_covariance_of_another_size_is_refused(tmp_path):
    def change(hdus):
        hdus["CALAMI_V2COV"].data = np.eye(3)

    with pytest.raises(FileProblem, match="CALAMI_V2COV has shape"):
        read_oifits(damaged(tmp_path, change))


def test_values_that_are_nan_are_flagged(tmp_path):
    def change(hdus):
        hdus["OI_VIS2"].data["VIS2DATA"][5] = np.nan

    with pytest.warns(OIFITSWarning, match="1 of 21 squared visibilities are not finite"):
        data = read_oifits(damaged(tmp_path, change))
    assert not data.v2_good[5]


def two_targets(hdus):
    hdus["OI_VIS2"].data["TARGET_ID"][3] = 2


def two_channels(hdus):
    columns = [fits.Column(n, "E", array=np.array([4.8e-6, 4.9e-6])) for n in ("EFF_WAVE", "EFF_BAND")]
    waves = fits.BinTableHDU.from_columns(columns, name="OI_WAVELENGTH")
    return fits.HDUList([waves if h.name == "OI_WAVELENGTH" else h for h in hdus])


def two_tables(hdus):
    return fits.HDUList([*hdus, hdus["OI_T3"].copy()])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (two_targets, "has 2 targets"),
        (two_channels, "has 2 channels"),
        (two_tables, "stations 1-2-3 more than once at the same time"),
        (without("OI_WAVELENGTH"), "no OI_WAVELENGTH"),
        (lambda hdus: fits.HDUList([hdus[0]]), "no OI_WAVELENGTH"),
        (lambda hdus: fits.HDUList([h for h in hdus if h.name not in ("OI_VIS2", "OI_T3")]), "neither OI_VIS2 nor"),
    ],
)
def test_what_is_not_one_exposure_is_refused(tmp_path, change, match):
    with pytest.raises(FileProblem, match=match):
        read_oifits(damaged(tmp_path, change))


def test_files_that_are_none(tmp_path):
    (tmp_path / "x.fits").write_text("nothing")
    with pytest.raises(FileProblem, match=r"x\.fits"):
        read_oifits(tmp_path / "x.fits")
    whole = write_oifits(point_source("F480M"), tmp_path / "y.fits").read_bytes()
    (tmp_path / "y.fits").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileProblem):
        read_oifits(tmp_path / "y.fits")
    with pytest.raises((FileNotFoundError, FileProblem)):
        read_oifits(tmp_path / "none.fits")
    with pytest.raises(FileProblem, match="cannot be written"):
        write_oifits(point_source("F480M"), tmp_path / "y.fits" / "x.fits")


def test_shapes_and_wavelengths_are_checked():
    data = point_source("F480M")
    with pytest.raises(CalamiError, match=r"cp_err has shape \(3,\), expected \(35,\)"):
        replace(data, cp_err=np.ones(3))
    with pytest.raises(CalamiError, match="cannot be right"):
        replace(data, wavelength=4.8)
    with pytest.raises(CalamiError, match="not an AMI filter"):
        point_source("F444W")


def shuffled(data, rng):
    """The same data in another order, with stations of some baselines and triangles in another order."""
    rows, more = rng.permutation(21), rng.permutation(35)
    stations, uv = data.v2_stations[rows], data.v2_uv[rows]
    triangles = data.cp_stations[more][:, [1, 0, 2]]  # an odd permutation: the sign of the phase changes
    return replace(
        data,
        v2=data.v2[rows],
        v2_err=data.v2_err[rows],
        v2_uv=-uv,
        v2_stations=stations[:, ::-1],
        v2_flag=data.v2_flag[rows],
        v2_covariance=data.v2_covariance[np.ix_(rows, rows)],
        cp=-data.cp[more],
        cp_err=data.cp_err[more],
        cp_uv1=-data.cp_uv1[more],
        cp_uv2=(data.cp_uv1 + data.cp_uv2)[more],
        cp_stations=triangles,
        cp_flag=data.cp_flag[more],
        cp_covariance=data.cp_covariance[np.ix_(more, more)],
    )


def test_the_order_of_a_reference_does_not_matter():
    rng = np.random.default_rng(8)
    target, reference = (add_noise(point_source("F480M", 1e7), rng) for _ in range(2))
    one, two = calibrate(target, reference), calibrate(target, shuffled(reference, rng))
    for key in ("v2", "cp", "v2_covariance", "cp_covariance"):
        assert np.allclose(getattr(one, key), getattr(two, key), rtol=1e-10, atol=1e-15), key


def test_calibration_without_noise_is_exact():
    star = point_source("F480M", 1e8)
    rng = np.random.default_rng(9)
    gain, offset = rng.uniform(0.6, 0.9, 21), 3.0  # offsets near π: phases wrap
    target = replace(star, v2=gain * 0.95, cp=wrap(star.cp + offset + 0.3))
    reference = replace(star, v2=gain, cp=wrap(star.cp + offset))
    done = calibrate(target, [reference, replace(reference)])
    assert np.allclose(done.v2, 0.95) and np.allclose(done.cp, 0.3) and done.references == ("point", "point")
    # With two equal references their error counts half.
    assert np.allclose(np.diag(done.cp_covariance), 1.5 * star.cp_err**2)


def test_calibrated_errors_are_right():
    rng = np.random.default_rng(10)
    star = point_source("F480M", 1e7)
    away = []
    for _ in range(150):
        done = calibrate(add_noise(star, rng), [add_noise(star, rng), add_noise(star, rng)], scatter=False)
        away.append(np.concatenate(((done.v2 - 1) / done.v2_err, done.cp / done.cp_err)))
    away = np.array(away)
    assert abs((np.abs(away) < 1).mean() - 0.683) < 0.03 and abs((np.abs(away) < 1.96).mean() - 0.95) < 0.02


def test_scatter_between_references_becomes_an_error():
    rng = np.random.default_rng(11)
    star = point_source("F480M", 1e9)

    def of_the_day():  # every star has its own error of calibration, 2 % in V2 and 0.01 rad on the baselines
        v2, phase = 1 + 0.02 * rng.normal(size=21), 0.01 * rng.normal(size=21)
        return add_noise(replace(star, v2=v2, cp=MATRIX @ phase), rng)

    away, said = [], []
    for _ in range(120):
        done = calibrate(of_the_day(), [of_the_day() for _ in range(3)])
        away.append(np.concatenate(((done.v2 - 1) / done.v2_err, done.cp / done.cp_err)))
        said.append((done.header["SCAT_V2"], done.header["SCAT_CP"]))
    assert np.allclose(np.median(said, axis=0), [0.02, 0.01 * np.sqrt(3)], rtol=0.1)
    assert abs((np.abs(away) < 1).mean() - 0.683) < 0.04 and abs((np.abs(away) < 1.96).mean() - 0.95) < 0.02
    plain = calibrate(of_the_day(), [of_the_day() for _ in range(3)], scatter=False)
    assert np.median(plain.v2_err) < 0.3 * np.median(done.v2_err)


def correlated(size, errors, rng):
    """A covariance with the given standard errors, in which neighbours and strangers are correlated."""
    mixed = rng.normal(size=(size, 3 * size))
    covariance = mixed @ mixed.T
    scale = errors / np.sqrt(np.diag(covariance))
    return covariance * np.outer(scale, scale)


def resolved_star(rng, v2, v2_error=0.01, phase_error=0.004):
    """Values far from 1 and 0, unlike from baseline to baseline, with covariances that are not diagonal."""
    star = point_source("F480M")
    phases = correlated(21, np.full(21, phase_error), rng)
    cp_covariance = MATRIX @ phases @ MATRIX.T
    v2_covariance = correlated(21, np.full(21, v2_error), rng)
    return replace(
        star,
        v2=v2 * rng.uniform(0.9, 1.1, 21),
        v2_err=np.sqrt(np.diag(v2_covariance)),
        v2_covariance=v2_covariance,
        cp=MATRIX @ (0.01 * rng.normal(size=21)),
        cp_err=np.sqrt(np.diag(cp_covariance)),
        cp_covariance=cp_covariance,
    )


def change_of(function, data, key, step=1e-5):
    """Numerical Jacobian of a field of function(data) by the same field of the data."""
    values, columns = getattr(data, key), []
    for one in np.eye(len(values)):
        up, down = (replace(data, **{key: values + sign * step * one}) for sign in (1, -1))
        columns.append((getattr(function(up), key) - getattr(function(down), key)) / (2 * step))
    return np.array(columns).T


@pytest.mark.parametrize("key", ["v2", "cp"])
def test_each_star_adds_its_covariance_as_much_as_it_moves_the_result(key):
    # A reference with V² 0.6 moves a calibrated V² more than one with V² 1: its errors must count accordingly.
    rng = np.random.default_rng(20)
    stars = [resolved_star(rng, v2) for v2 in (0.5, 0.6, 0.7)]

    def with_star(place):
        def run(one):
            some = [one if n == place else star for n, star in enumerate(stars)]
            return calibrate(some[0], some[1:], weights=[2, 1], scatter=False)

        return run

    expected = 0.0
    for place, star in enumerate(stars):
        jacobian = change_of(with_star(place), star, key)
        expected = expected + jacobian @ getattr(star, f"{key}_covariance") @ jacobian.T
    done = with_star(0)(stars[0])
    errors = np.sqrt(np.diag(expected))
    assert np.allclose(getattr(done, f"{key}_err"), errors, rtol=1e-3)
    away = getattr(done, f"{key}_covariance") - expected
    assert np.abs(away / np.outer(errors, errors)).max() < 1e-3


def test_calibrated_covariances_hold_for_a_resolved_star():
    # 200 draws of a target and two references. Correlations count in the distance; its square is as large as the
    # number of independent values (21 V², 15 combinations of closure phases).
    rng = np.random.default_rng(21)
    stars = [resolved_star(rng, v2) for v2 in (0.5, 0.6, 0.7)]
    truth = calibrate(stars[0], stars[1:], weights=[2, 1], scatter=False)
    away, distance = [], []
    for _ in range(200):
        target, *references = (add_noise(star, rng) for star in stars)
        done = calibrate(target, references, weights=[2, 1], scatter=False)
        v2, cp = done.v2 - truth.v2, wrap(done.cp - truth.cp)
        away.append(np.concatenate((v2 / done.v2_err, cp / done.cp_err)))
        inverses = np.linalg.inv(done.v2_covariance), np.linalg.pinv(done.cp_covariance, rcond=1e-9, hermitian=True)
        distance.append([x @ inverse @ x for x, inverse in zip((v2, cp), inverses, strict=True)])
    assert np.allclose(np.mean(distance, axis=0), [21, 15], rtol=0.08)
    for part in (slice(0, 21), slice(21, None)):
        inside = np.abs(np.array(away)[:, part]) < 1
        assert abs(inside.mean() - 0.683) < 0.03


def test_the_covariance_of_a_mean_is_that_of_repeated_means():
    # 1000 exposures of 10 integrations; angles lie around π, where they wrap.
    rng = np.random.default_rng(22)
    noise, centre = correlated(4, np.array([0.05, 0.1, 0.2, 0.3]), rng), np.pi - 0.1
    for circular in (False, True):
        means, stated, away = [], [], []
        for _ in range(1000):
            samples = centre + rng.multivariate_normal(np.zeros(4), noise, 10)
            mean, covariance = mean_and_covariance(wrap(samples) if circular else samples, circular)
            means.append(wrap(mean - centre))
            stated.append(covariance)
            away.append(means[-1] / np.sqrt(np.diag(covariance)))
        size = np.sqrt(np.outer(np.diag(noise), np.diag(noise))) / 10
        assert np.abs((np.mean(stated, axis=0) - noise / 10) / size).max() < 0.06  # 10 % if divided by n, not n - 1
        assert np.abs((np.cov(np.transpose(means)) - noise / 10) / size).max() < 0.15
        assert abs((np.abs(away) < 1).mean() - 0.683) < 0.08


@pytest.mark.parametrize("key", ["v2", "cp"])
def test_systematic_errors_are_as_large_as_asked_for(key):
    # Relative for V², rad for closure phases, and once more for the reference where there are no weights to share.
    rng = np.random.default_rng(23)
    target, reference = resolved_star(rng, 0.5), resolved_star(rng, 0.7)
    plain, more = (calibrate(target, reference, systematics=s) for s in ((0.0, 0.0), (0.03, 0.02)))
    added = np.sqrt(getattr(more, f"{key}_err") ** 2 - getattr(plain, f"{key}_err") ** 2)
    assert np.allclose(added, 0.03 * plain.v2 if key == "v2" else 0.02)


def test_weights():
    star = replace(point_source("F480M"), mjd=100.0, header={"FLUX": 1.0})
    near, far = replace(star, mjd=100.1), replace(star, mjd=102.0, header={"FLUX": 2.5})
    equal, time, bright = (reference_weights(star, [near, far], w) for w in ("equal", "time", "brightness"))
    assert np.allclose(equal, 0.5) and time[0] > 0.9 and bright[0] > 0.9 and np.isclose(bright.sum(), 1)
    assert np.allclose(reference_weights(star, [near, far], [1, 3]), [0.25, 0.75])
    for wrong in ("best", [1, 2, 3], [1, -1], [0, 0], [np.nan, 1]):
        with pytest.raises(CalamiError, match="weights"):
            reference_weights(star, [near, far], wrong)
    with pytest.raises(CalamiError, match="time of observation"):
        reference_weights(star, [point_source("F480M")], "time")
    with pytest.raises(CalamiError, match="brightness is not known"):
        reference_weights(star, [point_source("F480M")], "brightness")


def test_weighted_calibration():
    star = point_source("F480M")
    bright, dim = replace(star, v2=np.full(21, 0.8)), replace(star, v2=np.full(21, 0.6))
    done = calibrate(star, [bright, dim], weights=[3, 1], scatter=False)
    assert np.allclose(done.v2, 1 / 0.75)


def test_a_flag_in_one_reference_leaves_the_other():
    star = point_source("F480M", 1e8)
    flag = np.zeros(21, bool)
    flag[4] = True
    wrong = replace(star, v2=np.where(flag, 99.0, 1.0), v2_flag=flag)
    assert np.allclose(calibrate(star, [wrong, star]).v2, 1)
    alone = calibrate(star, wrong)
    assert alone.v2_flag.tolist() == flag.tolist()


def test_references_that_do_not_match():
    star = point_source("F480M")
    with pytest.raises(CalamiError, match="calibrate with the same filter"):
        calibrate(star, point_source("F430M"))
    bigger = replace(star, v2_uv=1.05 * star.v2_uv)
    with pytest.raises(CalamiError, match=r"differ by up to 0\.26 m"):
        calibrate(star, bigger)
    few = replace(star, v2_stations=star.v2_stations + 7, stations=())
    with pytest.raises(CalamiError, match="lacks 21 baselines or triangles"):
        calibrate(star, few)
    with pytest.raises(CalamiError, match="no reference star"):
        calibrate(star, [])
    turned = point_source("F480M", position_angle=30)  # another roll of the telescope is no obstacle
    assert np.allclose(calibrate(star, turned).v2, 1)


def test_data_without_errors_stay_without():
    star = point_source("F480M").with_errors(v2=np.nan, cp=np.nan)
    done = calibrate(star, star)
    assert not done.v2_good.any() and not done.cp_good.any() and np.allclose(done.v2, 1)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_values_without_errors_do_not_get_the_errors_of_the_other_star(value):
    star = point_source("F480M")
    lost = (np.arange(21) < 4, np.arange(35) < 9)
    part = star.with_errors(v2=np.where(lost[0], value, star.v2_err), cp=np.where(lost[1], value, star.cp_err))
    for done in (calibrate(star, part), calibrate(part, star)):
        assert np.array_equal(done.v2_good, ~lost[0]) and np.array_equal(done.cp_good, ~lost[1])
    both = calibrate(star, [part, star])  # a reference with errors stands in for one without
    assert both.v2_good.all() and both.cp_good.all()
    assert np.allclose(both.v2_err[lost[0]], np.sqrt(2) * star.v2_err[lost[0]])
    bare = star.with_errors(v2=value, cp=value)
    for done in (calibrate(star, bare), calibrate(bare, star)):
        assert not done.v2_good.any() and not done.cp_good.any()


@pytest.mark.parametrize(
    ("table", "column"),
    [("OI_T3", "T3PHIERR"), ("OI_VIS2", "UCOORD"), ("OI_VIS2", "STA_INDEX"), ("OI_WAVELENGTH", "EFF_BAND")],
)
def test_a_table_without_a_column_is_refused(tmp_path, table, column):
    def change(hdus):
        left = fits.ColDefs([c for c in hdus[table].columns if c.name != column])
        hdus[hdus.index_of(table)] = fits.BinTableHDU.from_columns(left, name=table)

    with pytest.raises(FileProblem, match=f"{table} lacks {column}"):
        read_oifits(damaged(tmp_path, change))


def test_empty_tables_are_none(tmp_path):
    def change(hdus):
        hdus["OI_VIS2"].data = hdus["OI_VIS2"].data[:0]

    with pytest.warns(OIFITSWarning, match="there are no squared visibilities"):
        assert len(read_oifits(damaged(tmp_path, change)).v2) == 0


def test_baselines_that_are_nan_are_flagged(tmp_path):
    def change(hdus):
        hdus["OI_VIS2"].data["UCOORD"][:3] = np.nan
        hdus["OI_T3"].data["V1COORD"][:2] = np.nan

    data = read_oifits(damaged(tmp_path, change))
    assert data.v2_good.sum() == 18 and data.cp_good.sum() == 33
    assert write_oifits(data, tmp_path / "again.fits").exists()


def test_names_with_accents_can_be_written(tmp_path):
    star = replace(point_source("F480M"), name="étoile", target="β Pic", references=("ε",), notes=("à voir",))
    again = read_oifits(write_oifits(star, tmp_path / "é.fits"))
    assert again.name == "?toile" and again.target == "? Pic"


def test_stations_are_counted_from_one(tmp_path):
    def change(hdus):
        for name in ("OI_ARRAY", "OI_VIS2", "OI_T3", "OI_VIS"):
            if name in hdus:
                hdus[name].data["STA_INDEX"] += 10

    data = read_oifits(damaged(tmp_path, change))
    assert data.v2_stations.min() == 1 and data.cp_stations.max() == 7
    again = read_oifits(write_oifits(data, tmp_path / "again.fits"))
    assert np.array_equal(again.v2_stations, data.v2_stations)


@pytest.mark.parametrize("split", ["even-odd", "halves"])
def test_selfcal(split):
    rng = np.random.default_rng(12)
    data = with_samples(point_source("F480M"), 101, rng, v2=0.7, cp=0.5)
    done = selfcal(data, split)
    away = np.concatenate(((done.v2 - 1) / done.v2_err, done.cp / done.cp_err))
    assert 0.6 < np.std(away) < 1.5 and done.n_samples in (50, 51)
    with pytest.raises(CalamiError, match="unknown"):
        selfcal(data, "thirds")
    with pytest.raises(CalamiError, match="at least 4"):
        selfcal(point_source("F480M"))


def test_the_errors_of_selfcal_contain_the_truth():
    # 200 exposures of 40 integrations, of a star with V² 0.6: the ratio of two halves of 20
    rng, away = np.random.default_rng(24), []
    for _ in range(200):
        done = selfcal(with_samples(point_source("F480M"), 40, rng, v2=0.6, cp=0.5))
        away.append(np.concatenate(((done.v2 - 1) / done.v2_err, done.cp / done.cp_err)))
    for part in (slice(0, 21), slice(21, None)):
        assert abs((np.abs(np.array(away)[:, part]) < 1).mean() - 0.683) < 0.08
        assert abs(np.std(np.array(away)[:, part]) - 1) < 0.1


def test_halves_see_a_drift_that_even_and_odd_do_not():
    data = with_samples(point_source("F480M"), 100, np.random.default_rng(13), v2=np.linspace(1, 0.9, 100)[:, None])
    assert abs(selfcal(data, "even-odd").v2.mean() - 1) < 0.01 < abs(selfcal(data, "halves").v2.mean() - 1)


def fitted(count=30):
    """What a fit of so many integrations gives, the fourth of them excluded."""
    rng = np.random.default_rng(14)
    kept = np.arange(count) != 3
    samples = {"amplitude": 0.9 + 0.01 * rng.normal(size=(count, 21)), "phase": 0.01 * rng.normal(size=(count, 21))}
    samples |= {"v2": samples["amplitude"] ** 2, "cp": samples["phase"] @ MATRIX.T, "kept": kept}
    return replace(
        point_source("F480M"),
        target="AB-DOR",
        v2_covariance=1e-6 * np.eye(21),
        cp_covariance=1e-6 * MATRIX @ MATRIX.T,
        samples=samples,
    )


def test_excluded_integrations_go_neither_into_files_nor_into_averages(tmp_path):
    data = fitted()
    assert isinstance(data, OIData) and len(from_observables(data).samples["v2"]) == 29
    assert from_samples(data).n_samples == from_samples(data).n_integrations == 29
    back = read_oifits(write_oifits(data, tmp_path / "x.fits"))
    assert np.array_equal(back.cp_covariance, data.cp_covariance) and back.target == "AB-DOR"
    assert len(read_oifits(write_oifits(data, tmp_path / "y.fits", per_integration=True)).samples["v2"]) == 29
    assert selfcal(data).v2_good.all()


@pytest.mark.parametrize("count", [30, 1])
def test_what_reading_gives_is_known_without_the_files(tmp_path, count):
    data, rng = fitted(), np.random.default_rng(15)
    if count == 1:
        data = replace(data, samples={key: values[:1] for key, values in data.samples.items()})
    header = {"PROGRAM": "1093", "PI_NAME": "", "FLUX": np.nan, "SYS_KERN": 1 / 3, "CRPIX1": 46.0, "NINTS": 30}
    amplitudes = {key: np.full(35, 0.9) for key in ("t3amp", "t3amp_err")}
    amplitudes |= {key: np.full(21, 0.1) for key in ("visamp", "visamp_err", "visphi", "visphi_err")}
    data = replace(data, station_xy=rng.normal(size=(7, 2)), **amplitudes)
    data = replace(data, header=data.header | header, notes=("a note",), image=np.zeros((3, 3)), chi2=1.5, mode="fast")
    mean, *many = map(read_oifits, write_products(data, tmp_path))
    known = as_read(data)
    assert len(many) == (count > 1) and set(known.samples) == (set(many[0].samples) if many else set())
    for field in fields(known):
        one, other = getattr(known, field.name), getattr(mean, field.name)
        if field.name == "samples":
            for key, values in one.items():
                assert np.allclose(values, many[0].samples[key], rtol=1e-15, atol=1e-17)
        elif field.name == "header":
            assert one.pop("SYS_KERN") == pytest.approx(other.pop("SYS_KERN"), rel=1e-15, abs=0) and one == other
        elif isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
            assert one is not None and other is not None, field.name
            assert one.shape == other.shape and np.allclose(one, other, rtol=1e-15, atol=1e-17, equal_nan=True)
        else:
            assert one == other or (np.isnan(one) and np.isnan(other)), field.name


def test_a_shrunk_covariance_stands_for_more_integrations():
    assert _sample_size(1, 0.0) == _sample_size(20, 1.0) == 0 and _sample_size(29, 0.5) == 116


def test_names_of_fits_and_of_files_mean_the_same():
    data = point_source("F480M")
    assert data.hole_names is data.stations and data.uv is data.v2_uv and data.v2_error is data.v2_err
    assert np.array_equal(data.baselines, PAIRS) and np.array_equal(data.triangles, TRIPLES)
    with pytest.raises(AttributeError, match="no attribute 'amplitudes'"):
        _ = data.amplitudes


def test_plots_take_and_give_axes():
    import matplotlib.pyplot as plt

    flag = np.zeros(21, bool)
    flag[0] = True
    star = replace(point_source("F480M"), v2_flag=flag)
    _, ax = plt.subplots()
    for plot in (plot_uv, plot_v2, plot_cp):
        ax.clear()
        assert plot([star, point_source("F380M")], ax) is ax and ax.get_xlabel() and ax.get_ylabel()
        assert plot(star) is not ax
    plt.close("all")


# Columns of OIFITS 2 (Duvert, Young and Hummel 2017, tables 3 to 11): format, and unit if there is one.
STANDARD = {
    "OI_ARRAY": "TEL_NAME 16A, STA_NAME 16A, STA_INDEX I, DIAMETER E m, STAXYZ 3D m, FOV D arcsec, FOVTYPE 6A",
    "OI_TARGET": "TARGET_ID I, TARGET 16A, RAEP0 D deg, DECEP0 D deg, EQUINOX E yr, RA_ERR D deg, DEC_ERR D deg, "
    "SYSVEL D m/s, VELTYP 8A, VELDEF 8A, PMRA D deg/yr, PMDEC D deg/yr, PMRA_ERR D deg/yr, PMDEC_ERR D deg/yr, "
    "PARALLAX E deg, PARA_ERR E deg, SPECTYP 16A",
    "OI_WAVELENGTH": "EFF_WAVE E m, EFF_BAND E m",
    "OI_VIS": "TARGET_ID I, TIME D s, MJD D day, INT_TIME D s, VISAMP D, VISAMPERR D, VISPHI D deg, VISPHIERR D deg, "
    "UCOORD D m, VCOORD D m, STA_INDEX 2I, FLAG L",
    "OI_VIS2": "TARGET_ID I, TIME D s, MJD D day, INT_TIME D s, VIS2DATA D, VIS2ERR D, UCOORD D m, VCOORD D m, "
    "STA_INDEX 2I, FLAG L",
    "OI_T3": "TARGET_ID I, TIME D s, MJD D day, INT_TIME D s, T3AMP D, T3AMPERR D, T3PHI D deg, T3PHIERR D deg, "
    "U1COORD D m, V1COORD D m, U2COORD D m, V2COORD D m, STA_INDEX 3I, FLAG L",
    "OI_CORR": "IINDX J, JINDX J, CORR D",
}
#: Keywords of each table besides OI_REVN, which is 2, but 1 for OI_CORR.
KEYWORDS = {
    "OI_ARRAY": "ARRNAME FRAME ARRAYX ARRAYY ARRAYZ",
    "OI_WAVELENGTH": "INSNAME",
    "OI_CORR": "CORRNAME NDATA",
} | dict.fromkeys(("OI_VIS", "OI_VIS2", "OI_T3"), "DATE-OBS INSNAME ARRNAME")


@pytest.fixture(scope="module")
def both_forms(tmp_path_factory):
    """The mean of an exposure with covariances, and the same with one row for each integration."""
    rng, folder = np.random.default_rng(4), tmp_path_factory.mktemp("forms")
    data = with_samples(point_source("F480M", name="star"), 10, rng)
    times = {"EXPSTART": 59735.49, "EXPEND": 59735.51, "EFFINTTM": 0.38}
    data = replace(data, mjd=59735.5, int_time=26.0, header=times)
    amplitude = 1 + 0.01 * rng.standard_normal((10, 21))
    data = replace(data, samples=data.samples | {"amplitude": amplitude, "phase": 0.01 * amplitude})
    mean = write_oifits(from_samples(data), folder / "mean.fits")
    return data, {"mean": mean, "rows": write_oifits(data, folder / "rows.fits", per_integration="rows")}


@pytest.mark.parametrize("form", ["mean", "rows"])
def test_tables_are_those_of_the_standard(both_forms, form):
    with fits.open(both_forms[1][form]) as hdus:
        hdus.verify("exception")
        assert hdus[0].header["CONTENT"] == "OIFITS2" and hdus[0].header["OBJECT"] == "star"
        names = [hdu.name for hdu in hdus if hdu.name.startswith("OI_")]
        assert set(names) == set(STANDARD) - (set() if form == "mean" else {"OI_CORR"})
        for name in names:
            header, columns = hdus[name].header, hdus[name].columns
            assert header["OI_REVN"] == (1 if name == "OI_CORR" else 2)
            assert set(KEYWORDS.get(name, "").split()) <= set(header)
            for line in STANDARD[name].split(", "):
                column, kind, *unit = line.split()
                assert columns[column].format in (kind, f"1{kind}"), (name, column)
                assert (columns[column].unit or "") == "".join(unit), (name, column)
                assert hdus[name].data[column].ndim == (2 if kind in ("2I", "3I", "3D") else 1), (name, column)
        for name in set(names) & {"OI_VIS", "OI_VIS2", "OI_T3"}:
            table = hdus[name].data
            index = hdus["OI_ARRAY"].data["STA_INDEX"]
            assert np.isin(table["STA_INDEX"], index).all() and (table["TARGET_ID"] == 1).all()
            assert (table["MJD"] > 59735).all() and (table["INT_TIME"] > 0).all() and not table["FLAG"].any()
            for error in [c for c in table.names if c.endswith("ERR") and c != "T3AMPERR"]:
                assert (table[error] > 0).all()
            for other in ("ARRNAME", "INSNAME"):
                owner = hdus["OI_ARRAY" if other == "ARRNAME" else "OI_WAVELENGTH"]
                assert hdus[name].header[other] == owner.header[other]


def test_correlations_are_those_of_the_covariances(both_forms):
    data = from_samples(both_forms[0])
    with fits.open(both_forms[1]["mean"]) as hdus:
        corr = hdus["OI_CORR"]
        assert corr.header["NDATA"] == 91 and (corr.data["IINDX"] < corr.data["JINDX"]).all()
        assert hdus["OI_VIS2"].header["CORRNAME"] == hdus["OI_T3"].header["CORRNAME"] == corr.header["CORRNAME"]
        assert hdus["OI_VIS2"].data["CORRINDX_VIS2DATA"].tolist() == list(range(1, 22))
        assert hdus["OI_T3"].data["CORRINDX_T3PHI"].tolist() == list(range(22, 57))
        assert hdus["OI_T3"].data["CORRINDX_T3AMP"].tolist() == list(range(57, 92))  # in no pair
        assert corr.data["JINDX"].max() == 56
        one = corr.data[(corr.data["IINDX"] == 22) & (corr.data["JINDX"] == 24)]["CORR"][0]
        assert np.isclose(one, data.cp_covariance[0, 2] / data.cp_err[0] / data.cp_err[2])
        assert hdus["V2COV"].data.shape == (1, 21, 21) and hdus["CPCOV"].header["INSNAME"] == "NIRISS"


@pytest.mark.parametrize("left", ["OI_CORR", "fouriever"])
def test_covariances_of_others_are_read(both_forms, tmp_path, left):
    lost = {"OI_CORR": ("V2COV", "CPCOV"), "fouriever": ("OI_CORR",)}[left] + ("CALAMI_V2COV", "CALAMI_CPCOV")
    with fits.open(both_forms[1]["mean"]) as hdus:
        for name in lost:
            del hdus[name]
        hdus.writeto(tmp_path / "x.fits")
    back, data = read_oifits(tmp_path / "x.fits"), from_samples(both_forms[0])
    for key in ("v2_covariance", "cp_covariance"):
        assert np.abs(getattr(back, key) - getattr(data, key)).max() < 1e-12 * getattr(data, key).max()


def test_correlations_belong_to_the_rows_that_name_them(both_forms, tmp_path):
    # Rows in another order, and one that is in no correlation
    with fits.open(both_forms[1]["mean"]) as hdus:
        for name in ("V2COV", "CPCOV", "CALAMI_V2COV", "CALAMI_CPCOV"):
            del hdus[name]
        table = hdus["OI_VIS2"].data
        for name in table.names:
            table[name] = table[name][::-1].copy()
        table["CORRINDX_VIS2DATA"][3] = 0
        hdus.writeto(tmp_path / "x.fits")
    back, data = read_oifits(tmp_path / "x.fits"), from_samples(both_forms[0])
    wanted = data.v2_covariance[::-1, ::-1].copy()
    wanted[3, :3] = wanted[3, 4:] = wanted[:3, 3] = wanted[4:, 3] = 0
    assert np.abs(back.v2_covariance - wanted).max() < 1e-12 * wanted.max()


@pytest.mark.parametrize(("column", "value"), [("IINDX", 0), ("JINDX", 92), ("CORR", 1.5)])
def test_correlations_that_cannot_be_are_refused(both_forms, tmp_path, column, value):
    with fits.open(both_forms[1]["mean"]) as hdus:
        for name in ("CALAMI_V2COV", "CALAMI_CPCOV"):
            del hdus[name]
        hdus["OI_CORR"].data[column][5] = value
        hdus.writeto(tmp_path / "x.fits")
    with pytest.raises(FileProblem, match="OI_CORR"):
        read_oifits(tmp_path / "x.fits")


def test_rows_say_when_each_integration_was(both_forms):
    data, paths = both_forms
    with fits.open(paths["rows"]) as hdus:
        table = hdus["OI_VIS2"].data
        assert len(table) == 210 and len(hdus["OI_T3"].data) == 350
        times = table["MJD"].reshape(10, 21)
        assert (np.ptp(times, axis=1) == 0).all() and np.allclose(np.diff(times[:, 0]), 0.002)
        assert np.isclose(times.mean(), 59735.5) and (table["INT_TIME"] == 0.38).all()
        assert np.array_equal(table["VIS2DATA"].reshape(10, 21), data.samples["v2"])
        scatter = data.samples["v2"].std(axis=0, ddof=1)
        assert np.allclose(table["VIS2ERR"].reshape(10, 21), scatter)
        triple = data.samples["amplitude"][:, [0, 1, 6]].prod(axis=1)
        assert np.allclose(hdus["OI_T3"].data["T3AMP"].reshape(10, 35)[:, 0], triple)


def test_rows_come_back_as_columns_do(both_forms, tmp_path):
    data, paths = both_forms
    rows = read_oifits(paths["rows"])
    columns = read_oifits(write_oifits(data, tmp_path / "x.fits", per_integration=True))
    for key in ("v2", "cp", "v2_covariance", "cp_covariance", "v2_uv", "cp_stations"):
        assert np.array_equal(getattr(rows, key), getattr(columns, key)), key
    for key in ("mjd", "int_time", "n_samples", "target", "filter", "stations", "n_integrations"):
        assert getattr(rows, key) == getattr(columns, key), key
    assert all(np.array_equal(rows.samples[key], columns.samples[key]) for key in columns.samples)
    assert len(list_parts(paths["rows"])) == 1
    with pytest.raises(CalamiError, match="'rows'"):
        write_oifits(data, tmp_path / "y.fits", per_integration="lines")


@pytest.mark.filterwarnings("ignore::calami.fringes.observables.OIFITSWarning")
def test_the_angle_of_amical_is_noted(shared_data):
    seen = read_oifits(shared_data / "oifits" / "amical_fake_binary_F430M.oifits")
    assert seen.origin == "AMICAL" and any("1.12 deg" in note for note in seen.notes)


def test_rows_have_the_times_of_what_was_kept(both_forms, tmp_path):
    data = both_forms[0]
    kept = np.ones(12, bool)
    kept[[2, 7]] = False
    samples = {key: np.insert(values, [2, 6], values[0], axis=0) for key, values in data.samples.items()}
    path = write_oifits(replace(data, samples=samples | {"kept": kept}), tmp_path / "x.fits", per_integration="rows")
    with fits.open(path) as hdus:
        times = hdus["OI_VIS2"].data["MJD"].reshape(10, 21)[:, 0]
        assert np.array_equal(hdus["OI_VIS2"].data["VIS2DATA"].reshape(10, 21), data.samples["v2"])
    assert np.allclose(times, 59735.49 + (np.flatnonzero(kept) + 0.5) / 12 * 0.02)


def test_rows_of_a_long_exposure_need_little_memory(tmp_path):
    data = with_samples(point_source("F480M", name="star"), 1000, np.random.default_rng(6))
    tracemalloc.start()
    path = write_oifits(data, tmp_path / "x.fits", per_integration="rows")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * path.stat().st_size and read_oifits(path).n_integrations == 1000
