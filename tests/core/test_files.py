"""Writes that are whole or not at all, and FITS files that are opened with errors in words."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from astropy.io import fits

from calami.core.files import open_regular, part_name, read_json, read_text, read_yaml, whole_files, write_atomically
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
    with pytest.raises(FileProblem, match="is not a FITS file"), open_fits(path, "its SCI extension"):
        pass
    fits.PrimaryHDU().writeto(path, overwrite=True)
    with (
        pytest.raises(FileProblem, match="its SCI extension cannot be read"),
        open_fits(path, "its SCI extension") as h,
    ):
        h["SCI"]
    with pytest.raises(CalamiError, match="ours"), open_fits(path):
        raise CalamiError("ours")


READERS = [open_regular, read_text, read_json, read_yaml, lambda path: open_fits(path).__enter__()]


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in {
        tmp_path: "is a folder",
        tmp_path / "pipe": "is a pipe or a device",
        "/dev/zero": "is a pipe or a device",
        tmp_path / "none": "does not exist",
        tmp_path / "none\0": "cannot be read",
        tmp_path / ("n" * 300): "cannot be read",
    }.items():
        with pytest.raises(FileProblem, match=reason):
            reader(path)


@pytest.mark.parametrize("reader", [read_text, read_json, read_yaml])
def test_a_large_file_is_not_read(tmp_path, reader):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(FileProblem, match="is larger than"):
        reader(tmp_path / "large")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1, 2", "a: b: c", "\x00", "1" * 5000 + "x: ["])
@pytest.mark.parametrize("reader", [read_json, read_yaml])
def test_what_cannot_be_parsed_is_a_problem_of_the_file(tmp_path, reader, text):
    (tmp_path / "a").write_text(text)
    with pytest.raises(FileProblem, match=r"^a: is not (JSON|YAML)") as caught:
        reader(tmp_path / "a")
    assert caught.value.remedy


def test_text_is_read_in_utf8_with_any_line_ends(tmp_path):
    (tmp_path / "a").write_bytes("\ufeffé\r\nb\rc\n".encode())
    assert read_text(tmp_path / "a") == "é\nb\nc\n"
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    with pytest.raises(FileProblem, match="UTF-8"):
        read_text(tmp_path / "a")


def test_yaml_numbers_without_end_and_dates_that_are_none(tmp_path):
    for text in ("2001-99-99", "? [a]\n: b", "1" * 5000):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(FileProblem, match="is not YAML"):
            read_yaml(tmp_path / "a.yaml")
