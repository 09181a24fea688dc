import gzip

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.store import JsonlStore, read_jsonl, write_json, write_jsonl


def test_a_torn_last_line_is_cut_off_before_anything_is_appended(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b", "te')
    store = JsonlStore(path)
    assert store.repaired_bytes == 15
    store.append([{"id": "c"}])
    assert [row["id"] for row in store.rows()] == ["a", "c"]


@pytest.mark.parametrize("kept", range(12, 24))
def test_a_kill_at_any_byte_loses_only_the_row_being_written(tmp_path, kept):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b"}\n'[:kept])
    assert JsonlStore(path).ids() == ({"a", "b"} if kept == 24 else {"a"})


def test_a_file_without_any_newline_becomes_empty(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": ' + b"x" * 200_000)
    assert JsonlStore(path).ids() == set()
    assert path.stat().st_size == 0


def test_line_separators_and_lone_surrogates_survive(tmp_path):
    texts = ["a\u2028b\u0085c", "lone \ud800 surrogate", "Grüße 🙂", "new\nline"]
    store = JsonlStore(tmp_path / "rows.jsonl")
    store.append({"id": str(n), "text": text} for n, text in enumerate(texts))
    assert [row["text"] for row in store.rows()] == texts


def test_a_gzipped_file_is_read(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "message"), [(b'{"a": 1}\n{oops\n', "line 2: not valid JSON"), (b"[1]\n", "line 1: a JSON object")]
)
def test_a_bad_line_is_named(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(CaiError, match=message):
        list(read_jsonl(path))


def test_not_a_number_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(tmp_path / "a.jsonl", [{"a": float("inf")}])
    assert list(tmp_path.iterdir()) == []
