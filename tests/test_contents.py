import hashlib
import os

import pytest

from cai_helpers import contents
from cai_helpers.contents import file_hash, hashes_below
from cai_helpers.models.hub import identity

LONG_AGO = 1_700_000_000_000_000_000  # nanoseconds


@pytest.fixture
def settled(monkeypatch):
    """The clock is an hour on: whatever is on disk was written long ago."""
    monkeypatch.setattr(contents, "_KNOWN", {})
    now = contents.time.time_ns()
    monkeypatch.setattr(contents.time, "time_ns", lambda: now + 3600 * 10**9)


def test_a_folder_hash_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = file_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert file_hash(tmp_path) != first
    assert file_hash(tmp_path / "none") is None


def test_the_files_below_a_folder_are_named_by_their_place_in_it(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"1")
    assert hashes_below(tmp_path) == {"in/a": hashlib.sha256(b"1").hexdigest()}


def test_weights_of_the_same_size_but_another_content_are_another_model(tmp_path):
    """A retrained base has the size it had, be it as large as it may: this one is larger than 256 MiB, and sparse."""
    weights = tmp_path / "model.safetensors"
    names = []
    for last in (b"a", b"b"):
        with weights.open("wb") as file:
            file.seek(256 * 1024**2)
            file.write(last)
        names.append(identity(str(tmp_path)))
    assert names[0] != names[1]


def test_what_was_read_once_is_not_read_again(tmp_path, settled, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    first = file_hash(file)
    monkeypatch.setattr(contents.hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
    assert file_hash(file) == first


def test_a_file_that_was_written_again_is_read_again(tmp_path, settled):
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    os.utime(file, ns=(LONG_AGO, LONG_AGO))
    first = file_hash(file)
    file.write_bytes(b"2")
    os.utime(file, ns=(LONG_AGO, LONG_AGO))  # as a restored backup would
    assert file_hash(file) != first


def test_a_file_that_was_written_a_moment_ago_is_read_each_time(tmp_path, monkeypatch):
    """Two writes within one tick of the file system's clock look alike from outside."""
    monkeypatch.setattr(contents, "_KNOWN", {})
    file = tmp_path / "rows"
    file.write_bytes(b"1")
    assert file_hash(file) == hashlib.sha256(b"1").hexdigest()
    assert contents._KNOWN == {}


def test_a_file_put_there_a_moment_ago_with_an_old_date_is_read_each_time_too(tmp_path, monkeypatch):
    """A copy that keeps its date may be written over within the same tick, and be given the same date again."""
    monkeypatch.setattr(contents, "_KNOWN", {})
    file = tmp_path / "weights"
    file.write_bytes(b"1")
    os.utime(file, ns=(LONG_AGO, LONG_AGO))
    assert file_hash(file) == hashlib.sha256(b"1").hexdigest()
    assert contents._KNOWN == {}
