"""How much there is to do: the texts of each call in tokens, as far as the workspace tells, else assumed and said so."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import NamedTuple

from cai_helpers.critique.critic import protocol_of
from cai_helpers.critique.protocols import Protocol
from cai_helpers.critique.samples import Samples
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.policies import policies_of
from cai_helpers.evaluation.prompt_sets import answers_wanted
from cai_helpers.models.hub import locate
from cai_helpers.planning.generation import Chain, Length
from cai_helpers.planning.training import Pair
from cai_helpers.schema import Messages
from cai_helpers.settings import Settings
from cai_helpers.store import read_jsonl
from cai_helpers.workspace import Workspace

_PROMPT = 120  # tokens of a conversation on average, where no prompts are there yet; hh-rlhf's have 100 to 130
_SHARE = 0.6  # of its limit that an answer comes to on average
_CRITIQUE = 60  # tokens of the one or two sentences that a critique has; a revision is as long as a draft
_PRINCIPLES = 120  # tokens of those that are shown
_SHORT = 30  # tokens of a prompt of the built-in evaluation sets
_CHARACTERS = 4  # of a token of English
_SIGMA = 0.8  # of the logarithm of lengths
_TRAINING = 0.7  # share of the prompts whose pair trains; of the embedded models it is 0.64
_DEAREST = "two_step/short"  # what "auto" is planned as: three calls a pair


class Workload(NamedTuple):
    prompts: int
    chains: list[Chain]  # draft, critique, revision
    answers: list[Length]  # of the evaluation
    gold: list[int]  # tokens of the texts that are scored to calibrate
    texts: list[int]  # of the pairs
    judged: list[int]  # of the evaluation
    pairs: list[Pair]  # that train
    assumed: list[str]


def workload_of(settings: Settings, workspace: Workspace) -> Workload:
    """
    Raises:
        CaiError: nothing says how many prompts there will be, or the protocol is unknown.
    """
    generate, evaluate = settings.generate, settings.evaluate
    count, mean, said = _prompts(settings, workspace)
    prompts = spread(mean, settings.prompts.max_tokens, count)
    protocol = protocol_of(settings, _DEAREST if generate.protocol == "auto" else generate.protocol)
    draft = round(_SHARE * generate.draft_tokens)
    drafts = [
        Length(prompt, new) for prompt, new in zip(prompts, spread(draft, generate.draft_tokens, count, 1), strict=True)
    ]
    held_out = (
        settings.prompts.eval_count if evaluate.limit is None else min(evaluate.limit, settings.prompts.eval_count)
    )
    answer = round(_SHARE * evaluate.max_tokens)
    asked = spread(mean, settings.prompts.max_tokens, held_out)
    answers = [
        Length(prompt, new) for prompt, new in zip(asked, spread(answer, evaluate.max_tokens, held_out, 1), strict=True)
    ]
    policies = len(policies_of(settings.models, evaluate))
    others = answers_wanted(settings, held_out) - held_out * policies  # to the built-in sets and files
    answers = answers * policies + [Length(_SHORT, answer)] * others
    limit = settings.models.reward.max_length
    gold = 0 if settings.calibrate.gold is None else settings.calibrate.limit or 500
    pairs, how_many = _pairs(settings, workspace, drafts)
    how = "two calls" if isinstance(protocol, Protocol) and protocol.revision is None else "three calls"
    how = f"{protocol.drafts} drafts" if isinstance(protocol, Samples) else how
    auto = " (auto is planned as the dearest)" if generate.protocol == "auto" else ""
    return Workload(
        prompts=count,
        chains=_chains(protocol, drafts, generate.critic_tokens),
        answers=answers,
        gold=[min(limit, mean + draft)] * 2 * gold,
        texts=[min(limit, row.prompt + row.new) for row in drafts] * 2,
        judged=[min(limit, row.prompt + row.new) for row in answers],
        pairs=pairs,
        assumed=[
            f"{count} prompts of {mean} tokens on average {said}",
            f"{how} a pair{auto}; drafts and revisions come to {draft} tokens ({_SHARE:.0%} of the limit), critiques to {_CRITIQUE}",
            how_many,
        ],
    )


def _pairs(settings: Settings, workspace: Workspace, drafts: list[Length]) -> tuple[list[Pair], str]:
    """(those that train, how many they are and why)."""
    if workspace.train_rows.exists():
        rows = [
            [_tokens(row[side]) for side in ("prompt", "chosen", "rejected")]
            for row in read_jsonl(workspace.train_rows)
        ]
        return [Pair(*row) for row in rows], f"{len(rows)} pairs train (those of the workspace)"
    count = round(_TRAINING * (1 - settings.curate.eval_fraction) * len(drafts))
    each = len(drafts) / max(1, count)
    some = [drafts[int(place * each)] for place in range(count)]
    words = f"{_TRAINING:.0%} of the prompts give a usable pair, of which {count} train"
    return [Pair(row.prompt, row.new, row.new) for row in some], words


def _tokens(messages: Messages) -> int:
    return max(1, sum(len(turn["content"]) for turn in messages) // _CHARACTERS)


def spread(mean: float, most: int, count: int, order: int = 0) -> list[int]:
    """`count` lengths of about that mean: a log-normal's quantiles, at most `most`, in a fixed order of their own.

    order: another number gives another order, so that two lists of lengths do not go together.
    """
    normal = statistics.NormalDist()
    shape = [math.exp(_SIGMA * normal.inv_cdf((place + 0.5) / count)) for place in range(count)]
    low, high = 0.0, 4.0 * mean
    for _ in range(30):  # bisection for the scale
        middle = (low + high) / 2
        reached = sum(min(most, middle * each) for each in shape) / max(1, count)
        low, high = (middle, high) if reached < mean else (low, middle)
    lengths = [max(1, round(min(most, low * each))) for each in shape]
    stride = (0.618, 0.382)[order % 2]  # the golden section scatters neighbours
    return [length for _, length in sorted(enumerate(lengths), key=lambda item: item[0] * stride % 1)]


def _chains(protocol: Protocol | Samples, drafts: list[Length], most: int) -> list[Chain]:
    if isinstance(protocol, Samples):
        return [[draft] for draft in drafts for _ in range(protocol.drafts)]
    asked = len(protocol.critique) // _CHARACTERS + _PRINCIPLES
    if protocol.revision is None:
        return [[row, Length(row.prompt + row.new + asked, min(most, _CRITIQUE + row.new))] for row in drafts]
    again = len(protocol.revision) // _CHARACTERS + _CRITIQUE
    return [
        [
            row,
            Length(row.prompt + row.new + asked, min(most, _CRITIQUE)),
            Length(row.prompt + row.new + again, min(most, row.new)),
        ]
        for row in drafts
    ]


def _prompts(settings: Settings, workspace: Workspace) -> tuple[int, int, str]:
    """(how many, tokens of one on average, where that is from)."""
    if workspace.prompts.exists():
        lengths = [_tokens(row["messages"]) for row in read_jsonl(workspace.prompts)]
        if lengths:
            mean = min(settings.prompts.max_tokens, round(statistics.mean(lengths)))
            return len(lengths), max(1, mean), "(those of the workspace, 4 characters a token)"
    count, source = settings.prompts.limit, Path(locate(settings.prompts.source))
    if source.is_file() and source.suffix in (".jsonl", ".txt"):
        there = sum(1 for line in source.read_bytes().splitlines() if line.strip())
        count = there if count is None else min(count, there)
    if count is None:
        raise CaiError(
            "How many prompts there will be is not said: prompts.limit is null.", "Set prompts.limit, or --limit 2500."
        )
    return count, min(_PROMPT, settings.prompts.max_tokens), "(assumed)"
