"""Pairs under way as HTML: what became of those that are made, and the newest one whole."""

from __future__ import annotations

from collections.abc import Mapping

from cai_helpers.critique.making import Making
from cai_helpers.inspection.worddiff import word_diff
from cai_helpers.notebook.markup import Html
from cai_helpers.notebook.pair_html import WRITTEN, badge, marked, principle_badges, side, style_html, turns_html
from cai_helpers.schema import OUTCOME_MEANING, SAMPLED, Trace
from cai_helpers.screen import duration

_BLUE, _GREY, _ORANGE = "rgb(0,125,215)", "rgb(127,137,147)", "rgb(214,128,0)"
_COLOUR = {"revised": _BLUE, "sampled": _BLUE, "kept": _GREY}  # all others are failures
_CRITIQUE_SHOWN = 600  # characters


def making_html(making: Making, principles: Mapping[str, str], minutes_after: float | None) -> Html:
    """One moment. principles: text by id. minutes_after: of the stages that follow; None: not known."""
    newest = Html("") if making.newest is None else trace_html(making.newest, principles)
    return Html("<div>{}{}{}{}</div>").format(style_html(), _head(making, minutes_after), outcomes_html(making), newest)


def finished_html(making: Making) -> Html:
    """What stays."""
    told = f"✓ {making.done:,} pairs in {duration(making.seconds)}, {making.tokens_per_s:,.0f} tokens/s"
    return Html("<div>{}<b>{}</b>{}</div>").format(style_html(), told, outcomes_html(making))


def _head(making: Making, minutes_after: float | None) -> Html:
    said = [f"{making.tokens_per_s:,.0f} tokens/s"]
    if making.seconds_left is not None:
        said.insert(0, f"{duration(making.seconds_left)} left for the pairs")
        if minutes_after is not None:
            whole = making.seconds_left + 60 * minutes_after
            said.insert(1, f"about {duration(whole)} until the whole run is done (modelled)")
    return Html("<p><b>{:,} of {:,} pairs</b> · {}</p>").format(making.done, making.total, " · ".join(said))


def outcomes_html(making: Making) -> Html:
    """A bar an outcome, as long as its share of the pairs so far."""
    most = max(making.outcomes.values(), default=1)
    row = Html(
        '<div class="cai-count" title="{meaning}"><span>{name}</span><span><i style="width:{width:.1f}%;background:'
        '{colour}"></i></span><span>{count:,}</span></div>'
    )
    return Html('<div class="cai cai-counts">{}</div>').format(
        Html("").join(
            row.format(
                meaning=OUTCOME_MEANING.get(name, ""),
                name=name.replace("_", " "),
                width=100 * count / most,
                colour=_COLOUR.get(name, _ORANGE),
                count=count,
            )
            for name, count in making.outcomes.items()
        )
    )


def trace_html(trace: Trace, principles: Mapping[str, str]) -> Html:
    """A pair as it came: prompt, draft, critique, revision with the words that differ, and what it counts as."""
    badges = [badge("newest pair", trace.outcome.replace("_", " "), OUTCOME_MEANING[trace.outcome])]
    if trace.outcome != "revised":
        badges.append(badge("because", trace.reason))
    badges += principle_badges(trace.principle_ids, principles)
    critique = trace.critique[:_CRITIQUE_SHOWN] + (" …" if len(trace.critique) > _CRITIQUE_SHOWN else "")
    told = Html('<div class="cai-critic"><b>Critique</b><div>{}</div></div>').format(critique) if critique else Html("")
    return Html('<div class="cai"><div class="cai-badges">{}</div>{}<div class="cai-sides">{}</div>{}</div>').format(
        Html("").join(badges), turns_html(trace.prompt.messages), _sides(trace), told
    )


def _sides(trace: Trace) -> Html:
    if trace.outcome in SAMPLED:
        return Html("").join(
            side(f"Sample {number}", sample.text, []) for number, sample in enumerate(trace.drafts, start=1)
        )
    if trace.outcome == "revised":
        diff = word_diff(trace.draft, trace.revision)
        before = marked(diff.before, "del") if diff.legible else trace.draft
        after = marked(diff.after, "ins") if diff.legible else trace.revision
        return side("Draft", before, []) + side("Revision", after, [])
    if trace.outcome == "kept":
        return side("Draft", trace.draft, [], told="kept: it is good as it is")
    return side("Draft", trace.draft, []) + side(WRITTEN, trace.written, [], told="no usable revision")
