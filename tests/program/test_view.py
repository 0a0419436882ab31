import json
import re
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.io import fits
from toys import rootname, write_exposure, write_star

from calami.archive import apt as archive_apt
from calami.archive import simbad as archive_simbad
from calami.core.problems import CalamiError, FileProblem
from calami.dataset import Dataset
from calami.instrument import niriss
from calami.program import health as program_health
from calami.program import pairing, signals, stars
from calami.program import plan as program_plan
from calami.program import view as program_view


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
    view = signals.exposure_view(ds)
    assert len(view) == 5 and view["peak_rate"].unit == "adu / s" and view["peak_rate_e"].unit == "electron / s"
    row = view[list(view["rootname"]).index(rootname(1, 2))]
    assert (row["peak_row"], row["peak_col"], row["ngroups"]) == (40, 45, 13)
    truth = 3.4e6 * 0.0177  # about the peak fraction of the toy star
    assert row["peak_rate_e"].value == pytest.approx(truth, rel=0.25)
    assert row["peak_signal"].value == pytest.approx(row["peak_rate"].value * niriss.ramp_time(13))
    assert row["of_full_well"] == pytest.approx(niriss.to_electrons(row["peak_signal"].value) / 72_000)
    assert row["of_migration_limit"] / row["of_full_well"] == pytest.approx(72 / 26)


def test_what_cannot_be_measured_keeps_its_row_and_says_why(ds):
    view = signals.exposure_view(ds)
    assert np.isnan(view["peak_rate"]).sum() == 2 and (view["peak_row"] == -1).sum() == 2
    reasons = " ".join(ds.problems["reason"])
    assert "peak not measured" in reasons and "no usable pixel" in reasons


def test_peaks_are_measured_once(ds, monkeypatch):
    from calami.exposures.index import Index

    monkeypatch.setattr(Index, "SETTLED", -1.0)
    first = signals.measure_peaks(Dataset(ds.datadir))
    monkeypatch.setattr(signals, "_measure", lambda *_: pytest.fail("measured again"))
    again = Dataset(ds.datadir).select(role="target", rootname=rootname(1, 1))
    assert signals.measure_peaks(again) == [first[ds.rootlist.index(rootname(1, 1))]] != [None]


def test_setups_put_dithers_together(ds):
    table = signals.setup_view(ds)
    assert table["exposures"].sum() == 5
    row = table[(table["ngroups"] == 5) & (table["observation"] == "001")][0]
    assert row["exposures"] == 2 and row["dithers"] == 2 and row["exposure_time"].value == 52
    assert row["first"] == "2026-01-02 03:04" and row["last"] == "2026-01-02 03:05"


def test_programs(ds):
    table = signals.program_view(ds)
    assert table["program"].tolist() == ["01504", "01516"] and table["exposures"].tolist() == [1, 4]
    assert table["title"].tolist() == ["", "Charge"] and table["pi"].tolist() == ["", "A. N. Other"]


def test_depths_are_drawn(ds):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert signals.plot_depths(ds, ax) is ax and "ke-" in ax.get_ylabel()


def saturated(path, ngroups, bright=5.0, **cards):
    """A star whose core is full from the first group: flagged, without a value."""
    write_star(path, ngroups, flux=bright, **cards)
    with fits.open(path, mode="update") as hdus:
        for name in ("SCI", "ERR"):
            hdus[name].data[39:42, 44:47] = np.nan
        hdus["DQ"].data[39:42, 44:47] |= niriss.DO_NOT_USE | niriss.SATURATED
    return path


def test_a_saturated_core_has_no_signal_and_says_what_it_exceeds(tmp_path):
    from matplotlib.figure import Figure

    saturated(tmp_path / f"{rootname(1, 1)}_rate.fits", 5)
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 5)
    ds = Dataset(tmp_path)
    first, second = signals.exposure_view(ds)
    assert np.isnan([first[k] for k in ("of_full_well", "of_migration_limit")]).all() and first["peak_row"] == -1
    assert np.isnan(first["peak_signal"].value) and first["peak_limit"] == "> 44,600 ADU" and not second["peak_limit"]
    assert "peak not known: the core of the star is saturated; it is > 44,600 ADU" in list(ds.problems["reason"])
    setup = signals.setup_view(ds)[0]
    assert np.isnan(setup["most_of_limit"]) and setup["peaks_unknown"] == 1 and setup["least_of_limit"] > 0
    table = stars.target_table(ds, simbad=False)
    assert table["peak_F480M"][0] == pytest.approx(second["peak_rate"].value)
    ax = signals.plot_depths(ds, Figure().subplots())
    assert 72 in np.round(ax.lines[0].get_ydata()) and len(ax.texts) == 3  # an arrow, and the words of two levels


def test_a_saturated_reference_comes_last_and_is_not_matched_by_brightness(tmp_path):
    write_star(tmp_path / f"{rootname(1)}_rate.fits", 5, TARGPROP="target")
    saturated(tmp_path / f"{rootname(2)}_rate.fits", 5, TARGPROP="full", IS_PSF=True)
    write_star(tmp_path / f"{rootname(3)}_rate.fits", 5, flux=2.0, TARGPROP="good", IS_PSF=True, PATT_NUM=2)
    ds = Dataset(tmp_path)
    for rules in (("dither", "peak", "time"), ("peak",), ("dither",)):
        best, last = pairing.pair_references(ds, rules, count=5)
        assert best["reference"].startswith("good") and last["reference"].startswith("full")
        why = f"the core of the star is saturated; it is > 44,600 ADU ({last['reference']})"
        assert np.isnan(last["peak_ratio"]) and why in last["reason"]
    (found,) = pairing.reference_pairs(ds).values()
    assert found[0].startswith("good")


@pytest.mark.parametrize(
    ("cards", "why"),
    [
        ({"NGROUPS": 100}, "times full well: it saturates, or EFFINTTM (7.544 s) is wrong"),
        ({}, "EFFINTTM is 7.544 s, but NGROUPS × TGROUP"),
    ],
)
def test_a_reference_with_contradictory_numbers_comes_last(tmp_path, cards, why):
    write_star(tmp_path / f"{rootname(1)}_rate.fits", 5, TARGPROP="target")
    write_star(tmp_path / f"{rootname(2)}_rate.fits", 5, TARGPROP="wrong", IS_PSF=True, EFFINTTM=7.544, **cards)
    write_star(tmp_path / f"{rootname(3)}_rate.fits", 5, flux=0.3, TARGPROP="good", IS_PSF=True, PATT_NUM=2)
    ds = Dataset(tmp_path)
    best, last = pairing.pair_references(ds, ("dither", "peak", "time"), count=5)
    assert best["reference"].startswith("good") and np.isnan(last["peak_ratio"])
    assert last["reference"] in last["reason"] and any(why in reason for reason in ds.problems["reason"])


def test_depths_of_nothing_are_drawn_too(tmp_path):
    from matplotlib.figure import Figure

    write_exposure(tmp_path / f"{rootname()}_ami-oi.fits", {"OI_VIS": np.zeros((2, 2))})
    signals.plot_depths(Dataset(tmp_path), Figure().subplots())


def test_only_one_exposure_of_program_1093_is_far_beyond_the_limit(shared_data):
    view = signals.exposure_view(Dataset(shared_data / "jw01093"))
    assert (view["of_migration_limit"] > 1.1).sum() == 1 and not np.isnan(view["peak_rate"]).any()


# --- APT files ------------------------------------------------------------------------------------------------------


def spec(filt="F480M", groups=5, integrations=20):
    words = f"<Filter>{filt}</Filter><ReadoutPattern>NISRAPID</ReadoutPattern>"
    return f"<n:Exposure>{words}<Groups>{groups}</Groups><Integrations>{integrations}</Integrations></n:Exposure>"


def observation(number, target="1 AB-DOR", specs=(), **words):
    words = {
        "AcqMode": "AMIBRIGHT",
        "PrimaryDithers": "NONE",
        "SubpixelPositions": "NONE",
        "PsfReference": "false",
    } | words
    inside = "".join(f"<n:{k}>{v}</n:{k}>" for k, v in words.items())
    ami = f"<n:NirissAmi>{inside}<n:ExposureList>{''.join(specs or [spec()])}</n:ExposureList></n:NirissAmi>"
    about = f"<Number>{number}</Number><Label>star {number}</Label><TargetID>{target}</TargetID>"
    return f"<Observation>{about}<Template>{ami}</Template><ScienceDuration>100</ScienceDuration></Observation>"


def apt_text(*observations, program=1516):
    targets = "".join(
        f"<Target><Number>{k}</Number><TargetName>{n}</TargetName><TargetArchiveName>{a}</TargetArchiveName>"
        f"<AnnualParallax>0.0659</AnnualParallax></Target>"
        for k, n, a in ((1, "AB-DOR", "HD 36705"), (2, "HD-37093", "HD 37093"))
    )
    status = '<VisitStatuses><VisitStatus VisitId="01516001001" Status="EXECUTED"/></VisitStatuses>'
    return (
        (
            '<?xml version="1.0"?><JwstProposal schemaVersion="46" APTVersion="Version 26.2" '
            'xmlns="http://www.stsci.edu/JWST/APT" xmlns:n="http://www.stsci.edu/JWST/APT/Template/NirissAmi">'
            f"<ProposalInformation><ProposalID>{program}</ProposalID><Title>A  title</Title><PrincipalInvestigator>"
            "<InvestigatorAddress><FirstName>A.</FirstName><LastName>Other</LastName></InvestigatorAddress>"
            f"</PrincipalInvestigator></ProposalInformation>{status}<Targets>{targets}</Targets><DataRequests>"
            f"<ObservationGroup>{''.join(observations)}</ObservationGroup></DataRequests></JwstProposal>"
        )
        .replace("<Filter>", "<n:Filter>")
        .replace("</Filter>", "</n:Filter>")
    )


@pytest.fixture
def apt(tmp_path):
    def write(*observations, name="p.xml", old="", new="", **options):
        path = tmp_path / name
        path.write_text(
            apt_text(*observations, **options).replace(old, new) if old else apt_text(*observations, **options)
        )
        return path

    return write


def test_what_an_apt_file_plans(apt):
    links = {"PsfReferenceObservation": "ref (Obs 2)", "PrimaryDithers": 4, "SubpixelPositions": 5}
    plan = archive_apt.read_apt(apt(observation(1, specs=[spec(), spec("F380M", 2, 160)], **links)), "01516")
    one = plan.observations[0]
    assert (plan.program, plan.title, plan.pi, plan.schema) == (1516, "A title", "Other, A.", "46")
    assert (one.target, one.dithers, one.references, one.status, one.seconds) == ("AB-DOR", 20, (2,), "EXECUTED", 100)
    assert [(e.filter, e.ngroups, e.nints) for e in one.exposures] == [("F480M", 5, 20), ("F380M", 2, 160)]
    assert plan.parallaxes["AB-DOR"] == pytest.approx(65.9)


def test_visits_that_fared_differently_are_all_told(apt):
    both = 'Status="EXECUTED"/><VisitStatus VisitId="01516001002" Status="SKIPPED"/>'
    plan = archive_apt.read_apt(apt(observation(1), old='Status="EXECUTED"/>', new=both))
    assert plan.observations[0].status == "EXECUTED, SKIPPED"


def test_two_observations_of_one_number_are_refused(apt):
    with pytest.raises(FileProblem, match="two observations of one number"):
        archive_apt.read_apt(apt(observation(1), observation(1, "2 HD-37093")))


def test_an_archive_is_read_like_its_document(apt, tmp_path):
    inside = apt(observation(1))
    with zipfile.ZipFile(tmp_path / "1516.aptx", "w") as packed:
        packed.write(inside, "1516.xml")
        packed.writestr("manifest.txt", "x")
    assert archive_apt.read_apt(tmp_path / "1516.aptx") == archive_apt.read_apt(inside)


BAD = {
    "of another program": ("<ProposalID>1516", "<ProposalID>1093", "of program 1093, not of 1516"),
    "no proposal": ("ProposalInformation", "Proposal", "no ProposalInformation.*schema is 46.*current APT"),
    "no requests": ("DataRequests", "Requests", "no DataRequests"),
    "no number": ("<ProposalID>1516", "<ProposalID>tbd", "ProposalID is 'tbd'"),
    "old schema": ('<Groups>5</Groups>', "<NGroups>5</NGroups>", "exposure 1: has no Groups.*schema is 46"),
    "odd dithers": ("<n:PrimaryDithers>NONE", "<n:PrimaryDithers>some", "PrimaryDithers is 'some'"),
    "no exposures": ("ExposureList", "List", "without exposures"),
    "no observations": ("Template", "Pattern", "has no observations"),
    "other root": ("JwstProposal", "HstProposal", "holds a HstProposal"),
    "malformed": ("</Targets>", "</Target>", "not well-formed"),
    "cut short": ("</JwstProposal>", "", "not well-formed"),
    "DTD": ("<JwstProposal", "<!DOCTYPE JwstProposal []><JwstProposal", "document type or entities"),
    "billion laughs": (
        "<JwstProposal", '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><JwstProposal', "document type or"
    ),
    "external entity": (
        "<JwstProposal", '<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]><JwstProposal', "document type or"
    ),
    "deep nesting": ("<Targets>", "<Targets>" + "<a>" * 300, "nested more than"),
    "a numeral that is no number": ("<Groups>5<", "<Groups>²<", "Groups is '²'"),
    "a number without end": ("<Groups>5<", f"<Groups>{'9' * 5000}<", "Groups is '9{40}'"),
    "elements without end": ("<Targets>", "<Targets>" + "<a/>" * 1_000_000, "more than 1,000,000 elements"),
    "encoding": ('version="1.0"?', 'version="1.0" encoding="klingon"?', "not well-formed"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "word"), BAD.values(), ids=BAD)
def test_a_bad_apt_file_is_refused_with_its_name(apt, old, new, word):
    path = apt(observation(1), old=old, new=new)
    with pytest.raises(FileProblem) as caught:
        archive_apt.read_apt(path, 1516)
    assert re.search(word, str(caught.value)) and "p.xml" in str(caught.value)


def test_a_zip_bomb_is_refused_by_what_it_unpacks_to(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_apt, "LARGEST_APT", 100_000)
    with zipfile.ZipFile(tmp_path / "1.aptx", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("1.xml", b" " * 10_000_000)
    assert (tmp_path / "1.aptx").stat().st_size < 20_000
    with pytest.raises(FileProblem, match="unpacks to more than"):
        archive_apt.read_apt(tmp_path / "1.aptx")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_told_however_it_was_packed(apt, tmp_path, method):
    path = tmp_path / "1516.aptx"
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("1516.xml", apt(observation(1)).read_text() * 20)
    damaged = bytearray(path.read_bytes())
    damaged[200:240] = bytes(b ^ 0xFF for b in damaged[200:240])
    path.write_bytes(damaged)
    with pytest.raises(FileProblem, match=r"1516\.aptx: (is a damaged|cannot be read \((?!None))"):
        archive_apt.read_apt(path)


def test_real_apt_files_of_two_schemas(shared_data):
    plan = archive_apt.read_apt(shared_data / "apt" / "793.xml")
    assert len(plan.observations) == 20 and plan.observations[5].references == (8, 10)
    assert all(o.template != "NirissAmi" for o in archive_apt.read_apt(shared_data / "apt" / "1088.xml").observations)


# --- planned against executed ---------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for k in (1, 2):
        write_star(
            folder / f"{rootname(1, 2, k)}_rate.fits",
            5,
            PATT_NUM=k,
            EXPMID=61000.0 + k / 100,
            GDSTARID="S1",
            GS_ORDER=1,
        )
    write_star(folder / f"{rootname(1, 3)}_rate.fits", 13, EXPMID=61000.05, VISITSTA="SUCCESSFUL")
    star = {"IS_PSF": True, "TARGPROP": "HD-37093", "TARGNAME": "HD 37093"}
    write_star(folder / f"{rootname(2, 2)}_rate.fits", 12, EXPMID=61000.2, PCS_MODE="COARSE", **star)
    write_star(folder / f"{rootname(4, 2)}_rate.fits", 12, EXPMID=61000.1, **star)
    return Dataset(folder)


def test_observations_meet_by_number(pair, apt):
    links = {"PrimaryDithers": 2, "PsfReferenceObservation": "Observation 2"}
    plan = archive_apt.read_apt(apt(
        observation(1, specs=[spec(groups=5, integrations=60)], **links),
        observation(2, "2 HD-37093", specs=[spec(groups=10, integrations=60)], PsfReference="true"),
        observation(3, "2 HD-37093", PsfReference="true"),
    ))  # fmt: skip
    table = program_plan.planned_against_executed(pair, plan)
    told = {(r["observation"], r["ngroups"]): r["differences"] for r in table}
    assert told[1, 5] == "" and told[1, 13] == "this F480M exposure is not in the plan"
    assert told[2, 12] == "groups 10 → 12" and set(table["joined_by"][table["observation"] == 1]) == {"number"}
    # 4 was not planned by that number, but 3, of the same star and filter, was not executed
    assert told[4, 12].startswith("planned as observation 3")
    assert pairing.reference_pairs(pair, plan)[pair.names[0]][0].endswith("o2a3102")
    assert pairing.reference_pairs(pair)[pair.names[0]][0].endswith("o4a3102")


def test_what_is_on_one_side_only_is_listed(pair, apt):
    view = program_view.ProgramView(
        pair, apt(observation(1), observation(7, "2 HD-37093", [spec("F277W")])), simbad=False
    )
    assert view.missing == [
        "observation 7 (HD-37093): planned, no data here",
        "observation 2 (HD-37093): data, not in the plan",
        "observation 4 (HD-37093): data, not in the plan",
    ]


def test_what_was_executed_meets_what_was_planned_of_its_depth(tmp_path, apt):
    depths = [spec(groups=5, integrations=60), spec(groups=13, integrations=60), spec("F380M", 2, 160)]
    path = apt(observation(1, specs=depths))
    write_star(tmp_path / f"{rootname(1, 3)}_rate.fits", 13)
    view = program_view.ProgramView(Dataset(tmp_path), path, simbad=False)
    assert list(view.comparison["ngroups"]) == [13, -1, -1]
    assert list(view.comparison["planned_ngroups"]) == [13, 5, 2]
    absent = "planned, not among the data of this observation"
    assert list(view.comparison["differences"]) == ["", absent, absent]
    # an observation of which there is a part is one observation, and not missing
    assert list(view.observations()["obs"]) == ["1"] and view.missing == []
    assert list(view.shown()["executed"])[1:] == ["no data here"] * 2 and list(view.shown()["obs"]) == ["1"] * 3


def test_a_visit_that_was_repeated_is_held_against_the_plan_again(tmp_path, apt):
    path = apt(observation(1, specs=[spec(groups=5, integrations=60), spec(groups=13, integrations=60)]))
    first = rootname(1, 2)
    write_star(tmp_path / f"{first}_rate.fits", 5, VISITSTA="UNSUCCESSFUL")
    write_star(tmp_path / f"{first.replace('jw01516001001', 'jw01516001002')}_rate.fits", 5)
    table = program_plan.planned_against_executed(Dataset(tmp_path), archive_apt.read_apt(path))
    assert list(table["visit"]) == [1, 2, -1] and list(table["planned_ngroups"]) == [5, 5, 13]
    assert list(table["differences"][:2]) == ["", ""]


def test_data_that_are_no_ami_exposures_are_told_too(tmp_path, apt):
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 5, EXP_TYPE="NIS_IMAGE")
    write_star(tmp_path / f"{rootname(5, 2)}_rate.fits", 5, EXP_TYPE="NIS_TACQ")
    view = program_view.ProgramView(Dataset(tmp_path), apt(observation(1)), simbad=False)
    assert "other, no AMI exposure: not compared" in view.comparison["differences"][0]
    assert view.missing == ["observation 5 (AB-DOR): data, not in the plan"]


def test_the_plan_tells_references_where_headers_do_not(tmp_path, apt):
    star = {"TARGPROP": "HD-37093", "IS_PSF": None}
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 5, IS_PSF=None)
    write_star(tmp_path / f"{rootname(2, 2)}_rate.fits", 12, **star)
    data = Dataset(tmp_path)
    plan = archive_apt.read_apt(apt(observation(1), observation(2, "2 HD-37093", PsfReference="true")))
    assert pairing.reference_pairs(data) == {name: [] for name in data.names}
    assert pairing.reference_pairs(data, plan) == {data.names[0]: [data.names[1]]}
    assert list(program_plan.planned_against_executed(data, plan)["role"]) == ["target", "reference"]


def test_times_without_decimals_count_too(tmp_path):
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 5, EFFEXPTM=26)
    data = Dataset(tmp_path)
    tables = signals.setup_view(data), signals.program_view(data), program_plan.planned_against_executed(data)
    assert [float(t["exposure_time"].value[0]) for t in tables] == [26.0] * 3


def test_an_acquisition_that_was_not_planned_is_told(tmp_path, apt):
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 5)
    write_star(tmp_path / f"{rootname(1, 1)}_rate.fits", 5, EXP_TYPE="NIS_TACQ")
    for mode, word in (("NONE", "target acquisition none → taken"), ("AMIBRIGHT", "")):
        plan = archive_apt.read_apt(apt(observation(1, specs=[spec(integrations=60)], AcqMode=mode)))
        assert list(program_plan.planned_against_executed(Dataset(tmp_path), plan)["differences"]) == [word]


def test_headers_that_tell_nothing_are_not_called_healthy(tmp_path):
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 5)
    assert (
        "headers of 1 exposures say nothing of guide stars"
        in program_view.ProgramView(Dataset(tmp_path), simbad=False).render()
    )


def test_another_target_or_role_is_told(pair, apt):
    table = program_plan.planned_against_executed(pair, archive_apt.read_apt(apt(observation(2, "1 AB-DOR"))))
    words = table["differences"][table["observation"] == 2][0]
    assert "target AB-DOR → HD-37093" in words and "role target → reference" in words


def test_the_plan_of_another_program_is_refused(pair, apt):
    with pytest.raises(CalamiError, match="program 1093, not of 1516"):
        program_view.ProgramView(pair, apt(observation(1), program=1093), simbad=False)
    with pytest.raises(CalamiError, match="plan is that of program 1093, the data are of 1516"):
        program_plan.planned_against_executed(pair, archive_apt.read_apt(apt(observation(1), program=1093)))


def test_two_programs_are_no_view(ds):
    with pytest.raises(CalamiError, match="exposures of 2 programs"):
        program_view.ProgramView(ds, simbad=False)


def test_remarks_on_health_are_made_of_what_is_wrong(pair):
    health = program_health.health_table(pair)
    assert [bool(r) for r in health["remarks"]] == [False, False, False, True, False]
    assert health["remarks"][3] == "pointing mode COARSE, not fine guiding" and health["guide_star"][0] == "S1"
    assert (health["unusable"] >= 0).all() and (health["unusable"] < 0.5).all()


@pytest.mark.parametrize("suffix", ["txt", "md", "html", "ecsv", "json", "csv"])
def test_the_view_is_written_in_every_format(pair, apt, tmp_path, suffix):
    view = program_view.ProgramView(pair, apt(observation(1, specs=[spec(groups=9)])), simbad=False)
    text = view.write(tmp_path / f"v.{suffix}").read_text()
    told = json.loads(text)[0]["differences"] if suffix == "json" else text
    assert {"txt": "9 → 5", "md": "**9 → 5**", "html": "<mark>9 → 5</mark>"}.get(suffix, "groups 9 → 5") in told
    if suffix == "ecsv":
        from astropy.table import Table

        assert Table.read(tmp_path / "v.ecsv")["planned_ngroups"].tolist()[0] == 9


def test_without_a_plan_there_is_a_view_too(pair):
    view = program_view.ProgramView(pair, simbad=False)
    assert view.missing == [] and "No APT file was given" in view.render() and "→ none" not in view.render()


def test_names_cannot_make_markup(pair, apt):
    path = apt(observation(1), old="A  title", new="&lt;script&gt;alert(1)&lt;/script&gt;")
    assert "<script>" not in program_view.ProgramView(pair, path, simbad=False).render("html")


# --- SIMBAD ---------------------------------------------------------------------------------------------------------

KNOWN = {"HD 36705": ("* AB Dor", 6.93, 4.69, "K0V", 67.3), "HD 37093": ("HD 37093", np.nan, np.nan, "K5III", np.nan)}


@pytest.fixture
def simbad(monkeypatch):
    """SIMBAD, answering the real astroquery through the service it would call."""
    from astropy.table import MaskedColumn, Table
    from astroquery.simbad import SimbadClass

    state = SimpleNamespace(asked=[], do=lambda: None)
    options = Table({"name": ["V", "K", "sp_type", "plx_value"], "type": ["filter name"] * 2 + ["column of basic"] * 2})

    def run_sync(query, *, maxrec, uploads):
        state.asked.append(query)
        state.do()
        names = list(next(iter(uploads.values()))["user_specified_id"])
        rows = [KNOWN.get(n, ("", np.nan, np.nan, "", np.nan)) for n in names]
        table = Table({"user_specified_id": names})
        for k, key in enumerate(("main_id", "V", "K", "sp_type", "plx_value")):
            values = [r[k] for r in rows]
            table[key] = MaskedColumn(values, mask=[v == "" or v != v for v in values])
        return SimpleNamespace(to_table=lambda: table)

    monkeypatch.setattr(SimbadClass, "tap", SimpleNamespace(run_sync=run_sync, hardlimit=2_000_000))
    monkeypatch.setattr(SimbadClass, "hardlimit", 2_000_000)
    monkeypatch.setattr(SimbadClass, "uploadlimit", 200_000)
    monkeypatch.setattr(SimbadClass, "list_votable_fields", lambda self: options.copy())
    return state


def test_simbad_is_asked_once_and_remembered_with_its_date(simbad, own_cache):
    one, two, three = archive_simbad.star_facts(["HD 36705", "HD 37093", "XYZ 1"])
    assert one[1:6] == ("* AB Dor", 6.93, 4.69, "K0V", 67.3) and one.date == time.strftime("%Y-%m-%d", time.gmtime())
    assert np.isnan(two.k) and two.spectral_type == "K5III" and three.reason == "SIMBAD does not know it"
    assert archive_simbad.star_facts(["XYZ 1", "HD 36705"])[1] == one and len(simbad.asked) == 1
    assert archive_simbad.star_facts(["HD 36705"], ask=False) == [one]
    archive_simbad.star_facts(["HD 36705"], oldest=-1)
    assert len(simbad.asked) == 2 and all("LEFT JOIN" in query for query in simbad.asked)


def absent():
    raise OSError("Name or service not known")


FAULTS = {
    "absent": (absent, 5, "SIMBAD cannot be reached.*not known"),
    "sluggish": (lambda: time.sleep(0.6), 0.1, "no answer within 0.1 s"),
    "broken": (lambda: {}["no such column"], 5, "cannot be reached.*no such column"),
}


@pytest.mark.parametrize(("fault", "seconds", "word"), FAULTS.values(), ids=FAULTS)
def test_without_simbad_the_view_is_complete_but_for_those_cells(pair, simbad, fault, seconds, word):
    simbad.do = fault
    view = program_view.ProgramView(pair, seconds=seconds)
    assert np.isnan(view.targets["K"]).all() and np.isfinite(view.targets["peak_F480M"]).all()
    assert all(re.search(word, reason) for reason in view.targets["source"])
    assert "Signals" in view.render()


def test_an_old_answer_is_better_than_none(simbad):
    first = archive_simbad.star_facts(["HD 36705"])
    simbad.do = absent
    assert archive_simbad.star_facts(["HD 36705"], oldest=-1) == first


ODD = '{"HD 36705": {"name": "HD 36705", "date": null}}'


@pytest.mark.parametrize("text", ["", "[]", '{"HD 36705": {"v": 1}}', "\0", ODD])
def test_a_damaged_memory_of_simbad_is_made_anew(simbad, own_cache, text):
    (own_cache / "simbad.json").write_text(text)
    assert archive_simbad.star_facts(["HD 36705"])[0].k == 4.69


def test_magnitudes_in_filters_follow_from_k(pair, simbad):
    table = stars.target_table(pair)
    row = table[table["target"] == "AB-DOR"][0]
    assert row["F480M"] == pytest.approx(stars.filter_magnitude(4.69, "K0V", "F480M")) and row["source"].startswith(
        "SIMBAD 2"
    )
    assert np.isnan(table["F480M"][table["target"] == "HD-37093"]).all()


@pytest.mark.parametrize("kind", ["", "DA3", "M9", "sdO", "weird"])
def test_a_type_that_says_nothing_gives_no_magnitude(kind):
    assert np.isnan(stars.filter_magnitude(5.0, kind, "F480M"))


def test_a_guess_is_called_one(tmp_path, apt):
    # 12 has the second filter of 1 as well as that of 2: with both, it can only be 1.
    plan = apt(observation(1, specs=[spec("F380M"), spec()]), observation(2, specs=[spec()]))
    write_star(tmp_path / f"{rootname(12, 2)}_rate.fits", 5)
    view = program_view.ProgramView(Dataset(tmp_path), plan, simbad=False)
    assert set(view.comparison["joined_by"]) == {"target, one of several", ""}
    assert "For 12 others of the plan would do as well" in view.render()
    write_star(tmp_path / f"{rootname(12, 3)}_rate.fits", 5, FILTER="F380M")
    view = program_view.ProgramView(Dataset(tmp_path), plan, simbad=False)
    assert set(view.comparison["joined_by"]) == {"target", ""} and "would do as well" not in view.render()


def test_direct_images_are_no_partners_and_have_rows_of_their_own(tmp_path):
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 5)
    write_star(tmp_path / f"{rootname(1, 3)}_rate.fits", 5, PUPIL="CLEARP")
    data = Dataset(tmp_path)
    assert list(signals.setup_view(data)["exposures"]) == [1, 1]
    assert list(pairing.reference_pairs(data)) == [data.names[0]]


def test_a_name_is_no_html_in_markdown(tmp_path, apt):
    write_star(tmp_path / f"{rootname(1, 2)}_rate.fits", 5, TARGPROP="<script>x</script>", TARGNAME="<b>")
    told = program_view.ProgramView(Dataset(tmp_path), apt(observation(1)), simbad=False).render("markdown")
    assert "script>" in told and "<script" not in told and "<b" not in told


def test_a_star_that_was_not_known_is_asked_for_again_after_a_week(simbad, own_cache, monkeypatch):
    archive_simbad.star_facts(["HD 36705", "XYZ 1"])
    now = time.time()
    monkeypatch.setattr(archive_simbad.time, "time", lambda: now + 8 * 86400)
    archive_simbad.star_facts(["HD 36705"])
    assert len(simbad.asked) == 1
    archive_simbad.star_facts(["XYZ 1"])
    assert len(simbad.asked) == 2


def test_colours_of_dwarfs_are_told_for_giants(pair, simbad):
    table = stars.target_table(pair)
    told = dict(zip(table["spectral_type"], table["source"], strict=True))
    assert "colours of dwarfs" in told["K5III"] and "dwarfs" not in told["K0V"]
    assert stars._GIANT.search("G8III/IV") and not stars._GIANT.search("G2IV")
