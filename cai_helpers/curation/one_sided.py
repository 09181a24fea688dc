"""Answers of dropped pairs that are good or bad by themselves: KTO learns from them although the pair prefers nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cai_helpers.curation.rules import Dropped
from cai_helpers.measures.degeneration import is_degenerate
from cai_helpers.prompts.sources import as_prompt_messages
from cai_helpers.prompts.split import prompt_id
from cai_helpers.schema import Message, ScoredPair, UnpairedRow


def one_sided(dropped: Iterable[Dropped], is_held_out: Callable[[str], bool]) -> list[UnpairedRow]:
    """The sides that can be trusted although their pair teaches no preference.

    A draft that the critic judged good and kept is desirable; the one side of a pair that goes round in circles is
    undesirable. Nothing else is taken. Of a tie, a near-duplicate or a row that was balanced away neither side is known
    to be good or bad; of a failed revision only the critic is to blame; and a person who dropped a pair meant both sides.

    is_held_out: whether a prompt, by its id, is one of those that do not train.
    """
    rows = []
    for pair, reason in dropped:
        if (taken := _trustworthy(pair, reason)) is None:
            continue
        answer, desirable = taken
        messages = pair.messages or as_prompt_messages(pair.prompt)
        name = pair.id or prompt_id(messages)
        rows.append(
            UnpairedRow(
                prompt=messages,
                completion=[Message(role="assistant", content=answer)],
                label=desirable,
                id=name,
                category=pair.category,
                reason=reason,
                held_out=is_held_out(name),
            )
        )
    return rows


def _trustworthy(pair: ScoredPair, reason: str) -> tuple[str, bool] | None:
    """(answer, whether it is desirable), or None."""
    if reason == "kept":
        # one that was cut off would teach to stop mid-sentence
        whole = pair.base_finish != "length" and not is_degenerate(pair.base_response)
        return (pair.base_response, True) if whole else None
    if reason == "degenerate":
        # both sides are the draft where the critic went round in circles: then they are alike, and none is taken
        broken = [side for side in (pair.base_response, pair.revised_response) if is_degenerate(side)]
        return (broken[0], False) if len(broken) == 1 and broken[0].strip() else None
    return None
