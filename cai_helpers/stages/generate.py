"""Draft, critique, revise. A killed run resumes where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from cai_helpers import critique
from cai_helpers.constitution import Constitution, Principle, load_constitution, select_principles
from cai_helpers.critique import Protocol, Verdict
from cai_helpers.errors import CaiError
from cai_helpers.hardware import use_threads
from cai_helpers.models import Generator, identity, load_stage2, load_tokenizer, locate
from cai_helpers.prompts import PromptSplit, PromptSummary, load_prompts
from cai_helpers.schema import OUTCOME_MEANING, Completion, Messages, Prompt, StageReport, Trace
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl
from cai_helpers.workspace import Fingerprint, Workspace, file_hash, section


class GenerateReport(StageReport):
    prompts: PromptSummary
    pairs: int
    outcomes: dict[str, int]
    principles: dict[str, int]  # id → pairs it was shown for
    tokens: int  # generated, all rows
    seconds: float  # of this call; rows made earlier cost nothing now
    rows_now: int

    def title(self) -> str:
        return "Pairs: draft, critique, revision"

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("pairs generated", str(self.pairs)),
            *(
                (f"{name}", f"{self.outcomes[name]}  ({OUTCOME_MEANING[name]})")
                for name in OUTCOME_MEANING
                if name in self.outcomes
            ),
            ("tokens generated", f"{self.tokens:,}"),
            ("this call", f"{self.rows_now} pairs in {self.seconds:.0f} s"),
        ]

    def summary(self) -> list[tuple[str, str]]:
        return [("pairs generated", str(self.pairs))]


class Draft(NamedTuple):
    """A prompt on its way to a Trace."""

    prompt: Prompt
    completion: Completion
    principles: list[Principle]


class Critic(NamedTuple):
    """All that turns a prompt into a trace."""

    generator: Generator
    protocol: Protocol
    constitution: Constitution
    settings: Settings


def generate_pairs(settings: Settings, workspace: Workspace, fresh: bool = False) -> GenerateReport:
    """Write one Trace for each training prompt to pairs/traces.jsonl, and the prompts beside it.

    fresh: move what earlier calls made to archive/ and start over.

    Raises:
        SettingsChanged: the traces in the workspace were made with other settings.
        CaiError: the prompts or the model cannot be loaded, or the run was stopped by hand.
    """
    if fresh:
        workspace.archive("generate", [workspace.pairs_dir])
    basis = _fingerprint(settings)
    complete = {**basis, "prompts.limit": settings.prompts.limit}
    if (report := workspace.finished("generate", complete, GenerateReport)) is not None:
        return report
    workspace.begin("generate", basis)

    use_threads(settings.threads)
    prompts = write_prompts(settings, workspace)
    store = JsonlStore(workspace.traces)
    if store.repaired_bytes:
        workspace.say("generate", "the last row was cut off when the run was killed; it is made again")
    done = store.ids()
    pending = [prompt for prompt in prompts.train if prompt.id not in done]
    if done:
        workspace.say(
            "generate", f"{len(prompts.train) - len(pending)} of {len(prompts.train)} pairs are there already"
        )

    started = time.monotonic()
    if pending:
        critic = load_critic(settings)
        _generate(critic, pending, store, len(prompts.train))
    report = _report(workspace, prompts, time.monotonic() - started, len(pending))
    workspace.seal("generate", complete, [workspace.traces, workspace.prompts, workspace.eval_prompts], report)
    return report


def write_prompts(settings: Settings, workspace: Workspace) -> PromptSplit:
    """Load, split and store the prompts; the evaluation ones are taken out before anything is generated."""
    tokenizer = load_tokenizer(settings.models.base)

    def count_tokens(chat: Messages) -> int:
        return len(
            tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True)[
                "input_ids"
            ]
        )

    split = load_prompts(settings.prompts, settings.seed, count_tokens)
    write_jsonl(workspace.prompts, (prompt.model_dump() for prompt in split.train))
    write_jsonl(workspace.eval_prompts, (prompt.model_dump() for prompt in split.eval))
    return split


def load_critic(settings: Settings) -> Critic:
    own_protocols, own_constitution = settings.generate.protocols_file, settings.generate.constitution
    return Critic(
        generator=load_stage2(settings.models, merged=True),
        protocol=critique.load_protocol(settings.generate.protocol, Path(own_protocols) if own_protocols else None),
        constitution=load_constitution(Path(own_constitution) if own_constitution else None),
        settings=settings,
    )


def make_traces(critic: Critic, prompts: list[Prompt]) -> Iterator[Trace]:
    """Draft, critique and revise `prompts` together. One batch of work: what is lost when the process is killed."""
    drafts = _draft(critic, prompts)
    chats = [
        critique.critique_chat(critic.protocol, draft.prompt.messages, draft.completion.text, draft.principles)
        for draft in drafts
    ]
    first = _complete(
        critic, chats, [f"{draft.prompt.id}/critique" for draft in drafts], critic.settings.generate.critic_tokens
    )
    if critic.protocol.revision is None:
        for draft, output in zip(drafts, first, strict=True):
            yield _trace(critic, draft, [output], critique.parse_single(output))
        return
    yield from _revise(critic, drafts, first)


def _draft(critic: Critic, prompts: list[Prompt]) -> list[Draft]:
    settings = critic.settings.generate
    keys = [f"{prompt.id}/draft" for prompt in prompts]
    completions = _complete(critic, [prompt.messages for prompt in prompts], keys, settings.draft_tokens)
    return [
        Draft(prompt, completion, _principles(critic, prompt, completion.text))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _principles(critic: Critic, prompt: Prompt, draft: str) -> list[Principle]:
    text = f"{prompt.messages[-1]['content']}\n{draft}"
    settings = critic.settings
    return select_principles(critic.constitution, prompt.id, text, settings.seed, settings.generate.most_principles)


def _revise(critic: Critic, drafts: list[Draft], critiques: list[Completion]) -> Iterator[Trace]:
    """Second call of a two-call protocol, for the rows whose critique did not settle them."""
    open_rows = []
    for draft, output in zip(drafts, critiques, strict=True):
        if (verdict := critique.parse_critique(output)) is not None:
            yield _trace(critic, draft, [output], verdict)
        else:
            open_rows.append((draft, output))
    chats = [
        critique.revision_chat(critic.protocol, draft.prompt.messages, draft.completion.text, output.text)
        for draft, output in open_rows
    ]
    keys = [f"{draft.prompt.id}/revision" for draft, _ in open_rows]
    revisions = _complete(critic, chats, keys, critic.settings.generate.critic_tokens)
    for (draft, output), revision in zip(open_rows, revisions, strict=True):
        yield _trace(critic, draft, [output, revision], critique.judge_revision(output.text, revision))


def _complete(critic: Critic, chats: list[Messages], keys: list[str], max_new_tokens: int) -> list[Completion]:
    from cai_helpers.sampling import Sampling

    settings = critic.settings.generate
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=critic.settings.seed,
    )
    completions = dict(critic.generator.generate(chats, sampling, keys, settings.batch_size))
    return [completions[index] for index in range(len(chats))]


def _trace(critic: Critic, draft: Draft, outputs: list[Completion], verdict: Verdict) -> Trace:
    return Trace(
        id=draft.prompt.id,
        prompt=draft.prompt,
        draft=draft.completion.text,
        draft_finish=draft.completion.finish,
        principle_ids=[principle.id for principle in draft.principles],
        protocol=critic.protocol.name,
        critic_outputs=[output.text for output in outputs],
        critique=verdict.critique,
        revision=verdict.revision or draft.completion.text,
        outcome=verdict.outcome,
        reason=verdict.reason,
        tokens=draft.completion.tokens + sum(output.tokens for output in outputs),
    )


def _generate(critic: Critic, pending: list[Prompt], store: JsonlStore, total: int) -> None:
    pending = sorted(pending, key=lambda prompt: -len(prompt.text))  # equal lengths share a batch
    size = critic.settings.generate.batch_size
    outcomes: Counter[str] = Counter()
    with tqdm(total=total, initial=total - len(pending), desc="generate", unit="pair") as bar:
        try:
            for start in range(0, len(pending), size):
                traces = list(make_traces(critic, pending[start : start + size]))
                store.append(trace.model_dump() for trace in traces)
                outcomes.update(trace.outcome for trace in traces)
                bar.update(len(traces))
                bar.set_postfix(outcomes)
        except KeyboardInterrupt:
            raise CaiError(
                f"Stopped by hand: {bar.n} of {total} pairs are on disk.",
                "Run `cai generate` or the cell again to go on from there.",
            ) from None


def _report(workspace: Workspace, prompts: PromptSplit, seconds: float, rows_now: int) -> GenerateReport:
    wanted = {prompt.id for prompt in prompts.train}
    traces = [trace for trace in map(Trace.model_validate, read_jsonl(workspace.traces)) if trace.id in wanted]
    return GenerateReport(
        prompts=prompts.summary,
        pairs=len(traces),
        outcomes=dict(Counter(trace.outcome for trace in traces).most_common()),
        principles=dict(Counter(name for trace in traces for name in trace.principle_ids).most_common()),
        tokens=sum(trace.tokens for trace in traces),
        seconds=seconds,
        rows_now=rows_now,
    )


def _fingerprint(settings: Settings) -> Fingerprint:
    """What a row's text depends on. Not the batch size and not the limit: neither changes a row."""
    own_files = {
        "input constitution": settings.generate.constitution,
        "input protocols": settings.generate.protocols_file,
    }
    sources = {"input prompts": settings.prompts.source, "input evaluation prompts": settings.prompts.eval_source}
    return {
        "seed": settings.seed,
        "models.base": identity(settings.models.base),
        "models.adapter": identity(settings.models.adapter),
        "models.dtype": settings.models.dtype,
        **section("prompts", settings.prompts, exclude={"limit"}),
        **section("generate", settings.generate, exclude={"batch_size"}),
        **{name: file_hash(Path(path)) for name, path in own_files.items() if path},
        **{name: file_hash(Path(locate(source))) for name, source in sources.items() if source},
    }
