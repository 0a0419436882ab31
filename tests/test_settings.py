"""The two files that configure nbdev, and the version in the package, say the same."""

import configparser
import re
import tomllib
from pathlib import Path

import pytest

import calami

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser()
    parser.read(REPO / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_version(settings):
    assert settings["version"] == calami.__version__


def test_project(pyproject, settings):
    project = pyproject["project"]
    assert settings["lib_name"] == project["name"]
    assert settings["description"] == project["description"]
    assert settings["author"] == project["authors"][0]["name"]
    assert settings["keywords"].split(", ") == project["keywords"]
    assert f">={settings['min_python']}" == project["requires-python"]
    assert settings["requirements"].split() == project["dependencies"]
    assert [settings["console_scripts"]] == [f"{k}={v}" for k, v in project["scripts"].items()]


def test_nbdev(pyproject, settings):
    only_nbdev3 = {"exec_profile", "allowed_out_metadata_keys"}
    for key, value in pyproject["tool"]["nbdev"].items():
        if key not in only_nbdev3:
            assert settings[key] == str(value), key


def test_nbdev_is_pinned(pyproject):
    (nbdev,) = (r for r in pyproject["project"]["optional-dependencies"]["dev"] if r.startswith("nbdev"))
    assert re.fullmatch(r"nbdev==[\d.]+", nbdev)


def test_test_flags_have_markers(pyproject):
    markers = {m.partition(":")[0] for m in pyproject["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(pyproject["tool"]["nbdev"]["tst_flags"].split()) - {"notest"} == markers
