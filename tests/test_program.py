import numpy as np
import pytest
from toys import rootname, write_exposure, write_star

from calami import niriss, program
from calami.dataset import Dataset


@pytest.fixture
def ds(tmp_path):
    dates = {"DATE-BEG": "2026-01-02T03:04:05.678", "DATE-END": "2026-01-02T03:05:05.678", "EFFEXPTM": 26.0}
    write_star(tmp_path / f"{rootname(1, 1)}_rate.fits", 5, **dates)
    write_star(tmp_path / f"{rootname(1, 1, 2)}_rate.fits", 5, PATT_NUM=2, **dates)
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 13, TITLE="Charge", PI_NAME="A. N. Other")
    nothing = {"SCI": np.full((8, 8), np.nan, "float32"), "ERR": np.ones((8, 8))}
    write_exposure(tmp_path / f"{rootname(2)}_rate.fits", nothing, EFFINTTM=0.5)
    write_exposure(tmp_path / f"{rootname(3, program=1504)}_ami-oi.fits", {"OI_VIS": np.zeros((2, 2))})
    return Dataset(tmp_path)


def test_header_facts_and_measured_facts_in_one_table(ds):
    view = program.exposure_view(ds)
    assert len(view) == 5 and view["peak_rate"].unit == "adu / s" and view["peak_rate_e"].unit == "electron / s"
    row = view[list(view["rootname"]).index(rootname(1, 2))]
    assert (row["peak_row"], row["peak_col"], row["ngroups"]) == (40, 45, 13)
    truth = 4.2e6 * 0.0165  # about the peak fraction of the toy star
    assert row["peak_rate_e"].value == pytest.approx(truth, rel=0.25)
    assert row["peak_signal"].value == pytest.approx(row["peak_rate"].value * niriss.ramp_time(13))
    assert row["of_full_well"] == pytest.approx(niriss.to_electrons(row["peak_signal"].value) / 72_000)
    assert row["of_migration_limit"] / row["of_full_well"] == pytest.approx(72 / 26)


def test_what_cannot_be_measured_keeps_its_row_and_says_why(ds):
    view = program.exposure_view(ds)
    assert np.isnan(view["peak_rate"]).sum() == 2 and (view["peak_row"] == -1).sum() == 2
    reasons = " ".join(ds.problems["reason"])
    assert "peak not measured" in reasons and "no usable pixel" in reasons


def test_peaks_are_measured_once(ds, monkeypatch):
    from calami.dataset import Index

    monkeypatch.setattr(Index, "SETTLED", -1.0)
    first = program.measure_peaks(Dataset(ds.datadir))
    monkeypatch.setattr(program, "_measure", lambda *_: pytest.fail("measured again"))
    again = Dataset(ds.datadir).select(role="target", rootname=rootname(1, 1))
    assert program.measure_peaks(again) == [first[ds.rootlist.index(rootname(1, 1))]] != [None]


def test_setups_put_dithers_together(ds):
    table = program.setup_view(ds)
    assert table["exposures"].sum() == 5
    row = table[(table["ngroups"] == 5) & (table["observation"] == "001")][0]
    assert row["exposures"] == 2 and row["dithers"] == 2 and row["exposure_time"].value == 52
    assert row["first"] == "2026-01-02 03:04" and row["last"] == "2026-01-02 03:05"


def test_programs(ds):
    table = program.program_view(ds)
    assert table["program"].tolist() == ["01504", "01516"] and table["exposures"].tolist() == [1, 4]
    assert table["title"].tolist() == ["", "Charge"] and table["pi"].tolist() == ["", "A. N. Other"]


def test_depths_are_drawn(ds):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert program.plot_depths(ds, ax) is ax and "ke-" in ax.get_ylabel()


def test_depths_of_nothing_are_drawn_too(tmp_path):
    from matplotlib.figure import Figure

    write_exposure(tmp_path / f"{rootname()}_ami-oi.fits", {"OI_VIS": np.zeros((2, 2))})
    program.plot_depths(Dataset(tmp_path), Figure().subplots())


def test_only_one_exposure_of_program_1093_is_far_beyond_the_limit(shared_data):
    view = program.exposure_view(Dataset(shared_data / "jw01093"))
    assert (view["of_migration_limit"] > 1.1).sum() == 1 and not np.isnan(view["peak_rate"]).any()
