"""A pair, a critique, a result as HTML, of which no text of a model or a file can become a part: see `markup.Html`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from importlib import resources

from cai_helpers.curation.overrides import Override
from cai_helpers.curation.rules import DROP_MEANING
from cai_helpers.inspection.blind import Agreement, Shown
from cai_helpers.inspection.blind_answers import HumanWins
from cai_helpers.inspection.rows import TRAINED_ON, CriticWords, Row
from cai_helpers.inspection.worddiff import Piece, WordDiff, word_diff
from cai_helpers.measures.intervals import Interval
from cai_helpers.notebook.markup import Html
from cai_helpers.schema import OUTCOME_MEANING, SAMPLED, TWO_SIDED, Message, Messages, ScoredPair, side_names

DECISION_MEANING = {
    "revision": "revision is better",
    "draft": "draft is better",
    "drop": "dropped",
    "edit": "edited revision is better",
}
_NOTHING = Html("")
WRITTEN = "What the critic wrote"
_WORDS_SHOWN = 64  # characters of a principle


def style_html() -> Html:
    css = (resources.files("cai_helpers") / "assets" / "inspector.css").read_text(encoding="utf-8")
    return Html("<style>{}</style>").format(Html(css))  # noqa: S704 (the package's own file)


def pair_html(row: Row, decision: Override | None, principles: Mapping[str, str]) -> Html:
    """Badges, all turns of the prompt, draft and revision side by side; below them the edited text, if there is one.

    principles: text by id; it shows when the pointer rests on the id.
    """
    edited = _edited_html(row.pair, decision.edited) if decision is not None and decision.edited else _NOTHING
    return Html('<div class="cai">{badges}{turns}<div class="cai-sides">{sides}{edited}</div></div>').format(
        badges=_badges_html(row, decision, principles),
        turns=turns_html(_messages(row.pair)),
        sides=_sides_html(row.pair, decision),
        edited=edited,
    )


def _badges_html(row: Row, decision: Override | None, principles: Mapping[str, str]) -> Html:
    pair, names = row.pair, side_names({row.pair.outcome})
    badges = [_decision_badge(decision)] if decision is not None else []
    badges.append(badge("outcome", pair.outcome, OUTCOME_MEANING.get(pair.outcome, "the file does not say")))
    if pair.reason and pair.outcome != "revised":
        badges.append(badge("because", pair.reason))
    badges.append(badge("category", pair.category))
    if pair.delta is not None:
        meaning = f"reward of the {names.revised} minus reward of the {names.base}"
        badges.append(badge("delta", f"{pair.delta:+.2f}", meaning))
    if pair.chosen:
        badges.append(badge("chosen", names._asdict()[pair.chosen]))
    if row.curation == TRAINED_ON:
        badges.append(badge("curation", TRAINED_ON))
    elif row.curation:
        badges.append(badge("left out", row.curation, DROP_MEANING.get(row.curation, "")))
    badges += principle_badges(pair.principle_ids, principles)
    return Html('<div class="cai-badges">{}</div>').format(_NOTHING.join(badges))


def _decision_badge(decision: Override) -> Html:
    note = f" · {decision.note}" if decision.note else ""
    meaning = DECISION_MEANING[decision.decision]
    return badge("you", meaning + note, f"decided {decision.time}", "cai-badge cai-decided")


def principle_badges(ids: Sequence[str], principles: Mapping[str, str]) -> list[Html]:
    """The principles by their words; id and whole text show when the pointer rests on them."""
    texts = {name: " ".join(principles.get(name, "").split()) for name in ids}
    return [
        badge("principle", _opening_of(text) or name, f"{name}: {text}" if text else "") for name, text in texts.items()
    ]


def _opening_of(text: str) -> str:
    return textwrap.shorten(text, _WORDS_SHOWN, placeholder=" …")


def badge(name: str, value: str, title: str = "", classes: str = "cai-badge") -> Html:
    hover = Html(' title="{}"').format(title) if title else _NOTHING
    return Html('<span class="{}"{}><small>{}</small>{}</span>').format(classes, hover, name, value)


def _messages(pair: ScoredPair) -> Messages:
    return pair.messages or [Message(role="user", content=pair.prompt)]


def turns_html(messages: Messages) -> Html:
    turn = Html('<div class="cai-turn{}"><span class="cai-role">{}</span>{}</div>')
    turns = [
        turn.format(" cai-earlier" if place < len(messages) else "", message["role"], message["content"])
        for place, message in enumerate(messages, start=1)
    ]
    return Html('<div class="cai-turns">{}</div>').format(_NOTHING.join(turns))


def _sides_html(pair: ScoredPair, decision: Override | None) -> Html:
    decided = decision.decision if decision is not None else None
    names = side_names({pair.outcome})
    base, revised = names.base.capitalize(), names.revised.capitalize()
    if pair.outcome not in TWO_SIDED:
        only = "Sample" if pair.outcome in SAMPLED else base
        return side(only, pair.base_response, [_score(pair.base_score)]) + _no_revision(pair, names.revised)
    diff = word_diff(pair.base_response, pair.revised_response)
    before = marked(diff.before, "del") if diff.legible else pair.base_response
    after = marked(diff.after, "ins") if diff.legible else pair.revised_response
    delta = pair.delta or 0.0
    return side(base, before, [_score(pair.base_score, delta < 0), yours(decided == "draft")], delta < 0) + side(
        revised,
        after,
        [_score(pair.revised_score, delta > 0), yours(decided == "revision")],
        delta > 0,
        _in_common(pair, diff),
    )


def _no_revision(pair: ScoredPair, name: str) -> Html:
    """What was written in place of a revision, never the draft again; or why there is none."""
    if pair.critic_output:
        return side(WRITTEN, pair.critic_output, [], told=f"no usable {name}")
    nothing = Html('<span class="cai-quiet">There is no {}: {}.</span>').format(name, OUTCOME_MEANING[pair.outcome])
    return side(name.capitalize(), nothing, [])


def _in_common(pair: ScoredPair, diff: WordDiff) -> str:
    if diff.shared is None:
        return "too long for a word diff"
    return "identical texts" if pair.identical else f"{diff.shared:.0%} of the words in common"


def side(name: str, text: str, facts: list[Html], higher: bool = False, told: str = "", wide: bool = False) -> Html:
    return Html(
        '<div class="cai-side{higher}{wide}"><div><b>{name}</b>{facts}<span class="cai-quiet">{told}</span></div>'
        '<div class="cai-text" dir="auto">{text}</div></div>'
    ).format(
        higher=" cai-higher" if higher else "",
        wide=" cai-wide" if wide else "",
        name=name,
        facts=_NOTHING.join(facts),
        told=told,
        text=text,
    )


def _score(score: float | None, higher: bool = False) -> Html:
    if score is None:
        return _NOTHING
    return Html('<span class="cai-score">reward {:+.2f}{}</span>').format(score, " ▲ higher" if higher else "")


def yours(chosen: bool) -> Html:
    return Html('<span class="cai-yours">✓ your choice</span>') if chosen else _NOTHING


def marked(pieces: list[Piece], tag: str) -> Html:
    changed = Html("<{tag}>{text}</{tag}>")
    return _NOTHING.join(changed.format(tag=tag, text=piece.text) if piece.changed else piece.text for piece in pieces)


def _edited_html(pair: ScoredPair, edited: str) -> Html:
    diff = word_diff(pair.revised_response, edited)
    told = f"chosen against the {side_names({pair.outcome}).base}"
    return side("Your text", marked(diff.after, "ins"), [yours(True)], told=told, wide=True)


def critic_html(pair: ScoredPair, words: CriticWords | None) -> Html:
    """The critique, and what the critic wrote word for word, if the run's traces are at hand."""
    critique = pair.critic_notes or Html('<span class="cai-quiet">No critique is recorded.</span>')
    if words is None:
        raw = Html('<div class="cai-quiet">There is no trace of this pair: its raw output is not at hand.</div>')
    else:
        raw = Html('<b>Raw output</b> <span class="cai-quiet">protocol {}</span>{}').format(
            words.protocol,
            _NOTHING.join(Html('<div class="cai-raw">{}</div>').format(output) for output in words.outputs),
        )
    return Html('<div class="cai cai-critic"><b>Critique</b><div>{}</div>{}</div>').format(critique, raw)


def blind_html(pair: ScoredPair, left: Shown) -> Html:
    """Prompt and both texts, with nothing that tells which is which."""
    sides = [pair.revised_response, pair.base_response]
    if left == "draft":
        sides.reverse()
    shown = _NOTHING.join(side(name, text, []) for name, text in zip(("Left", "Right"), sides, strict=True))
    return Html('<div class="cai">{}<div class="cai-sides">{}</div></div>').format(turns_html(_messages(pair)), shown)


def agreement_html(this_round: Agreement, all_rounds: Agreement) -> Html:
    """The result of a blind round; the earlier rounds join in a second figure."""
    lines = _NOTHING.join(Html("<p>{}</p>").format(line) for line in this_round.lines())
    bar = _bar_html(this_round.share) if this_round.share else _NOTHING
    earlier = _NOTHING
    if all_rounds.share is not None and all_rounds.judged > this_round.judged:
        earlier = Html("<p>All rounds together: {} of {} rows, {}.</p>").format(
            all_rounds.agreed, all_rounds.judged, all_rounds.share.percent()
        )
    return Html('<div class="cai cai-result">{}{}{}</div>').format(bar, lines, earlier)


def human_wins_html(this_round: HumanWins, all_rounds: HumanWins) -> Html:
    """The result of a blind check of two models; the earlier rounds join in a second figure."""
    lines = _NOTHING.join(Html("<p>{}</p>").format(line) for line in this_round.lines())
    bar = _bar_html(this_round.share) if this_round.share else _NOTHING
    earlier = _NOTHING
    if all_rounds.judged > this_round.judged:
        earlier = Html("<p>All rounds together: {}.</p>").format(all_rounds.line())
    return Html('<div class="cai cai-result">{}{}{}</div>').format(bar, lines, earlier)


def _bar_html(share: Interval) -> Html:
    return Html(
        '<div class="cai-bar"><span style="left:{left:.1f}%;width:{width:.1f}%"></span><u style="left:50%"></u>'
        '<i style="left:{value:.1f}%"></i><small class="cai-edge" style="left:0">never</small>'
        '<small style="left:50%">a coin toss</small><small class="cai-far" style="left:100%">always</small></div>'
    ).format(left=100 * share.low, width=100 * (share.high - share.low), value=100 * share.value)


def title_html(name: str, count: int) -> Html:
    return Html(
        '<div class="cai cai-title"><b>Pairs</b><span>{:,} in {}</span>'
        '<span class="cai-quiet"><del>only in the draft</del> &nbsp; <ins>only in the revision</ins></span></div>'
    ).format(count, name)


def counter_html(position: int, selected: int, total: int) -> Html:
    """ "12 of 268 (of 420)"; `position` counts from 0."""
    if selected == 0:
        return Html('<div class="cai cai-counter"><b>none</b> of {:,}</div>').format(total)
    all_rows = "" if selected == total else f" (of {total:,})"
    return Html('<div class="cai cai-counter"><b>{:,}</b> of {:,}{}</div>').format(position + 1, selected, all_rows)


def message_html(message: str, problem: bool = False) -> Html:
    return Html('<div class="cai cai-status{}">{}</div>').format(" cai-problem" if problem else "", message)
