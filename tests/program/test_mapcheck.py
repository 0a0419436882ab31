"""Planned exposures against files, in both directions."""

import pytest
from toys import rootname, write_exposure

from calami.archive.apt import AptProgram, PlannedExposure, PlannedObservation
from calami.core.problems import CalamiError
from calami.dataset import Dataset
from calami.program.mapcheck import check_mapping, check_words, planned_keys


def plan(*observations, program=1516):
    return AptProgram(program, "t", "p", "CAL", "", "46", "26", {}, observations)


def observation(number=1, *exposures, **more):
    exposures = exposures or (PlannedExposure("F480M", "NISRAPID", 5, 20),)
    return PlannedObservation(number, "", "AB-DOR", "NirissAmi", exposures=exposures, **more)


def checked(folder, *observations):
    return {row["key"]: (row["check"], row["remark"]) for row in check_mapping(Dataset(folder), plan(*observations))}


def test_keys_of_a_plan_are_those_of_files():
    keys = [row["key"] for row in planned_keys(observation(7, primary=2, subpixel=5, acquisition="AMIBRIGHT"))]
    assert keys[0] == "obs007ta" and keys[1] == "obs007_NRM_F480M_5_20_pri1_sub1"
    assert keys[-1] == "obs007_NRM_F480M_5_20_pri2_sub5" and len(keys) == 11


def test_what_is_as_planned_is_found(tmp_path):
    dithers = {"SUBPXPTS": 1, "NUMDTHPT": 2}
    for k in (1, 2):
        write_exposure(tmp_path / f"{rootname(1, 2, k)}_rate.fits", PATT_NUM=k, **dithers)
    for k in (1, 2):  # an acquisition takes several
        write_exposure(tmp_path / f"{rootname(1, 1, k)}_rate.fits", EXP_TYPE="NIS_TACQ", SUBARRAY="SUBTAAMI")
    table = check_mapping(Dataset(tmp_path), plan(observation(1, primary=2, acquisition="AMIBRIGHT")))
    assert set(table["check"]) == {"found"} and len(table) == 4
    assert check_words(table) == "3 planned, 4 files: 4 found, 0 other counts, 0 missing, 0 unplanned"


def test_missing_unplanned_and_other_counts_are_told_apart(tmp_path):
    write_exposure(tmp_path / f"{rootname(1, 2)}_rate.fits", NGROUPS=6)
    write_exposure(tmp_path / f"{rootname(1, 3)}_rate.fits", FILTER="F430M")
    write_exposure(tmp_path / f"{rootname(5)}_rate.fits", TARGPROP="HD-1")
    more = (PlannedExposure("F480M", "NISRAPID", 5, 20), PlannedExposure("F380M", "NISRAPID", 3, 20))
    found = checked(tmp_path, observation(1, *more, acquisition="AMIBRIGHT"))
    assert found["obs001_NRM_F480M_5_20_pri1_sub0"] == ("other counts", "groups 5 → 6")
    assert found["obs001_NRM_F380M_3_20_pri1_sub0"][0] == found["obs001ta"][0] == "missing"
    assert found["obs001_NRM_F430M_5_20_pri1_sub0"][0] == "unplanned"
    assert found["obs005_NRM_F480M_5_20_pri1_sub0"] == ("unplanned", "observation 5 is not in the plan")


def test_a_second_exposure_of_one_set_up_is_unplanned(tmp_path):
    for k in (2, 3):
        write_exposure(tmp_path / f"{rootname(1, k)}_rate.fits")
    table = check_mapping(Dataset(tmp_path), plan(observation(1)))
    assert list(table["check"]) == ["found", "unplanned"] and "planned once" in table["remark"][1]


def test_direct_images_are_planned_without_groups(tmp_path):
    write_exposure(tmp_path / f"{rootname(1, 2)}_rate.fits")
    write_exposure(tmp_path / f"{rootname(1, 3)}_rate.fits", PUPIL="CLEARP", NGROUPS=2)
    assert {c for c, _ in checked(tmp_path, observation(1, direct=True)).values()} == {"found"}


def test_another_program_is_refused(tmp_path):
    write_exposure(tmp_path / f"{rootname(1)}_rate.fits")
    with pytest.raises(CalamiError, match="plan is of program 1504, the files are of 1516"):
        check_mapping(Dataset(tmp_path), plan(observation(1), program=1504))
