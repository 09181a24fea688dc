"""The plan of a run: does it fit, and how long does each stage take?"""

from __future__ import annotations

from typing import ClassVar

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, TIGHT, Machine, choose_dtype, this_machine
from cai_helpers.planning.card import Card, Place, card_of, measure_card
from cai_helpers.planning.generation import Chain, generation_memory, generation_seconds, slots_of
from cai_helpers.planning.scoring import scoring_memory, scoring_seconds
from cai_helpers.planning.shape import Shape, shape_of
from cai_helpers.planning.training import training_seconds
from cai_helpers.planning.workload import Workload, workload_of
from cai_helpers.schema import Record, StageReport
from cai_helpers.settings import Settings
from cai_helpers.training.memory_plan import MemoryPlan, plan_memory, plan_room, smaller_batch
from cai_helpers.workspace import Workspace

HERE = "here"
_INSTRUCTIONS = 256  # tokens of a critique prompt besides conversation and draft


class Phase(Record):
    """What a part of the run holds at its peak."""

    name: str
    parts: dict[str, int]  # bytes, by what they are
    limit: int
    note: str = ""
    todo: str = ""  # what to change where it does not fit; "": it fits

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def line(self) -> str:
        sums = " + ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items())
        verdict = f"; DOES NOT FIT: {self.todo}" if self.todo else "; TIGHT" if self.total > TIGHT * self.limit else ""
        note = f", {self.note}" if self.note else ""
        return f"{self.total / GIB:.1f} of {self.limit / GIB:.1f} GiB ({sums}){note}{verdict}"


class RunPlan(StageReport):
    FIRST: ClassVar[tuple[str, ...]] = ("model", "minutes", "verdict")

    card: Card
    model: str
    memory: list[Phase]
    minutes: dict[str, float]  # by stage
    assumed: list[str]

    def title(self) -> str:
        return "Plan"

    @property
    def total(self) -> float:
        return sum(self.minutes.values())

    @property
    def missing(self) -> list[Phase]:
        """What does not fit."""
        return [phase for phase in self.memory if phase.todo]

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("card", self.card.line()),
            ("model", self.model),
            *((f"memory, {phase.name}", phase.line()) for phase in self.memory),
            *((f"minutes, {stage}", minutes_text(value)) for stage, value in self.minutes.items()),
            *(("assumed", text) for text in self.assumed),
            ("verdict", self.verdict()),
        ]

    def verdict(self) -> str:
        if self.missing:
            return "does not fit: " + "; ".join(f"{phase.name}: {phase.todo}" for phase in self.missing)
        how = "modelled with the rates measured just now" if self.card.measured else "modelled"
        tight = [phase.name for phase in self.memory if phase.total > TIGHT * phase.limit]
        fits = f"TIGHT ({', '.join(tight)}): it may run out of memory" if tight else "fits"
        return f"{fits}; about {minutes_text(self.total)} minutes, {how}"


def minutes_text(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def plan_run(settings: Settings, workspace: Workspace, card: str | None = None) -> RunPlan:
    """Memory by part and minutes by stage of the configured run, counted from the models' shapes. No weight is loaded.

    card: a name of planning.card.CARDS; "here": this machine, measured in some seconds; None: this machine where it has
    a GPU or the preset needs none, else the card that the preset is sized for.

    Raises:
        CaiError: a model's shape or the number of prompts is out of reach, or the card is unknown.
    """
    machine = this_machine()
    if card is None:
        card = HERE if machine.device == "cuda" or settings.preset not in ("t4", "a100") else settings.preset
    if card != HERE:
        return plan_on(card_of(card, settings.models.dtype), settings, workspace)
    return plan_on(measure_card(machine, choose_dtype(settings.models.dtype, machine)), settings, workspace)


def require_fits(plan: RunPlan) -> RunPlan:
    """
    Raises:
        CaiError: a part of the run does not fit; the message says what to change.
    """
    if not plan.missing:
        return plan
    raise CaiError(
        f"This run does not fit on {plan.card.name}: "
        + " ".join(f"{phase.name}: {phase.total / GIB:.1f} of {phase.limit / GIB:.1f} GiB." for phase in plan.missing),
        " ".join(f"{phase.name}: {phase.todo}." for phase in plan.missing),
    )


def plan_on(card: Card, settings: Settings, workspace: Workspace) -> RunPlan:
    """As plan_run, on a card whose rates are known."""
    work = workload_of(settings, workspace)
    base = shape_of(settings.models.base)
    rewards = [(source, shape_of(source.model, classifier=True)) for source in settings.models.rewards]
    memory = memory_of(settings, card, base, [shape for _, shape in rewards])
    names = [settings.models.base] if base.known else []
    names += [source.model for source, shape in rewards if shape.known]
    stood_in = [f"the published shape of {', '.join(names)}, whose config.json is out of reach"] if names else []
    return RunPlan(
        card=card,
        model=f"{settings.models.base}, {base.parameters / 1e9:.2f}B parameters, in {card.dtype}",
        memory=memory,
        minutes={stage: seconds / 60 for stage, seconds in _seconds(settings, card, base, rewards, work).items()},
        assumed=[*work.assumed, *stood_in],
    )


def _capacity(settings: Settings) -> int:
    """Tokens of the longest thing that is generated: conversation, draft, instructions, critique, revision."""
    generate = settings.generate
    return settings.prompts.max_tokens + generate.draft_tokens + _INSTRUCTIONS + 2 * generate.critic_tokens


def memory_of(settings: Settings, card: Place, base: Shape, rewards: list[Shape]) -> list[Phase]:
    """Generation, scoring and training, which hold the memory one after the other."""
    capacity = _capacity(settings)
    slots = slots_of(base, card, capacity)
    held = generation_memory(base, card, max(1, slots), capacity)
    generating = Phase(
        name="generation",
        parts=held._asdict(),
        limit=card.memory,
        note=f"{slots} texts of at most {capacity} tokens at once",
        todo=_smaller_model(base, card) if held.total > card.memory else "",
    )
    batch, longest = settings.score.batch_size, max(source.max_length for source in settings.models.rewards)
    most = max((scoring_memory(shape, card, batch, longest) for shape in rewards), key=lambda need: need.total)
    scoring = Phase(
        name="scoring",
        parts=most._asdict(),
        limit=card.memory,
        note=f"{batch} texts of at most {longest} tokens at once",
        todo="a smaller models.reward, or a smaller score.batch_size" if most.total > card.memory else "",
    )
    return [generating, scoring, _training(settings, card)]


def _training(settings: Settings, card: Place) -> Phase:
    plan = plan_memory(settings, card.dtype, _without_card(card), settings.train.max_length, sides=2)
    twice = ", with gradient checkpointing" if plan.checkpointing else ""
    return Phase(
        name="training",
        parts={"weights": plan.weights, "LoRA": plan.adapters, "activations": plan.activations, "head": plan.head},
        limit=card.memory,
        note=f"at most {plan.tokens} tokens at once, sides of {settings.train.max_length}{twice}",
        todo=_smaller_training(settings, plan) if plan.total > plan.limit else "",
    )


def _without_card(card: Place) -> Machine:
    """Its device is "cpu", so that no card is asked for what it has free."""
    return Machine("cpu", card.name, None, card.memory, 1)


def _smaller_model(base: Shape, card: Place) -> str:
    if base.parameters * card.size > card.memory:
        return "a smaller models.base, or a larger card"
    return "a smaller prompts.max_tokens or generate.critic_tokens, a smaller models.base, or a larger card"


def _smaller_training(settings: Settings, plan: MemoryPlan) -> str:
    if plan.weights > plan.limit:
        return "a smaller models.base, or more cards (FSDP, docs/SCALING.md)"
    smaller = [] if plan.checkpointing else ["train.gradient_checkpointing=null"]
    smaller += [] if settings.train.method == "dpo" else filter(None, [smaller_batch(settings.train)])
    smaller += ["a smaller train.max_length", "a smaller models.base"]
    return ", or ".join(smaller)


def _seconds(settings: Settings, card: Card, base: Shape, rewards: list, work: Workload) -> dict[str, float]:
    capacity = _capacity(settings)
    slots = max(1, slots_of(base, card, capacity))
    load = base.parameters * card.size / card.load
    load_rewards = sum(shape.parameters * 4 for _, shape in rewards) / card.load

    def generating(chains: list[Chain], longest: int) -> float:
        return generation_seconds(base, card, chains, slots, longest, settings.generate.batch_size)

    def scoring(texts: list[int]) -> float:
        return sum(scoring_seconds(shape, card, texts, settings.score.batch_size) for _, shape in rewards)

    train, room = settings.train, plan_room(settings, card.dtype, _without_card(card))
    return {
        "download": (base.parameters * 2 + sum(shape.parameters * 2 for _, shape in rewards)) / card.download,
        "calibrate": load_rewards + scoring(work.gold) if work.gold else 0.0,
        "generate": card.start + load + generating(work.chains, capacity),
        "score": load_rewards + scoring(work.texts),
        "train": load
        + training_seconds(base, card, work.pairs, train.batch_size, room, train.epochs, train.accumulation),
        "evaluate": load
        + generating([[row] for row in work.answers], settings.prompts.max_tokens + settings.evaluate.max_tokens)
        + load_rewards
        + scoring(work.judged),
        "curate, analyze, export": card.start,
    }
