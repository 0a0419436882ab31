"""Level-1b files: the keywords against real ones, the tables, the segments, and what a failure leaves behind."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from calami.calutil import Data
from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.simulate import level1b
from calami.simulate.level1b import (
    compare_keywords,
    is_added_later,
    level1b_keywords,
    pointing,
    segments,
    write_level1b,
)
from calami.simulate.plans import ExposurePlan
from calami.simulate.stars import Star

STAR = Star(name="HD 36805", ra=82.2769525, dec=-66.686944, pm_ra=-3.4, pm_dec=12.9, spectral_type="G8V", magnitude=5.6)
PLAN = ExposurePlan(
    program=1516,
    observation=20,
    visit=1,
    visit_group=3,
    activity=2,
    exposure=3,
    title="Charge migration",
    label="demo",
    star=STAR,
    is_psf=True,
    filter="F480M",
    ngroups=3,
    nints=5,
    dither=3,
    n_dithers=25,
    n_primary=1,
    n_subpixel=25,
    x_offset=0.03924,
    y_offset=0.0,
    start="2022-06-05T17:45:33.535",
    v3_pa=172.1064,
)
STRUCTURE = set("SIMPLE BITPIX NAXIS EXTEND XTENSION PCOUNT GCOUNT EXTNAME EXTVER BSCALE BZERO COMMENT".split()) | {""}


def changed(**parts):
    return dataclasses.replace(PLAN, **parts)


def ramps_of(plan=PLAN):
    shape = (plan.nints, plan.ngroups, 80, 80)
    return np.random.default_rng(3).integers(0, 65536, shape, dtype="uint16")


def moved_to(ra, dec, **parts):
    return changed(star=dataclasses.replace(STAR, ra=ra, dec=dec), **parts)


# --- against real headers ---


def real_headers(shared_data):
    for path in sorted((shared_data / "jw01093").glob("*_cal.fits")):
        with fits.open(path) as hdus:
            yield path, {"PRIMARY": hdus[0].header, "SCI": hdus["SCI"].header}


def names_in(header):
    return {key for key in header if not key.startswith("NAXIS")} - STRUCTURE


def same_kind(a, b):
    kinds = [bool if isinstance(v, bool) else "number" if isinstance(v, (int, float)) else str for v in (a, b)]
    return kinds[0] == kinds[1]


def test_every_keyword_of_a_real_exposure_that_is_not_from_calibration_is_there(shared_data):
    dithered, single = level1b_keywords(PLAN), level1b_keywords(changed(n_dithers=1, n_subpixel=1, dither=1))
    for path, real in real_headers(shared_data):
        ours = dithered if real["PRIMARY"]["NUMDTHPT"] > 1 else single
        for hdu, values in (("PRIMARY", ours.primary), ("SCI", ours.sci)):
            wanted = {k for k in names_in(real[hdu]) if not is_added_later(k)}
            assert wanted <= set(values), path.name
            odd = [k for k in wanted if not same_kind(values[k], real[hdu][k])]
            assert not odd, odd


def test_keywords_of_a_later_real_ramp_are_there(shared_data):
    text = (shared_data / "headers" / "real_jw01373017001_04102_00002_nis_ramp_primary_header.txt").read_text()
    real = set(re.findall(r"^([A-Z0-9_-]{1,8}) *=", text, flags=re.MULTILINE)) - STRUCTURE
    assert len(real) > 150
    missing = {k for k in real if not is_added_later(k)} - set(level1b_keywords(PLAN).primary)
    assert missing == {"SCICAT"}  # the science category of a general observer's program; calibration has none


def test_keywords_of_a_real_level1b_file_of_another_instrument_are_there(shared_data):
    path = shared_data / "headers" / "jw01075001001_03105_00009_nrca2_uncal.fits"
    ours = level1b_keywords(PLAN)
    nircam = {"MODULE", "CHANNEL", "PILIN", "CORONMSK", "PRIDTYPE", "SMGRDPAT", "SUBPXPAT"}
    missing = names_in(fits.getheader(path)) - set(ours.primary) - nircam
    assert all(k.startswith("FA") for k in missing), missing  # NIRCam's focus mechanism
    assert names_in(fits.getheader(path, "SCI")) == set(ours.sci)


def test_a_toy_at_a_real_pointing_differs_only_where_it_should(shared_data, tmp_path):
    # RA_REF and what follows are compared apart: the real telescope pointed 0.2 arcsec off its target.
    plan = changed(ngroups=9, nints=65, program=1093)
    [path] = write_level1b(ramps_of(plan), plan, tmp_path)
    real = shared_data / "jw01093" / "jw01093020001_03102_00003_nis_cal.fits"
    table = compare_keywords(path, real, rtol=1e-4)
    assert set(table["why"]) == {"differs", "only simulated", "added later"}
    extra = set(table["keyword"][table["why"] == "only simulated"])
    later = "GSC_VER COMPRESS OBSLABEL TARGCAT TARGDESC SIMULATD"
    assert extra == set(f"{later} CDELT1 CDELT2 PC1_1 PC1_2 PC2_1 PC2_2".split())
    made_up = """DATE ORIGIN FILENAME SDP_VER DATAMODL TITLE PI_NAME CATEGORY OBSFOLDR ENGQLPTG VSTSTART VISITEND
        TARGURA TARGUDEC MU_RA MU_DEC MU_EPOCH OSF_FILE SCTARATE GSSTRTTM GSENDTIM GDSTARID GS_RA GS_DEC GS_URA GS_UDEC
        GS_MAG GS_UMAG GS_V3_PA BARTDELT HELIDELT EPH_TYPE BUNIT S_REGION VELOSYS YOFFSET"""
    frame_time = "EFFEXPTM DURATION XPOSURE TELAPSE"  # 2022 processing cut the frame time
    orbit = "JWST_X JWST_Y JWST_Z JWST_DX JWST_DY JWST_DZ OBSGEO-X OBSGEO-Y OBSGEO-Z OBSGEODX OBSGEODY OBSGEODZ"
    differs = set(table["keyword"][table["why"] == "differs"])
    assert differs <= set(f"{made_up} {frame_time} {orbit}".split())
    assert "EXPSTART" not in differs and "NEXPOSUR" not in differs


def test_pointing_is_that_of_the_real_exposure(shared_data):
    real = fits.getheader(shared_data / "jw01093" / "jw01093020001_03102_00003_nis_cal.fits", "SCI")
    ours = level1b_keywords(PLAN).sci
    for key, seconds in (("RA_REF", 0.3), ("DEC_REF", 0.3), ("RA_V1", 0.3), ("DEC_V1", 0.3), ("ROLL_REF", 3)):
        assert abs(ours[key] - real[key]) * 3600 < seconds / (0.4 if "RA" in key else 1), key
    corners = [np.array(h["S_REGION"].split()[2:], float) for h in (ours, real)]
    assert np.abs(corners[0] - corners[1]).max() * 3600 < 0.6  # the same corners in the same order


def test_the_telescope_is_near_where_it_was(shared_data):
    for _, real in real_headers(shared_data):
        sci, primary = real["SCI"], real["PRIMARY"]
        eph = level1b.ephemeris(sci["MJD-AVG"], primary["TARG_RA"], primary["TARG_DEC"])
        there = [sci[k] for k in ("JWST_X", "JWST_Y", "JWST_Z")]
        assert np.linalg.norm(eph.position[0] - there) < 0.8e6
        assert np.linalg.norm(eph.geo_position[0] * 1e3 - [sci[f"OBSGEO-{k}"] for k in "XYZ"]) < 0.8e9
        speed = [sci[k] for k in ("JWST_DX", "JWST_DY", "JWST_DZ")]
        assert np.linalg.norm(eph.velocity[0] - speed) < 0.4


def test_aberration_is_that_of_the_pipeline():
    from stcal.velocity_aberration import compute_va_effects

    keywords = level1b_keywords(PLAN)
    velocity = [keywords.sci[k] for k in ("JWST_DX", "JWST_DY", "JWST_DZ")]
    scale, ra, dec = compute_va_effects(*velocity, keywords.sci["RA_REF"], keywords.sci["DEC_REF"])
    assert math.isclose(keywords.sci["VA_SCALE"], scale, rel_tol=1e-12)
    assert np.allclose((keywords.primary["VA_RA"], keywords.primary["VA_DEC"]), (ra, dec), rtol=0, atol=1e-6)


# --- geometry ---


def wcs_of(at):
    # The pixel scales belong to the axes of the detector. Headers in flight put CDELT after the rotation, as FITS has
    # it, though it is not a square pixel: half a percent of a step. Here the scales come first.
    from astropy.wcs import WCS

    cards = level1b._coordinates(at)
    matrix = np.array([[cards["PC1_1"], cards["PC1_2"]], [cards["PC2_1"], cards["PC2_2"]]])
    wcs = WCS(naxis=2)
    wcs.wcs.cd = matrix * (cards["CDELT1"], cards["CDELT2"])
    wcs.wcs.crpix, wcs.wcs.crval = (cards["CRPIX1"], cards["CRPIX2"]), (cards["CRVAL1"], cards["CRVAL2"])
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    return wcs


angles = st.floats(0, 360, exclude_max=True)
latitudes = st.floats(-88, 88)
offsets = st.floats(-1.5, 1.5)


@given(ra=angles, dec=latitudes, v3_pa=angles, x=offsets, y=offsets)
def test_the_star_is_where_the_coordinates_say(ra, dec, v3_pa, x, y):
    plan = moved_to(ra, dec, v3_pa=v3_pa, x_offset=x, y_offset=y)
    at = pointing(plan)
    where = np.array(niriss.AIM_PIXEL) + np.array([x, y]) * 1e3 / niriss.PIXEL_SCALE_MAS
    found = wcs_of(at).wcs_pix2world([where], 0)[0]
    east = math.remainder(found[0] - at.ra_targ, 360) * math.cos(math.radians(dec))
    assert math.hypot(east, found[1] - at.dec_targ) * 3.6e6 < 0.01


@given(ra=angles, dec=latitudes, v3_pa=angles, angle=angles, separation=st.floats(30, 1000))
def test_a_companion_is_where_the_coordinates_say(ra, dec, v3_pa, angle, separation):
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    at = pointing(moved_to(ra, dec, v3_pa=v3_pa))
    step = level1b.sky_to_detector(separation, angle, at.pa_aper)
    two = wcs_of(at).wcs_pix2world([(45.0, 40.0), (45.0 + step[0], 40.0 + step[1])], 0)
    host, companion = SkyCoord(two * u.deg)
    assert math.isclose(host.separation(companion).mas, separation, rel_tol=1e-4)
    assert abs(math.remainder(host.position_angle(companion).deg - angle, 360)) < 0.05


@given(roll=angles)
def test_the_matrix_is_that_of_the_pipeline(roll):
    from jwst.assign_wcs.util import calc_rotation_matrix

    at = level1b.Pointing(0, 0, 10, 20, roll, 0, 0, roll, (roll + level1b.V3I_YANG) % 360)
    ours = [level1b._coordinates(at)[k] for k in ("PC1_1", "PC1_2", "PC2_1", "PC2_2")]
    theirs = calc_rotation_matrix(math.radians(roll), math.radians(level1b.V3I_YANG), vparity=-1)
    assert np.allclose(ours, theirs, atol=1e-12)


@given(ra=angles, dec=latitudes, v3_pa=angles)
def test_the_boresight_has_the_angle_that_was_planned(ra, dec, v3_pa):
    at = pointing(moved_to(ra, dec, v3_pa=v3_pa))
    found = level1b._boresight(at.ra_ref, at.dec_ref, at.roll_ref)
    assert abs(math.remainder(found[2] - v3_pa, 360)) < 1e-8
    assert at.pa_v3 == v3_pa


def test_flight_pixel_moves_with_the_offsets():
    x, y = level1b.flight_pixel(changed(x_offset=0.0, y_offset=0.0))
    assert (x, y) == niriss.STAR_PIXEL["F480M"]
    there = level1b.flight_pixel(changed(x_offset=0.6539, y_offset=-1.315))
    assert np.allclose(there, (x + 10, y - 20))
    assert level1b.flight_pixel(changed(x_offset=-1.8309, y_offset=1.1271))  # a primary dither position of AMI


def test_an_error_of_placement_moves_the_star_and_no_keyword():
    off = changed(x_error=0.06539, y_error=-0.06575)
    assert np.allclose(np.subtract(off.pixel, PLAN.pixel), (1, -1))
    assert level1b_keywords(off) == level1b_keywords(PLAN)


# --- times ---


@given(ngroups=st.integers(1, 60), nints=st.integers(1, 400))
def test_integrations_fill_the_exposure(ngroups, nints):
    plan = changed(ngroups=ngroups, nints=nints)
    table, primary = level1b.integration_times(plan), level1b_keywords(plan).primary
    start, end = table["int_start_MJD_UTC"] * 86400, table["int_end_MJD_UTC"] * 86400
    frame, close = niriss.SUB80.frame_time, 2e-5  # s; a double near MJD 60000 resolves 0.6 microseconds
    assert abs(start[0] - primary["EXPSTART"] * 86400 - frame) < close
    assert abs(end[-1] - primary["EXPEND"] * 86400) < close
    assert np.allclose(end - start, primary["EFFINTTM"], rtol=0, atol=close)
    assert np.allclose(start[1:] - end[:-1], frame, rtol=0, atol=close)


def test_barycentric_columns_agree_with_the_header():
    plan = changed(nints=300)
    table, keywords = level1b.integration_times(plan), level1b_keywords(plan)
    delay = (table["int_mid_BJD_TDB"] - table["int_mid_MJD_UTC"]) * 86400
    assert np.allclose(delay, keywords.primary["BARTDELT"], atol=0.02)
    assert keywords.sci["TDB-BEG"] == keywords.primary["BSTRTIME"]
    # 69.184 s from UTC to TDB since 2017, and at most the light time of 1.02 au.
    assert abs(keywords.primary["BARTDELT"] - 69.184) < 515


def test_a_star_in_the_sky_of_the_earth_is_early_at_the_barycentre():
    # On 5 June the Earth stands at ecliptic longitude 254.6 degrees: light of a star there passes the Earth first.
    ahead, behind = (level1b.ephemeris(59735.7, ra, dec) for ra, dec in ((253.2, -22.5), (73.2, 22.5)))
    assert 495 < ahead.heliocentric[0] - 69.184 < 520
    assert -520 < behind.heliocentric[0] - 69.184 < -495


def test_group_times_pass_midnight():
    plan = changed(start="2022-06-05T23:59:59.900", ngroups=4, nints=2)
    table = level1b.group_times(plan)
    assert table["integration_number"].tolist() == [1] * 4 + [2] * 4
    assert table["group_number"].tolist() == [1, 2, 3, 4] * 2
    assert table["group_end_time"][0] == b"2022-06-06T00:00:00.051"
    assert set(table["end_day"]) == {8192}  # days from 2000-01-01 to 2022-06-06
    assert (table["end_milliseconds"][0], table["end_submilliseconds"][0]) == (50, 880)
    assert table["group_end_time"][-1].decode() == level1b_keywords(plan).primary["DATE-END"]


# --- segments ---


@given(ngroups=st.integers(1, 100), nints=st.integers(1, 60_000), limit=st.integers(10**7, 3 * 10**9))
def test_segments_hold_every_integration_once_and_keep_the_limit(ngroups, nints, limit):
    try:
        parts = segments(ngroups, nints, limit)
    except CalamiError:
        assert nints * 6400 * max(24, 2 * ngroups) > 900 * limit  # more than 999 parts
        return
    assert [n for p in parts for n in (p.first, p.last)][::2] == [1, *(p.last + 1 for p in parts[:-1])]
    assert parts[-1].last == nints
    lengths = [p.last - p.first + 1 for p in parts]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) * 6400 * max(24, 2 * ngroups) <= limit
    if len(parts) > 1:
        assert nints * 6400 * max(24, 2 * ngroups) > limit


def test_a_limit_below_one_integration_is_refused():
    with pytest.raises(CalamiError, match="allow more"):
        segments(10, 5, 100_000)


# --- files ---


def test_counts_come_back_and_the_pipeline_takes_the_file(tmp_path):
    from jwst import datamodels

    ramps = ramps_of()
    ramps[0, 0, 4, :2] = 0, 65535
    [path] = write_level1b(ramps, PLAN, tmp_path / "new", history=("one line", "another"))
    assert path.name == "jw01516020001_03102_00003_nis_uncal.fits"
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert [h.name for h in hdus] == ["PRIMARY", "SCI", "GROUP", "INT_TIMES", "ASDF"]
        assert hdus["SCI"].data.dtype == np.uint16 and hdus["SCI"].header["BITPIX"] == 16
        assert np.array_equal(hdus["SCI"].data, ramps)
        assert hdus[0].header["SIMULATD"] is True and list(hdus[0].header["HISTORY"]) == ["one line", "another"]
    read = datamodels.read_metadata(path)  # what a step does to find its parameters
    assert (read["meta.exposure.ngroups"], read["meta.instrument.filter"]) == (3, "F480M")
    with datamodels.open(path) as model:
        assert type(model).__name__ == "Level1bModel"
        model.validate()
        assert np.array_equal(model.data, ramps)
        assert model.meta.exposure.psf_reference is True and model.meta.instrument.pupil == "NRM"
        assert model.int_times["integration_number"].tolist() == [1, 2, 3, 4, 5]
        assert len(model.group) == 15
        # All but one card is known to the schema; that one is kept aside.
        cards = [card[0] for card in model.extra_fits.PRIMARY.header if card[0] not in ("HISTORY", "COMMENT", "")]
        assert cards == ["SIMULATD"]
        assert list(model.extra_fits.instance) == ["PRIMARY"]


def test_a_ramp_and_a_rate_made_of_it_still_say_simulated(tmp_path):
    from jwst import datamodels

    [path] = write_level1b(ramps_of(), PLAN, tmp_path)
    with datamodels.RampModel(path) as ramp:
        ramp.save(tmp_path / "a_ramp.fits")
        rate = datamodels.ImageModel(np.zeros((80, 80), "float32"))
        rate.update(ramp)  # as the ramp fit does
        rate.save(tmp_path / "a_rate.fits")
    assert fits.getheader(tmp_path / "a_ramp.fits")["SIMULATD"] is True
    for name in ("a_ramp.fits", "a_rate.fits"):
        header = fits.getheader(tmp_path / name)
        assert header["TITLE"].startswith("SIMULATED") and header["ORIGIN"] == "CALAMI"


def test_the_summary_has_nothing_to_complain_of(tmp_path):
    write_level1b(ramps_of(), PLAN, tmp_path)
    science = changed(exposure=4, dither=4, is_psf=False, filter="F277W")
    write_level1b(ramps_of(science), science, tmp_path)
    data = Dataset(tmp_path)
    assert len(data.problems) == 0
    assert data.summary["role"].tolist() == ["reference", "target"]
    assert data.summary["filter"].tolist() == ["F480M", "F277W"]
    assert data.summary["ngroups"].tolist() == [3, 3]


def test_segments_are_one_exposure_to_the_rest_of_calami(tmp_path):
    ramps = ramps_of()
    paths = write_level1b(ramps, PLAN, tmp_path, max_bytes=400_000)
    assert [p.name[26:32] for p in paths] == ["seg001", "seg002", "seg003"]
    headers = [fits.getheader(p) for p in paths]
    assert [(h["EXSEGNUM"], h["EXSEGTOT"], h["INTSTART"], h["INTEND"]) for h in headers] == [
        (1, 3, 1, 1),
        (2, 3, 2, 3),
        (3, 3, 4, 5),
    ]
    assert {h["NINTS"] for h in headers} == {5}
    with fits.open(paths[1]) as hdus:
        assert hdus["INT_TIMES"].data["integration_number"].tolist() == [2, 3]
        assert sorted(set(hdus["GROUP"].data["integration_number"])) == [2, 3]
    data = Dataset(tmp_path)
    assert len(data.problems) == 0 and data.summary["segments"].tolist() == [3]
    assert np.array_equal(Data(data.paths(data.rootlist[0])).science, ramps)
    whole = level1b.integration_times(PLAN)
    assert np.array_equal(whole[1:3], level1b.integration_times(PLAN, 2, 3))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    one, two = (write_level1b(ramps_of(), PLAN, tmp_path / name)[0] for name in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_nothing_is_replaced_unless_told(tmp_path):
    [path] = write_level1b(ramps_of(), PLAN, tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileProblem, match="overwrite=True") as caught:
        write_level1b(ramps_of(), PLAN, tmp_path, max_bytes=400_000)  # cut otherwise, but the same exposure
    assert path.name in str(caught.value)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    paths = write_level1b(ramps_of(), PLAN, tmp_path, max_bytes=400_000, overwrite=True)
    assert sorted(tmp_path.iterdir()) == paths and len(paths) == 3
    assert write_level1b(ramps_of(), PLAN, tmp_path, overwrite=True) == sorted(tmp_path.iterdir())


def test_another_exposure_is_left_alone(tmp_path):
    [other] = write_level1b(ramps_of(), changed(exposure=33), tmp_path)
    write_level1b(ramps_of(), PLAN, tmp_path, overwrite=True)
    assert other.exists()


@pytest.mark.parametrize("failing", ["writeto", "replace"])
def test_a_failure_leaves_no_file(tmp_path, monkeypatch, failing):
    owner = fits.HDUList if failing == "writeto" else Path
    real, calls = getattr(owner, failing), []

    def second_fails(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(owner, failing, second_fails)
    with pytest.raises(FileProblem, match="No space left"):
        write_level1b(ramps_of(), PLAN, tmp_path, max_bytes=400_000)
    assert len(calls) == 2 and not list(tmp_path.iterdir())


def test_an_interrupt_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(self, *args, **kwargs):
        Path(args[0]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fits.HDUList, "writeto", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_level1b(ramps_of(), PLAN, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_told(tmp_path):
    place = tmp_path / "taken"
    place.write_text("x")
    with pytest.raises(FileProblem, match="cannot be written"):
        write_level1b(ramps_of(), PLAN, place)


@pytest.mark.parametrize("parts", [{"title": "β Pic"}, {"label": "β"}, {"star": dataclasses.replace(STAR, name="β")}])
def test_a_text_that_no_header_can_hold_is_refused_before_anything_is_written(tmp_path, parts):
    with pytest.raises(CalamiError, match="plain ASCII") as caught:
        write_level1b(ramps_of(), changed(**parts), tmp_path / "out")
    assert PLAN.rootname in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_ramps_must_belong_to_the_plan(tmp_path):
    with pytest.raises(CalamiError, match=r"shape \(5, 3, 80, 80\), the plan asks for \(6, 3, 80, 80\)"):
        write_level1b(ramps_of(), changed(nints=6), tmp_path)
    with pytest.raises(CalamiError, match="are float64; round them"):
        write_level1b(ramps_of().astype(float), PLAN, tmp_path)
    assert not list(tmp_path.iterdir())


def test_keywords_can_be_given(tmp_path):
    [path] = write_level1b(ramps_of(), PLAN, tmp_path, NEXPOSUR=12, PI_NAME="Somebody")
    header = fits.getheader(path)
    assert (header["NEXPOSUR"], header["PI_NAME"]) == (12, "Somebody")
    with pytest.raises(CalamiError, match="no keyword PINAME"):
        level1b_keywords(PLAN, PINAME="Somebody")


def test_a_long_title_keeps_its_end(tmp_path):
    title = "SIMULATED " + "charge migration " * 8 + "end"
    [path] = write_level1b(ramps_of(), changed(title=title), tmp_path)
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert hdus[0].header["TITLE"] == title
    assert Dataset(path).summary["title"][0] == title


def test_undithered_exposures_have_no_pattern():
    primary = level1b_keywords(changed(n_dithers=1, n_subpixel=1, dither=1)).primary
    assert primary["PATTTYPE"] == "NONE" and "SUBPXPTS" not in primary


def test_activities_are_counted_in_base_36(tmp_path):
    plan = changed(activity=45)
    [path] = write_level1b(ramps_of(plan), plan, tmp_path)
    assert path.name == "jw01516020001_03119_00003_nis_uncal.fits"
    assert fits.getheader(path)["ACT_ID"] == "19" and len(Dataset(path).problems) == 0


def test_comparing_tells_what_cannot_be_read(tmp_path):
    [path] = write_level1b(ramps_of(), PLAN, tmp_path)
    assert len(compare_keywords(path, path)) == 0
    with pytest.raises(FileProblem, match=r"nothing\.fits"):
        compare_keywords(path, tmp_path / "nothing.fits")
