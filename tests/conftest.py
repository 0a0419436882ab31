"""Fixtures and options for the tests in this folder."""

import contextlib
import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine is no failure. Where a run decides whether a change is taken, it tries the same examples each time;
# elsewhere new ones are looked for.
settings.register_profile("calami", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("calami")

REPO = Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    # nbs/conftest.py has the same option, so that either folder can be tested alone.
    with contextlib.suppress(ValueError):
        parser.addoption("--run-slow", action="store_true", help="also run what is marked slow")


def pytest_configure(config):
    # Decorators of tests ask for it (`toys.examples`), which are run when the file is read.
    if config.getoption("--run-slow"):
        os.environ["CALAMI_RUN_SLOW"] = "1"


def pytest_collection_finish():
    # Thousands of tests and all that they import live to the end: the collector need not look at them each time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--run-slow"):
        for item in items:
            if item.get_closest_marker("slow"):  # keywords hold the words of parameters, too
                item.add_marker(pytest.mark.skip(reason="slow: give --run-slow to run it"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, which is not part of the repository; skips the test where it is absent."""
    data = Path(os.environ.get("CALAMI_SHARED", REPO.parent / "shared")).resolve() / "data"
    if not (data / "jw01093").is_dir():
        pytest.skip("needs the shared data: ../shared next to the checkout, or CALAMI_SHARED naming it")
    return data


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """An index of its own for every test: none sees what another has read, or the user's."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CALAMI_CACHE", str(cache))
    return cache
