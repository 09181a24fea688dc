"""The smoke run's bytes, as tools/record_run.py recorded them for this set of libraries."""

import pytest
import record_run


@pytest.mark.long
def test_the_smoke_run_gives_the_bytes_that_were_recorded(tmp_path):
    recorded = record_run.read_recorded().get(record_run.library_set())
    if recorded is None:
        pytest.skip(f"nothing is recorded for {record_run.library_set()}: python tools/record_run.py --record")
    assert record_run.hashes_of_a_run(tmp_path) == recorded
