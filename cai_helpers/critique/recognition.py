"""What passes for a revision and is none. The one place that decides: statistics count what this says, curation drops it.

A row that tells its outcome was judged when it was written, from the critic's raw output. A file from elsewhere tells
nothing but the two texts, so those are judged here, by the same rules.
"""

from __future__ import annotations

import re

from cai_helpers.critique.meta import is_meta_commentary as talks_about_a_response
from cai_helpers.critique.verdict import fault_of_text
from cai_helpers.prompts.sources import Malformed, as_prompt_messages
from cai_helpers.schema import ScoredPair

# What opens a line is looked for in that line alone: over line ends, a text of newlines takes quadratic time.
# Text of the critic's prompt, of chat templates or of transcripts, which no answer to a user holds.
_LEAK = re.compile(
    r"""
    ^[^\w\n]*(?:critique|revision|revised\sresponse)\W*:
  | KEEP_ORIGINAL
  | \[/?(?:CONVERSATION|RESPONSE|PRINCIPLES|CRITIQUE|INST)\]
  | </?(?:start_of_turn|end_of_turn|bos|eos|s)> | <\|[a-z_]+\|>
  | ^[^\S\n]*(?:human|user|assistant)\s*:
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)

# One of them stands in every leak; looking for them first is ten times as fast as the expression.
_LEAK_SIGNS = ("critique", "revis", "keep_original", "[", "<", "human", "user", "assistant")


def outcome_of(pair: ScoredPair) -> str:
    """The outcome that the row tells; where it passes for a revision, what the text of the revision says.

    "revised" and "unknown" are left: a revision, as far as can be told. Which side won does not matter. "sampled" stays:
    its texts were judged as they were drafted.
    """
    if not _passes_for_a_revision(pair):
        return pair.outcome
    if is_meta_commentary(pair):
        return "meta_commentary"
    fault = fault_of_text(pair.revised_response.strip(), _question(pair)) if pair.outcome == "unknown" else None
    if fault is not None:
        return fault[0]
    return "echo" if leaks_template(pair) else pair.outcome


def is_meta_commentary(pair: ScoredPair) -> bool:
    """The row says so, or it passes for a revision and its text talks about a response."""
    if not _passes_for_a_revision(pair):
        return pair.outcome == "meta_commentary"
    return talks_about_a_response(pair.revised_response)


def leaks_template(pair: ScoredPair) -> bool:
    """What passes for a revision holds text of a template."""
    if not _passes_for_a_revision(pair):
        return False
    return holds_template_text(pair.revised_response)


def holds_template_text(text: str) -> bool:
    """Labels of the critic's prompt, special tokens or speakers stand in `text`."""
    lowered = text.lower()
    return any(sign in lowered for sign in _LEAK_SIGNS) and _LEAK.search(text) is not None


def _question(pair: ScoredPair) -> str:
    try:
        return (pair.messages or as_prompt_messages(pair.prompt))[-1]["content"]
    except Malformed:  # a row of which nothing else is wanted than to be counted
        return pair.prompt


def _passes_for_a_revision(pair: ScoredPair) -> bool:
    return pair.outcome in ("revised", "unknown") and not pair.identical
