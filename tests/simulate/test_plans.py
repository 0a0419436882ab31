"""Plans: what is refused, what is counted, and that nothing is lost on the way to a file and back."""

import os
import pickle
import zipfile
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import variants

from calami.archive import apt as archive_apt
from calami.calutil import Data
from calami.core.problems import CalamiError, FileProblem
from calami.exposures.names import ExposureName, parse_name
from calami.instrument import niriss
from calami.simulate import plans
from calami.simulate import stars as simulate_stars
from calami.simulate.plan_apt import plan_from_apt
from calami.simulate.plan_files import PLAN_COLUMNS, plan_from_table, write_plan
from calami.simulate.plans import (
    READY_PLANS,
    SCALES,
    ExposurePlan,
    Observation,
    Plan,
    Setup,
    check_plan,
    dither_pattern,
    lay_out,
    plan_table,
    ready_plan,
)
from calami.simulate.stars import (
    Companion,
    PlanProblem,
    Star,
    groups_for_peak,
    integrations_for,
    magnitude_of_peak,
    peak_rate,
    to_j2000,
    total_rate,
)

STAR = Star("SIM-X", 88.0, -66.5, magnitude=5.2)
ONE = ExposurePlan(1516, 1, 1, 3, 2, 1, "a title", "a label", STAR, False, "F480M", 5, 10)


def later(exposure, seconds):
    return (datetime.fromisoformat(exposure.start) + timedelta(seconds=seconds)).isoformat()


# --- stars and exposures


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": ""}, "name of a star"),
        ({"name": " X"}, "blanks"),
        ({"name": "A\nB"}, "one line"),
        ({"ra": 361}, "ra is 361"),
        ({"ra": float("nan")}, "ra is nan"),
        ({"ra": "12"}, "ra is '12'"),
        ({"ra": True}, "ra is True"),
        ({"dec": -90.1}, "dec is -90.1"),
        ({"pm_ra": 1e9}, "pm_ra"),
        ({"spectral_type": "bright"}, "spectral_type"),
        ({"magnitude": float("inf")}, "magnitude"),
        ({"magnitudes": {"F200W": 5.0}}, "F277W, F380M"),
        ({"magnitudes": {"F430M": "5"}}, "magnitude in F430M"),
        ({"magnitudes": [5]}, "{filter: magnitude}"),
        ({"companions": ("C",)}, "Companion"),
    ],
)
def test_a_star_that_cannot_be_is_refused(values, words):
    with pytest.raises(PlanProblem) as caught:
        Star(**({"name": "SIM-X", "ra": 88.0, "dec": -66.5, "magnitude": 5.0} | values))
    assert words in str(caught.value)
    assert isinstance(caught.value, CalamiError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize("values", [(-1, 0, 0.1), (3000, 0, 0.1), (100, 400, 0.1), (100, 0, 0), (100, 0, 1.1)])
def test_a_companion_that_cannot_be_is_refused(values):
    with pytest.raises(PlanProblem, match="companion"):
        Companion(*values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ngroups": 0}, "ngroups is 0"),
        ({"ngroups": 2.0}, "whole number"),
        ({"nints": 0}, "nints is 0"),
        ({"nints": True}, "nints is True"),
        ({"program": 100_000}, "program"),
        ({"activity": 1296}, "activity"),
        ({"filter": "F200W"}, "F277W, F380M, F430M, F480M"),
        ({"star": "AB-DOR"}, "a Star"),
        ({"is_psf": "no"}, "is_psf"),
        ({"title": ""}, "title"),
        ({"start": "yesterday"}, "start is 'yesterday'"),
        ({"start": "2026-02-30T00:00:00"}, "no date"),
        ({"start": "2026-01-01T00:00:00+01:00"}, "UTC"),
        ({"dither": 2}, "n_dithers is 1"),
        ({"n_dithers": 4}, "n_primary × n_subpixel"),
        ({"v3_pa": float("nan")}, "v3_pa"),
        ({"x_offset": float("nan")}, "x_offset"),
        ({"x_offset": 1.8}, "column 72"),
        ({"x_offset": -2.5}, "column 6.8"),
        ({"y_offset": -1.9}, "rows 12 to 71"),
        ({"y_offset": -1.8, "y_error": -0.1}, "row 11.1"),
    ],
)
def test_an_exposure_that_cannot_be_is_refused(values, words):
    with pytest.raises(PlanProblem) as caught:
        replace(ONE, **values)
    assert words in str(caught.value)


def test_all_official_dithers_fit_into_the_subarray():
    for x, y in dither_pattern(4, 25) + dither_pattern(4, 5):
        assert replace(ONE, x_offset=x, y_offset=y).pixel != niriss.AIM_PIXEL or (x, y) == (0, 0)


@given(st.integers(1, 1295), st.integers(1, 99_999), st.integers(1, 999), st.integers(1, 99_999))
def test_the_rootname_is_a_name_that_is_read_back(activity, program, observation, exposure):
    one = replace(ONE, activity=activity, program=program, observation=observation, exposure=exposure)
    name = parse_name(f"{one.rootname}_uncal.fits")
    assert isinstance(name, ExposureName) and name.rootname == one.rootname
    assert int(name.activity, 36) == activity and int(name.program) == program


def test_flight_exposures_last_as_long_as_a_plan_says(shared_data):
    for path in sorted((shared_data / "jw01093").glob("*_cal.fits")):
        facts = Data(path).facts
        one = replace(ONE, ngroups=facts["NGROUPS"], nints=facts["NINTS"], start=facts["DATE-BEG"])
        assert one.end == facts["DATE-END"], path.name
        assert one.exposure_time == pytest.approx(facts["EFFEXPTM"], rel=2e-3)  # rounded there to 1 ms an integration


def test_numpy_numbers_become_plain_ones():
    one = replace(ONE, ngroups=np.int64(5), x_offset=np.float64(0.1), is_psf=np.bool_(True))
    assert [type(v) for v in (one.ngroups, one.x_offset, one.is_psf)] == [int, float, bool]


def test_plans_go_to_other_processes_and_into_sets():
    plan = ready_plan("1516")
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert len(set(plan.exposures)) == len(plan)
    assert hash(replace(STAR, magnitudes={"F480M": 5.0})) == hash(STAR)


# --- brightness


@given(st.floats(1e2, 1e7), st.sampled_from(list(niriss.FILTERS)))
def test_magnitude_and_peak_rate_are_inverse(rate, filt):
    star = replace(STAR, magnitude=magnitude_of_peak(rate, filt))
    assert peak_rate(star, filt) == pytest.approx(rate, rel=1e-9)


def test_a_magnitude_in_one_filter_changes_that_filter_only():
    other = replace(STAR, magnitudes={"F430M": STAR.magnitude + 2.5})
    assert total_rate(other, "F430M") == pytest.approx(total_rate(STAR, "F430M") / 10)
    assert total_rate(other, "F480M") == total_rate(STAR, "F480M")


@given(st.floats(1e3, 1e5), st.floats(3, 10), st.sampled_from(list(niriss.FILTERS)))
def test_groups_and_integrations_reach_what_was_wanted(peak, magnitude, filt):
    star = replace(STAR, magnitude=magnitude)
    n = groups_for_peak(star, filt, peak)
    per_group = peak_rate(star, filt) * niriss.SUB80.frame_time
    assert n == 1 or abs(n * per_group - peak) <= per_group / 2 * (1 + 1e-9)
    photons = 1e8
    nints = integrations_for(star, filt, n, photons)
    per_integration = total_rate(star, filt) * niriss.ramp_time(n)
    assert nints * per_integration >= photons * (1 - 1e-9)
    assert nints == 1 or (nints - 1) * per_integration < photons


def test_the_rates_of_the_three_stars_are_those_of_flight(shared_data):
    name = {"012": "AB-DOR", "015": "HD-37093", "018": "HD-36805"}
    for observation, star in name.items():
        for activity, filt in (("02", "F480M"), ("03", "F430M"), ("04", "F380M")):
            with Data(shared_data / "jw01093" / f"jw01093{observation}001_031{activity}_00001_nis_cal.fits") as data:
                seen = float(niriss.to_electrons(data.peak().rate))
            assert 0.85 < seen / peak_rate(simulate_stars.STARS[star], filt) < 1.05, (star, filt)


@given(st.floats(0, 359.9), st.floats(-80, 80), st.floats(-5e3, 5e3), st.floats(-5e3, 5e3), st.floats(1990, 2030))
def test_moving_to_j2000_is_proper_motion_times_years(ra, dec, pm_ra, pm_dec, epoch):
    new_ra, new_dec = to_j2000(ra, dec, pm_ra, pm_dec, epoch)
    assert (new_dec - dec) * 3.6e6 == pytest.approx(pm_dec * (2000 - epoch), abs=1e-3)
    moved = ((new_ra - ra + 180) % 360 - 180) * np.cos(np.radians(dec)) * 3.6e6
    assert moved == pytest.approx(pm_ra * (2000 - epoch), abs=1e-3)
    assert to_j2000(ra, dec, pm_ra, pm_dec, 2000) == (ra, dec)


# --- plans


def test_two_exposures_of_one_name_are_refused():
    with pytest.raises(PlanProblem, match="already the name of exposure 1"):
        Plan("p", "t", (ONE, replace(ONE, start="2026-01-02T00:00:00")))


def test_exposures_at_one_time_are_refused_in_any_order():
    second = replace(ONE, activity=3, start=later(ONE, ONE.duration - 0.1))
    for pair in ((ONE, second), (second, ONE)):
        with pytest.raises(PlanProblem, match="before exposure"):
            Plan("p", "t", pair)
    Plan("p", "t", (ONE, replace(second, start=ONE.end)))


def test_a_star_with_two_faces_is_refused():
    second = replace(ONE, activity=3, start="2026-01-02T00:00:00", star=replace(STAR, magnitude=6.0))
    with pytest.raises(PlanProblem, match="SIM-X is not the same"):
        Plan("p", "t", (ONE, second))


@pytest.mark.parametrize("exposures", [(), (ONE, "two")])
def test_a_plan_of_something_else_is_refused(exposures):
    with pytest.raises(PlanProblem, match="at least one"):
        Plan("p", "t", exposures)


def test_places_must_be_as_many_as_exposures():
    with pytest.raises(PlanProblem, match="2 places for 1"):
        Plan("p", "t", (ONE,), places=("a", "b"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", READY_PLANS)
def test_ready_plans_hold_together(name, scale):
    plan = ready_plan(name, scale)
    assert plan == ready_plan(int(name), scale)
    assert all(star.name.startswith("SIM-") for star in plan.stars)
    assert {e.program for e in plan} == {int(name)}
    assert check_plan(plan)[0].endswith("not known here")
    assert not any("full after" in remark for remark in check_plan(plan))
    starts = [e.start for e in plan]
    assert starts == sorted(starts)
    for before, after in pairwise(plan.exposures):
        gap = datetime.fromisoformat(after.start) - datetime.fromisoformat(before.end)
        assert gap.total_seconds() >= min(plans.OVERHEADS.values()) - 1e-3
    if scale == "demo":
        assert len(plan) <= (8 if name == "1516" else 24) and sum(e.nints * e.ngroups for e in plan) < 5_000


def test_scales_grow():
    for name in READY_PLANS:
        photons = [sum(e.photons for e in ready_plan(name, scale)) for scale in SCALES]
        assert photons == sorted(photons) and photons[2] > 4 * photons[1]


def test_the_1516_plans_have_what_the_program_asks():
    full = ready_plan("1516", "full")
    assert {e.filter for e in full} == {"F277W", "F380M", "F430M", "F480M"}
    assert {e.n_primary for e in full} == {4}
    for setup in {(e.star.name, e.filter) for e in full}:
        same = [e for e in full if (e.star.name, e.filter) == setup]
        times = {n: sum(e.exposure_time for e in same if e.ngroups == n) for n in {e.ngroups for e in same}}
        assert len(times) >= 5
        assert max(times.values()) / min(times.values()) < 1.01  # the same exposure time at every depth
    photons = {f: max(e.photons for e in full if e.filter == f) for f in niriss.FILTERS}
    assert photons["F277W"] < photons["F430M"]


def test_the_4480_stars_are_as_the_program_says():
    one, two, three, four = ready_plan("4480").stars
    rate = [total_rate(star, "F480M") for star in (one, two, three, four)]
    assert rate[1] / rate[0] == pytest.approx(1, abs=0.05) and one.spectral_type == two.spectral_type
    assert rate[0] / rate[2] == pytest.approx(1.5) and three.spectral_type[0] == one.spectral_type[0]
    assert rate[3] == pytest.approx(rate[2]) and four.spectral_type[0] != three.spectral_type[0]


def test_the_4478_offsets_bring_the_star_to_the_pixel_centre():
    plan = ready_plan("4478", "full")
    away = {e.rootname: np.hypot(*(np.array(e.pixel) - niriss.AIM_PIXEL)) for e in plan}
    commanded = [away[e.rootname] for e in plan if (e.x_offset, e.y_offset) != (0, 0)]
    as_it_falls = [away[e.rootname] for e in plan if (e.x_offset, e.y_offset) == (0, 0)]
    assert len(commanded) == len(as_it_falls) == 30
    assert max(commanded) < 5 * plans.PLACEMENT_SCATTER < np.mean(as_it_falls)


def test_the_1504_steps_are_those_of_flight(shared_data):
    plan = ready_plan("1504", "small")
    for exposure in plan:
        header = Data(shared_data / "jw01093" / f"jw01093020001_03102_{exposure.dither:05d}_nis_cal.fits").header
        assert (exposure.x_offset, exposure.y_offset) == pytest.approx((header["XOFFSET"], header["YOFFSET"]), abs=2e-6)
        assert (exposure.n_dithers, exposure.n_primary, exposure.n_subpixel) == (
            header["NUMDTHPT"],
            header["PRIDTPTS"],
            header["SUBPXPTS"],
        )


@pytest.mark.parametrize(("name", "scale", "word"), [("1093", "demo", "1516"), ("1516", "huge", "full")])
def test_unknown_ready_plans_are_refused(name, scale, word):
    with pytest.raises(PlanProblem, match=word):
        ready_plan(name, scale)


@pytest.mark.parametrize("pattern", [(0, 1), (5, 1), (1, 9), (1.0, 1)])
def test_unknown_dithers_are_refused(pattern):
    with pytest.raises(PlanProblem):
        dither_pattern(*pattern)


def test_lay_out_counts_as_flight_did():
    setups = (Setup(STAR, "F480M", 5, 10), Setup(STAR, "F430M", 4, 10, primary=2, subpixel=5))
    plan = lay_out("p", "t", 1093, [Observation(12, "o", setups), Observation(15, "o", setups[:1])])
    assert [e.rootname[-19:-4] for e in plan][:2] == ["001_03102_00001", "001_03103_00001"]
    assert plan.exposures[10].rootname == "jw01093012001_03103_00010_nis"
    assert plan.exposures[11].rootname == "jw01093015001_03102_00001_nis"
    assert [e.dither for e in plan][1:11] == list(range(1, 11)) and plan.exposures[1].n_dithers == 10


# --- the check


def test_a_star_that_saturates_in_its_first_group_is_refused_by_name_and_line(tmp_path):
    path = tmp_path / "hot.csv"
    path.write_text("target,filter,ngroups,nints,peak_rate\nA,F480M,2,1,9e5\nA,F380M,2,1,9.6e5\n")
    plan = plan_from_table(path)
    with pytest.raises(PlanProblem, match=r"hot.csv, line 3: A fills .* fainter than magnitude 2.78") as caught:
        check_plan(plan)
    faintest = float(str(caught.value).partition("magnitude ")[2].partition(",")[0])
    assert peak_rate(replace(STAR, magnitude=faintest + 0.01), "F380M") * niriss.SUB80.frame_time < niriss.SATURATION_E


def test_what_fills_up_later_is_remarked_on():
    rate = 20_000 / niriss.SUB80.frame_time
    one = replace(ONE, ngroups=4, star=replace(STAR, magnitude=magnitude_of_peak(rate, "F480M")))
    (remark,) = check_plan(Plan("p", "t", (one,)))
    assert "full after group 3 of 4" in remark and "80,000 e-" in remark
    assert check_plan(Plan("p", "t", (replace(one, ngroups=3),))) == []
    assert check_plan(Plan("p", "t", (one,)), saturation_e=81_000) == []


def test_too_few_groups_for_the_pipeline_are_remarked_on_once():
    exposures = tuple(replace(ONE, ngroups=2, activity=k, start=f"2026-01-{k:02d}T00:00:00") for k in (2, 3, 4))
    (remark,) = check_plan(Plan("p", "t", exposures))
    assert "and 2 more" in remark and "charge_migration" in remark


def test_the_table_has_units_and_the_numbers_of_the_plan():
    plan = ready_plan("4480")
    table = plan_table(plan)
    assert list(table["rootname"]) == [e.rootname for e in plan]
    assert table["peak_e"].to_value("electron") == pytest.approx([e.peak_electrons for e in plan])
    assert table["peak_adu"].to_value("adu") * niriss.GAIN == pytest.approx([e.peak_electrons for e in plan])
    assert list(table["role"]) == ["target"] * 2 + ["reference"] * 6
    assert table["duration"].to_value("s").sum() == pytest.approx(sum(e.duration for e in plan))


# --- tables

WORD = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=12).map(
    str.strip
)
NAMES = st.one_of(WORD, st.sampled_from(["no", "1e3", "null", "~", "007", 'a "b", c', "x: y", "#1", "'", "--"])).filter(
    lambda s: bool(s) and s.isprintable()
)
FINE = st.floats(-0.5, 0.5)


@st.composite
def small_plans(draw):
    stars = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        magnitudes = draw(st.dictionaries(st.sampled_from(list(niriss.FILTERS)), st.floats(4, 9), max_size=2))
        companions = draw(st.lists(st.builds(Companion, st.floats(0, 2500), st.floats(-360, 360), st.floats(1e-6, 1))))
        position = (draw(st.floats(0, 359)), draw(st.floats(-90, 90)), draw(FINE), draw(FINE))
        kind = draw(st.sampled_from(["G2V", "K5III", "M8", "A0 V"]))
        stars.append(Star(name, *position, kind, draw(st.floats(4, 9)), magnitudes, tuple(companions)))
    exposures = []
    for k in range(draw(st.integers(1, 4))):
        exposures.append(ExposurePlan(
            draw(st.integers(1, 99_999)), draw(st.integers(1, 999)), 1, 3, k + 1, 1, draw(NAMES), draw(NAMES),
            draw(st.sampled_from(stars)), draw(st.booleans()), draw(st.sampled_from(list(niriss.FILTERS))),
            draw(st.integers(1, 20)), draw(st.integers(1, 20)), 1, 2, 1, 2, draw(FINE), draw(FINE),
            f"2026-01-0{k + 1}T00:00:00.{k}", draw(st.floats(-360, 360)), draw(FINE), draw(FINE),
        ))  # fmt: skip
    return Plan(draw(NAMES), draw(NAMES), tuple(exposures))


@pytest.mark.parametrize("ending", ["csv", *variants("yaml", "ecsv", "yml")])
@given(plan=small_plans())
def test_what_is_written_is_read_back_to_the_last_digit(tmp_path_factory, ending, plan):
    path = tmp_path_factory.mktemp("plan") / f"plan.{ending}"
    again = plan_from_table(write_plan(plan, path))
    assert again == plan
    assert again.places[0].startswith(f"plan.{ending}, line ")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["csv", "ecsv", "yaml"])
@pytest.mark.parametrize("name", READY_PLANS)
def test_ready_plans_go_through_files(tmp_path, name, ending):
    plan = ready_plan(name, "full")
    assert plan_from_table(write_plan(plan, tmp_path / f"x.{ending}")) == plan


def table(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


GOOD = "target,filter,ngroups,nints,magnitude\nA,F480M,4,10,5.0\nA,F480M,12,10,5.0\n"


def test_a_short_table_is_enough(tmp_path):
    plan = plan_from_table(table(tmp_path, GOOD + "B,F430M,5,10,6.0\nA,F430M,5,10,5.1\n"))
    names = [e.rootname[2:26] for e in plan]
    assert names == [
        "99999001001_03102_00001_", "99999001001_03103_00001_", "99999002001_03102_00001_", "99999001001_03104_00001_",
    ]  # fmt: skip
    assert plan.name == plan.title == "t"
    star = plan.exposures[0].star
    assert (star.magnitude, star.magnitudes) == (5.0, {"F430M": 5.1})
    assert plan.exposures[2].star.ra != star.ra
    gaps = [
        (datetime.fromisoformat(b.start) - datetime.fromisoformat(a.end)).total_seconds()
        for a, b in pairwise(plan.exposures)
    ]
    assert gaps == pytest.approx([92, 1800, 1800], abs=2e-3)


def test_dithers_of_a_table_share_an_activity(tmp_path):
    text = "target,filter,ngroups,nints,magnitude,dither,x_offset\n"
    text += "".join(f"A,F480M,4,10,5.0,{d},{0.1 * d}\n" for d in (1, 2, 3, 1, 2, 3))
    plan = plan_from_table(table(tmp_path, text))
    assert [(e.activity, e.exposure, e.dither) for e in plan] == [(a, d, d) for a in (2, 3) for d in (1, 2, 3)]
    assert {(e.n_dithers, e.n_primary, e.n_subpixel) for e in plan} == {(3, 3, 1)}


def test_a_star_without_a_brightness_is_refused():
    with pytest.raises(PlanProblem, match="magnitude is nan"):
        Star("SIM-X", 88.0, -66.5)


def test_known_stars_bring_their_facts(tmp_path):
    plan = plan_from_table(table(tmp_path, "target,filter,ngroups,nints,magnitude\nAB-DOR,F480M,5,69,4.7\n"))
    assert plan.stars[0] == replace(simulate_stars.STARS["AB-DOR"], magnitude=4.7)


def test_comments_blank_lines_and_a_byte_order_mark_are_taken(tmp_path):
    text = "\ufeff# name: mine\n# title: My own\n\n# a remark\n" + GOOD.replace("\n", "\r\n")
    plan = plan_from_table(table(tmp_path, text))
    assert (plan.name, plan.title, plan.places[1]) == ("mine", "My own", "t.csv, line 7")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("12,10", "twelve,10", "line 3, column ngroups: found 'twelve', expected a whole number"),
        ("12,10", "1_2,10", "line 3, column ngroups: found '1_2'"),
        ("12,10", "12.0,10", "line 3, column ngroups: found '12.0'"),
        ("12,10", "0,10", "line 3, column ngroups: ngroups is 0"),
        ("12,10", ",10", "line 3, column ngroups: found nothing"),
        ("12,10,5.0", "12,10,nan", "line 3, column magnitude: found 'nan'"),
        (
            "12,10,5.0",
            "12,10,5.1",
            "line 3, column magnitude: found 5.1, but line 2 says 5.0 for the same target in F480M",
        ),
        ("12,10,5.0", "12,10,99", "line 3, column magnitude"),
        ("A,F480M,4", "A,F444W,4", "line 2, column filter: filter is 'F444W'; the filters with a curve"),
        ("12,10,5.0", "12,10", "line 3: found 4 cells, expected 5"),
        ("12,10,5.0", '12,10,"5.0', "line 3: not a line of a CSV"),
        ("ngroups", "ngroup", "line 1: there is no column 'ngroup'; did you mean ngroups?"),
        ("nints", "filter", "line 1: column filter appears twice"),
        ("target", "", "there is no column ''"),
        (GOOD, "", "holds no exposure"),
        ("magnitude", "v3_pa", "line 2, column magnitude: found nothing"),
    ],
)
def test_a_wrong_cell_is_named_by_line_and_column(tmp_path, old, new, words):
    assert old in GOOD
    with pytest.raises(FileProblem) as caught:
        plan_from_table(table(tmp_path, GOOD.replace(old, new)))
    assert str(caught.value).startswith("t.csv: ") and words in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "cells", "words"),
    [
        ("peak_rate", "4e4", "found a magnitude too"),
        ("is_psf", "maybe", "column is_psf: found 'maybe', expected true or false"),
        ("magnitudes", "F480M:5", "column magnitudes: found 'F480M:5'"),
        ("magnitudes", "F444W=5", "F444W"),
        ("companions", "100 20", "separation, position angle, contrast"),
        ("companions", "100 20 7", "contrast"),
        ("x_offset", "-2.5", "line 2, column: the offset"),
        ("start", "noon", "column start: start is 'noon'"),
        ("dither", "0", "column dither: dither is 0"),
        ("ra", "400", "ra is 400"),
        ("spectral_type", "hot", "spectral_type"),
        ("n_primary", "0", "n_primary is 0"),
    ],
)
def test_a_wrong_optional_cell_is_named(tmp_path, columns, cells, words):
    text = f"target,filter,ngroups,nints,magnitude,{columns}\nA,F480M,4,10,5.0,{cells}\n"
    with pytest.raises(FileProblem, match="line 2") as caught:
        plan_from_table(table(tmp_path, text))
    assert words.replace("line 2, column: ", "") in str(caught.value)


def test_two_positions_of_one_target_are_a_contradiction(tmp_path):
    text = "target,filter,ngroups,nints,magnitude,ra\nA,F480M,4,10,5.0,80\nA,F430M,4,10,5.0,81\n"
    with pytest.raises(FileProblem, match=r"line 3, column ra: found 81\.0, but line 2 says 80\.0"):
        plan_from_table(table(tmp_path, text))


def test_yaml_is_read_as_it_is_written(tmp_path):
    text = "name: y\nexposures:\n  - {target: no, filter: F480M, ngroups: 4, nints: 10, magnitude: 5}\n"
    text += "  - target: 51\n    filter: F430M\n    ngroups: 5\n    nints: 3\n    peak_rate: 4e4\n"
    plan = plan_from_table(table(tmp_path, text, "t.yaml"))
    assert [star.name for star in plan.stars] == ["no", "51"]
    assert plan.places == ("t.yaml, line 3", "t.yaml, line 4")
    assert peak_rate(plan.stars[1], "F430M") == pytest.approx(4e4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "is not YAML"),
        ("", "no list of exposures"),
        ("exposures: 5", "no list of exposures"),
        ("- 5\n", "line 1: expected 'column: value' pairs"),
        ("exposures:\n- target: [A]\n", "line 2: expected a single value"),
        ("- target: !!python/object:os.system x\n", "column filter: found nothing"),
        ("- &a {b: &b [1]}\n", "expected a single value"),
        ("- color: red\n", "there is no column 'color'"),
        ("\x00", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("? [1]\n: 2\n", "no list of exposures"),
    ],
)
def test_wrong_yaml_is_refused(tmp_path, text, words):
    with pytest.raises(FileProblem) as caught:
        plan_from_table(table(tmp_path, text, "t.yaml"))
    assert words in str(caught.value)


def test_ecsv_units_are_converted_and_wrong_ones_refused(tmp_path):
    from astropy.table import QTable
    from astropy.units import Unit

    rows = QTable(
        {"target": ["A"], "filter": ["F480M"], "ngroups": [4], "nints": [10], "magnitude": [5.0], "x_offset": [16.33]}
    )
    rows["x_offset"].unit = "mas"
    rows.write(tmp_path / "t.ecsv")
    assert plan_from_table(tmp_path / "t.ecsv").exposures[0].x_offset == pytest.approx(0.01633)
    rows["x_offset"] = [1.0] * Unit("kg")
    rows.write(tmp_path / "u.ecsv")
    with pytest.raises(FileProblem, match="column x_offset is in kg, expected arcsec"):
        plan_from_table(tmp_path / "u.ecsv")


def test_ecsv_names_the_line_of_the_file(tmp_path):
    path = write_plan(ready_plan("1516"), tmp_path / "t.ecsv")
    lines = path.read_text().splitlines()
    place = next(k for k, line in enumerate(lines) if ",F430M," in line)
    lines[place] = lines[place].replace(",F430M,", ",F444W,")
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(FileProblem, match=f"line {place + 1}, column filter"):
        plan_from_table(path)


@pytest.mark.parametrize("name", ["t.csv", "t.ecsv", "t.yaml", "t.txt"])
def test_files_that_are_no_tables_are_refused(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileProblem):
        plan_from_table(path)
    path.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(FileProblem):
        plan_from_table(path)


@pytest.mark.parametrize("ending", [".csv", ".ecsv", ".yaml"])
def test_a_table_that_is_far_too_large_or_a_pipe_is_not_read(tmp_path, ending):
    (tmp_path / f"large{ending}").touch()
    os.truncate(tmp_path / f"large{ending}", 50_000_001)
    with pytest.raises(FileProblem, match=r"larger than \d+,000,000 bytes"):
        plan_from_table(tmp_path / f"large{ending}")
    os.mkfifo(tmp_path / f"pipe{ending}")  # nobody writes to it
    with pytest.raises(FileProblem, match="is a pipe"):
        plan_from_table(tmp_path / f"pipe{ending}")


def test_every_column_is_told_in_words():
    assert all(column.meaning and column.kind in (str, int, float, bool) for column in PLAN_COLUMNS.values())


def test_writing_fails_whole_or_not_at_all(tmp_path):
    plan = ready_plan("1516")
    with pytest.raises(FileProblem, match=r"ends in '.txt'"):
        write_plan(plan, tmp_path / "p.txt")
    with pytest.raises(FileProblem, match="cannot be written"):
        write_plan(plan, "/proc/nowhere/p.csv")
    (tmp_path / "p.csv").mkdir()
    with pytest.raises(FileProblem, match="cannot be written"):
        write_plan(plan, tmp_path / "p.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


# --- APT files

TEMPLATE = """<JwstProposal xmlns:niami="http://www.stsci.edu/JWST/APT/Template/NirissAmi">
<ProposalInformation><Title>A
  title</Title><ProposalID>1234</ProposalID></ProposalInformation>
<Targets>
<Target><Number>1</Number><TargetName>STAR-1</TargetName><TargetArchiveName>HD 1</TargetArchiveName>
<RAProperMotion>10</RAProperMotion><RAProperMotionUnits>mas/yr</RAProperMotionUnits>
<DecProperMotion>-3.6</DecProperMotion>
<DecProperMotionUnits>arcsec/yr</DecProperMotionUnits><Epoch>2010</Epoch>
<EquatorialCoordinates Value="06 00 00.0 -00 30 00.0"/></Target>
<Target><Number>2</Number><TargetName>STAR-2</TargetName>
<EquatorialCoordinates Value="06 00 00.0 +60 00 00.0"/></Target>
</Targets>
<DataRequests><ObservationGroup>
<Observation><Number>2</Number><TargetID>1 STAR-1</TargetID><Label>first</Label><Template><niami:NirissAmi>
<niami:PrimaryDithers>2</niami:PrimaryDithers><niami:SubpixelPositions>5</niami:SubpixelPositions>
<niami:Subarray>SUB80</niami:Subarray><niami:ExposureList>
<niami:Exposure><niami:Filter>F480M</niami:Filter><niami:ReadoutPattern>NISRAPID</niami:ReadoutPattern>
<niami:Groups>5</niami:Groups><niami:Integrations>20</niami:Integrations></niami:Exposure>
<niami:Exposure><niami:Filter>F380M</niami:Filter><niami:ReadoutPattern>NISRAPID</niami:ReadoutPattern>
<niami:Groups>3</niami:Groups><niami:Integrations>30</niami:Integrations></niami:Exposure>
</niami:ExposureList><niami:DirectImaging>false</niami:DirectImaging><niami:PsfReference>false</niami:PsfReference>
</niami:NirissAmi></Template></Observation>
<Observation><Number>4</Number><TargetID>2 STAR-2</TargetID><Template><niami:NirissAmi>
<niami:PrimaryDithers>NONE</niami:PrimaryDithers><niami:SubpixelPositions>NONE</niami:SubpixelPositions>
<niami:ExposureList><niami:Exposure><niami:Filter>F430M</niami:Filter><niami:Groups>7</niami:Groups>
<niami:Integrations>9</niami:Integrations></niami:Exposure></niami:ExposureList>
<niami:PsfReference>true</niami:PsfReference></niami:NirissAmi></Template></Observation>
<Observation><Number>5</Number><TargetID>2 STAR-2</TargetID><Template><Other/></Template></Observation>
</ObservationGroup></DataRequests>
<LinkingRequirements><GroupWithinLink><Observation>Observation 2</Observation></GroupWithinLink></LinkingRequirements>
</JwstProposal>
"""
MAGNITUDES = {"STAR-1": 5.0, "star-2": {"F430M": 6.0, "F480M": 6.1}}


def apt(tmp_path, old="", new="", name="p.xml"):
    assert old in TEMPLATE
    path = tmp_path / name
    path.write_text(TEMPLATE.replace(old, new) if old else TEMPLATE, encoding="utf-8")
    return path


def test_an_apt_file_becomes_its_exposures(tmp_path):
    plan = plan_from_apt(apt(tmp_path), MAGNITUDES)
    assert len(plan) == 2 * 10 + 1 and plan.title == "A title"
    first, last = plan.exposures[0], plan.exposures[-1]
    assert first.rootname == "jw01234002001_03102_00001_nis" and last.rootname == "jw01234004001_03102_00001_nis"
    assert (first.label, last.label) == ("first", "Observation 4")
    assert (first.is_psf, last.is_psf) == (False, True)
    assert [(e.x_offset, e.y_offset) for e in plan][:10] == list(dither_pattern(2, 5))
    assert {(e.filter, e.ngroups, e.nints) for e in plan} == {("F480M", 5, 20), ("F380M", 3, 30), ("F430M", 7, 9)}
    assert first.star.dec == pytest.approx(-0.5 + 36 / 3600) and first.star.pm_dec == -3600
    assert last.star.magnitudes == {"F430M": 6.0, "F480M": 6.1} and last.star.dec == 60
    assert any("observation 5: excluded" in remark for remark in check_plan(plan))


def test_an_apt_archive_is_read_like_its_document(tmp_path):
    inside = apt(tmp_path, name="1234.xml")
    with zipfile.ZipFile(tmp_path / "p.aptx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(inside, "1234.xml")
        archive.writestr("manifest", "x")
        archive.writestr("notes.xml", "<x/>")
    plan = plan_from_apt(tmp_path / "p.aptx", MAGNITUDES)
    assert plan.exposures == plan_from_apt(inside, MAGNITUDES).exposures


def test_observations_can_be_chosen(tmp_path):
    plan = plan_from_apt(apt(tmp_path), MAGNITUDES, observations=[4])
    assert [e.observation for e in plan] == [4]
    with pytest.raises(FileProblem, match="no observation 3, 9; it has 2, 4, 5"):
        plan_from_apt(apt(tmp_path), MAGNITUDES, observations=[9, 4, 3])
    with pytest.raises(FileProblem, match="no AMI exposure is left"):
        plan_from_apt(apt(tmp_path), MAGNITUDES, observations=[5])


def test_a_star_can_lend_its_light_but_not_its_place(tmp_path):
    lent = replace(simulate_stars.STARS["AB-DOR"], magnitude=6.5)
    star = plan_from_apt(apt(tmp_path), MAGNITUDES | {"HD 1": lent, "STAR-1": lent}).stars[0]
    assert (star.name, star.magnitude, star.companions) == ("STAR-1", 6.5, lent.companions)
    assert star.dec == pytest.approx(-0.49)


def test_a_missing_magnitude_is_asked_for(tmp_path):
    with pytest.raises(FileProblem, match=r"how bright STAR-2 is; give magnitudes=\{'STAR-2': …\}"):
        plan_from_apt(apt(tmp_path), {"STAR-1": 5.0})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<niami:Groups>5</niami:Groups>", "", "observation 2, exposure 1: has no Groups"),
        ("<niami:Groups>5<", "<niami:Groups>five<", "exposure 1: Groups is 'five'"),
        ("<niami:Groups>5<", "<niami:Groups>0<", "ngroups is 0"),
        (">F480M<", ">F090W<", "F090W"),
        ("<TargetID>2 STAR-2</TargetID>", "<TargetID>7 STAR-7</TargetID>", "not in the list of targets"),
        ("<TargetID>1 STAR-1</TargetID>", "", "observation 2: target '' is not in the list"),
        ("<Number>2</Number><TargetID>1", "<Number>x</Number><TargetID>1", "Number is 'x'"),
        ('Value="06 00 00.0 -00 30 00.0"', 'Value="north"', "position is 'north'"),
        ('<EquatorialCoordinates Value="06 00 00.0 -00 30 00.0"/>', "", "position is ''"),
        ("arcsec/yr", "furlong/yr", "DecProperMotion is in 'furlong/yr'"),
        ("<niami:PrimaryDithers>2<", "<niami:PrimaryDithers>9<", "primary dithers is 9"),
        ("<niami:SubpixelPositions>5<", "<niami:SubpixelPositions>7<", "sub-pixel positions is 7"),
        ("<ProposalID>1234<", "<ProposalID>12.5<", "ProposalID is '12.5'"),
        ("</Targets>", "", "not well-formed"),
    ],
)
def test_incomplete_apt_files_are_told_what_they_lack(tmp_path, old, new, words):
    with pytest.raises(FileProblem) as caught:
        plan_from_apt(apt(tmp_path, old, new), MAGNITUDES)
    assert words in str(caught.value) and str(caught.value).startswith("p.xml: ")


@pytest.mark.parametrize(
    ("old", "new", "left", "words"),
    [
        (">SUB80<", ">FULL<", 1, "observation 2: excluded, its subarray is FULL"),
        ("NISRAPID</niami:ReadoutPattern>\n<niami:Groups>5", "NIS</niami:ReadoutPattern>\n<niami:Groups>5", 11, "NIS;"),
        ("<niami:DirectImaging>false", "<niami:DirectImaging>true", 21, "direct images"),
    ],
)
def test_what_is_left_out_is_remarked_on(tmp_path, old, new, left, words):
    plan = plan_from_apt(apt(tmp_path, old, new), MAGNITUDES)
    assert len(plan) == left and any(words in remark for remark in plan.remarks)


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((LAUGHS + TEMPLATE).encode(), "document type or entities"),
        (('<?xml version="1.0" encoding="UTF-16"?>' + LAUGHS + "<x>&b;</x>").encode("utf-16"), "document type"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/hostname"><x/>', "document type"),
        (b"<x>" * 500 + b"</x>" * 500, "nested more than"),
        (b'<?xml version="1.0" encoding="nonsense"?><x/>', "not well-formed"),
        (b"<html/>", "holds a html"),
        (b"", "not well-formed"),
        (bytes(range(256)), "not well-formed"),
        (b"<JwstProposal/>", "no ProposalInformation"),
    ],
)
def test_hostile_and_foreign_documents_are_refused(tmp_path, content, words):
    for name, wrap in (("p.xml", False), ("p.aptx", True)):
        path = tmp_path / name
        path.write_bytes(content)
        if wrap:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("1.xml", content)
        with pytest.raises(FileProblem) as caught:
            plan_from_apt(path, MAGNITUDES)
        assert words in str(caught.value)


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_apt, "LARGEST_APT", 100_000)
    path = tmp_path / "p.aptx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.xml", TEMPLATE + " " * 10_000_000)
    assert path.stat().st_size < 50_000
    with pytest.raises(FileProblem, match="unpacks to more than 100,000 bytes"):
        plan_from_apt(path, MAGNITUDES)
    (tmp_path / "p.xml").write_text(TEMPLATE + " " * 200_000)
    with pytest.raises(FileProblem, match="larger than 100,000 bytes"):
        plan_from_apt(tmp_path / "p.xml", MAGNITUDES)


@pytest.mark.parametrize("names", [(), ("a.xml", "b.xml"), ("1.xml", "2.xml")])
def test_an_archive_must_hold_one_document(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "p.aptx", "w") as archive:
        archive.writestr("manifest", "x")
        for name in names:
            archive.writestr(name, TEMPLATE)
    with pytest.raises(FileProblem, match=rf"holds {len(names)} \.xml files, expected one"):
        plan_from_apt(tmp_path / "p.aptx", MAGNITUDES)


@given(st.data())
def test_a_damaged_archive_never_gives_another_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("apt") / "p.aptx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.xml", TEMPLATE)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        plan = plan_from_apt(path, MAGNITUDES)
    except FileProblem:
        return
    assert len(plan) == 21  # the damage was where nobody reads


def test_missing_files_are_told(tmp_path):
    for path, words in ((tmp_path / "none.xml", "does not exist"), (tmp_path, "is a folder, not a file")):
        with pytest.raises(FileProblem, match=words):
            plan_from_apt(path)


def test_the_real_files_expand_as_their_pointing_file_says(shared_data):
    text = (shared_data / "apt" / "com1093.pointing").read_text()
    wanted, number = {}, 0
    for line in text.splitlines():
        if line.startswith("* Observation"):
            number = int(line.split()[2])
        elif "NIS_AMI1" in line and "SCIENCE" in line:
            words = line.split()
            wanted.setdefault(number, []).append((int(words[2]), int(words[3])))
    plan = plan_from_apt(shared_data / "apt" / "com1093.xml", {"HD-39567": 6.0, "HD-41371": 6.0})
    found = {}
    for e in plan:
        found.setdefault(e.observation, []).append((e.activity - 1, e.dither))
    assert found == {n: wanted[n] for n in found} and len(found) >= 8
    assert any("observation 9: excluded" in remark for remark in plan.remarks)


def test_a_file_without_ami_says_so(shared_data):
    with pytest.raises(FileProblem, match="no AMI exposure is left"):
        plan_from_apt(shared_data / "apt" / "1088.xml")


def test_the_example_793_is_read(shared_data):
    plan = plan_from_apt(shared_data / "apt" / "793.xml")
    assert plan.exposures[0].label == "1093_obs1" and {e.program for e in plan} == {793}
