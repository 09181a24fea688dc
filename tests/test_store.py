import gzip
import json

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.store import JsonlStore, encode_row, read_jsonl, write_json, write_jsonl


def test_a_torn_last_line_is_cut_off_before_anything_is_appended(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b", "te')
    store = JsonlStore(path)
    assert store.repaired_bytes == 15
    store.append([{"id": "c"}])
    assert [row["id"] for row in store.rows()] == ["a", "c"]


ROW = {
    "id": "b", "text": 'Grüße 🙂 "quoted" \\ \n \u2028', "none": None, "yes": True, "no": False, "list": [1, -2.5e-7, [], {}],
    "scores": {"draft": -0.25, "of": [{"x": 1}]}, "lone": "\ud800",
}  # fmt: skip


def test_a_kill_at_any_byte_loses_only_the_row_being_written(tmp_path):
    path, row = tmp_path / "rows.jsonl", encode_row(ROW)
    unescaped = json.dumps(ROW | {"lone": ""}, ensure_ascii=False).encode() + b"\n"
    for whole in (row, unescaped, b'{"id": "b"}\n', b'{"id": 1}\n'):
        for kept in range(len(whole) + 1):
            path.write_bytes(b'{"id": "a"}\n' + whole[:kept])
            store = JsonlStore(path)
            is_there = kept >= len(whole) - 1  # all but the newline is a whole row
            assert store.repaired_bytes == (0 if is_there else kept)
            store.append([{"id": "c"}])
            assert [row["id"] for row in store.rows()] == ["a", *([json.loads(whole)["id"]] if is_there else []), "c"]


@pytest.mark.parametrize("end", [b"", b"\r", b" ", b"\r\n"])
def test_a_last_row_that_a_person_wrote_without_a_newline_is_kept(tmp_path, end):
    path = tmp_path / "overrides.jsonl"
    path.write_bytes(b'{"id": "a"}\r\n{"id": "b"}' + end)
    store = JsonlStore(path)
    store.append([{"id": "c"}])
    assert [row["id"] for row in store.rows()] == ["a", "b", "c"]
    assert store.repaired_bytes == 0


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"id": "a"}\r{"id": "b"}\r', 1),
        (b'{"id": "a"}\r{"id": "b', 1),
        (b'[{"id": "a"}, {"id": "b"}]', 1),
        (b'[\n{"id": "a"},\n{"id": "b"}\n]\n', 1),
        ('{"id": "a"}\n'.encode("utf-16"), 1),
        ('{"id": "a"}\n'.encode("utf-16-le"), 1),
        ('{"id": "a"}\n'.encode("utf-16-be"), 1),
        (b"a letter to a friend", 1),
        (b'{\n  "id": "a"\n}', 3),
        (b'{"id": "a"}\n{"id": "b"}{"id": "c"}', 2),
        (b'{"id": "a"}\n{"id": "b", "decision": keep}', 2),
        (b'{"id": "a"}\n{id: "b"', 2),
        (b'{"id": "a"}\n"id": "b"}', 2),
        (b'{"id": "a"}\n{"id": "\xff\xfe and so on"}', 2),
        (b'{"id": "a"}\n{"id": ["b"}', 2),
    ],
)
def test_what_is_no_jsonl_is_refused_with_its_line_and_left_as_it_is(tmp_path, content, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(CaiError, match=f"rows.jsonl, line {line}: ") as caught:
        JsonlStore(path)
    assert "line feeds" in caught.value.todo
    assert path.read_bytes() == content


def test_a_file_of_windows_with_a_byte_order_mark_can_be_appended_to(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a"}\r\n{"id": "b"}\r\n')
    JsonlStore(path).append([{"id": "c"}])
    assert JsonlStore(path).ids() == {"a", "b", "c"}


def test_a_file_that_is_one_torn_row_becomes_empty(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "' + b"x" * 200_000)
    assert JsonlStore(path).ids() == set()
    assert path.stat().st_size == 0


def test_a_long_torn_row_takes_no_row_before_it_along(tmp_path):
    path = tmp_path / "rows.jsonl"
    torn = b'{"id": "' + b"x" * 200_000
    path.write_bytes(b'{"id": "a"}\n{"id": "b"}\n' + torn)
    store = JsonlStore(path)
    assert store.repaired_bytes == len(torn)
    assert store.ids() == {"a", "b"}


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


def test_rows_that_come_within_a_second_share_a_write_and_none_is_lost_to_an_error(tmp_path, monkeypatch):
    from cai_helpers import store as module

    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    store, written = JsonlStore(tmp_path / "rows.jsonl"), []

    def stopped() -> None:
        with module.gathering(store, written.append) as take:
            for second, rows in [(100.0, ["a"]), (100.4, ["b"]), (100.8, ["c"]), (101.1, []), (101.2, ["d"])]:
                now[0] = second
                take({"id": name} for name in rows)
            assert [row["id"] for row in store.rows()] == ["a", "b", "c"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [row["id"] for row in store.rows()] == ["a", "b", "c", "d"]
    assert written == [1, 2, 1]


def test_a_file_is_put_in_order_with_rows_that_are_not_asked_for_at_its_end(tmp_path):
    from cai_helpers.store import put_in_order

    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"id": name, "text": "\u2028"} for name in "xcayb"])
    put_in_order(path, list("abc"))
    assert [row["id"] for row in read_jsonl(path)] == list("abcxy")
    before = path.stat().st_mtime_ns
    put_in_order(path, list("abc"))
    assert path.stat().st_mtime_ns == before
