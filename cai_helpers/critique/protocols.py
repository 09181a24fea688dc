"""Critique-and-revise protocols: which words ask for a critique and a revision.

`single` asks once for critique and revision (Bai et al. 2022, arXiv 2212.08073, section 3.1, folded into one turn);
`two_step` asks for the critique first and for the revision after it, as the paper does.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from cai_helpers.critique.constitution import Principle
from cai_helpers.errors import CaiError
from cai_helpers.schema import Messages, transcript
from cai_helpers.yaml_file import read_yaml


class Demonstration(NamedTuple):
    """A worked example that is shown to the critic as earlier turns."""

    conversation: str
    response: str
    principle: str
    critique: str
    revision: str


class Protocol(NamedTuple):
    """One way to ask for a critique and a revision. `revision` is None when one call does both."""

    name: str
    critique: str
    revision: str | None
    demonstrations: tuple[Demonstration, ...] = ()

    @property
    def calls(self) -> int:
        return 1 if self.revision is None else 2


class _TwoTexts(BaseModel):
    model_config = ConfigDict(extra="forbid")
    critique: str
    revision: str


class _ProtocolsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    single: dict[str, str] = {}
    two_step: dict[str, _TwoTexts] = {}
    demonstrations: list[Demonstration] = []


def protocol_names(path: Path | None = None) -> list[str]:
    """Every protocol of the file, and the short ones with two demonstrations, if the file has as many."""
    content = _read(path)
    names = [f"single/{name}" for name in content.single] + [f"two_step/{name}" for name in content.two_step]
    shown = [f"{name}+2" for name in names if name.endswith("/short")] if len(content.demonstrations) >= 2 else []
    return names + shown


def load_protocol(name: str, path: Path | None = None) -> Protocol:
    """A protocol by its name: "single/short", or "single/short+2" to show the critic two demonstrations.

    Raises:
        CaiError: the file is not of the expected form, or has no such protocol; the message lists those it has.
    """
    content = _read(path)
    match = re.fullmatch(r"(\w+)/(\w+)(?:\+(\d+))?", name)
    family, variant, count = (match[1], match[2], int(match[3] or 0)) if match else ("", "", 0)
    demonstrations = tuple(content.demonstrations[:count])
    if len(demonstrations) == count:
        if family == "single" and variant in content.single:
            return Protocol(name, content.single[variant], None, demonstrations)
        if family == "two_step" and variant in content.two_step:
            texts = content.two_step[variant]
            return Protocol(name, texts.critique, texts.revision, demonstrations)
    raise CaiError(
        f"There is no protocol {name!r}{f' in {path}' if path else ''}; there is {', '.join(protocol_names(path))} "
        f"(up to +{len(content.demonstrations)}).",
        "Set generate.protocol to one of them, to samples/4 (several answers instead of a critique), or to auto.",
    )


def _read(path: Path | None) -> _ProtocolsFile:
    source = path or resources.files("cai_helpers") / "assets" / "protocols.yaml"
    return read_yaml(source, _ProtocolsFile, "cai_helpers/assets/protocols.yaml")


def critique_chat(protocol: Protocol, conversation: Messages, draft: str, principles: list[Principle]) -> Messages:
    """The chat that asks for the critique (and, in a one-call protocol, for the revision too)."""
    return _shown_critiques(protocol) + _ask(
        protocol.critique,
        conversation=transcript(conversation),
        response=draft,
        principles="\n".join(f"- {principle.text}" for principle in principles),
    )


def revision_chat(protocol: Protocol, conversation: Messages, draft: str, critique: str) -> Messages:
    """The second chat of a two-call protocol."""
    asked = _ask(_revision(protocol), conversation=transcript(conversation), response=draft, critique=critique)
    return _shown_revisions(protocol) + asked


def critique_opening(protocol: Protocol) -> Messages:
    """What all critique chats begin with: the demonstrations, and the words before the first part of the pair's own."""
    return _shown_critiques(protocol) + _begin(protocol.critique)


def revision_opening(protocol: Protocol) -> Messages:
    return _shown_revisions(protocol) + _begin(_revision(protocol))


def _begin(template: str) -> Messages:
    return [{"role": "user", "content": re.split(r"\{(?:conversation|response|principles|critique)\}", template)[0]}]


def _revision(protocol: Protocol) -> str:
    assert protocol.revision is not None, f"protocol {protocol.name} has no revision step"
    return protocol.revision


def _shown_critiques(protocol: Protocol) -> Messages:
    return [turn for shown in protocol.demonstrations for turn in _demonstrated_critique(protocol, shown)]


def _shown_revisions(protocol: Protocol) -> Messages:
    return [turn for shown in protocol.demonstrations for turn in _demonstrated_revision(protocol, shown)]


def _demonstrated_critique(protocol: Protocol, demonstration: Demonstration) -> Messages:
    answer = (
        f"CRITIQUE: {demonstration.critique}\nREVISION: {demonstration.revision}"
        if protocol.revision is None
        else demonstration.critique
    )
    question = _ask(
        protocol.critique,
        conversation=demonstration.conversation,
        response=demonstration.response,
        principles=f"- {demonstration.principle}",
    )
    return [*question, {"role": "assistant", "content": answer}]


def _demonstrated_revision(protocol: Protocol, demonstration: Demonstration) -> Messages:
    question = _ask(
        _revision(protocol),
        conversation=demonstration.conversation,
        response=demonstration.response,
        critique=demonstration.critique,
    )
    return [*question, {"role": "assistant", "content": demonstration.revision}]


def _ask(template: str, **parts: str) -> Messages:
    # Not str.format: drafts and prompts may hold braces, and a part must not be expanded inside another.
    pattern = re.compile("|".join(re.escape("{" + name + "}") for name in parts))
    return [{"role": "user", "content": pattern.sub(lambda match: parts[match[0][1:-1]], template)}]
