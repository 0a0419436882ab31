"""Writes that are whole or not at all, and FITS files that are opened with errors in words."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from astropy.io import fits

from calami.core.files import part_name, whole_files, write_atomically
from calami.core.fits import open_fits
from calami.core.problems import CalamiError, FileProblem


@pytest.mark.parametrize("content", ["text", b"text", lambda part: part.write_text("text")])
def test_text_bytes_and_functions(tmp_path, content):
    write_atomically(tmp_path / "new" / "a.txt", content)
    assert (tmp_path / "new" / "a.txt").read_text() == "text"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ValueError("a bug"), KeyboardInterrupt()])
def test_what_was_there_stays_when_writing_fails(tmp_path, error):
    def fail(part):
        part.write_text("half")
        raise error

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FileProblem if isinstance(error, OSError) else type(error)):
        write_atomically(tmp_path / "a.txt", fail)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_data_are_not_replaced_by_tables(tmp_path):
    with pytest.raises(CalamiError, match="never written over"):
        write_atomically(tmp_path / "x.fits.gz", "a table")


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    write_atomically(tmp_path / "pipe", "through it")
    assert reader.communicate()[0] == "through it" and (tmp_path / "pipe").is_fifo()


def test_of_several_files_all_or_none(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[1].mkdir()  # cannot be replaced by a file
    with pytest.raises(FileProblem, match="cannot be written"), whole_files(*paths) as parts:
        for part in parts:
            part.write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_leftovers_go_when_their_process_has(tmp_path):
    code = "import sys, os, pathlib, signal; from calami.core.files import part_name\n"
    code += "part_name(pathlib.Path(sys.argv[1])).write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    path = tmp_path / "a[1].txt"
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    (ours := part_name(path)).mkdir()
    (tmp_path / ".a[1].txt.elsewhere-1-0.part").write_text("of another machine")
    write_atomically(path, "whole")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, ours.name, ".a[1].txt.elsewhere-1-0.part"}


def test_a_compressed_file_is_compressed(tmp_path):
    with whole_files(tmp_path / "x.fits.gz") as (part,):
        fits.PrimaryHDU().writeto(part)
    assert (tmp_path / "x.fits.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_a_file_that_is_none_is_said_so(tmp_path):
    path = Path(tmp_path / "x.fits")
    with pytest.raises(FileProblem, match="does not exist"), open_fits(path):
        pass
    path.write_bytes(b"SIMPLE  =")
    with pytest.raises(FileProblem, match="its SCI extension cannot be read"), open_fits(path, "its SCI extension"):
        pass
    fits.PrimaryHDU().writeto(path, overwrite=True)
    with (
        pytest.raises(FileProblem, match="its SCI extension cannot be read"),
        open_fits(path, "its SCI extension") as h,
    ):
        h["SCI"]
    with pytest.raises(CalamiError, match="ours"), open_fits(path):
        raise CalamiError("ours")
