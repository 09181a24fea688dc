"""Draft, critique, revise. A killed run resumes where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from pydantic import Field
from tqdm.auto import tqdm

from cai_helpers.calibration.differences import read_choice
from cai_helpers.critique.critic import Critic, load_critic, longest_first, make_traces, trace_basis
from cai_helpers.critique.protocol_choice import Choice, require_protocol
from cai_helpers.critique.samples import is_samples
from cai_helpers.errors import StoppedByHand, WorkspaceVanished
from cai_helpers.machine.hardware import use_threads
from cai_helpers.machine.processes import Processes, is_main_process, this_process
from cai_helpers.manifest import Fingerprint
from cai_helpers.prompts.split import PromptSummary, write_prompts
from cai_helpers.readiness.check import interruptible
from cai_helpers.readiness.needs import require_answer, require_ready, require_scorer
from cai_helpers.schema import OUTCOME_MEANING, Prompt, StageReport, Trace
from cai_helpers.settings import Settings
from cai_helpers.shares import take_in
from cai_helpers.store import JsonlStore, gathering, put_in_order, read_json, read_jsonl
from cai_helpers.workspace import Workspace, holds_workspace

if TYPE_CHECKING:
    from cai_helpers.models.endpoint import EndpointGenerator
    from cai_helpers.models.language import LanguageModel

_SUMMARY_DAMAGED = "Run `cai generate --fresh`, which moves the rows to archive/ and starts over."


class GenerateReport(StageReport):
    prompts: PromptSummary
    protocol: str
    pairs: int
    outcomes: dict[str, int]
    attempted: int  # revisions the critic tried: all but the kept; none where samples are drawn
    identical: int  # of the attempted: the "revision" is the draft again
    principles: dict[str, int]  # id → pairs it was shown for
    tokens: int  # generated, all rows
    failed: int  # rows an endpoint did not answer; the next call tries them again
    talk: list[tuple[str, str]] = Field(
        default_factory=list
    )  # how the model talks; empty where no row was left to make
    endpoint: list[tuple[str, str]]  # requests, failures, tokens and cost of this call, where an endpoint criticised
    seconds: float  # of this call; rows made earlier cost nothing now
    rows_now: int

    def title(self) -> str:
        return "Pairs: draft, critique, revision"

    def lines(self) -> list[tuple[str, str]]:
        return [
            *self.prompts.lines(),
            ("protocol", self.protocol),
            ("pairs generated", str(self.pairs)),
            *(
                (name, f"{self.outcomes[name]}  ({OUTCOME_MEANING[name]})")
                for name in OUTCOME_MEANING
                if name in self.outcomes
            ),
            *(self._of_samples() if is_samples(self.protocol) else self._of_critic()),
            ("tokens generated", f"{self.tokens:,}"),
            *([("not answered by the endpoint", f"{self.failed}; run it again to try them")] if self.failed else []),
            *self.talk,
            *self.endpoint,
            ("this call", f"{self.rows_now} pairs in {self.seconds:.0f} s"),
        ]

    def _of_critic(self) -> list[tuple[str, str]]:
        same = self.identical + self.outcomes.get("kept", 0)
        common = sorted(self.principles.items(), key=lambda item: -item[1])[:3]
        return [
            (
                "both sides identical",
                f"{same} of {self.pairs}; of {self.attempted} attempted revisions {self.identical}",
            ),
            (
                "principles shown",
                f"{len(self.principles)} different ones, most often "
                + ", ".join(f"{name} (in {count / self.pairs:.0%} of the pairs)" for name, count in common),
            ),
        ]

    def _of_samples(self) -> list[tuple[str, str]]:
        made = self.outcomes.get("sampled", 0)
        return [("two usable samples", f"{made} of {self.pairs}; `cai score` picks the best and the worst of each")]

    def summary(self) -> list[tuple[str, str]]:
        return [("pairs generated", f"{self.pairs}, protocol {self.protocol}")]


@holds_workspace
def generate_pairs(settings: Settings, workspace: Workspace, fresh: bool = False) -> GenerateReport:
    """Write one Trace for each training prompt to pairs/traces.jsonl, and the prompts beside it.

    Under `accelerate launch` the prompts are shared out; the rows are the same as from one process.
    fresh: move what earlier calls made to archive/ and start over.

    Raises:
        SettingsChanged: the traces in the workspace were made with other settings.
        CaiError: something that this or a later stage needs is missing or broken (see readiness), or the run was
            stopped by hand.
    """
    processes = this_process()
    use_threads(settings.threads)
    if fresh and processes.is_main:
        require_ready(settings, workspace, "generate")  # before anything is moved
        workspace.archive("generate", _made_by_generating(workspace))
    processes.wait()
    protocol = chosen_protocol(settings, workspace)
    basis = _fingerprint(settings, protocol)
    complete = {**basis, "prompts.limit": settings.prompts.limit}
    if (report := workspace.finished("generate", complete, GenerateReport)) is not None:
        return report
    require_ready(settings, workspace, "generate")
    if processes.is_main:
        workspace.begin("generate", basis)
        write_prompts(settings, workspace)
        _merge_shares(workspace)
    processes.wait()

    started = time.monotonic()
    made = _generate_missing(settings, workspace, protocol, processes)
    processes.wait()
    if processes.is_main:
        _merge_shares(workspace)
    processes.wait()
    report = _report(workspace, protocol, time.monotonic() - started, made)
    if processes.is_main and not report.failed:
        put_in_order(workspace.traces, [prompt.id for prompt in longest_first(_prompts(workspace))])
        workspace.seal("generate", complete, [workspace.traces, workspace.prompts, workspace.eval_prompts], report)
    return report


def chosen_protocol(settings: Settings, workspace: Workspace) -> str:
    """The protocol of the settings; for "auto" the one that a bake-off in this workspace recommends, else single/short.

    A run that was begun with one goes on with it: a bake-off made afterwards must not refuse its rows.

    Raises:
        CaiError: for "auto", where a bake-off found no protocol to recommend and nothing was begun.
    """
    if settings.generate.protocol != "auto":
        return settings.generate.protocol
    choice = read_choice(workspace) if workspace.bakeoff.exists() else Choice("single/short", "")
    begun = workspace.begun("generate")
    if begun is None:
        protocol = require_protocol(choice)
        if is_samples(protocol):
            workspace.say("generate", f"takes {protocol}: {choice.why}")
        return protocol
    used = begun["generate.protocol"]
    if choice.protocol is None:
        workspace.say("generate", f"WARNING: goes on with {used}, as begun, but the bake-off says: {choice.why}")
    elif choice.protocol != used:
        workspace.say(
            "generate",
            f"goes on with {used}, as begun; --fresh starts over with {choice.protocol}, the recommended one",
        )
    return used


def _made_by_generating(workspace: Workspace) -> list[Path]:
    """All of pairs/ but what stays valid for texts that come again: a person's decisions, and scores."""
    kept = {workspace.overrides, workspace.blind, workspace.scores}
    return [path for path in workspace.pairs_dir.glob("*") if path not in kept]


def _prompts(workspace: Workspace) -> list[Prompt]:
    return [Prompt.model_validate(row) for row in read_jsonl(workspace.prompts)]


class _Made(NamedTuple):
    """What this process did in this call."""

    rows: int
    talk: list[tuple[str, str]]
    endpoint: list[tuple[str, str]]


def _generate_missing(settings: Settings, workspace: Workspace, protocol: str, processes: Processes) -> _Made:
    """Make this process's share of the rows that are not there yet."""
    prompts = _prompts(workspace)
    done = {row["id"] for row in read_jsonl(workspace.traces)} if workspace.traces.exists() else set()
    missing = [prompt for prompt in prompts if prompt.id not in done]
    pending = processes.share(missing, lambda prompt: len(prompt.text))
    if present := sum(prompt.id in done for prompt in prompts):
        workspace.say("generate", f"{present} of {len(prompts)} pairs are there already")
    if not pending:
        return _Made(0, [], [])
    if processes.is_main:
        require_scorer(settings, workspace, "generate")
    with interruptible():
        critic = load_critic(settings, protocol)
    require_answer(critic.drafter)
    store = JsonlStore(workspace.traces if processes.count == 1 else workspace.share_of_traces(processes.index))
    pending = longest_first(pending)
    first = pending[:1] if not done and processes.is_main else []
    rows = 0
    with _stoppable(len(pending)) as bar:
        for trace in _generate(critic, first, store, bar):
            workspace.say("generate", f"before the long run, one pair as it comes:\n{trace.readable()}")
            rows += 1
        rows += sum(1 for _ in _generate(critic, pending[len(first) :], store, bar))
    # what Critic knows as generators, which the scripted twins of tests are as well
    models = {id(model): model for model in (critic.drafter, critic.critic)}.values()
    talk = [line for model in models if hasattr(model, "notes") for line in cast("LanguageModel", model).notes()]
    usage = [
        line for model in models if hasattr(model, "usage") for line in cast("EndpointGenerator", model).usage.lines()
    ]
    return _Made(rows, talk, usage)


def _generate(critic: Critic, pending: list[Prompt], store: JsonlStore, bar: tqdm) -> Iterator[Trace]:
    """Write the traces as they come, and hand them on."""
    outcomes: Counter[str] = Counter()
    tokens, started = 0, time.monotonic()
    with gathering(store, bar.update) as write, closing(make_traces(critic, pending)) as coming:
        for traces in coming:
            write(trace.model_dump() for trace in traces)
            outcomes.update(trace.outcome for trace in traces)
            tokens += sum(trace.tokens for trace in traces)
            bar.set_postfix({"tokens/s": round(tokens / (time.monotonic() - started)), **outcomes}, refresh=False)
            yield from traces


@contextmanager
def _stoppable(pairs: int) -> Iterator[tqdm]:
    """A bar of the pairs that are to be made; what ends the run early is said with their number."""
    with tqdm(total=pairs, desc="generate", unit="pair", disable=not is_main_process()) as bar:
        try:
            yield bar
        except WorkspaceVanished as error:
            raise error.saying(f"{bar.n} of {pairs} pairs of this call were saved in it.") from error
        except KeyboardInterrupt:
            raise StoppedByHand(
                f"Stopped by hand: {bar.n} of {pairs} pairs of this call are on disk.",
                "Run `cai generate` or the cell again to go on from there.",
            ) from None


def _merge_shares(workspace: Workspace) -> None:
    """Move the rows of all shares into traces.jsonl, also those of an earlier call that was killed."""
    store = JsonlStore(workspace.traces)
    if store.repaired_bytes:
        workspace.say("generate", "the last row was cut off when the run was killed; it is made again")
    take_in(store)


def _report(workspace: Workspace, protocol: str, seconds: float, made: _Made) -> GenerateReport:
    wanted = {row["id"] for row in read_jsonl(workspace.prompts)}
    traces = [trace for trace in map(Trace.model_validate, read_jsonl(workspace.traces)) if trace.id in wanted]
    attempted = [] if is_samples(protocol) else [trace for trace in traces if trace.outcome != "kept"]
    return GenerateReport(
        prompts=PromptSummary.model_validate(read_json(workspace.prompt_summary, _SUMMARY_DAMAGED)),
        protocol=protocol,
        pairs=len(traces),
        outcomes=dict(Counter(trace.outcome for trace in traces).most_common()),
        attempted=len(attempted),
        identical=sum(trace.draft.strip() == trace.revision.strip() for trace in attempted),
        principles=dict(Counter(name for trace in traces for name in trace.principle_ids).most_common()),
        tokens=sum(trace.tokens for trace in traces),
        failed=len(wanted) - len(traces),
        talk=made.talk,
        endpoint=made.endpoint,
        seconds=seconds,
        rows_now=made.rows,
    )


def _fingerprint(settings: Settings, protocol: str) -> Fingerprint:
    """What a row's text depends on. Not the batch size and not the limit: neither changes a row."""
    return {**trace_basis(settings), "generate.protocol": protocol}
