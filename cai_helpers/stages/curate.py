"""From scored pairs to a preference dataset: what is dropped is counted and kept with its reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cai_helpers.analysis.frame import FrameRows, read_pairs
from cai_helpers.analysis.gate import check_targets
from cai_helpers.analysis.statistics import TIE, Statistics, analyze_frame
from cai_helpers.calibration.accuracy import trust_of_pairs
from cai_helpers.calibration.threshold import Threshold, threshold_of
from cai_helpers.contents import file_hash
from cai_helpers.curation.dataset import Curation, Overruled, OwnPairs, curate
from cai_helpers.curation.one_sided import one_sided
from cai_helpers.curation.overrides import read_overrides
from cai_helpers.curation.rules import DROP_MEANING, RULES, Dropped
from cai_helpers.curation.split import held_out_ids, held_out_rule
from cai_helpers.errors import CaiError
from cai_helpers.evaluation.builtin import PROMPT_SETS, load_prompts
from cai_helpers.manifest import Fingerprint, section
from cai_helpers.measures.refusals import agreement
from cai_helpers.schema import ScoredPair, StageReport, Target
from cai_helpers.settings import Settings
from cai_helpers.store import is_text, read_jsonl, write_json, writing_jsonl
from cai_helpers.workspace import Workspace, holds_workspace


class _Written(NamedTuple):
    """How many rows each file has."""

    train: int
    eval: int
    one_sided: Counter[str]  # by reason


class CurateReport(StageReport):
    generated: int
    kept: int
    dropped: dict[str, int]  # reason → pairs, in the order of the rules
    train: int
    eval: int
    by_category: dict[str, int]  # of the kept
    chosen: dict[str, int]  # of the kept: which side won
    refusals_chosen: int  # kept rows whose chosen side refuses and whose rejected side does not
    refusals_rejected: int  # the other way round
    min_pairs: int
    overruled: Overruled
    own: OwnPairs = OwnPairs()  # pairs that a person made in the chat; among the kept
    one_sided: dict[str, int]  # reason → answers of dropped pairs that are good or bad by themselves, for KTO
    least_delta: str = ""  # the least score difference of a training row and where it comes from; "": a plain 0
    advice: str | None = None  # on sampled pairs whose differences all count
    gate: list[Target]
    trust: str | None  # what gold pairs say of the scorer; None: a file from elsewhere, whose scorer nobody knows

    def title(self) -> str:
        return "Preference dataset"

    def lines(self) -> list[tuple[str, str]]:
        enough = "" if self.kept >= self.min_pairs else f"  (fewer than curate.min_pairs = {self.min_pairs})"
        return [
            ("pairs", str(self.generated)),
            *((f"dropped: {reason}", f"{count}  ({DROP_MEANING[reason]})") for reason, count in self.dropped.items()),
            ("kept", f"{self.kept}{enough}"),
            ("train / eval", f"{self.train} / {self.eval}, split by prompt"),
            *((f"category {name}", str(count)) for name, count in self.by_category.items()),
            ("chosen side", ", ".join(f"{side} {count}" for side, count in self.chosen.items()) or "none"),
            ("prefers a refusal over an answer", str(self.refusals_chosen)),
            ("prefers an answer over a refusal", str(self.refusals_rejected)),
            ("counter of refusals", agreement().sentence()),
            *_overruled_lines(self.overruled),
            *_own_lines(self.own),
            ("one side trustworthy (for KTO)", ", ".join(f"{n} {why}" for why, n in self.one_sided.items()) or "none"),
            *([("least score difference", self.least_delta)] if self.least_delta else []),
            *([] if self.advice is None else [("advice", self.advice)]),
            *((f"gate: {target.name}", target.line()) for target in self.gate),
            *([] if self.trust is None else [("scorer, on gold pairs", self.trust)]),
        ]

    def summary(self) -> list[tuple[str, str]]:
        missed = [target.name for target in self.gate if not target.ok]
        named = ("kept", "overruled", "from the chat", "least score difference", "advice")
        shown = [line for line in self.lines() if line[0] in named or line[0].startswith("dropped")]
        return [*shown, ("gate", "all targets met" if not missed else f"falls short in: {', '.join(missed)}")]


@holds_workspace
def curate_pairs(settings: Settings, workspace: Workspace, pairs_file: Path | None = None) -> CurateReport:
    """Filter the scored pairs and write dpo_dataset/{train,eval,dropped,one_sided}.jsonl and stats.json.

    What a person decided in the inspector (pairs/overrides.jsonl) goes before every rule.
    pairs_file: a file from elsewhere; the eight columns suffice.

    Raises:
        CaiError: there are no scored pairs, or a row is malformed.
    """
    source = pairs_file or workspace.require(workspace.pairs, made_by="score")
    outputs = [workspace.train_rows, workspace.eval_rows, workspace.dropped_rows, workspace.one_sided_rows]
    outputs.append(workspace.curation_stats)
    threshold = threshold_of(settings, workspace, from_elsewhere=pairs_file is not None)
    fingerprint = _fingerprint(settings, workspace, source, outputs)
    if settings.curate.min_delta == "auto":
        fingerprint["calibrated min_delta"] = threshold.line()
    if threshold.warning:
        workspace.say("curate", threshold.warning)
    elif not threshold.trusted:
        workspace.say("curate", f"WARNING: curate.min_delta: {threshold.line()}")
    trust = trust_of_pairs(workspace) if pairs_file is None else None
    if (report := workspace.finished("curate", fingerprint, CurateReport)) is not None:
        return report.model_copy(update={"trust": trust})

    rules = settings.curate.with_least_delta(threshold.value if threshold.trusted else math.inf)
    overrides, frame = read_overrides(workspace.overrides), FrameRows()
    curation = curate(_read(source, frame), overrides, rules, settings.seed, _held_out_prompts(workspace))
    statistics = analyze_frame(frame.frame(source), max(TIE, threshold.value))
    del frame
    written = _write_dataset(curation, settings, workspace, source)
    report = _report(curation, statistics, written, settings)
    report = report.model_copy(update={"trust": trust, **_on_differences(settings, threshold, statistics)})
    write_json(workspace.curation_stats, report.model_dump())
    workspace.seal("curate", fingerprint, outputs, report)
    return report


def _read(source: Path, frame: FrameRows) -> Iterator[ScoredPair]:
    """The pairs one by one, each taken down in the frame on its way.

    Raises:
        CaiError: a text holds half of a surrogate pair, as JSON can.
    """
    for number, pair in enumerate(read_pairs(source), start=1):
        if not is_text(f"{pair.prompt}{pair.base_response}{pair.revised_response}"):
            raise CaiError(
                f"{source}, row {number}: a text holds a broken character (half of a surrogate pair).",
                "Correct or remove that row: no tokenizer takes it.",
            )
        frame.add(pair)
        yield pair


def _write_dataset(curation: Curation, settings: Settings, workspace: Workspace, source: Path) -> _Written:
    """Read the pairs once more, and write each where it belongs: no more than one is held at a time."""
    ids = curation.ids
    eval_ids = held_out_ids(ids, settings.curate.eval_fraction, settings.seed)
    is_held_out = held_out_rule(ids, eval_ids, settings.seed)
    train = held_out = 0
    extra: Counter[str] = Counter()
    paths = (workspace.train_rows, workspace.eval_rows, workspace.dropped_rows, workspace.one_sided_rows)
    with writing_jsonl(*paths) as (write_train, write_eval, write_dropped, write_one_sided):
        for result in curation.results(read_pairs(source)):
            if isinstance(result, Dropped):
                write_dropped({**result.pair.model_dump(), "drop_reason": result.reason})
                for row in one_sided((result,), is_held_out):
                    write_one_sided(row.model_dump())
                    extra[row.reason] += 1
            elif result.id in eval_ids:
                write_eval(result.model_dump())
                held_out += 1
            else:
                write_train(result.model_dump())
                train += 1
    return _Written(train, held_out, extra)


def _held_out_prompts(workspace: Workspace) -> set[str]:
    """Ids of the prompts that evaluation asks, of this run and built in."""
    held_out = {row["id"] for row in read_jsonl(workspace.eval_prompts)} if workspace.eval_prompts.exists() else set()
    return held_out | {prompt.id for name in PROMPT_SETS for prompt in load_prompts(name)}


def _fingerprint(settings: Settings, workspace: Workspace, source: Path, outputs: list[Path]) -> Fingerprint:
    return {
        "seed": settings.seed,
        "outputs": [path.name for path in outputs],  # a dataset from before one of them was written is made again
        "rules": RULES,
        "input pairs": file_hash(source),
        "input overrides": file_hash(workspace.overrides),
        **section("curate", settings.curate, exclude={"strict"}),  # what training makes of the gate
    }


def _report(curation: Curation, statistics: Statistics, written: _Written, settings: Settings) -> CurateReport:
    kept, dropped, refusing = curation.kept, curation.dropped, curation.refusals_chosen
    return CurateReport(
        generated=kept + dropped.total(),
        kept=kept,
        dropped={reason: dropped[reason] for reason in DROP_MEANING if reason in dropped},
        train=written.train,
        eval=written.eval,
        by_category=dict(curation.categories.most_common()),
        chosen=dict(curation.sides.most_common()),
        refusals_chosen=refusing,
        refusals_rejected=curation.refusals_rejected,
        min_pairs=settings.curate.min_pairs,
        overruled=curation.overruled,
        own=curation.own,
        one_sided=dict(written.one_sided.most_common()),
        gate=check_targets(statistics, kept, refusing / kept if kept else None, settings.curate),
        trust=None,
    )


def _on_differences(settings: Settings, threshold: Threshold, statistics: Statistics) -> dict[str, str | None]:
    """What the report says of the least score difference."""
    unset = settings.curate.min_delta == 0
    advice = (
        "best against worst differ whatever the scorer knows: set curate.min_delta=auto, so that only differences count "
        "from which on `cai calibrate` found its labels right"
    )
    return {
        "least_delta": "" if unset else threshold.line(),
        "advice": advice if unset and statistics.sampled else None,
    }


def _overruled_lines(overruled: Overruled) -> list[tuple[str, str]]:
    if not any(overruled):
        return []
    elsewhere = f"; {overruled.elsewhere} decisions are about pairs that are not here" if overruled.elsewhere else ""
    kept = f"{overruled.kept} kept as a person decided, {overruled.against_reward} of them against the reward model"
    return [("overruled", f"{kept}; {overruled.dropped} dropped{elsewhere}")]


def _own_lines(own: OwnPairs) -> list[tuple[str, str]]:
    if not any(own):
        return []
    left_out = [
        (own.held_out, "left out, because evaluation asks their prompt"),
        (own.alike, "left out, because both answers are the same"),
    ]
    told = [f"{own.added} pairs of your own", *(f"{count} {why}" for count, why in left_out if count)]
    return [("from the chat", "; ".join(told))]
