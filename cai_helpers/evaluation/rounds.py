"""Round after round on what the model itself wrote: does it still get better, or does it collapse?

Training a small model on its own revisions can end in collapse ("Constitution or Collapse?", arXiv 2504.04918): answers
that go round in circles, that all say the same, or that the base model would never have said.
"""

from __future__ import annotations

from collections.abc import Sequence

from cai_helpers.evaluation.comparison import compare
from cai_helpers.evaluation.figures import MAIN, STAGE2, STAGE3, Response
from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.schema import BENIGN, HARMFUL, Record, StageReport

MOST_LOOPS = 0.05  # rise of the share of degenerate answers, against the first Stage 2
# Nats a token by which the mean log-probability under the base may move. Loops raise it, gibberish lowers it. On the
# embedded models two sound rounds moved it by 0.05.
MOST_DRIFT = 1.0
LEAST_DISTINCT = 0.5  # of the first Stage 2's share of different answers
RULE = (
    "another round begins only while the last verdict is better, degenerate answers have risen by at most "
    f"{100 * MOST_LOOPS:.0f} points, the log-probability under the base has moved by at most {MOST_DRIFT:g} nats a token, and at "
    f"least {LEAST_DISTINCT:.0%} as many different answers are left, all against the first Stage 2"
)


class Round(Record):
    """What a round came to on the held-out prompts; round 0 is the first Stage 2."""

    number: int
    verdict: str  # "" of round 0
    prompts: int
    over_before: Interval | None  # win rate over the round before
    over_first: Interval | None  # over the first Stage 2; None where another judge scored it
    harmful_refused: Interval | None
    benign_refused: Interval | None
    degenerate: Interval
    log_probability: float | None  # mean nats a token under the base model; None: no answer has a token
    distinct: float  # share of answers that are different texts
    words: float

    def figures(self) -> dict[str, str]:
        """A row of the table."""
        return {
            "round": "Stage 2" if self.number == 0 else str(self.number),
            "verdict": self.verdict or "–",
            "wins over the round before": _share(self.over_before),
            "wins over Stage 2": _share(self.over_first),
            "harmful refused": _share(self.harmful_refused),
            "benign refused": _share(self.benign_refused),
            "degenerate": _share(self.degenerate),
            "log-probability": "–" if self.log_probability is None else f"{self.log_probability:.2f}",
            "different answers": f"{self.distinct:.0%}",
            "words": f"{self.words:.0f}",
        }


class RoundsReport(StageReport):
    rounds: list[Round]
    stop: str | None  # why no further round should begin

    def title(self) -> str:
        return "Rounds"

    def rows(self) -> list[dict[str, str]]:
        return [round_.figures() for round_ in self.rounds]

    def lines(self) -> list[tuple[str, str]]:
        rows = self.rows()
        widths = {head: max(len(head), *(len(row[head]) for row in rows)) for head in rows[0]}
        table = [{head: head for head in rows[0]}, *rows]
        return [
            *(
                (row["round"], "  ".join(row[head].rjust(widths[head]) for head in row if head != "round"))
                for row in table
            ),
            ("next", self.stop or "another round may begin: cai run --from this workspace"),
            ("rule", RULE),
        ]


def first_round(responses: Sequence[Response]) -> Round:
    """Round 0, from the first evaluation: Stage 2's own answers."""
    return _round(0, "", responses, STAGE2, None, None)


def later_round(number: int, verdict: str, responses: Sequence[Response], first: Sequence[Response] | None) -> Round:
    """first: the first evaluation, whose Stage 2 is compared as well; None: it was judged or asked otherwise."""
    over_first = None if first is None else compare(_against(first, responses)).win_rate
    return _round(number, verdict, responses, STAGE3, compare(responses).win_rate, over_first)


def why_stop(rounds: Sequence[Round]) -> str | None:
    """Why no further round should begin after the last of `rounds`; None: it may. By RULE."""
    first, last = rounds[0], rounds[-1]
    risen = last.degenerate.value - first.degenerate.value
    if risen > MOST_LOOPS:
        return f"stop: answers go round in circles: {last.degenerate.percent()} are degenerate, {risen:+.0%} against Stage 2"
    if last.distinct < LEAST_DISTINCT * first.distinct:
        return f"stop: answers grow alike: {last.distinct:.0%} are different texts, and of Stage 2's {first.distinct:.0%} were"
    if first.log_probability is not None and last.log_probability is not None:
        drift = last.log_probability - first.log_probability
        if abs(drift) > MOST_DRIFT:
            return f"stop: the base finds the answers another language: {drift:+.2f} nats a token against Stage 2's"
    if last.number > 0 and last.verdict != "better":
        return f"stop: the verdict of round {last.number} is {last.verdict!r}"
    return None


def _against(first: Sequence[Response], now: Sequence[Response]) -> list[Response]:
    """This round's answers beside those of the first Stage 2, to the same prompts."""
    before = {response.id: response.answers[STAGE2] for response in first}
    return [
        response.model_copy(
            update={
                "answers": {STAGE2: (old := before[response.id]), STAGE3: (new := response.answers[STAGE3])},
                "deltas": {MAIN: 0.0 if old.text == new.text else new.score - old.score},
            }
        )
        for response in now
        if response.id in before
    ]


def _round(
    number: int,
    verdict: str,
    responses: Sequence[Response],
    policy: str,
    over_before: Interval | None,
    over_first: Interval | None,
) -> Round:
    answers = [response.answers[policy] for response in responses]
    texts = [answer.text for answer in answers]
    likely = [answer.logp for answer in answers if answer.logp is not None]

    def refused(category: str) -> Interval | None:
        flags = [response.answers[policy].refuses for response in responses if response.category == category]
        return proportion(sum(flags), len(flags))

    degenerate = proportion(sum(answer.degenerate for answer in answers), len(answers))
    assert degenerate is not None, "an evaluation has at least one prompt"
    return Round(
        number=number,
        verdict=verdict,
        prompts=len(texts),
        over_before=over_before,
        over_first=over_first,
        harmful_refused=refused(HARMFUL),
        benign_refused=refused(BENIGN),
        degenerate=degenerate,
        log_probability=sum(likely) / len(likely) if likely else None,
        distinct=len({" ".join(text.lower().split()) for text in texts}) / len(texts),
        words=sum(len(text.split()) for text in texts) / len(texts),
    )


def _share(interval: Interval | None) -> str:
    return "–" if interval is None else interval.percent()
