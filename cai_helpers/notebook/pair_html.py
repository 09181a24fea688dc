"""A pair, a critique, a result as HTML. Every text of a model or a file goes through `text_html` and stays text."""

from __future__ import annotations

import html
from collections.abc import Mapping
from importlib import resources

from cai_helpers.curation.overrides import Override
from cai_helpers.curation.rules import DROP_MEANING
from cai_helpers.inspection.blind import Agreement, Shown
from cai_helpers.inspection.rows import TRAINED_ON, CriticWords, Row
from cai_helpers.inspection.worddiff import Piece, word_diff
from cai_helpers.measures.intervals import Interval
from cai_helpers.schema import OUTCOME_MEANING, Message, ScoredPair

DECISION_MEANING = {
    "revision": "revision is better",
    "draft": "draft is better",
    "drop": "dropped",
    "edit": "edited revision is better",
}
# A diff of two texts that share less is confetti; both are shown unmarked, and the share says why.
_LEAST_SHARED = 0.2


def text_html(value: str) -> str:
    return html.escape(sendable(value))


def sendable(value: str) -> str:
    """Text that can travel to the browser: half a surrogate pair, which no JSON in UTF-8 can hold, becomes U+FFFD."""
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def style_html() -> str:
    css = (resources.files("cai_helpers") / "assets" / "inspector.css").read_text(encoding="utf-8")
    return f"<style>{css}</style>"


def pair_html(row: Row, decision: Override | None, principles: Mapping[str, str]) -> str:
    """Badges, all turns of the prompt, draft and revision side by side; below them the edited text, if there is one.

    principles: text by id; it shows when the pointer rests on the id.
    """
    pair = row.pair
    edited = _edited_html(pair, decision.edited) if decision is not None and decision.edited else ""
    return (
        f'<div class="cai">{_badges_html(row, decision, principles)}{_turns_html(pair)}'
        f'<div class="cai-sides">{_sides_html(pair, decision)}{edited}</div></div>'
    )


def _badges_html(row: Row, decision: Override | None, principles: Mapping[str, str]) -> str:
    pair = row.pair
    badges = [_decision_badge(decision)] if decision is not None else []
    badges.append(_badge("outcome", pair.outcome, OUTCOME_MEANING.get(pair.outcome, "the file does not say")))
    if pair.reason and pair.outcome != "revised":
        badges.append(_badge("because", pair.reason))
    badges.append(_badge("category", pair.category))
    if pair.delta is not None:
        badges.append(_badge("delta", f"{pair.delta:+.2f}", "reward of the revision minus reward of the draft"))
    if pair.chosen:
        badges.append(_badge("chosen", {"base": "draft", "revised": "revision"}[pair.chosen]))
    if row.curation == TRAINED_ON:
        badges.append(_badge("curation", TRAINED_ON))
    elif row.curation:
        badges.append(_badge("left out", row.curation, DROP_MEANING.get(row.curation, "")))
    badges += [_badge("principle", name, principles.get(name, "")) for name in pair.principle_ids]
    return f'<div class="cai-badges">{"".join(badges)}</div>'


def _decision_badge(decision: Override) -> str:
    note = f" · {decision.note}" if decision.note else ""
    meaning = DECISION_MEANING[decision.decision]
    return _badge("you", meaning + note, f"decided {decision.time}", "cai-badge cai-decided")


def _badge(name: str, value: str, title: str = "", classes: str = "cai-badge") -> str:
    hover = f' title="{text_html(title)}"' if title else ""
    return f'<span class="{classes}"{hover}><small>{name}</small>{text_html(value)}</span>'


def _turns_html(pair: ScoredPair) -> str:
    messages = pair.messages or [Message(role="user", content=pair.prompt)]
    turns = [
        f'<div class="cai-turn{" cai-earlier" if place < len(messages) else ""}">'
        f'<span class="cai-role">{text_html(message["role"])}</span>{text_html(message["content"])}</div>'
        for place, message in enumerate(messages, start=1)
    ]
    return f'<div class="cai-turns">{"".join(turns)}</div>'


def _sides_html(pair: ScoredPair, decision: Override | None) -> str:
    yours = decision.decision if decision is not None else None
    if pair.outcome not in ("revised", "unknown"):
        nothing = f'<span class="cai-quiet">There is no revision: {text_html(OUTCOME_MEANING[pair.outcome])}.</span>'
        return _side("Draft", text_html(pair.base_response), [_score(pair.base_score)]) + _side("Revision", nothing, [])
    diff = word_diff(pair.base_response, pair.revised_response)
    if diff.shared is None:
        told = "too long for a word diff"
    elif pair.identical:
        told = "identical texts"
    else:
        told = f"{diff.shared:.0%} of the words in common"
    marked = diff.shared is not None and diff.shared >= _LEAST_SHARED
    before = _marked(diff.before, "del") if marked else text_html(pair.base_response)
    after = _marked(diff.after, "ins") if marked else text_html(pair.revised_response)
    delta = pair.delta or 0.0
    return _side("Draft", before, [_score(pair.base_score, delta < 0), _yours(yours == "draft")], delta < 0) + _side(
        "Revision", after, [_score(pair.revised_score, delta > 0), _yours(yours == "revision")], delta > 0, told
    )


def _side(name: str, text: str, facts: list[str], higher: bool = False, told: str = "", wide: bool = False) -> str:
    classes = "cai-side" + (" cai-higher" if higher else "") + (" cai-wide" if wide else "")
    return (
        f'<div class="{classes}"><div><b>{name}</b>{"".join(facts)}<span class="cai-quiet">{told}</span></div>'
        f'<div class="cai-text" dir="auto">{text}</div></div>'
    )


def _score(score: float | None, higher: bool = False) -> str:
    if score is None:
        return ""
    return f'<span class="cai-score">reward {score:+.2f}{" ▲ higher" if higher else ""}</span>'


def _yours(chosen: bool) -> str:
    return '<span class="cai-yours">✓ your choice</span>' if chosen else ""


def _marked(pieces: list[Piece], tag: str) -> str:
    return "".join(
        f"<{tag}>{text_html(piece.text)}</{tag}>" if piece.changed else text_html(piece.text) for piece in pieces
    )


def _edited_html(pair: ScoredPair, edited: str) -> str:
    diff = word_diff(pair.revised_response, edited)
    return _side("Your text", _marked(diff.after, "ins"), [_yours(True)], told="chosen against the draft", wide=True)


def critic_html(pair: ScoredPair, words: CriticWords | None) -> str:
    """The critique, and what the critic wrote word for word, if the run's traces are at hand."""
    critique = text_html(pair.critic_notes) or '<span class="cai-quiet">No critique is recorded.</span>'
    if words is None:
        raw = '<div class="cai-quiet">There is no trace of this pair: its raw output is not at hand.</div>'
    else:
        raw = f"<b>Raw output</b> <span class='cai-quiet'>protocol {text_html(words.protocol)}</span>" + "".join(
            f'<div class="cai-raw">{text_html(output)}</div>' for output in words.outputs
        )
    return f'<div class="cai cai-critic"><b>Critique</b><div>{critique}</div>{raw}</div>'


def blind_html(pair: ScoredPair, left: Shown) -> str:
    """Prompt and both texts, with nothing that tells which is which."""
    sides = [pair.revised_response, pair.base_response]
    if left == "draft":
        sides.reverse()
    shown = "".join(_side(name, text_html(text), []) for name, text in zip(("Left", "Right"), sides, strict=True))
    return f'<div class="cai">{_turns_html(pair)}<div class="cai-sides">{shown}</div></div>'


def agreement_html(this_round: Agreement, all_rounds: Agreement) -> str:
    """The result of a blind round; the earlier rounds join in a second figure."""
    lines = "".join(f"<p>{text_html(line)}</p>" for line in this_round.lines())
    bar = _bar_html(this_round.share) if this_round.share else ""
    earlier = ""
    if all_rounds.share is not None and all_rounds.judged > this_round.judged:
        earlier = (
            f"<p>All rounds together: {all_rounds.agreed} of {all_rounds.judged} rows, "
            f"{text_html(all_rounds.share.percent())}.</p>"
        )
    return f'<div class="cai cai-result">{bar}{lines}{earlier}</div>'


def _bar_html(share: Interval) -> str:
    width = 100 * (share.high - share.low)
    return (
        f'<div class="cai-bar"><span style="left:{100 * share.low:.1f}%;width:{width:.1f}%"></span><u style="left:50%"></u>'
        f'<i style="left:{100 * share.value:.1f}%"></i><small class="cai-edge" style="left:0">never</small>'
        '<small style="left:50%">a coin toss</small><small class="cai-far" style="left:100%">always</small></div>'
    )


def title_html(name: str, count: int) -> str:
    return (
        f'<div class="cai cai-title"><b>Pairs</b><span>{count:,} in {text_html(name)}</span>'
        '<span class="cai-quiet"><del>only in the draft</del> &nbsp; <ins>only in the revision</ins></span></div>'
    )


def counter_html(position: int, selected: int, total: int) -> str:
    """ "12 of 268 (of 420)"; `position` counts from 0."""
    if selected == 0:
        return f'<div class="cai cai-counter"><b>none</b> of {total:,}</div>'
    all_rows = "" if selected == total else f" (of {total:,})"
    return f'<div class="cai cai-counter"><b>{position + 1:,}</b> of {selected:,}{all_rows}</div>'


def message_html(message: str, problem: bool = False) -> str:
    return f'<div class="cai cai-status{" cai-problem" if problem else ""}">{text_html(message)}</div>'
