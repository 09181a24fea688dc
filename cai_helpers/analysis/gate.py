"""Are these pairs worth training on? A few targets, each met or not, with the cause and the next thing to try."""

from __future__ import annotations

from cai_helpers.analysis.statistics import Statistics
from cai_helpers.measures.intervals import percent
from cai_helpers.schema import Target
from cai_helpers.settings import Curate

# The method's targets. A first attempt missed all of them (38 % identical, 28 % wins) and made the model worse.
IDENTICAL_BELOW = 0.05  # of the attempted revisions
WINS_ABOVE = 0.60
MEAN_DELTA_ABOVE = 0.5
META_BELOW = 0.02  # of the attempted revisions
TWO_SAMPLES_ABOVE = 0.8  # of the prompts; of fewer, those left are no fair sample of the prompts

_TRY = {
    "meta_commentary": "another protocol: `cai bakeoff` compares them",
    "echo": "a protocol without worked examples",
    "too_short": "a lower generate.temperature",
    "truncated": "a higher generate.critic_tokens",
    "degenerate": "a lower generate.temperature",
    "unparsed": "generate.protocol=two_step/short, which has nothing to parse",
    "refused_to_critique": "another protocol, or a stronger critic (generate.critic=api)",
}

_NOTHING_COMPARED = (
    "Too few pairs have two usable texts with two scores: it says nothing of the revisions or the reward model."
)


def check_targets(statistics: Statistics, usable: int, refusal_share: float | None, settings: Curate) -> list[Target]:
    """usable: training rows left; refusal_share: of them, those in which a refusal beats an answer."""
    if statistics.sampled:  # no critic to be judged, and that the best sample wins is no achievement
        return [
            _pairs(usable, settings),
            _two_samples(statistics),
            _balance(refusal_share, settings),
        ]
    return [
        _pairs(usable, settings),
        _identical(statistics),
        _wins(statistics),
        _mean_delta(statistics),
        _meta_commentary(statistics),
        _balance(refusal_share, settings),
    ]


def _pairs(usable: int, settings: Curate) -> Target:
    return _target(
        "usable pairs",
        f"≥ {settings.min_pairs}",
        str(usable),
        usable >= settings.min_pairs,
        "The table above says what was dropped and why.",
        "Try more prompts (prompts.limit), or mend the largest loss in the table.",
    )


def _identical(statistics: Statistics) -> Target:
    share = statistics.identical_attempted
    failures = {name: count for name, count in statistics.outcomes.items() if name in _TRY}
    if failures and sum(failures.values()) >= statistics.masquerading:
        cause = "The draft stands in for failed revisions: " + ", ".join(f"{k} {v}" for k, v in failures.items()) + "."
        remedy = f"Try {_TRY[max(failures, key=lambda name: failures[name])]}."
    else:
        cause = f"{statistics.masquerading} revisions repeat the draft and pass for revisions."
        remedy = "Try another protocol or critic; a file from elsewhere may hide failures behind the draft."
    figure = "nothing was attempted" if share is None else share.percent(IDENTICAL_BELOW)
    ok = share is not None and share.value < IDENTICAL_BELOW
    return _target("identical of attempted", f"< {percent(IDENTICAL_BELOW)}", figure, ok, cause, remedy)


def _two_samples(statistics: Statistics) -> Target:
    share = statistics.usable
    alike, unusable = (statistics.outcomes.get(name, 0) for name in ("samples_alike", "samples_unusable"))
    if alike > unusable:
        cause, remedy = f"{alike} prompts have but one answer.", "Try a higher generate.temperature, or samples/8."
    else:
        cause = f"{unusable} prompts have answers that are cut off, too short or going round in circles."
        remedy = "Try a higher generate.draft_tokens, or a lower generate.temperature."
    found = "nothing was sampled" if share is None else share.percent(TWO_SAMPLES_ABOVE)
    ok = share is not None and share.value > TWO_SAMPLES_ABOVE
    return _target("two usable samples", f"> {percent(TWO_SAMPLES_ABOVE)}", found, ok, cause, remedy)


def _wins(statistics: Statistics) -> Target:
    wins = statistics.wins
    ok = wins is not None and wins.value > WINS_ABOVE
    if wins is None:
        cause = _NOTHING_COMPARED
    elif wins.high < 0.5:
        cause = "The drafts are better than their revisions, or the reward model judges something else."
    else:
        cause = "The revisions are hardly better than the drafts, or the reward model cannot tell them apart."
    remedy = (
        "Run `cai calibrate` to see whether the scores can be trusted; then read the worst revisions in the inspector "
        "(notebook 03, sort by delta), and try what `cai bakeoff` recommends, or a stronger critic."
    )
    figure = "no pair to compare" if wins is None else wins.percent(WINS_ABOVE)
    return _target("revised wins", f"> {percent(WINS_ABOVE)}", figure, ok, cause, remedy)


def _mean_delta(statistics: Statistics) -> Target:
    mean = statistics.mean_delta
    ok = mean is not None and mean.value > MEAN_DELTA_ABOVE
    median = "" if statistics.median_delta is None else f" The median is {statistics.median_delta.value:+.2f}."
    if mean is None:
        cause = _NOTHING_COMPARED
    elif mean.value < 0:
        cause = f"On average the draft scores higher.{median}"
    else:
        cause = f"The two sides differ little in what the reward model sees.{median}"
    remedy = (
        "Try harder prompts, a critic that changes more (`cai bakeoff`), and a higher curate.min_delta, which leaves "
        "fewer but clearer pairs. Another reward model may have another scale: compare with `cai calibrate`."
    )
    figure = "too few pairs" if mean is None else mean.number(MEAN_DELTA_ABOVE)
    return _target("mean delta", f"> {MEAN_DELTA_ABOVE:+.1f}", figure, ok, cause, remedy)


def _meta_commentary(statistics: Statistics) -> Target:
    share = statistics.meta_commentary
    figure = "nothing was attempted" if share is None else share.percent(META_BELOW)
    return _target(
        "meta-commentary",
        f"< {percent(META_BELOW)}",
        figure,
        share is not None and share.value < META_BELOW,
        "Every draft was kept, so there is no revision to look at."
        if share is None
        else "The critic describes a response instead of writing one; those rows are dropped, unless a person kept one.",
        "Try a protocol that says whom the revision speaks to (single/full, two_step/full); `cai bakeoff` compares them.",
    )


def _balance(refusal_share: float | None, settings: Curate) -> Target:
    most = settings.max_refusal_share
    allowed = 1.0 if most is None else most
    figure = "no pairs" if refusal_share is None else f"{percent(refusal_share, most)} of the pairs"
    cause = "Little is there that teaches to answer, so the model would learn to refuse benign requests too."
    return _target(
        "refusals over answers",
        "no limit" if most is None else f"≤ {percent(most)}",
        figure,
        refusal_share is not None and refusal_share <= allowed,
        "No pair is left, so there is nothing to balance." if refusal_share is None else cause,
        "Mix in benign prompts (prompts.subsets has helpful-base), about a quarter of the pairs or more.",
    )


def _target(name: str, aim: str, found: str, ok: bool, cause: str, remedy: str) -> Target:
    return Target(name=name, aim=aim, found=found, ok=ok, cause="" if ok else cause, remedy="" if ok else remedy)
