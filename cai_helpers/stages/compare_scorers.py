"""Several scorers on the same gold pairs, in one table: choose who labels and who judges by figures."""

from __future__ import annotations

import functools
import re

from pydantic import ValidationError

from cai_helpers.calibration.gold import gold_source, read_gold
from cai_helpers.calibration.trial import CalibrateReport, keep_trial
from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import use_threads
from cai_helpers.schema import StageReport
from cai_helpers.scoring.judge import scored_by
from cai_helpers.sections import RewardSource
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace, holds_workspace

# A name may hold colons itself ("embedded:reward"), so what follows it is told from its end.
_NAMED = re.compile(r"(?P<model>.+?)(?::(?P<input>pair|chat)(?::(?P<max_length>\d+))?)?")


class CompareScorersReport(StageReport):
    names: list[str]  # as they were given
    trials: list[CalibrateReport]  # one a name

    def title(self) -> str:
        figures = self.trials[0].calibration
        return f"Scorers on the same {figures.pairs} gold pairs of {figures.gold}"

    def rows(self) -> list[dict[str, str]]:
        """The table, a row a scorer."""
        return [_row(name, trial) for name, trial in zip(self.names, self.trials, strict=True)]

    def lines(self) -> list[tuple[str, str]]:
        rows = self.rows()
        widths = {head: max(len(head), *(len(row[head]) for row in rows)) for head in rows[0]}
        table = [{head: head for head in rows[0]}, *rows]
        notes = [(name, ": ".join(note)) for name, trial in zip(self.names, self.trials, strict=True)
                 for note in trial.notes]  # fmt: skip
        return [
            *(
                (row["scorer"], "  ".join(row[head].rjust(widths[head]) for head in row if head != "scorer"))
                for row in table
            ),
            *notes,
            (
                "how to read this",
                "right, ties as half, with 95 % intervals; of scorers whose intervals overlap much, take the quicker",
            ),
        ]


@holds_workspace
def compare_scorers(
    settings: Settings, workspace: Workspace, scorers: list[str], gold: str | None = None
) -> CompareScorersReport:
    """Try each scorer on the gold pairs of `cai calibrate`; each one's figures are kept, so a killed call goes on.

    scorers: names as in models.reward, each with ":chat" or ":chat:2048" (input and max_length) where it is read that way.

    Raises:
        CaiError: no gold pairs are named, one scorer is named twice, or one cannot be loaded or fails; the figures of
            those before it are kept.
    """
    sources = [named_source(name, settings) for name in scorers]
    if len({source.model_dump_json() for source in sources}) < len(sources) or not sources:
        raise CaiError(
            f"--scorers={','.join(scorers)} names {'a scorer twice' if sources else 'nobody'}.",
            "Name each once, separated by commas: --scorers NAME,OTHER:chat",
        )
    source = gold_source(settings.calibrate, gold)
    pairs = functools.cache(lambda: read_gold(source, settings.calibrate.limit, settings.seed))
    use_threads(settings.threads)
    trials = [keep_trial(scored_by(settings, scorer), workspace, source, pairs) for scorer in sources]
    return CompareScorersReport(names=scorers, trials=trials)


def named_source(name: str, settings: Settings) -> RewardSource:
    """The scorer of "NAME", "NAME:chat" or "NAME:chat:2048"; a name of the settings alone is read as they say.

    Raises:
        CaiError: max_length is too small.
    """
    match = _NAMED.fullmatch(name)
    if match is None:
        raise CaiError("A scorer without a name.", "Name scorers separated by commas: --scorers NAME,OTHER:chat")
    given = {field: value for field, value in match.groupdict().items() if value is not None}
    known = [*settings.models.rewards, *([settings.evaluate.scorer] if settings.evaluate.scorer else [])]
    if given.keys() == {"model"}:
        for source in known:
            if source.model == name:
                return source
    try:
        return RewardSource.model_validate(given)
    except ValidationError as error:
        raise CaiError(
            f"The scorer {name}: {error.errors()[0]['msg']}.", "Write, for example, NAME:chat:2048 (input, max_length)."
        ) from error


def _row(name: str, trial: CalibrateReport) -> dict[str, str]:
    figures = trial.calibration
    speed = 100 * trial.seconds / trial.scored_now if trial.scored_now else None
    return {
        "scorer": name,
        "right": figures.accuracy.percent(),
        **{category: f"{share.percent()} of {share.n}" for category, share in figures.categories.items()},
        "min_delta": "none" if figures.min_delta is None else f"{figures.min_delta:.2f}",
        "verdict": figures.verdict,
        "s/100 texts": "kept" if speed is None else f"{speed:.1f}",
    }
