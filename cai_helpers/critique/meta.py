"""Does a revision talk about a response, a draft or a critique instead of being an answer? Critic's talk, by its phrases."""

from __future__ import annotations

import re
from functools import lru_cache

from cai_helpers.measures.signs import stands_in

_READ = 700  # characters
_OPENING = 160

_WORK = r"(?:response|answer|revision|reply|draft|rewrite|version|critique)"  # what a critic talks about
_TEXT = rf"(?:{_WORK}|text|content|message|paragraph|passage|feedback|review|edit|wording|statement|post)"
_OF_IT = r"(?:original|revised|rewritten|improved|better|updated|new|edited|polished|assistant's|proposed|previous|initial|final|above)"

# At the start of a text.
_OPENINGS = re.compile(
    rf"""^\W*(?:
        i\s(?:could|would|should|might)\s(?:have\s)?(?:say|said|revise|rewrite|improve|respond|change|write|add|be|make)\b
      | (?:the|this|that|my|your)\s(?:{_OF_IT}\s)*{_WORK}\b(?!\s(?:to\s(?:the|your|this|that)\s)?(?:question|is\s(?:yes|no)\b|depends|lies))
      | the\sassistant\b
      | the\suser(?:s|'s)?\s(?:is|was|asks?|asked|wants?|has|should|could|would|needs?|may|might|question|request|query|prompt|message|response|input)\b
      | (?:instead\sof|rather\sthan)\b
      | an?\s(?:better|improved|revised|more\s\w+)\s(?:response|answer|version|reply)\b
      | (?:draft|text|content|response|answer|reply|version)\s*:
      | (?:{_OF_IT}\s)+{_TEXT}\s*:? | re:\srewrite
      | (?:it|this)\s(?:adheres|complies|conforms|violates|follows\sthe|fails\sto|lacks|does\snot\s(?:adhere|follow|violate|comply|address))\b
      | (?:it|this|that)\sis\s(?:a\s|an\s|very\s|quite\s|also\s)*(?:clear(?!ly)|concise|well[-\s](?:written|structured|crafted))\b
      | (?:clear|concise|short|polite|respectful|helpful|informative|direct|accurate|brief|simple|honest|well-written|thorough)(?:,\s\w+)*,?\sand\s(?:to\sthe\spoint|clear|concise|direct|polite|respectful|helpful|informative|accurate|honest|harmless|brief|complete|appropriate|easy)\b
      | (?:good|great|excellent|nice|fair|valid)\s(?:response|answer|critique|revision|draft|reply|feedback|job|catch)\b(?!\?)
      | no\s(?:revision|change|critique|correction|improvement|edit)s?\b
      | (?:nothing|none)\s(?:to|needs\sto)\s(?:change|be\s(?:changed|revised)|revise|improve)
      | not\s(?:bad|good|helpful),?\s(?:but|because) | too\s(?:vague|long|short|generic|harsh|blunt)\b
      | premise\s*:
    )""",
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip

# Anywhere in its first sentences.
TALK = re.compile(
    rf"""
        \bhere(?:\sis|'s)\s(?:a|an|the|my|your)\s(?:\w+\s){{0,2}}(?:revised|revision|improved|rewritten|rewrite|updated|better|edited|polished|corrected|reworked)\b
      | \bhere(?:\sis|'s)\sthe\s(?:text|draft|critique)\b
      | \b(?:revised|rewritten|improved|updated|edited|corrected)\s{_TEXT}\b | \bversion\sof\sthe\s{_TEXT}\b
      | \b(?:your|my|this|the)\s(?:critique|criticism)\b
      | \b(?:original|previous|initial|first|your)\s(?:draft|response|version)\b
      | \boriginal\s(?:text|message|content|answer|reply|wording|sentence)\b
      | \b(?:in|of|to|with|about)\s(?:the|this|that)\s(?:draft|response)\b
      | \bthe\sdraft\s(?:is|was|does|has|could|should)
      | \bi\s(?:fully\s|completely\s|partly\s)?(?:agree|disagree)\swith\s(?:your|the|this|that)\s(?:\w+\s)?(?:critique|criticism|feedback|assessment|comment|point|analysis|evaluation|suggestion|review|revision)
      | \b(?:thank\syou\sfor|i\s(?:appreciate|acknowledge|accept|understand))\s(?:your|the|this)\s(?:\w+\s)?(?:critique|criticism|feedback|suggestion|review|assessment|comments?\son)
      | \byour\s(?:critique|criticism|feedback|review|assessment|suggestion)s?\s(?:is|are|of|was|on|about)\b
      | \bi(?:'ve|\shave|'ll|\swill|'d\slike\sto|\swould\slike\sto|\swas)?\s(?:also\s)?(?:make|made|making)\s(?:\w+\s){{0,2}}(?:changes?|edits?|corrections?|revisions?|adjustments?|improvements?|grammatical|spelling)\b
      | \bi(?:'ve|\shave)?\s(?:removed|rephrased|reworded|rewrote|rewritten|revised|reorganized)\b
      | \bi\s(?:changed|added|replaced)\s["““]
      | \blet(?:'s|\sus)\s(?:refine|rework|revise|rewrite|improve)\b
      | \bplease\s(?:revise|rewrite|provide\sthe\s(?:\w+\s)?{_TEXT})\b
      | \b(?:refine|improve|edit|rewrite|polish)\s(?:your|the|this)\s(?:\w+\s)?(?:{_TEXT}|writing)\b
      | \bgrammar\sand\s(?:punctuation|clarity|spelling)|\bgrammar,\s
      | \b(?:text|response|message)\s(?:should|could)\s(?:\w+\s)?(?:be|have\sbeen)\s(?:sent|rewritten|revised|more)\b
      | \b(?:this|that)\s(?:is|was)\snot\sa(?:\s\w+)?\s(?:response|critique|answer)\b
      | (?:^|\n)\W*(?:original\s|revised\s|final\s)?(?:draft|text|response)\s*:
      | \b(?:violates?|contains|follows|adheres\sto|according\sto|under)\s(?:the|a|this|your|these)\s(?:set\sof\s)?(?:\w+\s)?(?:principles?|constitution)\b
      | \bprinciples?\sof\s(?:["“]|do\snot|harm|not)
    """,
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip

# One of them stands in all such talk, in lower case and with single spaces; looking for them first is ten times as fast.
TALK_SIGNS = (
    "here is", "here's", "revised", "rewritten", "improved", "updated", "edited", "corrected", "version", "critique", "criticism", "draft",
    "response", "original ", "agree with", "feedback", "suggestion", "review", "assessment", "comment", "change", "edit", "correction",
    "revision", "adjustment", "improvement", "grammatical", "spelling", "removed", "rephrased", "reworded", "rewrote", "reorganized",
    "i added", "i replaced", "refine", "rework", "revise", "rewrite", "improve", "provide the", "polish", "grammar", "text should",
    "text could", "message should", "message could", "is not a", "was not a", "text:", "text :", "principle", "constitution",
)  # fmt: skip


@lru_cache(maxsize=16)  # a pair is asked for several times in a row
def is_meta_commentary(text: str) -> bool:
    """True of a text that speaks of a response, a draft, a critique or changes to one, where an answer should stand."""
    text = text.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return _OPENINGS.match(text[:_OPENING]) is not None or _talks(text[:_READ])


def _talks(text: str) -> bool:
    if text.isascii():  # of other letters some count as an i, k or s when case is ignored, and are none in lower case
        words = " ".join(text.lower().split())
        if not stands_in(words, TALK_SIGNS):
            return False
    return TALK.search(text) is not None
