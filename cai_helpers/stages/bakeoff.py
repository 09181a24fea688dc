"""Run a few prompts through every protocol and recommend one by a stated rule: measured here, on this model."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from pathlib import Path

from tqdm.auto import tqdm

from cai_helpers.calibration.accuracy import load_calibration, trust_line
from cai_helpers.critique.critic import Critic, load_critic, make_traces
from cai_helpers.critique.verdict import Protocol, load_protocol, protocol_names
from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import use_threads
from cai_helpers.measures.intervals import Interval, proportion
from cai_helpers.models.language import identity, release_memory
from cai_helpers.prompts.split import write_prompts
from cai_helpers.schema import Prompt, Record, StageReport, Trace
from cai_helpers.scoring.judge import ResponsePair, judge_pairs, scorer_identity
from cai_helpers.settings import Settings
from cai_helpers.store import write_json, write_jsonl
from cai_helpers.workspace import Fingerprint, Workspace, section

RULE = (
    "recommended: the protocol with the most winning revisions less losing ones; among those within one pair of the "
    "best, the quickest"
)


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


class BakeoffReport(StageReport):
    scorer: str
    trust: str  # what gold pairs say of it, see calibration.trust_line
    planned: int  # training prompts of the settings
    entries: list[Entry]
    recommended: str

    def title(self) -> str:
        return f"Bake-off of the critique protocols, {self.entries[0].prompts} prompts each, scored by {self.scorer}"

    def rows(self) -> list[dict[str, str]]:
        """The table, a row a protocol."""
        return [entry.figures(self.planned) for entry in self.entries]

    def lines(self) -> list[tuple[str, str]]:
        rows = self.rows()
        widths = {head: max(len(head), *(len(row[head]) for row in rows)) for head in rows[0]}
        table = [(None, {head: head for head in rows[0]}), *((row["protocol"], row) for row in rows)]
        formatted = [
            (name or "protocol", "  ".join(row[head].rjust(widths[head]) for head in row if head != "protocol"))
            for name, row in table
        ]
        trust = ("scorer, on gold pairs", self.trust)
        return [*formatted, trust, ("recommended", f"{self.recommended}  ({RULE})")]


def compare_protocols(
    settings: Settings, workspace: Workspace, count: int = 24, protocols: list[str] | None = None
) -> BakeoffReport:
    """Draft, critique, revise and score `count` training prompts under each protocol; default: every one there is.

    The result is kept in bakeoff/, where `generate` finds the recommendation while generate.protocol is "auto". A
    second call with the same settings gives the stored result: a notebook that is run again after its runtime died
    must not change the protocol half-way because another one was a little quicker this time.

    Raises:
        CaiError: an unknown protocol, or the models cannot be loaded.
    """
    own_file = settings.generate.protocols_file
    file = Path(own_file) if own_file else None
    names = protocols or protocol_names(file)
    texts = {name: load_protocol(name, file) for name in names}
    fingerprint = _fingerprint(settings, texts, count)
    trust = trust_line(load_calibration(workspace, scorer_identity(settings)))
    if (report := workspace.finished("bakeoff", fingerprint, BakeoffReport)) is not None:
        return report.model_copy(update={"trust": trust})
    use_threads(settings.threads)
    split = write_prompts(settings, workspace)
    prompts = split.train[:count]
    critic = load_critic(settings, names[0])
    made = {name: _run(critic._replace(protocol=protocol), prompts) for name, protocol in texts.items()}
    del critic
    release_memory()  # on a T4 the reward model takes the generator's place

    deltas = _deltas(settings, {name: traces for name, (traces, _) in made.items()})
    entries = [_entry(name, traces, seconds, deltas[name]) for name, (traces, seconds) in made.items()]
    planned = len(split.train)
    report = BakeoffReport(
        scorer=scorer_identity(settings),
        trust=trust,
        planned=planned,
        entries=entries,
        recommended=recommend(entries).protocol,
    )
    for name, (traces, _) in made.items():
        write_jsonl(
            workspace.bakeoff.parent / f"{name.replace('/', '-')}.jsonl", (trace.model_dump() for trace in traces)
        )
    write_json(workspace.bakeoff, report.model_dump(mode="json"))
    workspace.seal("bakeoff", fingerprint, [workspace.bakeoff], report)
    return report


def _fingerprint(settings: Settings, protocols: dict[str, Protocol], count: int) -> Fingerprint:
    return {
        "seed": settings.seed,
        "models.base": identity(settings.models.base),
        "models.adapter": identity(settings.models.adapter),
        "models.dtype": settings.models.dtype,
        "models.reward": scorer_identity(settings),
        "prompts": count,
        "protocols": protocols,
        **section("prompts", settings.prompts),
        **section("generate", settings.generate, exclude={"batch_size", "protocol"}),
    }


def recommend(entries: list[Entry]) -> Entry:
    """The entry that RULE names."""
    best = max(entry.net for entry in entries)
    return min((entry for entry in entries if entry.net >= best - 1), key=lambda entry: entry.seconds_a_pair)


def _run(critic: Critic, prompts: list[Prompt]) -> tuple[list[Trace], float]:
    """Traces under the critic's protocol, and the seconds they took."""
    size = critic.settings.generate.batch_size
    traces: list[Trace] = []
    started = time.monotonic()
    ordered = sorted(prompts, key=lambda prompt: -len(prompt.text))
    with tqdm(total=len(prompts), desc=critic.protocol.name, unit="pair") as bar:
        for start in range(0, len(ordered), size):
            made = make_traces(critic, ordered[start : start + size])
            traces += made
            bar.update(len(made))
    if not traces:
        raise CaiError("The endpoint answered no request of the bake-off.", "Check the settings under endpoint.")
    return traces, time.monotonic() - started


def _deltas(settings: Settings, made: dict[str, list[Trace]]) -> dict[str, list[float]]:
    """Score differences of each protocol's revisions; all are judged in one call, which loads the scorer once."""
    revised = {name: [trace for trace in traces if trace.outcome == "revised"] for name, traces in made.items()}
    asked = [
        ResponsePair(trace.prompt.messages, trace.draft, trace.revision)
        for traces in revised.values()
        for trace in traces
    ]
    scores = iter(judge_pairs(settings, asked).scores)
    return {
        name: [pair.second - pair.first for pair in islice(scores, len(traces))] for name, traces in revised.items()
    }


def _entry(name: str, traces: list[Trace], seconds: float, deltas: list[float]) -> Entry:
    revised = [trace for trace in traces if trace.outcome == "revised"]
    wins = sum(delta > 0 for delta in deltas)
    return Entry(
        protocol=name,
        prompts=len(traces),
        outcomes=dict(Counter(trace.outcome for trace in traces)),
        identical=sum(trace.draft.strip() == trace.revision.strip() for trace in revised),
        wins=wins,
        losses=sum(delta < 0 for delta in deltas),
        win_rate=proportion(wins, len(deltas)) if deltas else None,
        mean_delta=sum(deltas) / len(deltas) if deltas else None,
        tokens_a_pair=sum(trace.tokens for trace in traces) / len(traces),
        seconds_a_pair=seconds / len(traces),
    )
