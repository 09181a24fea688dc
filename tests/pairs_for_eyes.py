"""A small workspace with planted pairs, for the tests of the inspector."""

from __future__ import annotations

from typing import Any

from cai_helpers.schema import ScoredPair
from cai_helpers.store import write_jsonl
from cai_helpers.workspace import Workspace

# Prompts that no filter takes for copies of each other.
TOPICS = ["why do kites fly", "who baked this bread", "when does the train leave", "can owls see colours",
          "what is a sonnet", "how deep are lakes", "which glue holds wood"]  # fmt: skip
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'


def pair(number: int, base_score: float | None = 0.0, revised_score: float | None = None, **fields: Any) -> ScoredPair:
    """A pair with texts of its own; without a revised score, one whose critic kept the draft."""
    prompt = f"Question {number}: {TOPICS[number % len(TOPICS)]}?"
    draft = f"Draft number {number} says take the red pin."
    compared = revised_score is not None
    defaults = {
        "prompt": prompt,
        "messages": [{"role": "user", "content": prompt}],
        "base_response": draft,
        "revised_response": f"Draft number {number} says take the blue pin." if compared else draft,
        "base_score": base_score,
        "revised_score": revised_score if compared else base_score,
        "chosen": ("revised" if revised_score > base_score else "base") if compared else "base",
        "critic_notes": f"Critique {number}.",
        "principle_ids": ["HE005"],
        "id": f"id{number}",
        "category": "helpful",
        "outcome": "revised" if compared else "kept",
        "reason": "usable revision" if compared else "KEEP_ORIGINAL",
    }
    return ScoredPair.model_validate(defaults | fields)


def planted(number: int = 6) -> list[ScoredPair]:
    """Deltas +1, −2, +3, −4, …; one pair kept, one with text that wants to run in the browser."""
    compared = [pair(n, 0.0, float(n if n % 2 else -n)) for n in range(1, number + 1)]
    hostile = pair(
        98,
        0.0,
        0.5,
        **dict.fromkeys(("prompt", "base_response", "critic_notes", "category", "reason"), HOSTILE),
        revised_response=f"{HOSTILE} and more",
        messages=[{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}],
        principle_ids=[HOSTILE],
    )
    return [*compared, pair(97, 1.0, category="harmless"), hostile]


def write_pairs(workspace: Workspace, pairs: list[ScoredPair]) -> list[ScoredPair]:
    write_jsonl(workspace.pairs, (one.model_dump() for one in pairs))
    return pairs


def write_traces(workspace: Workspace, pairs: list[ScoredPair]) -> None:
    """What the inspector reads of pairs/traces.jsonl."""
    write_jsonl(
        workspace.traces,
        (
            {
                "id": one.id,
                "draft": one.base_response,
                "protocol": "single/short",
                "critic_outputs": [f"RAW {one.critic_notes}"],
            }
            for one in pairs
        ),
    )
