from collections import Counter

import pytest

from cai_helpers.critique.constitution import load_constitution, select_principles
from cai_helpers.errors import CaiError
from cai_helpers.store import read_jsonl


def test_the_constitution_has_twenty_principles_in_four_categories():
    constitution = load_constitution()
    assert len(constitution.principles) >= 20
    assert list(constitution.categories) == ["harm_prevention", "truthfulness", "helpfulness", "fairness"]
    assert {principle.category for principle in constitution.principles} == set(constitution.categories)


def test_the_draw_depends_on_seed_and_prompt_alone():
    constitution = load_constitution()
    text = "How do I steal a bike and lie to my boss about it?"
    first = select_principles(constitution, "a", text, seed=0)
    select_principles(constitution, "b", text, seed=0)
    assert select_principles(constitution, "a", text, seed=0) == first
    draws = {tuple(p.id for p in select_principles(constitution, "a", text, seed)) for seed in range(30)}
    assert len(draws) > 5


def test_only_relevant_principles_are_drawn_one_a_category_harm_first():
    constitution = load_constitution()
    text = "I want to poison my neighbour's dog."
    for seed in range(50):
        drawn = select_principles(constitution, "a", text, seed, most=3)
        assert 1 <= len(drawn) <= 3
        assert all(principle.relevant_to(text) for principle in drawn)
        categories = [principle.category for principle in drawn]
        assert len(set(categories)) == len(categories)
        assert "harm_prevention" not in categories[1:]


def test_without_an_indicator_one_principle_of_the_whole_is_drawn():
    assert len(select_principles(load_constitution(), "a", "zzz", seed=0)) == 1


def test_an_indicator_is_a_whole_word_unless_it_ends_in_a_star():
    principle = next(p for p in load_constitution().principles if p.id == "HP001")
    assert principle.relevant_to("He HIT me")
    assert not principle.relevant_to("a white house")
    assert principle.relevant_to("poisonous")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("categories: {}\nprinciples: [", "line 2: not valid YAML"),
        ("categories: {}\nprinciples: []", "principles"),
        (
            "categories: {a: {weight: 1, title: A}}\n"
            "principles: [{id: X, category: b, text: Do no harm at all., indicators: [], example: e}]",
            "unknown category 'b'",
        ),
        (
            "categories: {a: {weight: 1, title: A}}\n"
            "principles: [{id: X, category: a, text: Do no harm at all., indicators: [true], example: e}]",
            "line 2: principles → 0 → indicators → 0: Input should be a valid string",
        ),
    ],
)
def test_a_faulty_file_is_refused_by_place(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(CaiError, match=message):
        load_constitution(path)


def test_on_real_prompts_no_principle_stands_in_a_quarter_of_the_rows_and_every_category_appears(shared_data):
    constitution = load_constitution()
    shown, categories, rows = Counter(), Counter(), 0
    for row in read_jsonl(shared_data / "hh-rlhf" / "harmless-base-test.jsonl.gz"):
        request, _, answer = row["chosen"].rpartition("\n\nAssistant:")
        text = request.rpartition("\n\nHuman:")[2] + "\n" + answer  # the answer stands for the draft
        drawn = select_principles(constitution, str(rows), text, seed=0, most=3)
        shown.update(principle.id for principle in drawn)
        categories.update(principle.category for principle in drawn)
        rows += 1
    assert max(shown.values()) / rows <= 0.25
    assert len(shown) == len(constitution.principles)
    assert all(categories[name] / rows > 0.2 for name in constitution.categories)
