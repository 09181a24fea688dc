"""What is let go, and when it is searched for."""

import gc
import weakref

import pytest
import torch

from cai_helpers.models.batches import in_batches, release_all, release_memory


class Part:
    """It refers to itself, as the parts of a model do."""

    def __init__(self):
        self.whole = self


@pytest.fixture
def no_search_of_its_own():
    gc.disable()
    yield
    gc.enable()


def test_a_model_that_was_let_go_is_gone_on_a_cpu_too(no_search_of_its_own):
    model = Part()
    seen = weakref.ref(model)
    del model
    assert seen() is not None
    release_all()
    assert seen() is None


def test_room_on_the_gpu_is_searched_for_only_where_there_is_one(monkeypatch):
    searched = []
    monkeypatch.setattr(gc, "collect", lambda: searched.append("collected"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: searched.append("emptied"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    release_memory()
    assert searched == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    release_memory()
    assert searched == ["collected", "emptied"]


def test_what_a_batch_that_did_not_fit_left_behind_is_gone_before_the_next_on_a_cpu_too(no_search_of_its_own):
    left: list[weakref.ref] = []

    def work(rows: list[int]) -> list[int]:
        if not left:
            left.append(weakref.ref(Part()))
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        assert left[0]() is None
        return rows

    assert [rows for rows, _ in in_batches([1, 2, 3], 3, work)] == [[1], [2], [3]]
