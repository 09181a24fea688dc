"""Critique-and-revise protocols: templates and the parser, as pure functions.

`single` asks once for critique and revision (Bai et al. 2022, arXiv 2212.08073, section 3.1, folded into one turn);
`two_step` asks for the critique first and for the revision after it, as the paper does.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import yaml

from cai_helpers.constitution import Principle
from cai_helpers.schema import Completion, Messages, Outcome, transcript

KEEP = "KEEP_ORIGINAL"
MIN_REVISION_WORDS = 5

_CRITIQUE_LABEL = re.compile(r"^\W*critique\W*:\W*", re.IGNORECASE)
_REVISION_LABEL = re.compile(r"(?:^|\n)[ \t*#>-]*revis(?:ion|ed response)\W*:[ \t*]*", re.IGNORECASE)
_KEEP = re.compile(r"^\W*keep[\s_-]*original\b", re.IGNORECASE)

# A revision that opens like this talks about a response instead of being one.
_META_OPENINGS = re.compile(
    r"""^\W*(?:
        i\s(?:could|would|should|might)\s(?:have\s)?(?:say|said|revise|rewrite|improve|respond|change|write|add|be|make)
      | (?:the|this|that|my|your)\s(?:original\s|revised\s|improved\s|better\s|assistant's\s)?(?:response|answer|revision|reply)\b
      | the\sassistant\b
      | instead\sof\b | rather\sthan\b
      | an?\s(?:better|improved|revised|more\s\w+)\s(?:response|answer|version|reply)\b
      | here(?:\sis|'s)\s(?:a|an|the|my)\s(?:\w+\s)?(?:revised|revision|improved|better|rewritten)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)


class Verdict(NamedTuple):
    """What a critic's output comes to. `revision` is empty unless outcome is "revised"."""

    outcome: Outcome
    critique: str
    revision: str
    reason: str


class Protocol(NamedTuple):
    """One way to ask for a critique and a revision. `revision` is None when one call does both."""

    name: str
    critique: str
    revision: str | None

    @property
    def calls(self) -> int:
        return 1 if self.revision is None else 2


def load_protocol(name: str, path: Path | None = None) -> Protocol:
    """The protocol `"single/short"`, `"two_step/full"`, … from the protocols file.

    Raises:
        ValueError: the file has no such protocol; the message lists those it has.
    """
    source = path or resources.files("cai_helpers") / "assets" / "protocols.yaml"
    protocols = yaml.safe_load(source.read_text(encoding="utf-8"))
    known = [f"{family}/{variant}" for family, variants in protocols.items() for variant in variants]
    if name not in known:
        raise ValueError(f"there is no protocol {name!r} in {source}; it has {', '.join(known)}")
    family, variant = name.split("/")
    text = protocols[family][variant]
    return Protocol(name, text, None) if isinstance(text, str) else Protocol(name, text["critique"], text["revision"])


def critique_chat(protocol: Protocol, conversation: Messages, draft: str, principles: list[Principle]) -> Messages:
    """The chat that asks for the critique (and, in a one-call protocol, for the revision too)."""
    return _chat(
        protocol.critique,
        conversation=transcript(conversation),
        response=draft,
        principles="\n".join(f"- {principle.text}" for principle in principles),
    )


def revision_chat(protocol: Protocol, conversation: Messages, draft: str, critique: str) -> Messages:
    """The second chat of a two-call protocol."""
    assert protocol.revision is not None, f"protocol {protocol.name} has no revision step"
    return _chat(protocol.revision, conversation=transcript(conversation), response=draft, critique=critique)


def parse_single(output: Completion) -> Verdict:
    """Read "CRITIQUE: … REVISION: …". Never raises, never returns an empty revision."""
    text = output.text.strip()
    parts = _REVISION_LABEL.split(text, maxsplit=1)
    critique = _CRITIQUE_LABEL.sub("", parts[0]).strip()
    if len(parts) == 1:
        if _KEEP.match(critique):
            return Verdict("kept", "", "", f"the critic wrote only {KEEP}")
        if output.finish == "length":
            return Verdict("truncated", critique, "", "the token limit came before REVISION:")
        return Verdict("unparsed", critique, "", "there is no REVISION: label")
    if not _CRITIQUE_LABEL.match(parts[0]):
        return Verdict("unparsed", critique, "", "there is no CRITIQUE: label")
    return judge_revision(critique, Completion(text=parts[1], tokens=output.tokens, finish=output.finish))


def parse_critique(output: Completion) -> Verdict | None:
    """First call of a two-call protocol: a verdict if it already settles the pair, else None (go on to the revision)."""
    text = _CRITIQUE_LABEL.sub("", output.text.strip()).strip()
    if _KEEP.match(text):
        return Verdict("kept", "", "", f"the critic wrote {KEEP}")
    if not text:
        return Verdict("unparsed", "", "", "the critique is empty")
    return None


def judge_revision(critique: str, output: Completion) -> Verdict:
    """Decide whether `output` is a usable revision."""
    revision = output.text.strip()
    if _KEEP.match(revision):
        return Verdict("kept", critique, "", f"the critic wrote {KEEP}")
    if output.finish == "length":
        return Verdict("truncated", critique, "", "the revision hit the token limit")
    if _META_OPENINGS.match(revision):
        return Verdict("meta_commentary", critique, "", f"the revision opens with {_opening(revision)!r}")
    if len(revision.split()) < MIN_REVISION_WORDS:
        return Verdict("too_short", critique, "", f"{len(revision.split())} words; {MIN_REVISION_WORDS} are needed")
    if _REVISION_LABEL.search(revision) or "\nCRITIQUE:" in revision or KEEP in revision:
        return Verdict("unparsed", critique, "", "the revision holds labels of the answer form")
    return Verdict("revised", critique, revision, "usable revision")


def _chat(template: str, **parts: str) -> Messages:
    # Not str.format: drafts and prompts may hold braces, and a part must not be expanded inside another.
    pattern = re.compile("|".join(re.escape("{" + name + "}") for name in parts))
    return [{"role": "user", "content": pattern.sub(lambda match: parts[match[0][1:-1]], template)}]


def _opening(text: str) -> str:
    return " ".join(text.split()[:6])
