"""Results on disk: never another's, never half of one, and made anew where anything that they depend on is another."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from calami.core import kept
from calami.core.images import Peak
from calami.core.kept import Kept, digest_of_value, digests_of

VALUE = {
    "curve": np.linspace(0, 1, 5),
    ("pair", 2): [1, 2.5, np.nan, None, True, "words"],
    "numbers": (np.float32(0.1), np.int16(3), np.bool_(False)),
    "peak": Peak(3, 4, 5.0, 6.0),
    "where": Path("a/b"),
    "picture": {"png": b"\x00\xff", "pdf": b""},
    "none": np.zeros((0, 3)),
}


def never():
    raise AssertionError("it was to be read")


def test_what_is_kept_comes_back_as_it_was(tmp_path):
    assert Kept(tmp_path).get("all", 1, lambda: VALUE) is VALUE
    found = Kept(tmp_path).get("all", 1, never)
    assert repr(found) == repr(VALUE) and found["curve"].tobytes() == VALUE["curve"].tobytes()
    assert [type(x) for x in found["numbers"]] == [type(x) for x in VALUE["numbers"]]
    assert found["peak"] == VALUE["peak"] and found["none"].shape == (0, 3)


def test_what_is_known_is_given_and_else_nothing(tmp_path):
    store = Kept(tmp_path)
    assert store.known("x", 1) == []
    store.get("x", 1, lambda: "made")
    assert store.known("x", 1) == ["made"] and store.known("x", 2) == store.known("y", 1) == []


def test_a_digest_of_a_value_is_that_of_its_parts_wherever_they_come_from(tmp_path):
    Kept(tmp_path).get("all", 1, lambda: VALUE)
    assert digest_of_value(Kept(tmp_path).get("all", 1, never)) == digest_of_value(VALUE)
    changed = {"curve": VALUE["curve"] + 1e-16, "peak": Peak(3, 4, 5.0, 7.0), "none": np.zeros((3, 0)), "where": "a/b"}
    digests = {digest_of_value(VALUE | {key: value}) for key, value in changed.items()}
    assert len(digests | {digest_of_value(VALUE)}) == 5
    with pytest.raises(TypeError, match="Foreign"):
        digest_of_value([Foreign()])


def test_another_origin_is_another_result(tmp_path, monkeypatch):
    store = Kept(tmp_path / "kept")
    file = tmp_path / "data"
    file.write_bytes(b"one")
    made = []

    def get(name="x", more=0):
        return store.get(name, [digests_of([file]), more], lambda: made.append(1) or len(made))

    assert [get(), get(), get("y"), get("y"), get(more=1), get()] == [1, 1, 2, 2, 3, 1]
    file.write_bytes(b"two")
    assert [get(), get()] == [4, 4]
    file.write_bytes(b"one")
    assert get() == 1  # the content counts, not the date
    monkeypatch.setattr(kept, "_code", lambda: "another code")
    assert get() == 5 and len(list((tmp_path / "kept").iterdir())) == 1  # what older code has made goes


def test_the_code_and_the_packages_that_compute_count(tmp_path, monkeypatch):
    before = kept._code()
    kept._code.cache_clear()
    monkeypatch.setattr(kept, "versions", lambda packages: {"numpy": "0"})
    try:
        assert kept._code() != before and len(before) == 64
    finally:
        kept._code.cache_clear()


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other", "class", "object"])
def test_what_is_damaged_is_made_anew(tmp_path, caplog, damage):
    store, first = Kept(tmp_path), np.arange(1000.0)
    store.get("x", 1, lambda: first)
    (path,) = tmp_path.rglob("*.npz")
    whole = bytearray(path.read_bytes())
    if damage == "bit":
        whole[len(whole) // 2] ^= 1
    elif damage == "other":  # a whole entry under another's name
        store.get("x", 2, lambda: first + 1)
        whole = next(p for p in tmp_path.rglob("*.npz") if p != path).read_bytes()
    elif damage == "class":  # of nothing that calami knows
        whole = bytes(whole)
        text = np.array('{"key": "' + path_key(path) + '", "value": {"class": ["os", "system"], "fields": {}}}')
        np.savez(path, value=text)
        whole = path.read_bytes()
    elif damage == "object":
        np.savez(path, value=np.array([{}], dtype=object))
        whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b""}.get(damage, whole))
    again = store.get("x", 1, lambda: first + 5)
    assert again.tolist() == (first + 5).tolist()
    assert damage == "other" or "made anew" in caplog.text
    assert store.get("x", 1, never).tolist() == (first + 5).tolist()


def path_key(path):
    import json

    with np.load(path) as held:
        return json.loads(str(held["value"]))["key"]


@dataclass(frozen=True)
class Foreign:
    x: int = 1


def test_what_cannot_be_kept_is_given_all_the_same(tmp_path, caplog, monkeypatch):
    store = Kept(tmp_path / "kept")
    assert store.get("x", 1, lambda: Foreign(2)) == Foreign(2) and "a Foreign is in it" in caplog.text
    assert not (tmp_path / "kept").exists()
    (tmp_path / "full").write_text("a file where the folder would be")
    assert Kept(tmp_path / "full").get("x", 1, lambda: 3) == 3 and "cannot be kept" in caplog.text
    with pytest.raises(ZeroDivisionError):
        store.get("x", 1, lambda: 1 / 0)


def test_no_more_is_kept_than_asked_for(tmp_path):
    few, made = Kept(tmp_path, most=3), []
    for number in (1, 2, 3, 4, 4, 2):
        assert few.get("n", number, lambda number=number: made.append(number) or number) == number
        for path in tmp_path.rglob("*.npz"):  # apart in time, whatever the clock of the disc
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    assert made == [1, 2, 3, 4] and [few.known("n", k) for k in (1, 2, 3, 4)] == [[], [2], [3], [4]]
