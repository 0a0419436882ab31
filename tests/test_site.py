"""What the site leads to; it is built and looked at by the checks."""

import importlib.util
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parent.parent / "nbs"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("nbdev_pages", NBS / "_site" / "nbdev_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_people_look_for_has_one_page_that_exists(pages):
    topics = [topic.lower() for words in pages.TOPICS.values() for topic in words.split("; ")]
    assert len(set(topics)) == len(topics) and {"groups", "bad pixel", "sigma clip", "onset"} <= set(topics)
    assert [page for page in pages.TOPICS if not (NBS / f"{page}.ipynb").is_file()] == []
    assert not [topic for topic in topics if re.search(r"[,;!:]", topic)]


def test_a_topic_is_a_main_entry_of_the_index(pages):
    assert pages.index("a; b c")["source"].splitlines()[2:4] == ["   ! single: a", "   ! single: b c"]
