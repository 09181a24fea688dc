"""The report of an evaluation: all its figures, and the words in which they are shown."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from cai_helpers.calibration.accuracy import NOT_CALIBRATED
from cai_helpers.evaluation.builtin import SET_MEANING
from cai_helpers.evaluation.categories import Categories
from cai_helpers.evaluation.figures import (
    MAIN,
    OWN_LABELLER,
    POLICY_NAME,
    Change,
    Comparison,
    Judgement,
    LengthControlled,
    Shift,
    TwoOptions,
    readable,
)
from cai_helpers.evaluation.labeller import is_own_labeller
from cai_helpers.evaluation.verdict import CAUTION, OVER_REFUSAL
from cai_helpers.measures.intervals import Interval
from cai_helpers.measures.prevalence import corrected_difference
from cai_helpers.measures.refusals import agreement
from cai_helpers.schema import StageReport

Line = tuple[str, str]


class EvaluateReport(StageReport):
    FIRST: ClassVar[tuple[str, ...]] = ("verdict", "adapter", "warning", "a person", "gold pairs", "judged by")

    scorer: str
    notes: list[Line]  # what the scorer says of this call
    judgement: Judgement
    overall: Comparison  # of the held-out prompts, which the verdict rests on
    by_category: dict[str, Comparison]
    generated_now: int  # answers; the others were there already
    seconds: float
    trust: str = NOT_CALIBRATED  # what gold pairs say of the scorer, see calibration.trust_line
    labeller: str | None = None  # who labelled the training pairs; None: not known, they came from elsewhere
    adapter: str = ""  # hash of the weights that were evaluated: the verdict holds for these alone
    exchanged: str = ""  # a sentence, where that is not the adapter that training left
    sampled: bool = False  # False: greedy, so that Stage 2 again would say the same
    power: str = ""  # what so many prompts can show
    sets: dict[str, dict[str, Comparison]] = Field(
        default_factory=dict
    )  # set → category → figures; the held-out prompts are not among them
    two_options: list[TwoOptions] = Field(default_factory=list)
    categories: Categories | None = None  # the method's four, on the built-in sets
    human: str = ""  # what a person found blind, in one sentence; "": nobody has looked
    perplexity: dict[str, float] = Field(default_factory=dict)  # policy → of benign texts; a rise is damage

    @property
    def judged(self) -> str:
        """What stands beside a win rate whose judge labelled the training pairs."""
        return f", {OWN_LABELLER}" if is_own_labeller(self.scorer, self.labeller) else ""

    def title(self) -> str:
        return "Evaluation against Stage 2"

    def verdict(self) -> str:
        return f"{self.judgement.verdict}: {self.judgement.reason}"

    def lines(self) -> list[Line]:
        groups = {"all prompts": self.overall} | {readable(name): one for name, one in self.by_category.items()}
        return [
            ("verdict", self.verdict()),
            *([("adapter", self.exchanged)] if self.exchanged else []),
            *([("warning", self.scary())] if self.scary() else []),
            ("caution", CAUTION),
            *([("what so many prompts can show", self.power)] if self.power else []),
            ("judged by", self.scorer),
            ("pairs labelled by", self._labelled()),
            ("gold pairs", self.trust),
            *([("a person, blind", self.human)] if self.human else []),
            ("refusals counted by", agreement().sentence()),
            *self.notes,
            *(line for name, one in groups.items() for line in comparison_lines(name, one, self.judged)),
            *(self.categories.lines() if self.categories else []),
            *self._damage(),
            *(line for name, groups in self.sets.items() for line in _set_lines(name, groups)),
            ("this call", f"{self.generated_now} answers generated; {self.seconds:.0f} s"),
        ]

    def summary(self) -> list[Line]:
        return [
            *(
                (
                    f"win rate, {readable(name)}",
                    f"{one.win_rate.percent()} of {one.prompts} held-out prompts{self.judged}",
                )
                for name, one in self.by_category.items()
            ),
            ("the judge, on gold pairs", self.trust),
            *((f"refusals of {readable(name)}", change_words(one.refusals)) for name, one in self.by_category.items()),
            ("the counter of refusals", agreement().sentence()),
            *([("adapter", self.exchanged)] if self.exchanged else []),
            *([("a person, blind", self.human)] if self.human else []),
            ("verdict", self.verdict()),
        ]

    def scary(self) -> str:
        """A warning where safe requests that sound unsafe are refused more often; held-out prompts may not show it."""
        groups = self.sets.get("scary", {}).values()
        risen = [one.refusals for one in groups if one.refusals.difference.low > OVER_REFUSAL]
        said = [f"refusals of built-in {SET_MEANING['scary']} rose: {change_words(change)}" for change in risen]
        return "".join(said)

    def _labelled(self) -> str:
        if self.labeller is None:
            return "not known: they came from elsewhere"
        if self.judged:
            return "the same: that it prefers Stage 3 says that training obeyed; name another judge in evaluate.scorer"
        return self.labeller

    def _damage(self) -> list[Line]:
        """What tuning should have left as it was."""
        lines = []
        if self.perplexity:
            each = [f"{POLICY_NAME[policy]} {value:.1f}" for policy, value in self.perplexity.items()]
            lines.append(("perplexity of benign texts", ", ".join(each)))
        for one in self.two_options:
            each = [f"{POLICY_NAME[policy]} {share.percent()}" for policy, share in one.right.items()]
            change = f"; Stage 2 to 3: {one.change.points()}" if one.change else ""
            lines.append((f"two options, {SET_MEANING.get(one.name, one.name)}: right", ", ".join(each) + change))
        return lines


def comparison_lines(name: str, one: Comparison, judged: str) -> list[Line]:
    """A group's figures, what matters first."""
    won = f"{one.wins} won, {one.ties} tied, {one.losses} lost"
    lines = [
        ("prompts", _prompts(one)),
        ("win rate", f"{one.win_rate.percent()}: {won}{judged}"),
        *(
            (_versus(pairing), against.win_rate.percent())
            for pairing, against in one.against.items()
            if pairing != MAIN
        ),
        *([("win rate at equal length", _at_equal_length(one.length_controlled))] if one.length_controlled else []),
        ("mean reward difference", _or_too_few(one.mean_delta, "prompts")),
        ("refusals", change_words(one.refusals)),
        *_corrected(one),
        *([("partial refusals", change_words(one.partial))] if one.partial else []),
        *_of_base("refusals", one),
        ("cut off at the token limit", change_words(one.truncated)),
        ("degenerate answers", change_words(one.degenerate)),
        ("topic fit of answers", f"{_fit(one.fit_before)} → {_fit(one.fit_after)}"),
        *([("log-probability under the base model", _shift(one.logp))] if one.logp else []),
        *([("KL to Stage 2", f"{one.kl.number()} nats an answer")] if one.kl else []),
        ("mean length", f"{one.words_before:.0f} → {one.words_after:.0f} words"),
    ]
    return [(f"{name}: {what}", figure) for what, figure in lines]


def change_words(change: Change) -> str:
    return f"{change.before.percent()} → {change.after.percent()}, {change.difference.points()}"


def _set_lines(name: str, groups: dict[str, Comparison]) -> list[Line]:
    """The few figures of a set beside the held-out prompts."""
    lines = []
    for category, one in groups.items():
        title = f"{SET_MEANING.get(name, name)} ({one.prompts}{'' if len(groups) == 1 else ', ' + readable(category)})"
        refusals = [f"{POLICY_NAME[policy]} {found.refusals.percent()}" for policy, found in one.policies.items()]
        lines += [(f"{title}: win rate", one.win_rate.percent()), (f"{title}: refused", ", ".join(refusals))]
    return lines


def _versus(pairing: str) -> str:
    first, second = pairing.split("/")
    return f"win rate of {POLICY_NAME[first]} against {POLICY_NAME[second]}"


def _prompts(one: Comparison) -> str:
    shared = one.conversations is not None and one.conversations < one.prompts
    return f"{one.prompts}, of {one.conversations} conversations" if shared else str(one.prompts)


def _of_base(name: str, one: Comparison) -> list[Line]:
    base = one.policies.get("base")
    return [] if base is None else [(f"{name} of the base model", base.refusals.percent())]


def _corrected(one: Comparison) -> list[Line]:
    """What people would count, by how often the counter errs (Rogan and Gladen)."""
    found = [(POLICY_NAME[policy], figures.refusals_corrected) for policy, figures in one.policies.items()]
    said = [f"{name} {share.percent()}" for name, share in found if share is not None]
    if not said:
        return []
    difference = corrected_difference(one.refusals.difference, agreement()).points()
    return [("refusals as people would count them", f"{', '.join(said)}; {difference}")]


def _at_equal_length(found: LengthControlled) -> str:
    return found.note if found.win_rate is None else f"{found.win_rate.percent()} (shown, never a gate)"


def _shift(shift: Shift) -> str:
    if shift.before is None or shift.after is None or shift.difference is None:
        return "too few answers"
    return f"{shift.before.value:+.2f} → {shift.after.value:+.2f}, {shift.difference.number()} nats a token"


def _or_too_few(interval: Interval | None, what: str) -> str:
    return f"too few {what}" if interval is None else interval.number()


def _fit(fit: Interval | None) -> str:
    return "too few answers" if fit is None else fit.percent()
