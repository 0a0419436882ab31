"""calami.exposures.steps: one table of the names that steps and flags have had."""

import pytest
from astropy.io import fits
from toys import rootname, write_exposure

from calami.exposures.steps import FORMER_FLAGS, RENAMED_STEPS, STEP_KEYWORDS, former_flag, step_name, step_statuses
from calami.process.audit import count_flags, step_table
from calami.process.ownstep import OWN_KEYWORDS
from calami.process.parameters import chain_of, check_parameters


def test_the_table_has_every_step_of_the_installed_version():
    from stdatamodels.jwst.datamodels import JwstDataModel, dqflags

    steps = JwstDataModel().schema["properties"]["meta"]["properties"]["cal_step"]["properties"]
    now = {values["fits_keyword"]: step_name(step) for step, values in steps.items() if "fits_keyword" in values}
    stock = {keyword: step for keyword, step in now.items() if keyword not in OWN_KEYWORDS}
    assert stock.items() <= STEP_KEYWORDS.items()
    assert not set(RENAMED_STEPS) & set(STEP_KEYWORDS.values())
    assert not {name for name, _ in FORMER_FLAGS.values()} & set(dqflags.pixel)


@pytest.mark.parametrize("keyword", ["S_CHGMIG", "S_UNDSMP"])
def test_a_step_is_known_by_all_its_keywords(keyword, tmp_path):
    assert step_statuses({keyword: " COMPLETE ", "S_REGION": "POLYGON"}) == {"charge_migration": "COMPLETE"}
    assert step_statuses({"S_UNDSMP": "COMPLETE", "S_CHGMIG": "SKIPPED"}) == {"charge_migration": "COMPLETE"}
    product = write_exposure(tmp_path / f"{rootname()}_rate.fits", **{keyword: "COMPLETE"}, S_DARK="SKIPPED")
    table = step_table(product)
    assert list(table["step"]) == ["dark_current", "charge_migration"]
    assert list(table["status"]) == ["SKIPPED", "COMPLETE"]


@pytest.mark.parametrize("old", ["dark_sub", "undersampling_correction"])
def test_old_names_can_be_asked_for(old):
    assert chain_of(old) == (step_name(old),)
    assert check_parameters("detector1", {f"{old}.skip": True}) == {f"{step_name(old)}.skip": True}


@pytest.mark.parametrize(
    ("version", "flags"),
    [
        ("1.9.6", {"RESERVED_4", "UNRELIABLE_ERROR", "UNRELIABLE_RESET"}),
        ("1.11.4", {"CHARGELOSS", "UNRELIABLE_ERROR", "FLUX_ESTIMATED"}),
        ("1.20.2", {"CHARGELOSS", "RESERVED", "FLUX_ESTIMATED"}),
        ("who knows", {"CHARGELOSS", "RESERVED", "FLUX_ESTIMATED"}),
    ],
)
def test_a_flag_is_called_what_it_meant_when_it_was_set(version, flags, tmp_path):
    product = write_exposure(tmp_path / f"{rootname()}_rate.fits", CAL_VER=version)
    with fits.open(product, "update") as hdus:
        hdus["DQ"].data[0, 0] = 1 << 7 | 1 << 8 | 1 << 28
    assert set(count_flags(product)["flag"]) == flags
    assert former_flag(0, version) is None
