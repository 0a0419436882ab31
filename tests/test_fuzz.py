"""A short campaign of `tests/campaigns/fuzz.py`: damaged files are read as they are or refused in words."""

import subprocess
import sys
from pathlib import Path


def test_damaged_files_are_read_as_they_are_or_refused():
    # In a process of its own, since it takes over a signal and measures memory.
    program = Path(__file__).parent / "campaigns" / "fuzz.py"
    answer = subprocess.run([sys.executable, program, "--count", "60"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
