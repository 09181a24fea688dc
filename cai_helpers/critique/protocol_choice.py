"""Which critique protocol a bake-off recommends: one that wins beyond chance, or none, with what to try instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cai_helpers.critique.sampled_entry import SampledEntry
from cai_helpers.errors import CaiError
from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.schema import Record

# Each protocol is tested by itself: one in forty that only tosses coins passes, so of six at least one in about every
# seventh bake-off. The gate measures the winner again, on all pairs.
RULE = (
    "recommended: of the protocols whose revisions win beyond chance (95 % interval of wins among decided pairs above "
    "50 %), the one with the most winning revisions less losing ones; among those within one pair of the best, the "
    "quickest"
)
CHEAPEST_FIRST = (
    "In order of cost, try several answers that the scorer judges (samples/4, once `cai calibrate` trusts it), another "
    "wording (a copy of protocols.yaml as generate.protocols_file, of constitution.yaml as generate.constitution), an "
    "endpoint as critic (generate.critic=api), a larger models.base, or supervised fine-tuning on a few revisions that you "
    "edit in the inspector (train.method=sft). Or name a protocol (generate.protocol=single/short) to go on with it all the "
    "same."
)
WITH_SAMPLES = "Set curate.min_delta=auto with it: below that difference its labels are noise."


class Entry(Record):
    """One protocol's row. Shares are of all prompts, but `wins`, which is of the usable revisions."""

    protocol: str
    prompts: int
    outcomes: dict[str, int]
    identical: int  # usable revisions that are the draft again
    wins: int  # of the usable revisions
    losses: int
    win_rate: Interval | None  # None without a usable revision
    mean_delta: float | None
    tokens_a_pair: float
    seconds_a_pair: float

    @property
    def net(self) -> int:
        return self.wins - self.losses

    @property
    def beyond_chance(self) -> bool:
        decided = proportion(self.wins, self.wins + self.losses)
        return decided is not None and decided.low > 0.5

    def share(self, *outcomes: str) -> float:
        return sum(self.outcomes.get(outcome, 0) for outcome in outcomes) / self.prompts

    def figures(self, planned: int) -> dict[str, str]:
        """The row of the table, under its heads."""
        return {
            "protocol": self.protocol,
            "parsed": f"{1 - self.share('unparsed', 'truncated', 'refused_to_critique'):.0%}",
            "kept": f"{self.share('kept'):.0%}",
            "identical": f"{self.identical / self.prompts:.0%}",
            "meta": f"{self.share('meta_commentary', 'echo'):.0%}",
            "degenerate": f"{self.share('degenerate', 'too_short'):.0%}",
            "revised wins": self.win_rate.percent() if self.win_rate else "none",
            "won − lost": f"{self.net:+d}",
            "mean delta": "none" if self.mean_delta is None else f"{self.mean_delta:+.2f}",
            "tokens/pair": f"{self.tokens_a_pair:.0f}",
            "s/pair": f"{self.seconds_a_pair:.2f}",
            f"minutes for {planned}": f"{self.seconds_a_pair * planned / 60:.1f}",
        }


class Choice(NamedTuple):
    protocol: str | None  # None: none can be recommended
    why: str  # RULE, or what was found instead
    remedy: str = ""  # what to do where there is none

    def line(self) -> str:
        return f"{self.protocol}  ({self.why})" if self.protocol else f"none: {self.why} {self.remedy}"


def choose_protocol(entries: list[Entry], samples: Sequence[SampledEntry] = ()) -> Choice:
    """The protocol that RULE names; where there is none, samples whose labels can be trusted; or none, in words."""
    sound = [entry for entry in entries if entry.beyond_chance]
    if sound:
        best = max(entry.net for entry in sound)
        near = [entry for entry in sound if entry.net >= best - 1]
        return Choice(min(near, key=lambda entry: entry.seconds_a_pair).protocol, RULE)
    none = _no_protocol(entries)
    trusted = [entry for entry in samples if entry.recommendable]
    if not trusted:
        told = [f"Nor can {entry.protocol} be recommended: {entry.line()}." for entry in samples]
        return none._replace(why=" ".join([none.why, *told]))
    most = max(trusted, key=_trusted_share)
    return Choice(most.protocol, f"{none.why} Several answers, judged, are a way on: {most.line()}. {WITH_SAMPLES}")


def _trusted_share(entry: SampledEntry) -> float:
    """Of the pairs, those whose label counts."""
    return 0.0 if entry.labels is None else entry.labels.above / entry.prompts


def _no_protocol(entries: list[Entry]) -> Choice:
    """Why no critique protocol can be recommended, and what to try."""
    if not entries:
        return Choice(None, "no critique protocol was compared.", CHEAPEST_FIRST)
    ahead = max(entries, key=lambda entry: entry.net)
    prompts = ahead.prompts
    if ahead.net > 0:
        decided = ahead.wins + ahead.losses
        return Choice(
            None,
            f"the best, {ahead.protocol}, won {ahead.wins} of {decided} decided pairs, which a tossed coin may do too.",
            f"More prompts may tell (cai bakeoff --n {2 * prompts}). {CHEAPEST_FIRST}",
        )
    if not any(entry.wins or entry.losses for entry in entries):
        return Choice(None, "no protocol made a revision that scores otherwise than its draft.", CHEAPEST_FIRST)
    return Choice(
        None, f"no protocol has more winning revisions than losing ones on {prompts} prompts.", CHEAPEST_FIRST
    )


def require_protocol(choice: Choice) -> str:
    """The protocol of `choice`.

    Raises:
        CaiError: there is none; it says why, and what to try.
    """
    if choice.protocol is None:
        raise CaiError(f"The bake-off recommends no protocol: {choice.why}", choice.remedy)
    return choice.protocol


def told_from_chance(decided: int) -> float | None:
    """The lowest share of wins among so many decided pairs that is beyond chance; None: not even all of them are."""
    intervals = ((wins, proportion(wins, decided)) for wins in range(decided + 1))
    shares = (wins / decided for wins, interval in intervals if interval is not None and interval.low > 0.5)
    return next(shares, None) if decided else None
