import os

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import examples, rootname, write_exposure

from calami.dataset import Dataset
from calami.exposures.columns import SUMMARY_COLUMNS
from calami.exposures.mapfile import parse_names
from calami.exposures.naming import MappingProblem, find_name, make_name, tag


@pytest.fixture
def ds(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_exposure(folder / f"{rootname(1, 1)}_rate.fits")
    write_exposure(folder / f"{rootname(1, 2)}_rate.fits", NGROUPS=13)
    write_exposure(folder / f"{rootname(2, 1)}_rate.fits", TARGPROP="HD-37093", TARGNAME="HD 37093", IS_PSF=True)
    return Dataset(folder)


numbers = st.tuples(
    st.integers(1, 99999), st.integers(1, 999), st.integers(1, 999), st.integers(1, 99), st.integers(1, 9),
    st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=2), st.integers(1, 99999),
)  # fmt: skip


def as_root(n):
    return f"jw{n[0]:05d}{n[1]:03d}{n[2]:03d}_{n[3]:02d}{n[4]}{n[5]}_{n[6]:05d}_nis"


@given(numbers, numbers)
@settings(max_examples=examples(500))
def test_tags_are_unique_by_construction(one, two):
    assert (tag(as_root(one)) == tag(as_root(two))) == (as_root(one) == as_root(two))


@given(st.lists(st.tuples(numbers, st.sampled_from([2, 5, 13])), min_size=2, max_size=8))
def test_names_do_not_depend_on_other_files(exposures):
    names = [make_name("default", as_root(n), {"TARGPROP": "AB-DOR", "NGROUPS": g}) for n, g in exposures]
    assert len(set(names)) == len({(as_root(n), g) for n, g in exposures})


def test_names_stay_when_files_are_added(ds):
    before = ds.mapping
    write_exposure(ds.datadir / f"{rootname(1, 1, 2)}_rate.fits")
    write_exposure(ds.datadir / f"{rootname(1, 1, program=1515)}_rate.fits")
    after = Dataset(ds.datadir).mapping
    assert before.items() <= after.items() and len(after) == 5


def test_a_beginning_that_no_longer_suffices_is_an_error(ds):
    assert ds["abdor_f480m_5g"].rootname == rootname(1, 1)
    write_exposure(ds.datadir / f"{rootname(1, 3)}_rate.fits")
    with pytest.raises(MappingProblem, match="may mean any of 2 exposures"):
        Dataset(ds.datadir)["abdor_f480m_5g"]


def test_a_beginning_ends_at_a_word():
    names = {"a_f480m_5g": "x", "a_f480m_55g": "y"}
    assert find_name("a_f480m_5g", names) == "a_f480m_5g"
    with pytest.raises(MappingProblem, match="may mean any of 2"):
        find_name("a_f480m_5", names)
    assert find_name("a_f480m_55", names) == "a_f480m_55g", "the beginning of a single name will do"
    assert find_name("a_f480m", {"a_f480m": "x", "a_f480m_55g": "y"}) == "a_f480m"
    with pytest.raises(MappingProblem, match="no exposure is called"):
        find_name("b", names)


@pytest.mark.parametrize(
    "template", ["{filter", "{0}", "{}", "plain", "{filtre}", "{filter.x}", "{filter!z}", "{Filter}"]
)
def test_templates_that_are_none(ds, template):
    with pytest.raises(MappingProblem, match="template"):
        ds.create_mapping(template=template)


@given(st.text(max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_template_gives_a_name_or_an_error(template):
    try:
        name = make_name(template, rootname(1), {"FILTER": "F480M"})
    except MappingProblem:
        return
    assert name[0].isalnum() and " " not in name


def test_every_column_may_be_used_in_a_template():
    for column in SUMMARY_COLUMNS:
        field = column.keyword.lower().replace("-", "_")
        assert make_name(f"a{{{field}}}", rootname(1), {column.keyword: 5}) == "a5"
        known = {"PROGRAM": "01516", "OBSERVTN": "001", "VISIT": "001"}.get(column.keyword, "x")
        assert make_name(f"a{{{field}}}", rootname(1), {}) == f"a{known}"


def test_a_template_without_tag_is_refused_where_names_collide(ds):
    with pytest.raises(MappingProblem, match=r"calls both .* add \{tag\}"):
        ds.create_mapping(template="{filter}")


def test_commissioning_keys_count_primary_and_subpixel_dithers():
    values = {"PUPIL": "NRM", "FILTER": "F480M", "NGROUPS": 9, "NINTS": 65, "SUBPXPTS": 5}
    keys = [make_name("commissioning", rootname(20), values | {"PATT_NUM": n}) for n in (1, 5, 6, 10)]
    assert [k[-9:] for k in keys] == ["pri1_sub1", "pri1_sub5", "pri2_sub1", "pri2_sub5"]
    assert keys[0] == "obs020_NRM_F480M_9_65_pri1_sub1"


def test_commissioning_keys_of_acquisitions():
    made = [
        make_name("commissioning", rootname(12, 1, k), {"EXP_TYPE": kind})
        for k, kind in ((1, "NIS_TACQ"), (3, "NIS_TACQ"), (1, "NIS_TACONFIRM"))
    ]
    assert made == ["obs012ta", "obs012ta3", "obs012taconfirm"]
    assert make_name("{filter}", rootname(12), {"EXP_TYPE": "NIS_TACQ", "FILTER": "F480M"}) == "f480m"


# --- user files ------------------------------------------------------------------------------------------------------


def write(tmp_path, text, name="names.txt"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_user_file_and_association_file(ds, tmp_path):
    mine = write(
        tmp_path,
        f"# comment\n\nshallow {rootname(1, 1)}\ndeep ngroups=13 targprop=AB-DOR # the deep one\n"
        f'ref targname="HD 37093" is_psf=true\n',
    )
    chosen = ds.create_mapping(mine, tmp_path / "a.yaml")
    assert chosen == {"shallow": rootname(1, 1), "deep": rootname(1, 2), "ref": rootname(2, 1)}
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == chosen
    assert ds.names == ["shallow", "deep", "ref"] and ds["deep"].name == "deep"
    assert ds.summary["name"].tolist() == ds.names
    again = Dataset(ds.datadir)
    assert again.create_mapping(tmp_path / "a.yaml") == chosen


def test_file_names_with_type_are_understood(ds, tmp_path):
    mine = write(tmp_path, f"a {rootname(1, 1)}_rate.fits\nb {rootname(1, 2).upper()}\n")
    assert ds.create_mapping(mine) == {"a": rootname(1, 1), "b": rootname(1, 2)}


def test_exposures_not_named_keep_their_automatic_names(ds, tmp_path):
    automatic = ds.names
    ds.create_mapping(write(tmp_path, f"deep {rootname(1, 2)}\n"), tmp_path / "a.yaml")
    assert ds.names == [automatic[0], "deep", automatic[2]]
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == {"deep": rootname(1, 2)}


MISTAKES = {
    f"a {rootname(1, 1)}\na {rootname(1, 2)}": r"line 2: 'a' is given a second time \(first in line 1\)",
    f"a {rootname(1, 1)}\nb ngroups=5 targprop=AB-DOR": r"line 2: 'b' and 'a' \(line 1\) are both",
    "a filter=F480M": "line 1: 'a': filter=F480M selects 3 exposures",
    "a filter=F277W": "no exposure has filter=F277W; filter is one of F480M",
    "a filtre=F480M": "line 1: 'a': no column 'filtre'",
    "a ngroups=13 ngroups=5": "each keyword once",
    "a =5": "each keyword once, written keyword=value",
    "a": "nothing behind 'a'",
    "a jw01516009001_03101_00001_nis": "no exposure 'jw01516009001_03101_00001_nis' here; there are jw0",
    "a two words": "neither one rootname nor keyword=value pairs",
    f"a/b {rootname(1, 1)}": "'a/b' is no name",
    'a "unclosed': "line 1: no closing quotation",
    "a ngroups=13 targprop=HD-37093": "each of these is found, but not together",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_name_line_and_candidates(ds, tmp_path, text):
    with pytest.raises(MappingProblem, match=MISTAKES[text]):
        ds.create_mapping(write(tmp_path, text))


def test_the_name_of_another_exposure_cannot_be_taken(ds, tmp_path):
    automatic = ds.names[1]
    for name in (automatic, rootname(1, 2)):
        with pytest.raises(MappingProblem, match=r"line 1: .* already means another exposure"):
            ds.create_mapping(write(tmp_path, f"{name} {rootname(1, 1)}\n"))
    assert ds.create_mapping(write(tmp_path, f"{automatic} {rootname(1, 2)}\n")) == {automatic: rootname(1, 2)}
    assert len(ds.mapping) == 3


def test_all_mistakes_come_at_once_in_order(ds, tmp_path):
    mine = write(tmp_path, "b\na filter=F277W\nc c c\nd filter=F480M\n")
    with pytest.raises(MappingProblem) as caught:
        ds.create_mapping(mine)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["line 1", "line 2", "line 3", "line 4"]


@pytest.mark.parametrize(
    "text", ["[1, 2]", "a: [b]", "a: b: c", "a: null", "a: \n", "{", f"a: {rootname(1, 1)}\na: {rootname(1, 2)}"]
)
def test_association_files_that_are_none(ds, tmp_path, text):
    with pytest.raises(MappingProblem):
        ds.create_mapping(write(tmp_path, text, "a.yaml"))


def test_the_user_file_is_kept_next_to_what_completes_it(ds, tmp_path):
    mine = write(tmp_path, f"deep {rootname(1, 2)}\n")
    ds.create_mapping(mine, mine)
    assert mine.with_name(mine.name + ".old").read_text() == f"deep {rootname(1, 2)}\n"


def test_a_user_file_that_cannot_be_read(ds, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "deep.yaml").write_text("[" * 100_000)
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(2**40)
    for name, reason in {
        "binary.txt": "not text",
        "none.txt": "does not exist",
        "": "is a folder",
        "pipe.txt": "is a pipe",
        "deep.yaml": "is not YAML",
        "large.txt": "is larger than",
    }.items():
        with pytest.raises(MappingProblem, match=f"{reason}.*mapping file"):
            ds.create_mapping(tmp_path / name)


def test_keywords_that_are_words_of_python_and_lists_without_end(ds, tmp_path):
    with pytest.raises(MappingProblem, match="no column 'self'"):
        ds.create_mapping(write(tmp_path, "a self=3\n"))
    with pytest.raises(MappingProblem) as caught:
        ds.create_mapping(write(tmp_path, "".join(f"n{k} ngroups={k + 1000}\n" for k in range(20_000))))
    assert str(caught.value).count("\n") < 60 and "and more" in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_complained_of(text):
    entries, wrong = parse_names(text)
    assert len({e.name for e in entries}) == len(entries)
    assert all(w.startswith("line ") for w in wrong)


def test_automatic_names_of_program_1093(shared_data):
    ds = Dataset(shared_data / "jw01093")
    assert len(ds.mapping) == 35
    assert "abdor_f480m_13g_d1_1093o12a3105" in ds.mapping
    ds.create_mapping(template="commissioning")
    assert ds.mapping["obs012_NRM_F480M_5_69_pri1_sub0"] == "jw01093012001_03102_00001_nis"
    assert len(ds.mapping) == 35
