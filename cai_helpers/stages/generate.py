"""Draft, critique, revise. A killed run resumes where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from cai_helpers import screen
from cai_helpers.calibration.differences import read_choice
from cai_helpers.critique.constitution import principle_words
from cai_helpers.critique.critic import Critic, load_critic, longest_first, make_traces, trace_basis
from cai_helpers.critique.making import Tally, Watcher
from cai_helpers.critique.pairs_report import GenerateReport
from cai_helpers.critique.protocol_choice import Choice, require_protocol
from cai_helpers.critique.samples import is_samples
from cai_helpers.errors import StoppedByHand, WorkspaceVanished
from cai_helpers.machine.hardware import use_threads
from cai_helpers.machine.processes import Processes, is_main_process, this_process
from cai_helpers.manifest import Fingerprint
from cai_helpers.prompts.split import PromptSummary, write_prompts
from cai_helpers.readiness.check import interruptible
from cai_helpers.readiness.needs import require_answer, require_ready, require_scorer
from cai_helpers.schema import Prompt, Trace
from cai_helpers.screen import Bar
from cai_helpers.settings import Settings
from cai_helpers.shares import take_in
from cai_helpers.store import JsonlStore, gathering, put_in_order, read_json, read_jsonl
from cai_helpers.workspace import Workspace, holds_workspace

if TYPE_CHECKING:
    from cai_helpers.models.endpoint import EndpointGenerator
    from cai_helpers.models.language import LanguageModel

_SUMMARY_DAMAGED = "Run `cai generate --fresh`, which moves the rows to archive/ and starts over."


@holds_workspace
def generate_pairs(
    settings: Settings, workspace: Workspace, fresh: bool = False, watch: Watcher | None = None
) -> GenerateReport:
    """Write one Trace for each training prompt to pairs/traces.jsonl, and the prompts beside it.

    Under `accelerate launch` the prompts are shared out; the rows are the same as from one process.
    fresh: move what earlier calls made to archive/ and start over.
    watch: is given each pair as it comes, to show it; the bar and the first pair then go to logs/run.log alone.

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
    made = _generate_missing(settings, workspace, protocol, processes, watch)
    processes.wait()
    if processes.is_main:
        _merge_shares(workspace)
    processes.wait()
    report = _report(settings, workspace, protocol, time.monotonic() - started, made)
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


def _generate_missing(
    settings: Settings, workspace: Workspace, protocol: str, processes: Processes, watch: Watcher | None
) -> _Made:
    """Make this process's share of the rows that are not there yet."""
    prompts = _prompts(workspace)
    done = {row["id"]: row["outcome"] for row in read_jsonl(workspace.traces)} if workspace.traces.exists() else {}
    missing = [prompt for prompt in prompts if prompt.id not in done]
    pending = processes.share(missing, lambda prompt: len(prompt.text))
    present = Counter(done[prompt.id] for prompt in prompts if prompt.id in done)
    if present:
        workspace.say("generate", f"{present.total()} of {len(prompts)} pairs are there already")
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
    if not processes.is_main:
        watch = None
    with _stoppable(len(pending), Tally(present, len(pending)), watch) as on:
        for trace in _generate(critic, first, store, on):
            told = f"before the long run, one pair as it comes:\n{trace.readable()}"
            workspace.say("generate", told, show=watch is None)
            rows += 1
        rows += sum(1 for _ in _generate(critic, pending[len(first) :], store, on))
    # what Critic knows as generators, which the scripted twins of tests are as well
    models = {id(model): model for model in (critic.drafter, critic.critic)}.values()
    talk = [line for model in models if hasattr(model, "notes") for line in cast("LanguageModel", model).notes()]
    usage = [
        line for model in models if hasattr(model, "usage") for line in cast("EndpointGenerator", model).usage.lines()
    ]
    return _Made(rows, talk, usage)


class _LookedOn(NamedTuple):
    """Who is told of a pair that has come."""

    bar: Bar
    tally: Tally
    watch: Watcher | None


def _generate(critic: Critic, pending: list[Prompt], store: JsonlStore, on: _LookedOn) -> Iterator[Trace]:
    """Write the traces as they come, and hand them on."""
    with gathering(store, on.bar.update) as write, closing(make_traces(critic, pending)) as coming:
        for traces in coming:
            write(trace.model_dump() for trace in traces)
            now = on.tally.add(traces)
            on.bar.set_postfix({"tokens/s": round(now.tokens_per_s), **now.outcomes}, refresh=False)
            if on.watch is not None and traces:
                on.watch(now)
            yield from traces


@contextmanager
def _stoppable(pairs: int, tally: Tally, watch: Watcher | None) -> Iterator[_LookedOn]:
    """A bar of the pairs that are to be made; what ends the run early is said with their number."""
    hidden = watch is not None or not is_main_process()
    with screen.bar(pairs, "generate", "pair", hidden=hidden) as bar:
        try:
            yield _LookedOn(bar, tally, watch)
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


def _report(settings: Settings, workspace: Workspace, protocol: str, seconds: float, made: _Made) -> GenerateReport:
    wanted = {row["id"] for row in read_jsonl(workspace.prompts)}
    traces = [trace for trace in map(Trace.model_validate, read_jsonl(workspace.traces)) if trace.id in wanted]
    own = settings.generate.constitution
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
        words=principle_words(Path(own) if own else None),
    )


def _fingerprint(settings: Settings, protocol: str) -> Fingerprint:
    """What a row's text depends on. Not the batch size and not the limit: neither changes a row."""
    return {**trace_basis(settings), "generate.protocol": protocol}
