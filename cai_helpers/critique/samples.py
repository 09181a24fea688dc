"""Several answers instead of a critique: which of k drafts could be a side of a pair. Pure: texts in, places out.

A model that is too small to criticise may still answer now better, now worse. `samples/4` drafts four times under
different keys of randomness; the scorer later says which is the best and which the worst (best of n against worst of
n, as in Stiennon et al. 2020, arXiv 2009.01325, and most preference data since). Scores are no part of a trace:
changing the scorer never means sampling again.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from cai_helpers.critique.recognition import holds_template_text
from cai_helpers.critique.verdict import MIN_REVISION_WORDS
from cai_helpers.errors import CaiError
from cai_helpers.measures.degeneration import is_degenerate
from cai_helpers.schema import Completion, Outcome

FAMILY = "samples/"
FEWEST, MOST = 2, 8
USUAL = "samples/4"  # what a bake-off tries


class Samples(NamedTuple):
    """The protocol samples/k: k drafts of each prompt, and no critic."""

    name: str
    drafts: int  # how many


class SampleVerdict(NamedTuple):
    """Whether k drafts can make a pair, before anything is scored."""

    outcome: Outcome
    reason: str


def is_samples(protocol: str) -> bool:
    """Whether a protocol, by its name, samples instead of criticising."""
    return protocol.startswith(FAMILY)


def read_samples(name: str) -> Samples:
    """The protocol of the name "samples/k".

    Raises:
        CaiError: k is no number from 2 to 8.
    """
    count = name.removeprefix(FAMILY)
    if not (count.isascii() and count.isdigit() and FEWEST <= int(count) <= MOST):
        raise CaiError(
            f"There is no protocol {name!r}: samples/k takes a number from {FEWEST} to {MOST}.",
            f"Set generate.protocol={USUAL}, for example.",
        )
    return Samples(name, int(count))


def sample_keys(prompt_id: str, count: int) -> list[str]:
    """Keys of randomness of all drafts. The first is that of every other protocol, so that its draft is the same."""
    return [f"{prompt_id}/draft", *(f"{prompt_id}/draft/{number}" for number in range(1, count))]


def usable_samples(drafts: list[Completion]) -> list[int]:
    """Places of the drafts that may become a side of a pair: whole answers, each text once, in their order.

    One that was cut off or goes round in circles must not be chosen, whatever it scores: it would teach not to end. It
    is no worst one either: the pair would then teach a difference that no scorer is needed for.
    """
    places, texts = [], set()
    for place, draft in enumerate(drafts):
        text = draft.text.strip()
        if fault_of_sample(draft) is None and text not in texts:
            places.append(place)
            texts.add(text)
    return places


def fault_of_sample(draft: Completion) -> str | None:
    """What makes a draft unusable, in words; None: it is a whole answer."""
    text = draft.text.strip()
    if draft.finish == "length":
        return "cut off at the token limit"
    if len(text.split()) < MIN_REVISION_WORDS:
        return f"shorter than {MIN_REVISION_WORDS} words"
    if is_degenerate(text):
        return "going round in circles"
    return "holding text of a template" if holds_template_text(text) else None


def judge_samples(drafts: list[Completion]) -> SampleVerdict:
    """ "sampled" where two different drafts can be used; else why there is no pair."""
    faults = Counter(fault for draft in drafts if (fault := fault_of_sample(draft)) is not None)
    whole = len(drafts) - faults.total()
    different = len(usable_samples(drafts))
    if different >= 2:
        return SampleVerdict("sampled", f"{different} of {len(drafts)} samples are usable and differ")
    if whole >= 2:
        return SampleVerdict("samples_alike", f"the {whole} usable ones of {len(drafts)} samples are the same text")
    told = ", ".join(f"{count} {fault}" for fault, count in faults.most_common())
    return SampleVerdict("samples_unusable", f"{whole} of {len(drafts)} samples can be used: {told}")
