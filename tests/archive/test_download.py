"""Faults of an archive and its network; each ends byte-identical or in an error that names the file."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mast_standin import GOOD_TOKEN, StandIn, data_set, fits_bytes, small_program

from calami.archive import download, token
from calami.archive import mast as archive_mast
from calami.core.problems import CalamiError
from calami.dataset import Dataset

QUICK = archive_mast.Patience(tries=3, backoff=0.01, longest=0.3)
# Where a transfer is to be given up soon; a machine that is busy elsewhere may need another attempt.
HASTY = QUICK._replace(stall=0.3, slowest=1e4, tries=10)
NAME = "jw01516001001_03102_00001_nis_uncal.fits"
OTHER = "jw01516002001_03102_00001_nis_uncal.fits"


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("MAST_API_TOKEN", raising=False)
    import keyring

    monkeypatch.setattr(keyring, "get_password", lambda *_: None)


@pytest.fixture
def mast():
    with StandIn(small_program(), chunk=4096) as standin:
        yield standin


def listed(name=NAME, standin=None, **changes):
    size = len(standin.files[name]) if standin and name in standin.files else 1
    return archive_mast.Product(name, f"x/{name}", size, True, name.rsplit("_", 1)[0], "1b")._replace(**changes)


def get(standin, folder, name=NAME, **options):
    options.setdefault("patience", QUICK)
    product = listed(name, standin, **options.pop("changes", {}))
    return download.download([product], folder, **options)


def is_identical(standin, folder, name=NAME):
    return (folder / name).read_bytes() == standin.files[name]


def fails(standin, folder, word, name=NAME, **options):
    """The download fails with an error that names the file, and nothing stands under its name."""
    with pytest.raises(CalamiError, match=word) as caught:
        get(standin, folder, name, **options)
    assert name in str(caught.value)
    assert not (folder / name).exists()
    return caught.value


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if ".part" in p.name)


# --- faults that end well -------------------------------------------------------------------------------------------

PASSING = {
    "drop mid-file": ["drop:3000"],
    "drop again and again": ["drop:3000", "drop:0", "drop:100"][:2],
    "drop without Content-Length": ["no-length:3000"],
    "no Content-Length at all": ["no-length"],
    "Range ignored": ["drop:3000", "no-range"],
    "Range answered elsewhere": ["drop:3000", "wrong-range"],
    "shorter once": ["shorter"],
    "longer once": ["longer"],
    "error page with status 200": ["page"],
    "same size, damaged": ["corrupt"],
    "slow trickle": ["trickle"],
    "429 with Retry-After": ["429:0.1"],
    "429 with a date": ["429:Wed, 21 Oct 2015 07:28:00 GMT"],
    "500": ["500", "500"],
    "503": ["503"],
    "404 once": ["404"],
    "redirect on the same host": ["redirect:/elsewhere/NAME"],
    "made anew in between, same size": ["drop:3000", "remade"],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_a_passing_fault_ends_byte_identical(mast, tmp_path, faults):
    mast.faults[NAME] = list(faults)
    table = get(mast, tmp_path, patience=HASTY if "trickle" in faults else QUICK)
    assert table["status"].tolist() == ["fetched"] and is_identical(mast, tmp_path)
    assert table["sha256"][0] == hashlib.sha256(mast.files[NAME]).hexdigest()
    assert not mast.faults[NAME] and not leftovers(tmp_path) and download.verify(tmp_path) == []


@pytest.mark.parametrize("faults", [["drop:3000"], ["drop:3000", "remade"]], ids=["same", "made anew"])
def test_without_validators_the_beginning_is_compared(mast, tmp_path, faults):
    mast.validators, mast.faults[NAME] = False, list(faults)
    get(mast, tmp_path)
    assert is_identical(mast, tmp_path)


def test_a_drop_is_resumed_and_not_begun_anew(mast, tmp_path):
    mast.faults[NAME] = ["drop:3000"]
    assert get(mast, tmp_path)["received"][0] == len(mast.files[NAME])
    asked = [h.get("Range") for _, path, h in mast.requests if "retrieve" in path]
    assert asked == [None, "bytes=3000-"]


# --- faults that end in an error ------------------------------------------------------------------------------------

LASTING = {
    "drop always": (["drop:0"] * 9, "connection (ended|broke)"),
    "drop without Content-Length always": (["no-length:3000"] + ["drop:0"] * 9, "after 3,000"),
    "shorter": (["shorter"] * 9, "product list says"),
    "longer": (["longer"] * 9, "product list says"),
    "longer without Content-Length": (["page", "page"], "product list says.*text/html"),
    "same size, damaged": (["corrupt"] * 9, "what the archive sent"),
    "stall": (["stall"] * 9, "stalled|broke"),
    "429": (["429"] * 9, "busy.*429"),
    "500": (["500"] * 9, "busy.*500"),
    "503": (["503"] * 9, "busy.*503"),
    "listed but missing": (["404"] * 9, "no such file"),
    "redirect without end": (["redirect:/a/NAME"] * 20, "without end"),
    "redirect to a file": (["redirect:file:///etc/passwd"] * 9, "not safe"),
    "teapot": (["418"] * 9, "418"),
}


@pytest.mark.parametrize(("faults", "word"), LASTING.values(), ids=LASTING)
def test_a_lasting_fault_ends_in_an_error_that_names_the_file(mast, tmp_path, faults, word):
    mast.faults[NAME] = list(faults)
    patience = QUICK._replace(timeout=0.15) if "stall" in faults else QUICK
    fails(mast, tmp_path, word, patience=patience)


def test_the_other_files_come_all_the_same(mast, tmp_path):
    mast.faults[NAME] = ["404"] * 9
    with pytest.raises(download.DownloadProblem, match="1 of 2") as caught:
        download.download([listed(NAME, mast), listed(OTHER, mast)], tmp_path, patience=QUICK)
    assert is_identical(mast, tmp_path, OTHER) and caught.value.report["status"].tolist() == ["failed", "fetched"]
    assert list(download.read_manifest(tmp_path)) == [OTHER]


def test_an_unreachable_archive_is_named(mast, tmp_path):
    product = listed(NAME, mast)
    mast.server.shutdown()
    mast.server.server_close()
    with pytest.raises(CalamiError, match=r"no connection to 127\.0\.0\.1"):
        download.download([product], tmp_path, patience=QUICK._replace(tries=1))
    mast.start()


# --- what is on the disk already ------------------------------------------------------------------------------------


@pytest.mark.parametrize("note", ["none", "lying", "garbage"])
def test_a_junk_partial_file_is_never_built_upon(mast, tmp_path, note):
    part = tmp_path / f".{NAME}.part"
    part.write_bytes(b"junk" * 900)
    told = {"bytes": 3600, "sha256": "0" * 64, "validator": ""}
    if note != "none":
        part.with_name(part.name + ".json").write_text(json.dumps(told) if note == "lying" else "{")
    get(mast, tmp_path)
    assert is_identical(mast, tmp_path) and not leftovers(tmp_path)


def test_a_partial_file_longer_than_noted_is_cut_back(mast, tmp_path):
    mast.faults[NAME] = ["drop:3000"] + ["drop:0"] * 3
    fails(mast, tmp_path, "connection")
    with (tmp_path / f".{NAME}.part").open("ab") as file:
        file.write(b"written by nobody knows whom")
    assert get(mast, tmp_path)["received"][0] == len(mast.files[NAME]) - 3000
    assert is_identical(mast, tmp_path)


@pytest.mark.parametrize("damage", ["a byte", "all"])
def test_a_partial_file_that_was_damaged_is_never_built_upon(mast, tmp_path, damage):
    # As long as noted, and in its pixels, where no look at the headers finds it: a file made of this and the rest of
    # what the archive has would be taken for whole.
    mast.put(NAME, fits_bytes(7, shape=(2, 5, 40, 40)), "x")
    mast.faults[NAME] = ["drop:20000", "drop:0", "drop:0"]
    fails(mast, tmp_path, "connection")
    part = tmp_path / f".{NAME}.part"
    received = bytearray(part.read_bytes())
    assert len(received) == 20_000 and not mast.faults[NAME]
    place = slice(15_000, 15_001 if damage == "a byte" else None)
    received[place] = bytes(value ^ 1 for value in received[place])
    part.write_bytes(received)
    table = get(mast, tmp_path)
    assert is_identical(mast, tmp_path) and not leftovers(tmp_path)
    assert table["received"][0] == len(mast.files[NAME])
    assert table["sha256"][0] == hashlib.sha256(mast.files[NAME]).hexdigest()


@pytest.mark.parametrize("junk", [b"", b"junk", b"cut"])
def test_a_junk_file_under_the_final_name_is_replaced(mast, tmp_path, junk):
    (tmp_path / NAME).write_bytes(mast.files[NAME][:-2880] if junk == b"cut" else junk)
    get(mast, tmp_path)
    assert is_identical(mast, tmp_path) and len(list(tmp_path.glob("*.old*"))) == 0


def test_junk_of_the_right_size_under_the_final_name_is_replaced(mast, tmp_path):
    (tmp_path / NAME).write_bytes(b"j" * len(mast.files[NAME]))
    get(mast, tmp_path)
    assert is_identical(mast, tmp_path)


def test_a_whole_file_of_another_size_is_kept_aside(mast, tmp_path):
    mine = fits_bytes(5, shape=(2, 3, 20, 20))
    (tmp_path / NAME).write_bytes(mine)
    reason = get(mast, tmp_path)["reason"][0]
    assert is_identical(mast, tmp_path) and (tmp_path / f"{NAME}.old1").read_bytes() == mine and ".old1" in reason


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(mast, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".{NAME}.part").symlink_to(victim)
    fails(mast, tmp_path, "cannot be written")
    assert victim.read_bytes() == b"precious"


def test_what_is_there_and_whole_is_not_asked_for(mast, tmp_path):
    get(mast, tmp_path)
    mast.requests.clear()
    assert get(mast, tmp_path)["status"].tolist() == ["there"] and not mast.requests


# --- the disc and the process ---------------------------------------------------------------------------------------


DISC = {errno.ENOSPC: "disc is full", errno.EDQUOT: "disc is full", errno.EIO: "cannot be written"}


@pytest.mark.parametrize(("code", "word"), DISC.items(), ids=DISC.values())
def test_a_full_or_broken_disc_is_told_and_what_was_received_is_taken_up(mast, tmp_path, monkeypatch, code, word):
    mast.put(NAME, fits_bytes(7, shape=(2, 5, 40, 40)), "x")
    count, write = [], os.pwrite

    def full(*arguments):
        count.append(1)
        if len(count) > 5:
            raise OSError(code, os.strerror(code))
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(download, "_CHECKPOINT", 4096)
        patch.setattr(download, "_BLOCK", 4096)
        patch.setattr(download.os, "pwrite", full)
        fails(mast, tmp_path, word)
    assert get(mast, tmp_path)["received"][0] < len(mast.files[NAME]) and is_identical(mast, tmp_path)


def test_too_small_a_disc_is_seen_before_anything_is_fetched(mast, tmp_path):
    with pytest.raises(CalamiError, match="free; make room"):
        get(mast, tmp_path, changes={"size": 10**18})
    assert not list(tmp_path.iterdir()) and not mast.requests


SCRIPT = """
import sys
from pathlib import Path
from astroquery.mast import conf
from calami.archive import download as archive
conf.server = sys.argv[1]
archive._CHECKPOINT = 4096
product = archive.Product(sys.argv[3], sys.argv[3], int(sys.argv[4]), True, "x", "1b")
print("ready", flush=True)
table = archive.download([product], sys.argv[2])
print(table["status"][0], table["received"][0])
"""


def in_process(standin, folder, name=NAME):
    arguments = [standin.url, str(folder), name, str(len(standin.files[name]))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, env=environment)


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_a_killed_process_is_taken_up_where_it_was(mast, tmp_path):
    mast.put(NAME, fits_bytes(7, shape=(2, 5, 40, 40)), "x")
    mast.faults[NAME] = ["slowly:0.05"]
    process = in_process(mast, tmp_path)
    part = tmp_path / f".{NAME}.part"
    wait_for(lambda: part.exists() and part.stat().st_size > 20_000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / NAME).exists()
    received = get(mast, tmp_path)["received"][0]
    assert is_identical(mast, tmp_path) and received < len(mast.files[NAME]) - 12_000 and not leftovers(tmp_path)


def test_two_processes_at_once_fetch_it_once(mast, tmp_path):
    mast.put(NAME, fits_bytes(7, shape=(2, 5, 40, 40)), "x")
    mast.faults[NAME] = ["slowly:0.03"]
    process = in_process(mast, tmp_path)
    wait_for(lambda: (tmp_path / f".{NAME}.part").exists())
    mine = get(mast, tmp_path)
    told = process.communicate(timeout=30)[0].decode().split()[1:]
    assert sorted([told[0], mine["status"][0]]) == ["fetched", "there"] and is_identical(mast, tmp_path)
    assert sum("retrieve" in path for _, path, _ in mast.requests) == 1 and download.verify(tmp_path) == []


def test_many_threads_and_two_downloads_at_once(tmp_path):
    with StandIn(small_program(observations=range(1, 13)), chunk=512) as mast:
        products = archive_mast.list_products(archive_mast.search(1516))
        outcome = []
        threads = [
            threading.Thread(target=lambda: outcome.append(download.download(products, tmp_path, workers=6)))
            for _ in range(2)
        ]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(outcome) == 2 and all((tmp_path / p.name).read_bytes() == mast.files[p.name] for p in products)
        assert (
            len(download.read_manifest(tmp_path)) == 12 and download.verify(tmp_path) == [] and not leftovers(tmp_path)
        )


def test_where_there_are_no_locks_each_has_its_own_partial_file(mast, tmp_path, monkeypatch):
    import fcntl

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    get(mast, tmp_path)
    assert is_identical(mast, tmp_path) and leftovers(tmp_path) == [f".{NAME}.part"]


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_a_proprietary_file_without_a_token_is_named(mast, tmp_path):
    mast.hide(NAME)
    with pytest.raises(CalamiError, match=f"not public.*{NAME}.*token"):
        download.fetch(1516, "uncal", tmp_path, patience=QUICK)
    assert not list(tmp_path.iterdir())
    assert download.fetch(1516, "uncal", tmp_path, public_only=True)["file"].tolist() == [OTHER]


def test_a_proprietary_file_comes_with_a_token(mast, tmp_path, monkeypatch):
    mast.hide(NAME)
    monkeypatch.setenv("MAST_API_TOKEN", GOOD_TOKEN)
    assert len(download.fetch(1516, "uncal", tmp_path)) == 2 and is_identical(mast, tmp_path)


def test_the_token_of_astroquerys_store_is_used(monkeypatch):
    import keyring

    monkeypatch.setattr(keyring, "get_password", lambda service, user: f"from-{service[:9]}-{user}")
    assert token.find_token().cookie() == "mast_token=from-astroquer-masttoken"


def test_a_server_without_a_key_ring_is_no_error(monkeypatch):
    import keyring
    from keyring.errors import NoKeyringError

    def none(*_):
        raise NoKeyringError

    monkeypatch.setattr(keyring, "get_password", none)
    assert token.find_token() is None


@pytest.mark.parametrize(
    "text", ["short", "with blank inside", "line\nbreak-and-header: x", "semi;colon;colon", "é" * 20]
)
def test_a_text_that_is_no_token_is_refused_without_repeating_it(text):
    with pytest.raises(CalamiError) as caught:
        token.Token(text)
    assert text not in str(caught.value)


def test_a_bad_token_is_told_before_anything_is_fetched(mast, tmp_path):
    mast.hide(NAME)
    with pytest.raises(CalamiError, match="does not accept the token"):
        download.fetch(1516, "uncal", tmp_path, token="0123456789-bad", patience=QUICK)
    assert not any("retrieve" in path for _, path, _ in mast.requests)


def test_a_token_that_expires_on_the_way_is_told(mast, tmp_path):
    mast.hide(NAME)
    mast.faults[NAME] = ["401"]
    fails(mast, tmp_path, "expired", token=GOOD_TOKEN, changes={"public": False})


def test_a_file_that_turns_out_not_public_is_told(mast, tmp_path):
    mast.proprietary.add(NAME)
    fails(mast, tmp_path, "is not public: give a token")


def test_the_token_stays_behind_when_sent_to_another_host(mast, tmp_path):
    elsewhere = StandIn().start(redirect_astroquery=False)
    elsewhere.files[NAME] = mast.files[NAME]
    mast.faults[NAME] = [f"redirect:{elsewhere.url.replace('127.0.0.1', 'localhost')}/copy/NAME"]
    get(mast, tmp_path, token=GOOD_TOKEN)
    elsewhere.stop()
    assert is_identical(mast, tmp_path) and len(elsewhere.requests) == 1
    assert GOOD_TOKEN in str(mast.requests) and GOOD_TOKEN not in str(elsewhere.requests)


def test_a_token_is_neither_logged_nor_stored_nor_shown(mast, tmp_path, caplog, capsys, monkeypatch):
    import copy
    import logging
    import pickle

    mast.hide(NAME)
    mast.faults[NAME] = ["drop:3000", "503"]
    monkeypatch.setattr(archive_mast.Patience, "pause", lambda *_: 0.01)
    with caplog.at_level(logging.DEBUG):
        data = Dataset((1516, GOOD_TOKEN, tmp_path / "d"), "uncal", infodir=tmp_path / "info", verbose=True)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    shown = f"{data!r} {vars(data)} {token.Token(GOOD_TOKEN)!r} {caplog.text} {capsys.readouterr()}"
    assert GOOD_TOKEN not in shown and GOOD_TOKEN.encode() not in written
    for write in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            write(token.Token(GOOD_TOKEN))


# --- the search and the list ----------------------------------------------------------------------------------------


def test_whole_numbers_and_columns_told_twice(mast):
    table = archive_mast.search("01516")
    assert table["program"].tolist() == [1516, 1516] and table["observation"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("conditions", "observations"),
    [
        ({"observations": "2"}, [2]), ({"observations": (1, "002")}, [1, 2]), ({"observations": "1-5"}, [1, 2]),
        ({"target": "hd 37093"}, [2]), ({"target": "AB*"}, [1]), ({"filters": "f480m"}, [1, 2]),
        ({"after": "2026-03-02"}, [2]), ({"before": "2026-03-01"}, [1]), ({"before": 61100.0}, None),
        ({"after": "1990-01-01", "before": "2050-01-01T00:00"}, [1, 2]), ({"filters": ("F380M",)}, None),
        ({"exp_types": None}, [1, 2, 3]), ({"exp_types": "NIS_TACQ"}, [3]),
    ],
)  # fmt: skip
def test_conditions(mast, conditions, observations):
    mast.add(data_set(3, exp_type="NIS_TACQ"), {})
    if observations is None:
        with pytest.raises(CalamiError, match=r"meets all conditions; there are observations 1 \(AB-DOR F480M"):
            archive_mast.search(1516, **conditions)
    else:
        assert archive_mast.search(1516, **conditions)["observation"].tolist() == observations


def test_a_target_is_enough(mast):
    assert archive_mast.search(target="AB DOR")["program"].tolist() == [1516]


@pytest.mark.parametrize("program", ["", "abc", -1, 0, 123456, "1516; drop"])
def test_what_is_no_program_is_refused(program):
    with pytest.raises(CalamiError, match="no program number"):
        archive_mast.search(program)


def test_an_unknown_program_is_told(mast):
    with pytest.raises(CalamiError, match="no NIRISS data of program 9999"):
        download.fetch(9999, "uncal")


def test_a_program_of_another_kind_is_told(mast):
    mast.add(data_set(1, program=1541, exp_type="NIS_SOSS"), {})
    with pytest.raises(CalamiError, match="no NIS_AMI data of program 1541; there are 1 data sets of type NIS_SOSS"):
        archive_mast.search(1541)


def test_a_type_that_there_is_not_is_told(mast, tmp_path):
    with pytest.raises(CalamiError, match=r"no _calints\.fits files; there are rateints, uncal"):
        download.fetch(1516, "calints", tmp_path)


def test_more_data_sets_than_one_answer_holds(monkeypatch):
    monkeypatch.setattr(archive_mast, "_PAGE", 3)
    with StandIn(small_program(observations=range(1, 9), types=())) as mast:
        assert len(archive_mast.search(1516)) == 8
        assert sum(path.endswith("/search") for _, path, _ in mast.requests) == 3


def test_product_lists_come_in_batches_and_a_batch_that_is_too_slow_is_halved():
    with StandIn([(data_set(o), {"uncal": b"SIMPLE"}) for o in range(1, 61)]) as mast:
        assert len(archive_mast.list_products(archive_mast.search(1516))) == 60
        assert sum("post_list" in path for _, path, _ in mast.requests) == 3
        mast.slow_lists = 15
        assert len(archive_mast.list_products(archive_mast.search(1516), patience=QUICK._replace(tries=1))) == 60


def test_a_data_set_that_the_list_forgot_is_asked_for_again(mast):
    mast.faults["post_list_products"] = ["forget:jw01516002001_03102_00001_nis"]
    assert [p.name for p in archive_mast.list_products(archive_mast.search(1516))] == [NAME, OTHER]


@pytest.mark.parametrize(("endpoint", "fault"), [("search", "500"), ("search", "503"), ("post_list_products", "503")])
def test_a_busy_search_is_asked_again(mast, endpoint, fault):
    mast.faults[endpoint] = [fault]
    assert len(archive_mast.list_products(archive_mast.search(1516, patience=QUICK), patience=QUICK)) == 2


def test_a_search_that_hangs_ends(mast):
    mast.faults["search"] = ["hang"]
    with pytest.raises(CalamiError, match=r"search for program 1516.*no answer within 0.2 s"):
        archive_mast.search(1516, patience=QUICK._replace(search=0.2, tries=1))


def test_a_data_set_without_any_files_in_the_list_is_named(mast, tmp_path, caplog):
    mast.faults["post_list_products"] = ["forget:jw01516002001_03102_00001_nis"] * 2
    assert len(archive_mast.list_products(archive_mast.search(1516), "uncal", patience=QUICK)) == 1
    assert "no files at all of jw01516002001_03102_00001_nis" in caplog.text


@pytest.mark.parametrize("size", [None, "", 0])
def test_a_size_that_is_not_told_is_no_size(mast, tmp_path, size):
    for product in mast.products:
        product["size"] = size
    assert [p.size for p in archive_mast.list_products(archive_mast.search(1516), "uncal")] == [-1, -1]
    download.fetch(1516, "uncal", tmp_path, patience=QUICK)
    assert is_identical(mast, tmp_path)


@pytest.mark.parametrize("wrong", ["5-3", "3-", "0-99999999999", "1516"])
def test_what_is_no_range_of_observations_is_refused_and_not_taken_for_all(mast, wrong):
    with pytest.raises(CalamiError, match="no observation number"):
        archive_mast.search(1516, observations=wrong)


def test_duplicate_products_are_fetched_once(mast, tmp_path):
    mast.products += [dict(p) for p in mast.products]
    download.fetch(1516, "uncal", tmp_path)
    assert sum("retrieve" in path for _, path, _ in mast.requests) == 2


HOSTILE = [
    "../evil.fits",
    "/etc/evil.fits",
    "a/b.fits",
    "..\\evil.fits",
    ".hidden.fits",
    "x\0.fits",
    "jw..fits",
    "nodot",
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leaves_the_folder_is_refused(mast, tmp_path, name):
    mast.put("x", b"x", "jw01516001001_03102_00001_nis", filename=name, uri="x")
    with pytest.raises(CalamiError, match="no plain file name"):
        download.fetch(1516, (), tmp_path / "in")
    with pytest.raises(CalamiError, match="no plain file name"):
        download.download([listed(name)], tmp_path / "in", patience=QUICK)
    assert not list(tmp_path.iterdir())


def test_guide_star_files_only_when_asked_for(mast):
    dataset = mast.rows[0]["fileSetName"]
    mast.put("jw01516001001_gs-fg_2026060100000_uncal.fits", b"x", dataset)
    assert (
        len(archive_mast.list_products([dataset])) == 1
        and len(archive_mast.list_products([dataset], guide_stars=True)) == 2
    )


# --- all together ---------------------------------------------------------------------------------------------------


def test_a_dry_run_fetches_nothing_and_tells_sizes(mast, tmp_path):
    plan = download.fetch(1516, "uncal", tmp_path / "new", dry_run=True)
    assert plan["status"].tolist() == ["to fetch"] * 2 and plan["size"][0] == len(mast.files[NAME])
    assert not (tmp_path / "new").exists() and not any("retrieve" in path for _, path, _ in mast.requests)


def test_the_public_copy_serves_what_it_has_and_mast_the_rest(mast, tmp_path, monkeypatch):
    bucket = StandIn().start(redirect_astroquery=False)
    bucket.files[NAME] = mast.files[NAME]
    mast.s3[NAME] = f"jwst/public/jw01516/x/{NAME}"
    monkeypatch.setattr(download, "S3_SERVER", bucket.url)
    table = download.fetch(1516, "uncal", tmp_path, source="s3", token=GOOD_TOKEN)
    bucket.stop()
    assert table["source"].tolist() == [bucket.url, mast.url] and is_identical(mast, tmp_path)
    assert GOOD_TOKEN not in str(bucket.requests)


def test_the_manifest_tells_what_was_damaged_later(mast, tmp_path):
    download.fetch(1516, "uncal", tmp_path)
    entry = download.read_manifest(tmp_path)[NAME]
    assert entry["from"] == mast.url and entry["sha256"] == hashlib.sha256(mast.files[NAME]).hexdigest()
    damaged = bytearray(mast.files[NAME])
    damaged[-3000] ^= 1
    (tmp_path / NAME).write_bytes(damaged)
    (tmp_path / OTHER).unlink()
    assert download.verify(tmp_path) == [f"{NAME}: is not what was received", f"{OTHER}: is missing"]
    (tmp_path / download.MANIFEST).write_text("[]")
    with pytest.raises(CalamiError, match="no manifest"):
        download.verify(tmp_path)


def test_an_apt_file_is_fetched_once(mast, tmp_path, monkeypatch):
    import io
    import zipfile

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archived:
        archived.writestr("1516.xml", "<JwstProposal/>")
    monkeypatch.setattr(download, "APT_URL", mast.url + "/phase2-public/{program}.aptx")
    mast.files["1516.aptx"] = packed.getvalue()
    mast.faults["1516.aptx"] = ["page", "drop:20"]
    assert download.fetch_apt("1516", tmp_path, patience=QUICK).read_bytes() == packed.getvalue()
    count = len(mast.requests)
    assert download.fetch_apt(1516, tmp_path).name == "1516.aptx" and len(mast.requests) == count
    with pytest.raises(CalamiError, match=r"^1517.aptx: the archive has no such file.*asked for at"):
        download.fetch_apt(1517, tmp_path, patience=QUICK)
    with pytest.raises(CalamiError, match="cannot be made"):
        download.fetch_apt(1516, tmp_path / "1516.aptx", patience=QUICK)


def test_a_dataset_is_fetched(mast, tmp_path):
    data = Dataset((1516, None, tmp_path), ("uncal", "rateints"))
    assert data.datadir == Path(tmp_path) and len(data) == 2 and data.filetypes == ("uncal", "rateints")
    assert np.array_equal(data[data.names[0]].science.shape, (2, 3, 8, 8))


@pytest.mark.parametrize("broken", [(1516,), (1516, None), ("1516", "token", 3), (True, None, "x")])
def test_a_tuple_that_is_no_request_is_refused(broken):
    with pytest.raises(CalamiError):
        Dataset(broken, "uncal")


def test_memory_does_not_grow_with_the_file(tmp_path):
    # In a process of its own, where nothing that other tests left going takes memory.
    code = """
import sys, tracemalloc
from pathlib import Path
from astroquery.mast import conf
from tests.benchmarks import bench_archive as bench
from calami.archive import download, mast

folder = Path(sys.argv[1])
server, conf.server = bench.start_server(folder)
head, length = bench.fits_of(96)
product = mast.Product("zeros-96.fits", "zeros-96.fits", len(head) + length, True, "x", "1b")
tracemalloc.start()
download.download([product], folder)
print(tracemalloc.get_traced_memory()[1])
server.kill()
server.communicate()
"""
    run = [sys.executable, "-c", code, str(tmp_path)]
    peak = int(subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout)
    assert (tmp_path / "zeros-96.fits").stat().st_size > 96e6 > 5 * peak


def test_no_observation_is_not_all_of_them():
    with pytest.raises(CalamiError, match="no observation number was given"):
        archive_mast.search(1516, observations=[])


@pytest.mark.parametrize("promise", ["", "no-length", "slowly:0"])
def test_of_a_file_beyond_the_room_nothing_stays_and_the_others_are_fetched(tmp_path, promise):
    with StandIn(small_program(observations=(1, 2, 3), types=("uncal",)), chunk=1000) as mast:
        names = sorted(mast.files)
        small = len(mast.files[names[0]])
        mast.files[names[1]] += b"\0" * 100_000
        mast.faults[names[1]] = [promise]
        products = [listed(name, mast)._replace(size=-1) for name in names]
        with pytest.raises(download.DownloadProblem, match="there is room for") as problem:
            download.download(products, tmp_path, patience=QUICK, workers=1, most=2 * small + 2880)
    report = problem.value.report
    assert list(report["status"]) == ["fetched", "failed", "fetched"] and report["received"][1] <= small + 2880
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([names[0], names[2], download.MANIFEST])
