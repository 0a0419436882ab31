"""A few kills of two commands; `tests/campaigns/kill.py` has many of all."""

import pytest
from campaigns import kill


@pytest.mark.parametrize("work", ["prep", *(pytest.param(w, marks=pytest.mark.slow) for w in ("index", "fetch"))])
def test_what_is_killed_is_finished_by_the_next_run(work):
    assert kill.main(["--only", work, "--kills", "2"]) == 0
