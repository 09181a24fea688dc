"""Which scored pairs become training rows, and why the others do not. Pure: pairs in, rows and reasons out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from cai_helpers.critique.recognition import outcome_of
from cai_helpers.curation.overrides import Override, pair_key
from cai_helpers.measures.degeneration import is_degenerate
from cai_helpers.measures.near_duplicates import near_copies
from cai_helpers.measures.refusals import is_refusal
from cai_helpers.prompts.sources import as_prompt_messages
from cai_helpers.prompts.split import prompt_id
from cai_helpers.schema import OUTCOME_MEANING, TWO_SIDED, Message, PreferenceRow, ScoredPair, Side, transcript
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

OWN_CATEGORY = "chat"  # of pairs that a person made

RULES = 3  # raised when they come to drop other rows: a dataset that older ones made is made again


class Overruled(NamedTuple):
    """What a person's decisions did."""

    kept: int
    dropped: int
    against_reward: int  # kept rows whose chosen side has the lower score
    elsewhere: int  # decisions about pairs that are not in this file


class OwnPairs(NamedTuple):
    """What became of the pairs that a person made in the chat."""

    added: int = 0
    held_out: int = 0  # their prompt is one of the evaluation's: trained on, it would measure nothing any more
    alike: int = 0  # both answers are the same text


class Dropped(NamedTuple):
    pair: ScoredPair
    reason: str  # a key of DROP_MEANING


class Curation(NamedTuple):
    rows: list[PreferenceRow]  # in the order of the pairs
    dropped: list[Dropped]
    overruled: Overruled
    own: OwnPairs = OwnPairs()


def curate(
    pairs: Iterable[ScoredPair],
    overrides: dict[str, Override],
    settings: Curate,
    seed: int,
    held_out: Collection[str] = (),
) -> Curation:
    """Apply every rule. overrides: by overrides.pair_key. Rows that a person decided about pass the other rules.

    held_out: ids of the prompts that evaluation asks; a person's own pair about one of them becomes no row.
    """
    rows: dict[int, PreferenceRow] = {}
    dropped: dict[int, Dropped] = {}
    texts: dict[int, ScoredPair] = {}
    decided: set[str] = set()
    for place, pair in enumerate(pairs):
        key = pair_key(pair.prompt, pair.base_response, pair.revised_response)
        decision = overrides.get(key)
        if decision is not None:
            decided.add(key)
        result = drop_reason(pair, settings) or preference_row(pair) if decision is None else overruled(pair, decision)
        if isinstance(result, str):
            dropped[place] = Dropped(pair, result)
        else:
            rows[place], texts[place] = result, pair

    own, own_rows = _own_pairs([one for key, one in overrides.items() if key not in decided], held_out)
    rows |= dict(enumerate(own_rows, start=len(rows) + len(dropped)))

    for reason, rule in (("near_duplicate", _near_duplicates), ("balance", _too_many_refusals)):
        for place in rule(rows, settings, seed):
            dropped[place] = Dropped(texts[place], reason)
            del rows[place]

    by_person = [row for place, row in rows.items() if row.labelled_by == "person" and place in texts]
    return Curation(
        rows=list(rows.values()),
        dropped=[dropped[place] for place in sorted(dropped)],
        overruled=Overruled(
            kept=len(by_person),
            dropped=sum(drop.reason == "overruled" for drop in dropped.values()),
            against_reward=sum(row.delta is not None and row.delta < 0 for row in by_person),
            elsewhere=sum(one.pair is None for key, one in overrides.items() if key not in decided),
        ),
        own=own,
    )


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


def _own_pairs(decisions: list[Override], held_out: Collection[str]) -> tuple[OwnPairs, list[PreferenceRow]]:
    """Rows of the pairs that a person made, in the order in which they were decided."""
    rows: list[PreferenceRow] = []
    kept_back = alike = 0
    for decision in decisions:
        if decision.pair is None or decision.decision == "drop":
            continue
        pair = ScoredPair(
            prompt=transcript(decision.pair.messages),
            messages=decision.pair.messages,
            base_response=decision.pair.base_response,
            revised_response=decision.pair.revised_response,
            base_score=0.0,  # nobody scored it; `delta` is none as well
            revised_score=None,
            chosen=None,
            category=OWN_CATEGORY,
        )
        row = overruled(pair, decision)
        if isinstance(row, str):
            alike += 1
        elif row.id in held_out:
            kept_back += 1
        else:
            rows.append(row)
    return OwnPairs(added=len(rows), held_out=kept_back, alike=alike), rows


def refuses_over_answer(row: PreferenceRow) -> bool:
    """The chosen side refuses and the rejected one does not."""
    return is_refusal(row.chosen[0]["content"]) and not is_refusal(row.rejected[0]["content"])


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


def _near_duplicates(rows: dict[int, PreferenceRow], settings: Curate, seed: int) -> list[int]:
    """Places of rows whose prompt nearly repeats that of a row with a person's label or a larger score difference."""
    if settings.near_duplicates is None:
        return []
    order = sorted(rows, key=lambda place: (rows[place].labelled_by != "person", -abs(rows[place].delta or 0), place))
    copies = near_copies([transcript(rows[place].prompt) for place in order], settings.near_duplicates)
    return [
        place
        for place, copy_of in zip(order, copies, strict=True)
        if copy_of is not None and rows[place].labelled_by != "person"
    ]


def _too_many_refusals(rows: dict[int, PreferenceRow], settings: Curate, seed: int) -> list[int]:
    """Places of the refusals over answers that are one too many, drawn by hash; a person's rows stay."""
    share = settings.max_refusal_share
    refusing = [place for place, row in rows.items() if refuses_over_answer(row)]
    if share is None or share == 1 or not rows or len(refusing) <= share * len(rows):
        return []
    others = len(rows) - len(refusing)
    surplus = len(refusing) - int(others * share / (1 - share))  # r / (r + others) ≤ share
    candidates = [place for place in refusing if rows[place].labelled_by != "person"]
    return sorted(candidates, key=_by_hash(rows, f"{seed}:balance"))[:surplus]


def _by_hash(rows: dict[int, PreferenceRow], salt: str) -> Callable[[int], bytes]:
    """A fixed random order of rows, the same whatever the order of the file."""

    def key(place: int) -> bytes:
        row = rows[place]
        return hashlib.sha256(f"{salt}:{row.id}:{row.chosen[0]['content']}".encode(errors="backslashreplace")).digest()

    return key
