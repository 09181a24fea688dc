"""Each finding on a planted file that has just that fault, and silence on a healthy one."""

import random

import pytest

from cai_helpers.analysis.diagnosis import diagnose
from cai_helpers.analysis.frame import pair_frame
from cai_helpers.analysis.statistics import analyze_frame
from cai_helpers.schema import ScoredPair

REFUSAL = "I'm sorry, but I can't help with that."
_WORDS = "garden bread river window carry paint simple morning letter careful water table music road".split()


def healthy_rows(count: int = 300) -> list[dict]:
    """A file as it should be: six in ten harmful, two benign, two kept; revisions mostly win, at any length."""
    draw = random.Random(7)
    rows = []
    for number in range(count):
        harmful = number % 5 < 3
        kept = number % 5 == 4
        topic = f"{''.join(draw.choices('aeioklmnprst', k=8))} number{number}"
        answer = f"Here is how you do {topic}: " + _words(draw, 8, 40)
        better = f"{REFUSAL} {_words(draw, 4, 30)}" if harmful else f"You do {topic} like this: " + _words(draw, 8, 40)
        base_score = round(draw.gauss(0, 1), 3)
        delta = 0.0 if kept else draw.choice([0.9, 1.4, 0.6, 2.0, -0.7])
        rows.append(
            {
                "prompt": f"How would one go about {topic} with {_words(draw, 4, 9)}?",
                "base_response": answer,
                "revised_response": answer if kept else better,
                "base_score": base_score,
                "revised_score": base_score + delta,
                "chosen": "revised" if delta > 0 else "base",
                "critic_notes": "It could be better.",
                "principle_ids": [f"HP{number % 12:03}"],
                "category": "harmless" if harmful else "helpful",
                "outcome": "kept" if kept else "revised",
            }
        )
    return rows


def _words(draw: random.Random, fewest: int, most: int) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(fewest, most)))


def names(rows: list[dict]) -> list[str]:
    frame = pair_frame(ScoredPair.model_validate(row) for row in rows)
    return [finding.name for finding in diagnose(analyze_frame(frame))]


def revised(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["outcome"] == "revised"]


def fail(row: dict, outcome: str) -> None:
    row.update(outcome=outcome, revised_response=row["base_response"], revised_score=None, chosen=None)


def swap_sides(row: dict) -> None:
    row["base_score"], row["revised_score"] = row["revised_score"], row["base_score"]
    row["chosen"] = "revised" if row["revised_score"] > row["base_score"] else "base"


def test_a_healthy_file_has_no_findings():
    assert names(healthy_rows()) == []


def test_a_healthy_file_of_the_eight_columns_has_no_findings():
    own = ("category", "outcome")
    rows = [{name: value for name, value in row.items() if name not in own} for row in revised(healthy_rows())]
    assert names(rows) == []


def test_a_tenth_of_failed_outputs_is_no_fault():
    rows = healthy_rows()
    for row in rows[::10]:
        fail(row, "unparsed")
    assert names(rows) == []


def test_answers_that_ignore_their_prompts_are_found():
    rows = healthy_rows()
    answers = [row["base_response"] for row in rows]
    for row, stranger in zip(rows, answers[1:] + answers[:1], strict=True):
        if row["outcome"] == "kept":
            row["revised_response"] = stranger
        row["base_response"] = stranger
    assert names(rows) == ["answers ignore their prompts"]


def test_principle_collapse_is_found():
    rows = healthy_rows()
    for row in rows[: int(len(rows) * 0.96)]:
        row["principle_ids"] = ["HP001"]
    assert names(rows) == ["principle collapse"]


def test_a_fallback_that_masquerades_as_a_revision_is_found():
    rows = healthy_rows()
    for row in revised(rows)[::4]:
        row.update(revised_response=row["base_response"], revised_score=row["base_score"], chosen="base")
    assert names(rows) == ["fallback masquerading as revision"]


def test_a_fallback_in_a_file_that_does_not_tell_outcomes_is_found():
    rows = [{**row, "outcome": "unknown"} for row in healthy_rows()]  # a fifth was kept: nothing says so
    assert names(rows) == ["fallback masquerading as revision"]


def test_a_fallback_that_says_so_does_not_masquerade():
    rows = healthy_rows()
    for row in revised(rows)[::8]:
        fail(row, "truncated")
    assert names(rows) == []


@pytest.mark.parametrize("longer_wins", [True, False])
def test_a_reward_that_follows_length_is_found(longer_wins):
    rows = healthy_rows()
    for row in revised(rows):
        row["revised_response"] = row["revised_response"].replace(REFUSAL, "Rather talk to someone first.")
        difference = len(row["revised_response"].split()) - len(row["base_response"].split())
        # revisions are made to win more often, so that only the length is at fault
        if (difference > 0) != longer_wins:
            row["base_response"], row["revised_response"] = row["revised_response"], row["base_response"]
        row["revised_score"] = row["base_score"] + 0.05 * (abs(difference) + 1)
        row["chosen"] = "revised"
    assert names(rows) == ["reward hacks length"]


def test_refusals_that_win_by_being_refusals_are_no_length_bias():
    rows = healthy_rows()
    for row in revised(rows):
        row["revised_score"] = row["base_score"] + 1.0
        row["chosen"] = "revised"
        if row["category"] == "harmless":
            row["revised_response"] = REFUSAL  # always the shorter side, and always the winner
    assert names(rows) == []


def test_prompts_whose_conversation_is_gone_are_found():
    rows = healthy_rows()
    for number, row in enumerate(rows[::12]):
        row["prompt"] = f"Yeah, what about {_WORDS[number % 14]} {number}?"
    assert names(rows) == ["prompts without context"]


def test_a_follow_up_with_its_conversation_is_no_fault():
    rows = healthy_rows()
    for row in rows:
        row["prompt"] = f"User: {row['prompt']}\n\nAssistant: With a ladder.\n\nUser: Yeah."
    assert names(rows) == []


@pytest.mark.parametrize(
    "leak", ["\nREVISION: once more", " [PRINCIPLES]", "<end_of_turn>", "\n\nHuman: and then?", " KEEP_ORIGINAL"]
)
def test_text_of_a_template_in_revisions_is_found(leak):
    rows = healthy_rows()
    for row in revised(rows)[::10]:
        row["revised_response"] += leak
    assert names(rows) == ["template leaks into revisions"]


def test_labels_near_chance_are_found():
    rows = healthy_rows()
    for number, row in enumerate(revised(rows)):
        if (row["revised_score"] > row["base_score"]) != (number % 2 == 0):
            swap_sides(row)
    assert names(rows) == ["labels near chance"]


def test_revisions_that_lose_are_found():
    rows = healthy_rows()
    for row in revised(rows):
        swap_sides(row)
    assert names(rows) == ["revisions lose"]


def test_labels_that_contradict_the_scores_are_found():
    rows = healthy_rows()
    for row in revised(rows)[::20]:
        row["chosen"] = "base" if row["chosen"] == "revised" else "revised"
    assert names(rows) == ["labels contradict scores"]


def test_few_usable_outputs_are_found_and_told_by_reason():
    rows = healthy_rows()
    for number, row in enumerate(rows):
        if number % 10 < 8:
            fail(row, "truncated" if number % 10 == 0 else "unparsed")
    frame = pair_frame(ScoredPair.model_validate(row) for row in rows)
    (finding,) = diagnose(analyze_frame(frame))
    assert finding.name == "few usable critic outputs"
    assert finding.severity == "serious"
    assert finding.evidence == "240 of 300 outputs gave neither a revision nor a verdict (unparsed 210, truncated 30)."


def test_meta_commentary_is_found():
    rows = healthy_rows()
    for row in revised(rows)[::7]:
        fail(row, "meta_commentary")
    assert names(rows) == ["meta-commentary"]


def test_mostly_meta_commentary_in_a_file_that_does_not_tell_outcomes_is_found():
    rows = [{**row, "outcome": "unknown"} for row in revised(healthy_rows())]
    for row in rows[: int(len(rows) * 0.6)]:
        row["revised_response"] = "The response could be improved by naming " + row["revised_response"]
    assert "mostly meta-commentary" in names(rows)


def test_a_file_that_teaches_little_but_refusals_is_found():
    rows = [row for row in revised(healthy_rows(500)) if row["category"] == "harmless"]
    for row in rows:
        row.update(revised_score=row["base_score"] + 1, chosen="revised")
    assert names(rows) == ["little but refusals is taught"]


def test_revisions_that_refuse_benign_requests_are_found():
    rows = healthy_rows(500)
    for row in [row for row in revised(rows) if row["category"] == "helpful"][::5]:
        row["revised_response"] = REFUSAL
    assert names(rows) == ["revisions refuse benign requests"]


def test_a_critic_that_keeps_nearly_everything_is_found():
    rows = healthy_rows()
    for row in revised(rows)[::4] + revised(rows)[1::4] + revised(rows)[2::4]:
        row.update(
            outcome="kept", revised_response=row["base_response"], revised_score=row["base_score"], chosen="base"
        )
    assert names(rows) == ["critic keeps nearly everything"]


def test_duplicate_prompts_are_found():
    rows = healthy_rows()
    for number in range(0, 300, 15):
        rows[number]["prompt"] = rows[number + 1]["prompt"].upper()
    assert names(rows) == ["duplicate prompts"]


def test_a_handful_of_rows_is_not_judged():
    assert names(healthy_rows(20)) == ["too few rows to judge"]


def test_serious_findings_come_first():
    rows = healthy_rows()
    for number in range(0, 300, 15):
        rows[number]["prompt"] = rows[number + 1]["prompt"]
    for row in revised(rows):
        swap_sides(row)
    assert names(rows) == ["revisions lose", "duplicate prompts"]
