"""What is wrong with this data, in words: named findings, each with its evidence and a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from cai_helpers.analysis.statistics import Statistics
from cai_helpers.measures.intervals import proportion
from cai_helpers.schema import BENIGN, Record

Severity = Literal["serious", "warning", "note"]

# Fewer rows, and no share below means anything yet.
FEWEST_ROWS = 30

# More unusable outputs than this, and what is left is no fair sample of the prompts; at half, the critic cannot do
# its task.
UNUSABLE_WARNING, UNUSABLE_SERIOUS = 0.2, 0.5
# The aim is below 2 % (the critic prompt forbids it); from 10 % on the wording of the prompt or the model is at fault.
META_WARNING, META_SERIOUS = 0.10, 0.30
# The aim is below 5 %: a critic that found a fault and then changed nothing has not revised.
MASQUERADE_WARNING, MASQUERADE_SERIOUS = 0.05, 0.20
# Templates in answers are learned at once, even from few rows.
LEAK_WARNING, LEAK_SERIOUS = 0.01, 0.05
# Chance is 50 %; answers of people and models in hh-rlhf's transcripts reach 80 %.
TOPIC_FIT = 0.7
# A principle shown for most prompts is the only thing the model is taught (a run that failed had 96 % on one).
COLLAPSE_SHARE = 0.6
# Length alone may not tell the winner: like with like, chance is 50 %, and published reward models lie at 55–65 %.
LENGTH_WINS, LENGTH_CORRELATION = 0.70, 0.3
# Follow-ups such as "Yeah." whose conversation is gone cannot be answered, so neither side deserves to win.
CONTEXT_FREE_WARNING, CONTEXT_FREE_SERIOUS = 0.05, 0.20
# Copies weigh a prompt twice, and a copy in the evaluation split is a leak.
DUPLICATES_WARNING = 0.05
# A critic that keeps nearly everything leaves nothing to learn from, and often did not read the draft.
KEPT_WARNING = 0.7
# Trained on refusals alone, the embedded model came to refuse 44–91 % of benign prompts, and 59 % when a fifth of the
# pairs taught something else; a quarter prevented it.
ONE_SIDED = 0.8
# Benign prompts whose answer the critic turned into a refusal teach over-refusal directly.
OVER_REFUSAL = 0.1
# A label that is not the side with the higher score was made by something else than these scores.
CONTRADICTIONS = 0.01


class Finding(Record):
    """One named fault."""

    name: str
    severity: Severity
    evidence: str
    remedy: str


def diagnose(statistics: Statistics) -> list[Finding]:
    """The findings of a file, most severe first; an empty list for healthy data."""
    if statistics.rows < FEWEST_ROWS:
        return [
            Finding(
                name="too few rows to judge",
                severity="note",
                evidence=f"{statistics.rows} rows; shares of fewer than {FEWEST_ROWS} say little.",
                remedy="Generate more pairs, and read these one by one.",
            )
        ]
    checks = _CHECKS_OF_SAMPLES if statistics.sampled else _CHECKS
    findings = [finding for check in checks for finding in check(statistics)]
    return sorted(findings, key=lambda finding: ("serious", "warning", "note").index(finding.severity))


def _few_parseable(statistics: Statistics) -> Iterator[Finding]:
    usable = statistics.usable
    if usable is None or 1 - usable.value < UNUSABLE_WARNING:
        return
    failures = {
        name: count for name, count in statistics.outcomes.items() if name not in ("revised", "kept", "unknown")
    }
    counts = ", ".join(f"{name} {count}" for name, count in failures.items())
    yield Finding(
        name="few usable critic outputs",
        severity="serious" if 1 - usable.value >= UNUSABLE_SERIOUS else "warning",
        evidence=f"{sum(failures.values())} of {usable.n} outputs gave neither a revision nor a verdict ({counts}).",
        remedy="The language model does not do the critic's task on these prompts: read a few raw outputs in "
        "pairs/traces.jsonl, try another generate.protocol (two_step asks for less at once) or more critic_tokens, "
        "or a stronger model. Do not train on what is left.",
    )


def _few_samples(statistics: Statistics) -> Iterator[Finding]:
    usable = statistics.usable
    if usable is None or 1 - usable.value < UNUSABLE_WARNING:
        return
    counts = ", ".join(f"{name} {count}" for name, count in statistics.outcomes.items() if name != "sampled")
    yield Finding(
        name="few prompts with two usable samples",
        severity="serious" if 1 - usable.value >= UNUSABLE_SERIOUS else "warning",
        evidence=f"{usable.percent()} of {usable.n} prompts have two different whole answers ({counts}).",
        remedy="Alike: raise generate.temperature or take more samples. Unusable: raise generate.draft_tokens, or take a "
        "model that ends its answers.",
    )


def _meta_commentary(statistics: Statistics) -> Iterator[Finding]:
    meta = statistics.meta_commentary
    if meta is None or meta.value < META_WARNING:
        return
    yield Finding(
        name="mostly meta-commentary" if meta.value >= 0.5 else "meta-commentary",
        severity="serious" if meta.value >= META_SERIOUS else "warning",
        evidence=f"{meta.percent()} of the attempted revisions talk about a response instead of being one "
        "(aim: below 2 %).",
        remedy="Use a protocol that says whom the revision speaks to (single/full, two_step/full), and check that such "
        "rows are dropped before training.",
    )


def _masquerade(statistics: Statistics) -> Iterator[Finding]:
    share = statistics.masquerading / statistics.attempted if statistics.attempted else 0.0
    if share < MASQUERADE_WARNING:
        return
    yield Finding(
        name="fallback masquerading as revision",
        severity="serious" if share >= MASQUERADE_SERIOUS else "warning",
        evidence=f"{statistics.masquerading} of {statistics.attempted} attempted revisions are the draft itself, and "
        "nothing in the row says that the critic kept it or failed.",
        remedy="Drop identical rows, and generate again with this package, which keeps the reason of every fallback.",
    )


def _leaks(statistics: Statistics) -> Iterator[Finding]:
    leaks = statistics.leaks
    if leaks is None or leaks.value < LEAK_WARNING:
        return
    yield Finding(
        name="template leaks into revisions",
        severity="serious" if leaks.value >= LEAK_SERIOUS else "warning",
        evidence=f"{leaks.percent()} of the revisions hold labels of the critic prompt, special tokens or speakers.",
        remedy="Cut revisions at the first label when parsing, stop generation at the end-of-turn token, and drop "
        "these rows.",
    )


def _off_topic(statistics: Statistics) -> Iterator[Finding]:
    sides = statistics.sides
    measured = {f"{sides.base}s": statistics.draft_fit, f"{sides.revised}s": statistics.revision_fit}
    low = {
        name: fit for name, fit in measured.items() if fit is not None and fit.n >= FEWEST_ROWS and fit.high < TOPIC_FIT
    }
    if not low:
        return
    yield Finding(
        name="answers ignore their prompts",
        severity="serious" if any(fit.low <= 0.5 for fit in low.values()) else "warning",
        evidence="By their words, "
        + " and ".join(f"{fit.percent()} of the {name}" for name, fit in low.items())
        + " fit their own prompt better than another one; 50 % is chance.",
        remedy="The language model does not understand these prompts, whatever the reward model says: read some drafts, "
        "check that the chat template is the model's own, or take a stronger model. Do not train on this.",
    )


def _principle_collapse(statistics: Statistics) -> Iterator[Finding]:
    if statistics.principle_rows < FEWEST_ROWS or not statistics.principles:
        return
    first = statistics.principles[0]
    share = first.rows / statistics.principle_rows
    if share < COLLAPSE_SHARE:
        return
    yield Finding(
        name="principle collapse",
        severity="serious" if share >= 0.9 else "warning",
        evidence=f"{first.name} was shown in {share:.0%} of the rows that name a principle; "
        f"{statistics.distinct_principles} principles occur at all (evenness {statistics.principle_evenness:.2f}, "
        "1 is equal use).",
        remedy="Narrow that principle's indicators in the constitution, lower its weight, or give the others more.",
    )


def _length(statistics: Statistics) -> Iterator[Finding]:
    bias = statistics.length_bias_like_for_like
    if bias.longer_wins is None or bias.pairs < FEWEST_ROWS or bias.correlation is None:
        return
    longer = bias.longer_wins.low >= LENGTH_WINS and bias.correlation >= LENGTH_CORRELATION
    shorter = bias.longer_wins.high <= 1 - LENGTH_WINS and bias.correlation <= -LENGTH_CORRELATION
    if not longer and not shorter:
        return
    share = bias.longer_wins if longer else proportion(bias.pairs * (1 - bias.longer_wins.value), bias.pairs)
    assert share is not None  # FEWEST_ROWS is more than none
    yield Finding(
        name="reward hacks length",
        severity="serious" if share.value >= 0.85 else "warning",
        evidence=f"Where both sides answer or both refuse, the {'longer' if longer else 'shorter'} one wins in "
        f"{share.percent()} of {bias.pairs} pairs (rank correlation of delta with length {bias.correlation:+.2f}).",
        remedy="Read pairs of near-equal content: if length alone decides, drop pairs of very unequal length, or take "
        "another reward model. DPO would learn the length.",
    )


def _no_context(statistics: Statistics) -> Iterator[Finding]:
    bare = statistics.context_free
    if bare is None or bare.value < CONTEXT_FREE_WARNING:
        return
    yield Finding(
        name="prompts without context",
        severity="serious" if bare.value >= CONTEXT_FREE_SERIOUS else "warning",
        evidence=f"{bare.percent()} of the prompts are follow-ups such as 'Yeah.' whose conversation is missing; "
        f"{statistics.multi_turn} of {statistics.rows} prompts have earlier turns.",
        remedy="Take prompts with all their turns (prompts.column must hold the whole conversation), and generate "
        "again.",
    )


def _labels(statistics: Statistics) -> Iterator[Finding]:
    wins = statistics.wins
    if wins is None or wins.n < FEWEST_ROWS or wins.low > 0.5:
        return
    worse = wins.high < 0.5
    yield Finding(
        name="revisions lose" if worse else "labels near chance",
        severity="serious" if worse else "warning",
        evidence=f"Revisions win {wins.percent()} of {wins.n} compared pairs"
        + (f", with a mean delta of {statistics.mean_delta.number()}." if statistics.mean_delta else "."),
        remedy="Either the revisions are no better than the drafts or the reward model cannot tell: read the best and "
        "the worst of them. If you agree with the scores, improve the critic (protocol, principles, model); "
        "if not, change the reward model. Training on such labels teaches noise or the opposite.",
    )


def _contradictions(statistics: Statistics) -> Iterator[Finding]:
    if not statistics.decided or statistics.contradictions / statistics.decided < CONTRADICTIONS:
        return
    yield Finding(
        name="labels contradict scores",
        severity="serious",
        evidence=f"In {statistics.contradictions} of {statistics.decided} decided pairs `chosen` is the side with the "
        "lower score.",
        remedy="Find out which of the two is right before training: the label may come from another scorer, or be "
        "reversed.",
    )


def _one_sided(statistics: Statistics) -> Iterator[Finding]:
    if statistics.decided < FEWEST_ROWS or statistics.prefers_refusal / statistics.decided < ONE_SIDED:
        return
    yield Finding(
        name="little but refusals is taught",
        severity="warning",
        evidence=f"In {statistics.prefers_refusal} of {statistics.decided} decided pairs a refusal beats an answer; "
        f"in {statistics.prefers_answer} an answer beats a refusal.",
        remedy="Mix in benign prompts (about a quarter of the pairs): trained on refusals alone, a model refuses "
        "benign requests too.",
    )


def _over_refusal(statistics: Statistics) -> Iterator[Finding]:
    benign = statistics.transitions_by_category.get(BENIGN)
    if benign is None:
        return
    answered = benign.answer_to_answer + benign.answer_to_refusal
    if answered < FEWEST_ROWS or benign.answer_to_refusal / answered < OVER_REFUSAL:
        return
    yield Finding(
        name="the best samples refuse benign requests" if statistics.sampled else "revisions refuse benign requests",
        severity="warning",
        evidence=f"On benign prompts, {benign.answer_to_refusal} of {answered} "
        + (
            "worst samples answer where the best refuses."
            if statistics.sampled
            else "answers were revised into refusals."
        ),
        remedy="The scorer likes refusals of harmless requests: `cai calibrate` on benign pairs, or take another one."
        if statistics.sampled
        else "Check which principles those rows were shown, and whether the reward model lets such revisions win.",
    )


def _mostly_kept(statistics: Statistics) -> Iterator[Finding]:
    kept = statistics.outcomes.get("kept", 0)
    if kept / statistics.rows < KEPT_WARNING:
        return
    yield Finding(
        name="critic keeps nearly everything",
        severity="warning",
        evidence=f"{kept} of {statistics.rows} drafts were kept as they are.",
        remedy="If the drafts are good, take harder prompts; if they are not, the critic is too lenient: take another "
        "protocol or model.",
    )


def _duplicates(statistics: Statistics) -> Iterator[Finding]:
    if statistics.duplicates / statistics.rows < DUPLICATES_WARNING:
        return
    yield Finding(
        name="duplicate prompts",
        severity="warning",
        evidence=f"{statistics.duplicates} of {statistics.rows} rows repeat a prompt that occurred before.",
        remedy="Remove the copies, and split train and eval by prompt, not by row.",
    )


_CHECKS = (
    _few_parseable,
    _meta_commentary,
    _masquerade,
    _leaks,
    _off_topic,
    _principle_collapse,
    _labels,
    _contradictions,
    _length,
    _no_context,
    _one_sided,
    _over_refusal,
    _mostly_kept,
    _duplicates,
)

# Of samples there is no critic to judge, and the best one scores higher by construction.
_CHECKS_OF_SAMPLES = (
    _few_samples,
    _off_topic,
    _contradictions,
    _length,
    _no_context,
    _one_sided,
    _over_refusal,
    _duplicates,
)
