"""A few kills of three commands; `tests/campaigns/kill.py` has many of all."""

import pytest
from campaigns import kill
from toys import variants


@pytest.mark.parametrize("work", variants("prep", "index", "fetch"))
def test_what_is_killed_is_finished_by_the_next_run(work):
    assert kill.main(["--only", work, "--kills", "2"]) == 0
