"""Run a few prompts through every protocol and recommend one by a stated rule: measured here, on this model.

Each prompt is drafted once; a draft does not depend on the protocol, so every protocol criticises the same ones. Rows are
on disk as they come: a killed bake-off goes on, one with more prompts keeps those it has.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import Field

from cai_helpers import screen
from cai_helpers.calibration.accuracy import load_calibration, trust_line
from cai_helpers.calibration.differences import with_labels
from cai_helpers.critique.critic import (
    Draft,
    criticise,
    draft_of,
    load_critic,
    longest_first,
    make_drafts,
    protocol_of,
    trace_basis,
)
from cai_helpers.critique.protocol_choice import Choice, Entry, choose_protocol, told_from_chance
from cai_helpers.critique.protocols import Protocol, load_protocol, protocol_names
from cai_helpers.critique.sampled_entry import SampledEntry
from cai_helpers.critique.samples import USUAL, Samples
from cai_helpers.errors import CaiError, StoppedByHand
from cai_helpers.machine.hardware import use_threads
from cai_helpers.manifest import Fingerprint, plain
from cai_helpers.measures.intervals import proportion
from cai_helpers.models.batches import release_all
from cai_helpers.models.flow import Coming
from cai_helpers.prompts.split import write_prompts
from cai_helpers.readiness.check import interruptible
from cai_helpers.readiness.needs import require_answer, require_ready, require_scorer
from cai_helpers.schema import Completion, Prompt, StageReport, Trace
from cai_helpers.scoring.judge import PairScores, judge_pairs, scorer_identity
from cai_helpers.scoring.samples import asked_about, extremes
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, gathering, read_jsonl, write_json
from cai_helpers.workspace import Workspace, holds_workspace

# Where 60 % of them give a usable revision, a protocol that wins seven in ten of those is told from a tossed coin.
PROMPTS = 48

T = TypeVar("T")


class BakeoffReport(StageReport):
    scorer: str
    trust: str  # what gold pairs say of it, see calibration.trust_line
    planned: int  # training prompts of the settings
    entries: list[Entry]
    samples: list[SampledEntry] = Field(default_factory=list)  # of samples/k, which has no win rate
    recommended: str | None  # None: no protocol wins beyond chance, and no samples can be trusted

    def title(self) -> str:
        return (
            f"Bake-off of the critique protocols, {self.all_entries()[0].prompts} prompts each, scored by {self.scorer}"
        )

    def rows(self) -> list[dict[str, str]]:
        """The table, a row a protocol."""
        return [entry.figures(self.planned) for entry in self.all_entries()]

    def all_entries(self) -> list[Entry | SampledEntry]:
        """A row of the table each."""
        return [*self.entries, *self.samples]

    def choice(self) -> Choice:
        """The recommendation in words, or why there is none and what to try."""
        return choose_protocol(self.entries, self.samples)

    def lines(self) -> list[tuple[str, str]]:
        rows = self.rows()
        widths = {head: max(len(head), *(len(row[head]) for row in rows)) for head in rows[0]}
        table = [(None, {head: head for head in rows[0]}), *((row["protocol"], row) for row in rows)]
        formatted = [
            (name or "protocol", "  ".join(row[head].rjust(widths[head]) for head in row if head != "protocol"))
            for name, row in table
        ]
        return [
            *formatted,
            ("scorer, on gold pairs", self.trust),
            *([("told from chance", self._told())] if self.entries else []),
            *((entry.protocol, entry.line()) for entry in self.samples),
            ("recommended", self.choice().line()),
        ]

    def _told(self) -> str:
        """What so many prompts can show at all."""
        most = max(self.entries, key=lambda entry: entry.wins + entry.losses)
        decided = most.wins + most.losses
        share = told_from_chance(decided)
        counted = f"{decided} of {most.prompts} prompts gave a decided pair at best ({most.protocol})"
        if share is None:
            return f"{counted}: too few to tell any win rate from chance"
        return f"{counted}: from {share:.0%} wins on, a protocol is told from a tossed coin"


class _Judged(NamedTuple):
    """What a protocol made of the prompts."""

    traces: list[Trace]
    seconds: float  # drafting included


@holds_workspace
def compare_protocols(
    settings: Settings, workspace: Workspace, count: int = PROMPTS, protocols: list[str] | None = None
) -> BakeoffReport:
    """Draft, critique, revise and score `count` training prompts under each protocol; default: every one there is, and
    samples/4.

    The result is kept in bakeoff/, where `generate` finds the recommendation while generate.protocol is "auto". A
    second call with the same settings gives the stored result: a notebook that is run again after its runtime died
    must not change the protocol half-way because another one was a little quicker this time.

    Raises:
        CaiError: an unknown protocol, the models or the scorer cannot be loaded, or it was stopped by hand.
    """
    own_file = settings.generate.protocols_file
    file = Path(own_file) if own_file else None
    texts = {name: protocol_of(settings, name) for name in protocols or _usual(settings, file)}
    basis = _basis(settings, file)
    fingerprint = {
        **basis,
        "models.reward": scorer_identity(settings),
        "prompts": count,
        "protocols": {name: text for name, text in texts.items() if isinstance(text, Protocol)},
        "samples": [name for name, text in texts.items() if isinstance(text, Samples)],
    }
    if (report := workspace.finished("bakeoff", fingerprint, BakeoffReport)) is not None:
        return _judged_now(report, workspace)
    require_ready(settings, workspace, "bakeoff")
    use_threads(settings.threads)
    _begin(workspace, basis)
    write_prompts(settings, workspace)
    prompts = [Prompt.model_validate(row) for row in read_jsonl(workspace.prompts)]  # in the form `generate` takes them
    made = _make_rows(settings, workspace, prompts[:count], texts)
    deltas = _deltas(settings, workspace, {name: judged.traces for name, judged in made.items()})
    report = BakeoffReport(
        scorer=scorer_identity(settings),
        trust="",
        planned=len(prompts),
        entries=[_entry(name, made[name], deltas[name]) for name in made if isinstance(texts[name], Protocol)],
        samples=[_sampled_entry(name, made[name], deltas[name]) for name in made if isinstance(texts[name], Samples)],
        recommended=None,
    )
    report = _judged_now(report, workspace)
    write_json(workspace.bakeoff, report.model_dump(mode="json"))
    # else an endpoint failed: again later
    if all(entry.prompts == min(count, len(prompts)) for entry in report.all_entries()):
        workspace.seal("bakeoff", fingerprint, [workspace.bakeoff], report)
    return report


def _usual(settings: Settings, file: Path | None) -> list[str]:
    """Every critique protocol, and samples where they would differ."""
    return [*protocol_names(file), *([USUAL] if settings.generate.temperature > 0 else [])]


def _judged_now(report: BakeoffReport, workspace: Workspace) -> BakeoffReport:
    """With today's calibration and rule: an older report may recommend what never won."""
    calibration = load_calibration(workspace, report.scorer)
    samples = [with_labels(entry, calibration) for entry in report.samples]
    return report.model_copy(
        update={
            "trust": trust_line(calibration),
            "samples": samples,
            "recommended": choose_protocol(report.entries, samples).protocol,
        }
    )


def _basis(settings: Settings, file: Path | None) -> Fingerprint:
    """What the rows depend on: not how many prompts and protocols are compared, nor by whom they are scored."""
    return {**trace_basis(settings), "wordings": {name: load_protocol(name, file) for name in protocol_names(file)}}


def _begin(workspace: Workspace, basis: Fingerprint) -> None:
    """Go on with the rows that are there, or, where they were made with something else, put them into archive/."""
    if workspace.begun("bakeoff") != plain(basis):
        workspace.archive("bakeoff", list(workspace.bakeoff_dir.glob("*")))
    workspace.begin("bakeoff", basis)


def _make_rows(
    settings: Settings, workspace: Workspace, prompts: list[Prompt], protocols: dict[str, Protocol | Samples]
) -> dict[str, _Judged]:
    """The traces of every protocol; nothing is loaded when all are on disk."""
    ordered = longest_first(prompts)
    drafts = JsonlStore(workspace.bakeoff_drafts)
    stores = {name: JsonlStore(workspace.traces_of_protocol(name)) for name in protocols}
    wanted = {prompt.id for prompt in prompts}
    if any(wanted - store.ids() for store in (drafts, *stores.values())):
        require_scorer(settings, workspace, "bakeoff")
        # a critique protocol, if there is one: the endpoint comes with it
        first = min(protocols, key=lambda name: isinstance(protocols[name], Samples))
        with interruptible():
            critic = load_critic(settings, first)
        require_answer(critic.drafter)
        missing = [prompt for prompt in ordered if prompt.id not in drafts.ids()]
        _write("draft", len(missing), make_drafts(critic, missing), drafts, _row_of_draft)
        known = {row["id"]: Completion.model_validate(row["completion"]) for row in drafts.rows()}
        made = [draft_of(critic, prompt, known[prompt.id]) for prompt in ordered if prompt.id in known]
        for name, protocol in protocols.items():
            judge = critic._replace(protocol=protocol)
            done = stores[name].ids()
            open_drafts = [draft for draft in made if draft.prompt.id not in done]
            _write(name, len(open_drafts), criticise(judge, open_drafts), stores[name], Trace.model_dump)
        del critic, judge
        release_all()  # on a T4 the reward model takes the generator's place
    drafting = {row["id"]: row["seconds"] for row in drafts.rows()}
    return {name: _judged(store, [prompt.id for prompt in ordered], drafting) for name, store in stores.items()}


def _write(name: str, count: int, coming: Coming[T], store: JsonlStore, row: Callable[[T], dict]) -> None:
    """Append what comes, each with its share of the seconds since others came."""
    with screen.bar(count, name, "pair", hidden=not count) as bar:
        try:
            with gathering(store, bar.update) as write, closing(coming):
                last = time.monotonic()
                for ended in coming:
                    now = time.monotonic()
                    write({**row(item), "seconds": (now - last) / len(ended)} for item in ended)
                    last = now if ended else last
        except KeyboardInterrupt:
            raise StoppedByHand(
                f"Stopped by hand at {name}, {bar.n} of {count}; the rows are on disk.",
                "Run `cai bakeoff` or the cell again to go on from there.",
            ) from None


def _row_of_draft(draft: Draft) -> dict:
    return {"id": draft.prompt.id, "completion": draft.completion.model_dump()}


def _judged(store: JsonlStore, wanted: list[str], drafting: dict[str, float]) -> _Judged:
    by_id = {row["id"]: row for row in store.rows()}
    rows = [by_id[name] for name in wanted if name in by_id]
    if not rows:
        raise CaiError("The endpoint answered no request of the bake-off.", "Check the settings under endpoint.")
    seconds = sum(row.pop("seconds") + drafting[row["id"]] for row in rows)
    return _Judged([Trace.model_validate(row) for row in rows], seconds)


def _deltas(settings: Settings, workspace: Workspace, made: dict[str, list[Trace]]) -> dict[str, list[float]]:
    """Score differences of each protocol's pairs; all are judged in one call, which loads the scorer once."""
    comparable = {
        name: [trace for trace in traces if trace.outcome in ("revised", "sampled")] for name, traces in made.items()
    }
    asked = [pair for traces in comparable.values() for trace in traces for pair in asked_about(trace)]
    scores = iter(judge_pairs(settings, asked, JsonlStore(workspace.bakeoff_scores)).scores)
    return {
        name: [_delta(trace, list(islice(scores, len(asked_about(trace)))), settings) for trace in traces]
        for name, traces in comparable.items()
    }


def _delta(trace: Trace, scores: list[PairScores], settings: Settings) -> float:
    """Revision less draft, or best sample less worst."""
    if trace.outcome == "sampled":
        best, worst = extremes(trace, scores, settings)
        return best.rating - worst.rating
    (score,) = scores
    return score.second - score.first


def _entry(name: str, made: _Judged, deltas: list[float]) -> Entry:
    revised = [trace for trace in made.traces if trace.outcome == "revised"]
    wins, count = sum(delta > 0 for delta in deltas), len(made.traces)
    return Entry(
        protocol=name,
        prompts=count,
        outcomes=dict(Counter(trace.outcome for trace in made.traces)),
        identical=sum(trace.draft.strip() == trace.revision.strip() for trace in revised),
        wins=wins,
        losses=sum(delta < 0 for delta in deltas),
        win_rate=proportion(wins, len(deltas)),
        mean_delta=sum(deltas) / len(deltas) if deltas else None,
        tokens_a_pair=sum(trace.tokens for trace in made.traces) / count,
        seconds_a_pair=made.seconds / count,
    )


def _sampled_entry(name: str, made: _Judged, deltas: list[float]) -> SampledEntry:
    count = len(made.traces)
    return SampledEntry(
        protocol=name,
        prompts=count,
        outcomes=dict(Counter(trace.outcome for trace in made.traces)),
        deltas=deltas,
        tokens_a_pair=sum(trace.tokens for trace in made.traces) / count,
        seconds_a_pair=made.seconds / count,
    )
