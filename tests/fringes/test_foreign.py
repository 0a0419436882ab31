"""OIFITS files as other programs write them: several stars, channels and times in one file, units, flags as text."""

from dataclasses import replace

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.time import Time

from calami.core.problems import CalamiError, FileProblem
from calami.fringes.companions import search_companion
from calami.fringes.observables import OIFITSWarning, distinct_exposures, from_samples, point_source
from calami.fringes.oifits import list_parts, read_oifits, write_oifits

PAIRS = np.array([(a, b) for a in range(4) for b in range(a + 1, 4)])
TRIPLES = np.array([(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)])
PLACES = np.array([(0.0, 0.0), (40.0, 5.0), (10.0, 60.0), (-30.0, 25.0)])


def table(name, header=(), **columns):
    """A table of columns: name=(format, values) or (format, values, unit)."""
    made = [fits.Column(key, code, array=np.asarray(a), unit=unit[0] if unit else None)
            for key, (code, a, *unit) in columns.items()]  # fmt: skip
    hdu = fits.BinTableHDU.from_columns(made, name=name)
    hdu.header.update(dict(header))
    return hdu


def wavelengths(instrument, values, unit="m"):
    values = np.atleast_1d(np.asarray(values, float))
    scale = units.m.to(unit)
    columns = {"EFF_WAVE": ("E", values * scale, unit), "EFF_BAND": ("E", 0.02 * values * scale, unit)}
    return table("OI_WAVELENGTH", {"OI_REVN": 1, "INSNAME": instrument}, **columns)


def array(name="VLTI", first=1):
    stations = [f"U{n}" for n in range(4)]
    places = np.column_stack((PLACES, np.zeros(4)))
    columns = {"TEL_NAME": ("16A", stations), "STA_NAME": ("16A", stations), "DIAMETER": ("E", np.full(4, 8.0))}
    columns |= {"STA_INDEX": ("I", first + np.arange(4)), "STAXYZ": ("3D", places, "m")}
    return table("OI_ARRAY", {"OI_REVN": 1, "ARRNAME": name, "FRAME": "GEOCENTRIC"}, **columns)


def targets(*names):
    columns = {"TARGET_ID": ("I", 1 + np.arange(len(names))), "TARGET": ("16A", names)}
    return table("OI_TARGET", {"OI_REVN": 1}, **columns)


def measured(value, target=1, mjd=58000.1, channels=1, instrument="GRAVITY_SC", arrname="VLTI", first=1, text=False):
    """OI_VIS2 and OI_T3 of one exposure; `value` stands in all of them, with the number of row and channel."""
    made = []
    for name, rows in (("OI_VIS2", PAIRS), ("OI_T3", TRIPLES)):
        count = len(rows)
        data = value + 1e-3 * np.arange(count)[:, None] + 1e-5 * np.arange(channels)
        what, error = ("VIS2DATA", "VIS2ERR") if name == "OI_VIS2" else ("T3PHI", "T3PHIERR")
        unit = ("deg",) if name == "OI_T3" else ()
        flag = (
            (f"{channels}A", ["F" * channels] * count) if text else (f"{channels}L", np.zeros((count, channels), bool))
        )
        columns = {"TARGET_ID": ("I", np.full(count, target)), "TIME": ("D", np.zeros(count), "s")}
        columns |= {"MJD": ("D", np.full(count, mjd), "day"), "INT_TIME": ("D", np.full(count, 10.0), "s")}
        columns |= {what: (f"{channels}D", data, *unit), error: (f"{channels}D", np.full(data.shape, 0.01), *unit)}
        if name == "OI_T3":
            columns |= {"T3AMP": (f"{channels}D", data), "T3AMPERR": (f"{channels}D", data)}
        for side in ("",) if name == "OI_VIS2" else (1, 2):
            pair = rows[:, :2] if side != 2 else rows[:, 1:]
            sides = (PLACES[pair[:, 1]] - PLACES[pair[:, 0]]).T
            columns |= {f"{axis}{side}COORD": ("D", along, "m") for axis, along in zip("UV", sides, strict=True)}
        columns |= {"STA_INDEX": (f"{rows.shape[1]}I", first + rows), "FLAG": flag}
        date = Time(mjd, format="mjd").isot[:10] if mjd else "2017-09-04"
        header = {"OI_REVN": 1, "INSNAME": instrument, "ARRNAME": arrname, "DATE-OBS": date}
        made.append(table(name, header, **columns))
    return made


def stacked(*hdus):
    """Tables of the same columns as one."""
    columns = hdus[0].columns
    arrays = {c.name: np.concatenate([h.data[c.name] for h in hdus]) for c in columns}
    made = {c.name: (c.format, arrays[c.name], c.unit) for c in columns}
    return table(hdus[0].name, {k: hdus[0].header[k] for k in ("OI_REVN", "INSNAME", "ARRNAME", "DATE-OBS")}, **made)


def write(path, *hdus, **cards):
    primary = fits.PrimaryHDU()
    primary.header.update(cards)
    fits.HDUList([primary, *hdus]).writeto(path, overwrite=True)
    return path


@pytest.fixture
def gravity(tmp_path):
    """Two instruments in one file, of which one has five channels, and tables that are not read."""
    wide, narrow = np.linspace(2.05e-6, 2.4e-6, 5), [2.2e-6]
    flux = table("OI_FLUX", {"INSNAME": "GRAVITY_SC"}, FLUXDATA=("5D", np.ones((4, 5)), "erg"))
    tracker = measured(0.3, instrument="GRAVITY_FT")
    science = measured(0.5, channels=5)
    waves = [wavelengths("GRAVITY_FT", narrow), wavelengths("GRAVITY_SC", wide)]
    return write(
        tmp_path / "gravity.fits", array(), targets("HD 1"), *waves, flux, *science, *tracker, INSTRUME="GRAVITY"
    )


def test_a_channel_is_chosen_by_name_wavelength_or_both(gravity):
    assert [part.instrument for part in list_parts(gravity)] == ["GRAVITY_SC"] * 5 + ["GRAVITY_FT"]
    with fits.open(gravity) as hdus:
        wave = hdus[4].data["EFF_WAVE"]
        science, tracker = (hdus[n].data["VIS2DATA"] for n in (6, 8))
        for number in range(5):
            seen = read_oifits(gravity, channel=("GRAVITY_SC", float(wave[number])))
            assert np.array_equal(seen.v2, science[:, number]) and seen.wavelength == wave[number]
            assert np.array_equal(seen.cp, np.radians(hdus[7].data["T3PHI"][:, number]))
        assert np.array_equal(read_oifits(gravity, channel="gravity_ft").v2, tracker.ravel())
        assert np.array_equal(read_oifits(gravity, channel=float(wave[2])).v2, science[:, 2])
    with pytest.raises(
        FileProblem, match=r"6 channels.*targets 'HD 1'; channels \('GRAVITY_SC', 2\.05e-06\).*epochs 58"
    ):
        read_oifits(gravity)
    with pytest.raises(FileProblem, match="5 channels"):
        read_oifits(gravity, channel="GRAVITY_SC")
    with pytest.raises(FileProblem, match=r"nothing of channel 3\.8e-06; it holds targets"):
        read_oifits(gravity, channel=3.8e-6)


@pytest.fixture
def pionier(tmp_path):
    """Two stars, each at two times, in the same tables; the times of one exposure differ by seconds."""
    exposures = [
        measured(0.1 * n, target, 58000.1 + 0.05 * n, instrument="PIONIER", arrname="VLTI")
        for n, target in enumerate((1, 2, 1, 2), 1)
    ]
    for vis2, t3 in exposures:
        vis2.data["MJD"] += np.arange(6) * 2e-5
        t3.data["MJD"] += 3e-5
    both = [stacked(*(pair[n] for pair in exposures)) for n in (0, 1)]
    wave = wavelengths("PIONIER", 1.65e-6)
    return write(tmp_path / "pionier.fits", targets("HD 1", "HD 2"), array(), wave, *both, TARGPROP="one of them")


def test_stars_and_times_of_one_table_are_told_apart(pionier):
    assert len(list_parts(pionier)) == 4
    for number, star in enumerate((1, 2, 1, 2), 1):
        epoch = next(
            p.epoch
            for p in list_parts(pionier)
            if p.target_id == star and abs(p.epoch - 58000.1 - 0.05 * number) < 0.01
        )
        seen = read_oifits(pionier, target=f"hd {star}", epoch=epoch)
        assert np.allclose(seen.v2, 0.1 * number + 1e-3 * np.arange(6)) and np.allclose(seen.mjd, epoch)
        assert len(seen.cp) == 4 and seen.target == f"HD {star}"
        assert np.array_equal(read_oifits(pionier, target=star, epoch=Time(epoch, format="mjd").isot[:16]).v2, seen.v2)
    with pytest.raises(
        FileProblem,
        match=r"2 targets.*'HD 1', 'HD 2'; channels .*; epochs 58000\.15.*read_oifits\(path, target='HD 1'\)",
    ):
        read_oifits(pionier)
    with pytest.raises(FileProblem, match=r"2 epochs.*choose one: read_oifits\(path, epoch=58000\.15"):
        read_oifits(pionier, target="HD 1")
    with pytest.raises(FileProblem, match="nothing of target 'HD 3'"):
        read_oifits(pionier, target="HD 3")


def test_epochs_in_tables_of_their_own_with_a_date_only(tmp_path):
    first, second = measured(0.4, mjd=0), measured(0.6, mjd=0)
    for hdu in second:
        hdu.header["DATE-OBS"] = "2017-09-06"
    path = write(tmp_path / "x.fits", targets("A"), array(), wavelengths("GRAVITY_SC", 2.2e-6), *first, *second)
    assert np.allclose(read_oifits(path, epoch="2017-09-06").v2[0], 0.6)
    seen = read_oifits(path, epoch="2017-09-04")
    assert np.allclose(seen.v2[0], 0.4) and np.isnan(seen.mjd)  # a date is no time


def test_a_baseline_twice_at_one_time_is_refused(tmp_path):
    vis2, t3 = measured(0.4)
    path = write(tmp_path / "x.fits", targets("A"), array(), wavelengths("GRAVITY_SC", 2.2e-6), stacked(vis2, vis2), t3)
    with pytest.raises(FileProblem, match="OI_VIS2 has the stations 1-2 more than once"):
        read_oifits(path)


@pytest.mark.parametrize("first", [0, 1, 17])
def test_stations_count_from_one_in_every_table(tmp_path, first):
    hdus = measured(0.4, first=first)
    wave = wavelengths("GRAVITY_SC", 2.2e-6)
    for number, extra in enumerate(([array(first=first)], [array("OTHER")], [])):
        seen = read_oifits(write(tmp_path / f"{number}.fits", targets("A"), *extra, wave, *hdus))
        assert np.array_equal(seen.v2_stations, PAIRS + 1) and np.array_equal(seen.cp_stations, TRIPLES + 1)
        again = write_oifits(seen, tmp_path / "again.fits")
        with fits.open(again) as back:
            assert back["OI_ARRAY"].data["STA_INDEX"].tolist() == [1, 2, 3, 4]
            for name, rows in (("OI_VIS2", PAIRS), ("OI_T3", TRIPLES)):
                assert np.array_equal(back[name].data["STA_INDEX"], rows + 1)
    with pytest.raises(CalamiError, match="stations are counted from 1"):
        replace(seen, v2_stations=seen.v2_stations - 1)


def with_unit(hdu, column, unit, factor):
    hdu.data[column] *= factor
    columns = {c.name: (c.format, hdu.data[c.name], unit if c.name == column else c.unit) for c in hdu.columns}
    return table(hdu.name, {k: hdu.header[k] for k in ("INSNAME", "ARRNAME", "DATE-OBS") if k in hdu.header}, **columns)


@pytest.mark.parametrize("unit", ["rad", "deg", "DEGREES", "Radians", "mas", "arcsec", None])
def test_angles_are_read_in_their_unit(tmp_path, unit):
    vis2, t3 = measured(0.4)
    truth = np.radians(t3.data["T3PHI"].copy())
    plain = {"DEGREES": "deg", "Radians": "rad", None: "deg"}.get(unit, unit)
    changed = with_unit(t3, "T3PHI", unit, units.deg.to(plain))
    path = write(tmp_path / "x.fits", targets("A"), array(), wavelengths("GRAVITY_SC", 2.2e-6), vis2, changed)
    assert np.allclose(read_oifits(path).cp, truth, rtol=1e-12)


@pytest.mark.parametrize("unit", ["mm", "km", "METERS", "um", "pc"])
def test_lengths_are_read_in_their_unit(tmp_path, unit):
    vis2, t3 = measured(0.4)
    truth = vis2.data["UCOORD"].copy()
    changed = with_unit(vis2, "UCOORD", unit, units.m.to({"METERS": "m"}.get(unit, unit)))
    waves = wavelengths("GRAVITY_SC", 2.2e-6, "um")
    seen = read_oifits(write(tmp_path / "x.fits", targets("A"), array(), waves, changed, t3))
    assert np.allclose(seen.v2_uv[:, 0], truth, rtol=1e-12) and np.isclose(seen.wavelength, 2.2e-6)


@pytest.mark.parametrize(("column", "unit"), [("UCOORD", "furlong"), ("UCOORD", "s"), ("VIS2DATA", "Jy"), ("MJD", "m")])
def test_other_units_are_refused(tmp_path, column, unit):
    vis2, t3 = measured(0.4)
    path = write(tmp_path / "x.fits", wavelengths("GRAVITY_SC", 2.2e-6), with_unit(vis2, column, unit, 1), t3)
    with pytest.raises(FileProblem, match=f"{column} in '{unit}', expected"):
        read_oifits(path)


@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_baselines_that_do_not_fit_on_jwst_are_refused(tmp_path, factor):
    path = write_oifits(point_source("F480M"), tmp_path / "x.fits")
    with fits.open(path, mode="update") as hdus:
        for axis in "UV":
            hdus["OI_VIS2"].data[f"{axis}COORD"] *= 1e3
    with pytest.raises(FileProblem, match=r"longest baseline is 5\.28e\+03 m"):
        read_oifits(path)


def test_tables_that_belong_to_nothing_are_refused(tmp_path):
    path = write(tmp_path / "x.fits", wavelengths("OTHER", 2.2e-6), *measured(0.4))
    with pytest.raises(FileProblem, match="OI_VIS2 belongs to INSNAME GRAVITY_SC, and of OI_WAVELENGTH it has OTHER"):
        read_oifits(path)
    twice = [wavelengths("GRAVITY_SC", wave) for wave in (2.2e-6, 2.3e-6)]
    with pytest.raises(FileProblem, match="write it again, with one OI_WAVELENGTH for each INSNAME"):
        read_oifits(write(tmp_path / "x.fits", *twice, *measured(0.4)))


@pytest.mark.parametrize("channels", [1, 3])
def test_flags_as_text(tmp_path, channels):
    hdus = measured(0.4, channels=channels, text=True)
    hdus[0].data["FLAG"][2] = "F" * (channels - 1) + "T"
    waves = wavelengths("GRAVITY_SC", 2.2e-6 + 1e-8 * np.arange(channels))
    path = write(tmp_path / "x.fits", targets("A"), array(), waves, *hdus)
    last = read_oifits(path, channel=2.2e-6 + 1e-8 * (channels - 1))
    assert last.v2_flag.tolist() == [False, False, True, False, False, False] and not last.cp_flag.any()
    hdus[0].data["FLAG"][2] = "maybe"[:channels]
    with pytest.raises(FileProblem, match="text in FLAG that is not T or F"):
        read_oifits(write(path, targets("A"), array(), waves, *hdus), channel=float(np.float32(2.2e-6)))


def test_a_star_without_a_name_has_one_in_the_file(tmp_path):
    path = write_oifits(replace(point_source("F480M"), target=" "), tmp_path / "x.fits")
    with fits.open(path) as hdus:
        assert hdus["OI_TARGET"].data["TARGET"][0] == hdus[0].header["OBJECT"] == "UNKNOWN"
        assert "TARGPROP" not in hdus[0].header
    assert read_oifits(path).target == "unknown"


# One lost integration


def many(count=20, seed=3):
    rng, star = np.random.default_rng(seed), point_source("F480M", name="jw01516001001_03101_00001_nis")
    phase = 0.01 * rng.normal(size=(count, 21))
    samples = {"v2": 1 + 0.02 * rng.normal(size=(count, 21)), "cp": phase @ star.triangle_matrix.T, "phase": phase}
    samples["amplitude"] = np.sqrt(samples["v2"])
    return from_samples(replace(star, samples=samples))


def test_a_lost_value_takes_only_itself():
    data = many()
    samples = {key: values.copy() for key, values in data.samples.items()}
    samples["v2"][4, 3] = samples["amplitude"][4, 3] = np.nan
    samples["cp"][4:6, 7] = np.nan
    seen = from_samples(replace(data, samples=samples))
    kept = np.arange(20) != 4
    assert np.isclose(seen.v2[3], data.samples["v2"][kept, 3].mean())
    # Shrunk towards what is known of all, with the one value fewer that it has
    whole = from_samples(data)
    assert np.isclose(seen.v2_err[3], whole.v2_err[3] * np.sqrt(20 / 19), rtol=0.05)
    assert np.allclose(np.delete(seen.v2, 3), np.delete(data.v2, 3)) and np.isfinite(seen.visamp).all()
    assert seen.v2_count.tolist() == [20] * 3 + [19] + [20] * 17 and seen.cp_count[7] == 18
    assert seen.n_integrations == 20 and seen.n_samples == 18
    assert np.linalg.eigvalsh(seen.v2_covariance).min() > -1e-12
    others = [np.delete(np.delete(x.v2_covariance, 3, 0), 3, 1) for x in (seen, data)]
    assert np.allclose(*others, atol=0.01 * others[1].max())


@pytest.mark.parametrize("how", ["nan", "flag"])
def test_a_lost_integration_of_a_file_takes_only_itself(tmp_path, how):
    data = many()
    path = write_oifits(data, tmp_path / "x_amimulti-oi.fits", per_integration=True)
    with fits.open(path) as hdus:
        made = [hdus[0]]
        for hdu in hdus[1:]:
            if hdu.name in ("OI_VIS", "OI_VIS2", "OI_T3"):
                columns = {c.name: (c.format, hdu.data[c.name].copy(), c.unit) for c in hdu.columns}
                rows = len(hdu.data)
                if how == "flag":
                    columns["FLAG"] = ("20L", np.broadcast_to(np.arange(20) == 5, (rows, 20)), None)
                else:
                    for name in {"VISAMP", "VISPHI", "VIS2DATA", "T3PHI"} & set(columns):
                        columns[name][1][:, 5] = np.nan
                hdu = table(hdu.name, {k: hdu.header[k] for k in ("INSNAME", "ARRNAME", "DATE-OBS")}, **columns)
            made.append(hdu)
        fits.HDUList(made).writeto(tmp_path / "y_amimulti-oi.fits")
    seen = read_oifits(tmp_path / "y_amimulti-oi.fits")
    truth = from_samples(data, np.arange(20) != 5)
    for key in ("v2", "v2_err", "cp", "cp_err", "visamp", "visphi_err", "v2_covariance"):
        assert np.allclose(getattr(seen, key), getattr(truth, key)), key
    assert seen.v2_good.all() and seen.cp_good.all() and seen.n_integrations == 19
    assert set(seen.v2_count) == set(seen.cp_count) == {19}
    back = read_oifits(write_oifits(replace(seen, samples={}), tmp_path / "z.fits"))
    assert np.array_equal(back.v2_count, seen.v2_count)


# One exposure counts once


@pytest.fixture
def thrice(tmp_path):
    """Means, single integrations and calibrated means of one exposure, as read from files."""
    data, paths = many(), [tmp_path / f"{kind}.fits" for kind in ("ami-oi", "amimulti-oi", "aminorm-oi")]
    write_oifits(data, paths[0])
    write_oifits(data, paths[1], per_integration=True)
    write_oifits(replace(data, references=("ref",)), paths[2])
    return [read_oifits(path) for path in paths]


def test_means_are_used_before_single_integrations(thrice):
    means, single, _ = thrice
    for order in ([means, single], [single, means]):
        with pytest.warns(
            OIFITSWarning, match="it holds their means, and the exposure jw01516001001_03101_00001_nis counts"
        ):
            assert distinct_exposures(order) == [means]
    with pytest.warns(OIFITSWarning, match="counts once"):
        both = search_companion([means, single], limit=100)
    assert both.significance == search_companion(means, limit=100).significance


def test_calibrated_and_raw_are_never_mixed(thrice):
    means, single, calibrated = thrice
    for mixed in ([means, calibrated], [single, calibrated], thrice):
        with pytest.raises(CalamiError, match=r"calibrated by a reference star and .* not"):
            search_companion(mixed, limit=100)


def test_the_same_twice_is_refused(thrice):
    for one in thrice:
        with pytest.raises(CalamiError, match=r"is the same exposure as .*; give one of them"):
            distinct_exposures([one, replace(one, name="copy")])
    other = replace(thrice[0], filter="F430M", wavelength=4.28e-6)
    assert len(distinct_exposures([thrice[0], other])) == 2
