"""The frozen records that flow through Stage 3: Prompt → Trace → ScoredPair → PreferenceRow."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from typing_extensions import TypedDict

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn, in the form chat templates and TRL take."""

    role: Role
    content: str


Messages = list[Message]

HARMFUL, BENIGN = "harmless", "helpful"  # categories of prompts, named after the virtue that is tested

# Why a pair is what it is. Only `revised` carries a revision, only `sampled` two samples; every other outcome keeps the
# draft and says why.
Outcome = Literal[
    "revised",
    "kept",
    "meta_commentary",
    "echo",
    "too_short",
    "truncated",
    "degenerate",
    "unparsed",
    "refused_to_critique",
    "sampled",
    "samples_alike",
    "samples_unusable",
]
OUTCOME_MEANING: dict[str, str] = {
    "revised": "the critic wrote a usable revision",
    "kept": "the critic judged the draft good (KEEP_ORIGINAL); a success, not a defect",
    "meta_commentary": "the revision talks about a response instead of being one",
    "echo": "the revision repeats the prompt, the instructions or their labels",
    "too_short": "the revision has fewer than five words",
    "truncated": "the critic hit the token limit before it ended",
    "degenerate": "the revision goes round in circles",
    "unparsed": "the output does not have the form that was asked for",
    "refused_to_critique": "the critic refused instead of criticising",
    "sampled": "both texts are the model's own: the worst and the best of its samples, by the scorer",
    "samples_alike": "fewer than two of the samples differ",
    "samples_unusable": "fewer than two of the samples are whole answers",
}
TWO_SIDED = frozenset({"revised", "sampled", "unknown"})  # outcomes of pairs that have two texts to compare
SAMPLED = frozenset({"sampled", "samples_alike", "samples_unusable"})

Side = Literal["base", "revised"]


class SideNames(NamedTuple):
    """What the two sides of a pair are called to a person."""

    base: str
    revised: str


DRAFT_AND_REVISION = SideNames("draft", "revision")
WORST_AND_BEST = SideNames("worst sample", "best sample")


def side_names(outcomes: Collection[str]) -> SideNames:
    """The names for pairs of these outcomes; a run has samples or revisions, never both."""
    return WORST_AND_BEST if SAMPLED & set(outcomes) else DRAFT_AND_REVISION


class Record(BaseModel):
    """Base of every record: immutable, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageReport(Record):
    """What a stage returns and every surface shows: a title and lines of (what, figure)."""

    FIRST: ClassVar[tuple[str, ...]] = ()  # how the lines begin that matter most; (): those of the summary

    def title(self) -> str:
        raise NotImplementedError

    def lines(self) -> list[tuple[str, str]]:
        raise NotImplementedError

    def summary(self) -> list[tuple[str, str]]:
        """The few lines of it that belong into the table of the whole run."""
        return self.lines()

    def first_lines(self) -> list[tuple[str, str]]:
        """What a person reads first; the other lines may be folded."""
        return [line for line in self.lines() if line[0].startswith(self.FIRST)] if self.FIRST else self.summary()


class Target(Record):
    """One thing to be reached: what was aimed at and what was found."""

    name: str
    aim: str
    found: str
    ok: bool
    cause: str = ""  # why it falls short, where that is known
    remedy: str = ""

    def line(self) -> str:
        if self.ok:
            return f"ok: {self.found} (aim {self.aim})"
        return f"FALLS SHORT: {self.found} (aim {self.aim}). {self.cause} {self.remedy}".rstrip(" ")


class Prompt(Record):
    """One conversation that ends on a user turn, with all its earlier turns."""

    id: str  # hash of the normalised text of all its turns, see prompts.prompt_id
    messages: Messages
    category: str  # which virtue the prompt tests: "harmless" (harmful requests) or "helpful" (benign ones)
    source: str

    @model_validator(mode="after")
    def _ends_on_a_user_turn(self) -> Prompt:
        if not self.messages or self.messages[-1]["role"] != "user":
            raise ValueError("a prompt must end on a user turn")
        return self

    @property
    def text(self) -> str:
        """The conversation as a person reads it; a single turn is just its text."""
        return transcript(self.messages)


class Completion(Record):
    """What a Generator returns for one chat."""

    text: str
    tokens: int  # generated tokens, the end token included
    finish: Literal["stop", "length"]


class Trace(Record):
    """Everything the language model said about one prompt."""

    id: str  # the prompt's
    prompt: Prompt
    draft: str
    draft_finish: Literal["stop", "length"]
    principle_ids: list[str]
    protocol: str
    critic_outputs: list[str]  # raw, one entry a critic call, in order
    critique: str
    revision: str  # equals `draft` unless outcome is "revised"; which samples make the pair, the scorer says later
    outcome: Outcome
    reason: str  # one sentence: why this outcome
    tokens: int  # generated for this row, all calls together
    drafts: list[Completion] = []  # of the protocol samples/k: all k, `draft` first; none under a critic

    @model_serializer(mode="wrap")
    def _no_drafts_no_column(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Rows of a critic have the columns they always had."""
        row = write(self)
        if not self.drafts:
            del row["drafts"]
        return row

    @property
    def written(self) -> str:
        """What the critic wrote last, whole, where no usable revision came of it; else empty."""
        failed = self.outcome not in ("revised", "kept") and self.critic_outputs
        return self.critic_outputs[-1].strip() if failed else ""

    def readable(self) -> str:
        """All that was said about the prompt, for a person."""
        if self.drafts:
            said = {f"SAMPLE {number}": draft.text for number, draft in enumerate(self.drafts, start=1)}
        else:
            said = {
                "DRAFT": self.draft,
                "PRINCIPLES": ", ".join(self.principle_ids),
                "CRITIC": "\n".join(self.critic_outputs),
            }
        parts = {"PROMPT": self.prompt.text, **said, "OUTCOME": f"{self.outcome}: {self.reason}"}
        return "\n".join(f"  {name.ljust(10)} " + text.replace("\n", "\n" + " " * 13) for name, text in parts.items())


class ScoredPair(Record):
    """A trace with both reward scores; the first eight columns are the ones the method's users have on disk.

    A failed revision (any outcome but "revised", "kept" and "sampled") has no revised_score and no chosen side: the
    fallback to the draft is there to be read, never to be taken for a verdict. Of a sampled pair the base response is the
    worst sample and the revised one the best.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # files from elsewhere may carry columns of their own

    prompt: str
    base_response: str
    revised_response: str
    base_score: float
    revised_score: float | None
    chosen: Side | None
    critic_notes: str = ""
    principle_ids: list[str] = Field(default_factory=list)

    id: str = ""
    messages: Messages = Field(default_factory=list)  # all turns; `prompt` is their readable form
    category: str = "unknown"
    source: str = "unknown"
    outcome: Outcome | Literal["unknown"] = "unknown"  # "unknown": a file from elsewhere that does not say
    reason: str = ""
    base_finish: Literal["stop", "length"] | None = None  # "length": the draft was cut off at the token limit
    critic_output: str = (
        ""  # what the critic wrote where no usable revision came of it: revised_response is the draft then
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_foreign_forms(cls, row: dict) -> dict:
        """Files from elsewhere write principle_ids as "HP001,HP002" and leave out critic_notes as null."""
        row = dict(row)
        if isinstance(row.get("principle_ids"), str):
            row["principle_ids"] = [part.strip() for part in row["principle_ids"].split(",") if part.strip()]
        if row.get("critic_notes") is None:
            row["critic_notes"] = ""
        return row

    @property
    def delta(self) -> float | None:
        """Reward of the revision minus reward of the draft; None where there is no usable revision."""
        return None if self.revised_score is None else self.revised_score - self.base_score

    @property
    def identical(self) -> bool:
        return self.base_response.strip() == self.revised_response.strip()


class PreferenceRow(Record):
    """TRL's conversational preference format, plus what a person wants to know of a row."""

    prompt: Messages
    chosen: Messages
    rejected: Messages
    id: str
    category: str
    delta: float | None  # reward of chosen minus reward of rejected; below 0 or None only where a person decided
    chosen_side: Side
    labelled_by: Literal["reward model", "person"] = "reward model"


class UnpairedRow(Record):
    """One answer that is good or bad by itself: TRL's conversational unpaired format, and where it comes from."""

    prompt: Messages
    completion: Messages
    label: bool  # True: desirable
    id: str  # the prompt's
    category: str
    # a side of a pair, or what is left of a dropped one: a draft the critic kept, a side that goes round in circles
    reason: Literal["chosen", "rejected", "kept", "degenerate"]
    held_out: bool


def transcript(messages: Messages) -> str:
    """Readable text of a conversation: a single user turn as it is, more turns as "User: … / Assistant: …"."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)
