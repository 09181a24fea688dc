"""What a critic's words come to: the parser of its output, as pure functions. A failure is an outcome, never a revision."""

from __future__ import annotations

import re
from typing import NamedTuple

from cai_helpers.critique.meta import is_meta_commentary
from cai_helpers.critique.protocols import Protocol
from cai_helpers.measures.degeneration import is_degenerate
from cai_helpers.measures.refusals import is_refusal
from cai_helpers.schema import Completion, Outcome

KEEP = "KEEP_ORIGINAL"
MIN_REVISION_WORDS = 5
_ECHO_WORDS = 6  # a run of the instructions' own words that long is no coincidence
_LABELS = re.compile(
    r"(?:critique|revision)\s*:|\[(?:conversation|response|principles|critique)\]|keep_original", re.IGNORECASE
)

_CRITIQUE_LABEL = re.compile(r"^\W*critique\W*:\W*", re.IGNORECASE)
_REVISION_LABEL = re.compile(r"(?:^|\n)[ \t*#>-]*revis(?:ion|ed response)\W*:[ \t*]*", re.IGNORECASE)
_KEEP = re.compile(r"^\W*keep[\s_-]*original\b", re.IGNORECASE)


class Verdict(NamedTuple):
    """What a critic's output comes to. `revision` is empty unless outcome is "revised"."""

    outcome: Outcome
    critique: str
    revision: str
    reason: str


def parse_single(output: Completion, protocol: Protocol, prompt: str) -> Verdict:
    """Read "CRITIQUE: … REVISION: …". Never raises, never returns an empty revision.

    prompt: the last user turn, to tell an echo of it from an answer.
    """
    text = output.text.strip()
    parts = _REVISION_LABEL.split(text, maxsplit=1)
    critique = _CRITIQUE_LABEL.sub("", parts[0]).strip()
    if len(parts) == 1:
        return _without_revision(output, critique)
    if not _CRITIQUE_LABEL.match(parts[0]):
        return Verdict("unparsed", critique, "", "there is no CRITIQUE: label")
    revision = Completion(text=parts[1], tokens=output.tokens, finish=output.finish)
    return judge_revision(critique, revision, protocol, prompt)


def parse_critique(output: Completion) -> Verdict | None:
    """First call of a two-call protocol: a verdict if it already settles the pair, else None (go on to the revision)."""
    text = _CRITIQUE_LABEL.sub("", output.text.strip()).strip()
    if _KEEP.match(text):
        return Verdict("kept", "", "", f"the critic wrote {KEEP}")
    if not text:
        return Verdict("unparsed", "", "", "the critique is empty")
    if is_refusal(text):
        return Verdict("refused_to_critique", text, "", f"the critic answered {_opening(text)!r}")
    if is_degenerate(text):
        return Verdict("degenerate", text, "", "the critique repeats itself")
    return None


def judge_revision(critique: str, output: Completion, protocol: Protocol, prompt: str) -> Verdict:
    """Decide whether `output` is a usable revision."""
    revision = output.text.strip()
    fault = _fault(revision, output, protocol, prompt)
    if fault is None:
        return Verdict("revised", critique, revision, "usable revision")
    return Verdict(fault[0], critique, "", fault[1])


def _fault(revision: str, output: Completion, protocol: Protocol, prompt: str) -> tuple[Outcome, str] | None:
    """The first thing that makes `revision` unusable, as (outcome, reason)."""
    fault = fault_of_text(revision, prompt)
    if fault is not None and fault[0] == "kept":
        return fault
    if revision and is_degenerate(revision):
        return "degenerate", "the revision repeats itself"
    if output.finish == "length":
        return "truncated", "the revision hit the token limit"
    may_echo = fault is None or fault[0] == "meta_commentary"  # the instructions talk of a response as well
    if may_echo and (run := _shared_run(revision, f"{protocol.critique}\n{protocol.revision or ''}")):
        return "echo", f"the revision repeats the instructions: {run!r}"
    return fault


def fault_of_text(revision: str, prompt: str) -> tuple[Outcome, str] | None:
    """What the text alone shows to be no revision, as (outcome, reason); going round in circles is not asked for here."""
    if _KEEP.match(revision):
        return "kept", f"the critic wrote {KEEP}"
    if is_meta_commentary(revision):
        return "meta_commentary", f"the revision opens with {_opening(revision)!r}"
    if (words := len(revision.split())) < MIN_REVISION_WORDS:
        return "too_short", f"{words} words; {MIN_REVISION_WORDS} are needed"
    if label := _LABELS.search(revision):
        return "echo", f"the revision holds the label {label[0]!r}"
    if prompt and _words(revision) == _words(prompt):
        return "echo", "the revision repeats the prompt"
    return None


def _without_revision(output: Completion, critique: str) -> Verdict:
    """An answer to a one-call protocol that has no REVISION: label."""
    if _KEEP.match(critique):
        return Verdict("kept", "", "", f"the critic wrote only {KEEP}")
    if critique and is_degenerate(critique):
        return Verdict("degenerate", critique, "", "the critique repeats itself")
    if output.finish == "length":
        return Verdict("truncated", critique, "", "the token limit came before REVISION:")
    if is_refusal(critique):
        return Verdict("refused_to_critique", critique, "", f"the critic answered {_opening(critique)!r}")
    return Verdict("unparsed", critique, "", "there is no REVISION: label")


def _shared_run(revision: str, instructions: str) -> str | None:
    """The first run of _ECHO_WORDS words that `revision` has in common with the instructions."""
    known = _words(instructions)
    if not known:
        return None
    words = _words(revision)
    runs = {tuple(known[start : start + _ECHO_WORDS]) for start in range(len(known) - _ECHO_WORDS + 1)}
    for start in range(len(words) - _ECHO_WORDS + 1):
        if tuple(words[start : start + _ECHO_WORDS]) in runs:
            return " ".join(words[start : start + _ECHO_WORDS])
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _opening(text: str) -> str:
    return " ".join(text.split()[:6])
