import json
from pathlib import Path

import pytest

from cai_helpers.critique.meta import is_meta_commentary

ROWS = [
    json.loads(line) for line in (Path(__file__).parent / "assets" / "revisions.jsonl").read_text("utf-8").splitlines()
]


@pytest.mark.parametrize("half", ["develop", "report"])
def test_critics_talk_is_found_in_revisions_that_were_read_by_hand(half):
    rows = [row for row in ROWS if row["half"] == half]
    said = [is_meta_commentary(row["revision"]) for row in rows]
    hits = sum(found and row["meta"] for found, row in zip(said, rows, strict=True))
    assert len(rows) >= 150
    assert hits / sum(said) >= 0.9
    assert hits / sum(row["meta"] for row in rows) >= 0.9


def test_both_halves_hold_texts_of_every_source_and_no_prompt_of_a_model_is_in_both():
    for half in ("develop", "report"):
        assert {row["source"] for row in ROWS if row["half"] == half} == {
            "SmolLM2-135M-Instruct",
            "embedded",
            "written",
        }
    halves = {}
    for row in ROWS:
        if row["prompt"]:
            assert halves.setdefault(row["prompt"], row["half"]) == row["half"]


@pytest.mark.parametrize(
    "text",
    [
        "Clear and concise, with a good example.",
        "I agree with your critique. It is too long.",
        "The original draft is fine.",
        "Your critique of the draft is spot on.",
        "Boil it. I made a few changes to the original text.",
    ],
)
def test_what_earlier_rules_missed_is_meta_commentary(text):
    assert is_meta_commentary(text)


@pytest.mark.parametrize(
    "text",
    [
        "The answer to your question is Canberra.",
        "Here is a recipe for bread.",
        "Instead, ask the owner for a key.",
        "I agree that it is unfair. Talk to them.",
    ],
)
def test_an_answer_to_the_user_is_none(text):
    assert not is_meta_commentary(text)


def test_answers_of_models_to_people_hold_next_to_none(shared_data):
    import csv
    import gzip

    texts = []
    for file in sorted((shared_data / "xstest").glob("*.csv.gz")):
        with gzip.open(file, "rt", encoding="utf-8", newline="") as rows:
            texts += [row["completion"] for row in csv.DictReader(rows)]
    assert sum(map(is_meta_commentary, texts)) / len(texts) < 0.01
