"""What a scored pair becomes by itself: a training row, or a reason why not. Pure: a pair in, a row or a reason out."""

from __future__ import annotations

import math
from typing import NamedTuple

from cai_helpers.critique.recognition import outcome_of
from cai_helpers.curation.overrides import Override
from cai_helpers.measures.degeneration import is_degenerate
from cai_helpers.measures.refusals import is_refusal
from cai_helpers.prompts.sources import as_prompt_messages
from cai_helpers.prompts.split import prompt_id
from cai_helpers.schema import OUTCOME_MEANING, TWO_SIDED, Message, PreferenceRow, ScoredPair, Side
from cai_helpers.settings import Curate

# Why a pair is no training row, in the order in which the rules are applied. A person's decision goes before them all.
DROP_MEANING: dict[str, str] = {
    "overruled": "a person decided that it teaches nothing",
    **{outcome: meaning for outcome, meaning in OUTCOME_MEANING.items() if outcome not in TWO_SIDED},
    "identical": "both sides are the same text",
    "degenerate": "a side goes round in circles",
    "untrusted": "curate.min_delta=auto, and by its calibration the scorer's label is not to be trusted at any difference",
    "tie": "the score difference is below curate.min_delta",
    "draft_wins": "the draft scores higher, and only winning revisions are wanted",
    "chosen_cut_off": "the winning draft stops at the token limit: it would teach to stop mid-sentence",
    "length_ratio": "one side is more than curate.max_length_ratio times as long as the other",
    "both_refuse": "both sides refuse",
    "near_duplicate": "another pair has nearly the same prompt, and a clearer score",
    "balance": "more refusals over answers than curate.max_refusal_share allows",
}

RULES = 3  # raised when they come to drop other rows: a dataset that older ones made is made again


class Dropped(NamedTuple):
    pair: ScoredPair
    reason: str  # a key of DROP_MEANING


def drop_reason(pair: ScoredPair, settings: Curate) -> str | None:
    """The first rule that `pair` breaks by itself, or None: it is a training row."""
    outcome = outcome_of(pair)
    if outcome not in TWO_SIDED:
        return outcome
    if pair.identical:
        return "identical"
    if settings.drop_degenerate and (is_degenerate(pair.base_response) or is_degenerate(pair.revised_response)):
        return "degenerate"
    if math.isinf(settings.least_delta):
        return "untrusted"
    if pair.delta is None or abs(pair.delta) < settings.least_delta or pair.delta == 0:
        return "tie"
    if pair.delta < 0 and settings.revised_wins_only:
        return "draft_wins"
    if pair.delta < 0 and pair.base_finish == "length":
        return "chosen_cut_off"
    if settings.max_length_ratio is not None and _length_ratio(pair) > settings.max_length_ratio:
        return "length_ratio"
    if settings.drop_both_refuse and is_refusal(pair.base_response) and is_refusal(pair.revised_response):
        return "both_refuse"
    return None


def preference_row(pair: ScoredPair) -> PreferenceRow:
    """The pair in TRL's conversational form; the side with the higher reward is chosen."""
    assert pair.delta is not None  # a pair without two scores is dropped as a tie
    if pair.delta > 0:
        return _row(pair, pair.revised_response, pair.base_response, "revised", pair.delta)
    return _row(pair, pair.base_response, pair.revised_response, "base", -pair.delta)


def overruled(pair: ScoredPair, override: Override) -> PreferenceRow | str:
    """The row as a person decided it, or why there is none."""
    if override.decision == "drop":
        return "overruled"
    side: Side
    if override.decision == "draft":
        winner, loser, side, sign = pair.base_response, pair.revised_response, "base", -1
    else:
        winner, loser, side, sign = override.edited or pair.revised_response, pair.base_response, "revised", 1
    if winner.strip() == loser.strip():
        return "identical"
    delta = None if pair.delta is None or override.edited else sign * pair.delta  # nobody scored an edited text
    return _row(pair, winner, loser, side, delta).model_copy(update={"labelled_by": "person"})


def refuses_over_answer(row: PreferenceRow) -> bool:
    """The chosen side refuses and the rejected one does not."""
    return is_refusal(row.chosen[0]["content"]) and not is_refusal(row.rejected[0]["content"])


def answers_over_refusal(row: PreferenceRow) -> bool:
    """The other way round."""
    return is_refusal(row.rejected[0]["content"]) and not is_refusal(row.chosen[0]["content"])


def _row(pair: ScoredPair, winner: str, loser: str, side: Side, delta: float | None) -> PreferenceRow:
    messages = pair.messages or as_prompt_messages(pair.prompt)
    return PreferenceRow(
        prompt=messages,
        chosen=[Message(role="assistant", content=winner)],
        rejected=[Message(role="assistant", content=loser)],
        id=pair.id or prompt_id(messages),
        category=pair.category,
        delta=delta,
        chosen_side=side,
    )


def _length_ratio(pair: ScoredPair) -> float:
    shorter, longer = sorted(max(1, len(text.split())) for text in (pair.base_response, pair.revised_response))
    return longer / shorter
