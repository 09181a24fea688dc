"""Which principle pays? The same drafts, revised under each principle alone; or under one constitution and another.

Rows are on disk as they come: a killed call goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cai_helpers import screen
from cai_helpers.calibration.accuracy import load_calibration, trust_line
from cai_helpers.calibration.differences import read_choice
from cai_helpers.critique.constitution import Constitution, Principle, load_constitution, select_principles
from cai_helpers.critique.critic import Critic, Draft, criticise, draft_of, load_critic, make_drafts, trace_basis
from cai_helpers.critique.principle_entry import PrincipleEntry, Scored, entry_of
from cai_helpers.critique.samples import is_samples
from cai_helpers.errors import CaiError, StoppedByHand
from cai_helpers.machine.hardware import use_threads
from cai_helpers.manifest import Fingerprint, plain
from cai_helpers.models.batches import release_all
from cai_helpers.pages.principle_picture import save_principles_plot
from cai_helpers.prompts.split import write_prompts
from cai_helpers.readiness.check import interruptible
from cai_helpers.readiness.needs import require_answer, require_ready, require_scorer
from cai_helpers.schema import Completion, Prompt, StageReport, Trace
from cai_helpers.scoring.judge import ResponsePair, judge_pairs, scorer_identity
from cai_helpers.settings import Settings
from cai_helpers.store import JsonlStore, read_jsonl, write_json
from cai_helpers.workspace import Workspace, holds_workspace

PROMPTS, PROMPTS_OF_AN_EDIT = 48, 24
SHIPPED, OWN = "as shipped", "yours"
_USUAL = "single/short"


class PrinciplesReport(StageReport):
    scorer: str
    trust: str  # what gold pairs say of it, see calibration.trust_line
    protocol: str
    prompts: int
    entries: list[PrincipleEntry]  # the one that pays most first
    picture: str = ""

    def title(self) -> str:
        return f"Revisions of the same {self.prompts} drafts, protocol {self.protocol}, scored by {self.scorer}"

    def rows(self) -> list[dict[str, str]]:
        """The table, a row a principle."""
        return [entry.figures() for entry in self.entries]

    def lines(self) -> list[tuple[str, str]]:
        rows = self.rows()
        widths = {head: max(len(head), *(len(row[head]) for row in rows)) for head in rows[0]}
        table = [{head: head for head in rows[0]}, *rows]
        drawn = [("picture", self.picture)] if self.picture else []
        return [
            *(
                (row["principle"], "  ".join(row[head].rjust(widths[head]) for head in row if head != "principle"))
                for row in table
            ),
            *((entry.name, entry.words) for entry in self.entries),
            ("told apart", self._told()),
            ("scorer, on gold pairs", self.trust),
            *drawn,
        ]

    def _told(self) -> str:
        """Whether the figures tell one row from another at all."""
        if len(self.entries) < 2:
            return "there is one row"
        if max(entry.net.low for entry in self.entries) > min(entry.net.high for entry in self.entries):
            return "the best and the last: their intervals of won − lost lie apart"
        return "no two: all intervals of won − lost overlap. More prompts (--n) tell more, or the critic does not read principles"


class _Group(NamedTuple):
    """Drafts that are criticised under the same words."""

    name: str
    words: str
    basis: str  # all that its principles say: an edited constitution has rows of its own
    chosen: Callable[[Draft], list[Principle]]

    @property
    def key(self) -> str:
        return hashlib.sha256(self.basis.encode()).hexdigest()[:12]


@holds_workspace
def compare_principles(settings: Settings, workspace: Workspace, count: int = PROMPTS) -> PrinciplesReport:
    """Revise the same `count` drafts under each principle of the constitution alone, score them, and draw the result.

    Raises:
        CaiError: the models or the scorer cannot be loaded, or it was stopped by hand.
    """
    constitution = _constitution(settings)
    groups = [
        _Group(each.id, each.text, each.model_dump_json(), partial(_alone, each)) for each in constitution.principles
    ]
    report = _compare(settings, workspace, "principles", groups, count)
    ordered = sorted(report.entries, key=lambda entry: (-entry.net.value, entry.name))
    picture = save_principles_plot(ordered, workspace.picture("which_principle_pays"))
    report = report.model_copy(update={"entries": ordered, "picture": str(picture)})
    write_json(workspace.principles_dir / "result.json", report.model_dump(mode="json"))
    return report


@holds_workspace
def compare_constitutions(
    settings: Settings, workspace: Workspace, count: int = PROMPTS_OF_AN_EDIT
) -> PrinciplesReport:
    """Revise the same `count` drafts under the constitution that is shipped, and under that of the settings where it is
    another one.

    Raises:
        CaiError: the constitution is malformed, the models cannot be loaded, or it was stopped by hand.
    """
    shipped, own = load_constitution(), _constitution(settings)
    groups = [_group_of(settings, SHIPPED, shipped)]
    if own != shipped:
        groups.append(_group_of(settings, OWN, own))
    return _compare(settings, workspace, "constitutions", groups, count)


def _constitution(settings: Settings) -> Constitution:
    own = settings.generate.constitution
    return load_constitution(Path(own) if own else None)


def _group_of(settings: Settings, name: str, constitution: Constitution) -> _Group:
    words = f"{len(constitution.principles)} principles"
    return _Group(name, words, constitution.model_dump_json(), partial(_drawn, settings, constitution))


def _alone(principle: Principle, draft: Draft) -> list[Principle]:
    return [principle]


def _drawn(settings: Settings, constitution: Constitution, draft: Draft) -> list[Principle]:
    text = f"{draft.question}\n{draft.completion.text}"
    return select_principles(constitution, draft.prompt.id, text, settings.seed, settings.generate.most_principles)


def _compare(settings: Settings, workspace: Workspace, what: str, groups: list[_Group], count: int) -> PrinciplesReport:
    protocol = _protocol(settings, workspace)
    require_ready(settings, workspace, "bakeoff", label="principles")
    use_threads(settings.threads)
    folder = workspace.principles_dir / what
    _begin(settings, workspace, folder, protocol)
    write_prompts(settings, workspace)
    prompts = [Prompt.model_validate(row) for row in read_jsonl(workspace.prompts)][:count]
    traces = _make_rows(settings, workspace, folder, prompts, protocol, groups)
    scores = JsonlStore(workspace.principles_dir / "scores.jsonl")
    entries = [entry_of(group.name, group.words, _scored(settings, traces[group.name], scores)) for group in groups]
    identity = scorer_identity(settings)
    trust = trust_line(load_calibration(workspace, identity))
    return PrinciplesReport(scorer=identity, trust=trust, protocol=protocol, prompts=len(prompts), entries=entries)


def _protocol(settings: Settings, workspace: Workspace) -> str:
    """A way of asking a critic: that of the settings, or what the bake-off recommends; samples have no principles."""
    name = settings.generate.protocol
    if name == "auto":
        name = (read_choice(workspace).protocol or _USUAL) if workspace.bakeoff.exists() else _USUAL
    if not is_samples(name):
        return name
    workspace.say("principles", f"asks by {_USUAL}: {name} has no critic, and principles are what a critic reads")
    return _USUAL


def _begin(settings: Settings, workspace: Workspace, folder: Path, protocol: str) -> None:
    """Go on with the rows that are there, or, where they were made with something else, put them into archive/."""
    constitutions = {"generate.constitution", "input constitution"}  # a group's rows are named by the words they saw
    basis: Fingerprint = {name: value for name, value in trace_basis(settings).items() if name not in constitutions}
    basis = {**basis, "protocol": protocol}
    stage = f"principles-{folder.name}"
    if workspace.begun(stage) != plain(basis):
        workspace.archive(stage, list(folder.glob("*")))
    workspace.begin(stage, basis)


def _make_rows(
    settings: Settings, workspace: Workspace, folder: Path, prompts: list[Prompt], protocol: str, groups: list[_Group]
) -> dict[str, list[Trace]]:
    """The traces of every group; nothing is loaded when all are on disk."""
    drafts, made = JsonlStore(folder / "drafts.jsonl"), JsonlStore(folder / "traces.jsonl")
    wanted = {f"{group.key}/{prompt.id}" for group in groups for prompt in prompts}
    if wanted - made.ids():
        require_scorer(settings, workspace, "principles")
        with interruptible():
            critic = load_critic(settings, protocol)
        require_answer(critic.drafter)
        done = drafts.ids()
        for rows in make_drafts(critic, [prompt for prompt in prompts if prompt.id not in done]):
            drafts.append({"id": draft.prompt.id, "completion": draft.completion.model_dump()} for draft in rows)
        known = {row["id"]: Completion.model_validate(row["completion"]) for row in drafts.rows()}
        ready = [draft_of(critic, prompt, known[prompt.id]) for prompt in prompts]
        _revise(critic, groups, ready, made)
        del critic
        release_all()  # on a T4 the reward model takes the generator's place
    found = {row.pop("id"): Trace.model_validate(row.pop("trace")) for row in made.rows()}
    result = {
        group.name: [found[key] for prompt in prompts if (key := f"{group.key}/{prompt.id}") in found]
        for group in groups
    }
    if not all(result.values()):
        raise CaiError("The endpoint answered no request.", "Check the settings under endpoint.")
    return result


def _revise(critic: Critic, groups: list[_Group], drafts: list[Draft], store: JsonlStore) -> None:
    """Group by group: a trace is told by its prompt, which a group has once."""
    done = store.ids()
    missing = {group: [draft for draft in drafts if f"{group.key}/{draft.prompt.id}" not in done] for group in groups}
    total = sum(map(len, missing.values()))
    with screen.bar(total, "principles", "revision", hidden=not total) as bar:
        try:
            for group, open_drafts in missing.items():
                chosen = [draft._replace(principles=group.chosen(draft)) for draft in open_drafts]
                for traces in criticise(critic, chosen):
                    store.append({"id": f"{group.key}/{trace.id}", "trace": trace.model_dump()} for trace in traces)
                    bar.update(len(traces))
        except KeyboardInterrupt:
            raise StoppedByHand(
                f"Stopped by hand: {bar.n} of {bar.total} revisions are on disk.",
                "Run the same again to go on from there.",
            ) from None


def _scored(settings: Settings, traces: list[Trace], store: JsonlStore) -> list[Scored]:
    revised = [trace for trace in traces if trace.outcome == "revised"]
    asked = [ResponsePair(trace.prompt.messages, trace.draft, trace.revision) for trace in revised]
    scores = judge_pairs(settings, asked, store).scores
    deltas = {trace.id: second - first for trace, (first, second) in zip(revised, scores, strict=True)}
    return [Scored(trace, deltas.get(trace.id)) for trace in traces]
