"""From scored pairs to a preference dataset: what is dropped is counted and kept with its reason."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from cai_helpers.prompt_sources import as_prompt_messages
from cai_helpers.prompts import prompt_id
from cai_helpers.refusals import is_refusal
from cai_helpers.schema import OUTCOME_MEANING, Message, PreferenceRow, ScoredPair, StageReport
from cai_helpers.settings import Curate, Settings
from cai_helpers.store import read_jsonl, write_json, write_jsonl
from cai_helpers.workspace import Workspace, file_hash, section

# Why a pair is no training row, in the order the rules are applied.
DROP_MEANING: dict[str, str] = {
    **{outcome: meaning for outcome, meaning in OUTCOME_MEANING.items() if outcome != "revised"},
    "identical": "both sides are the same text",
    "tie": "the score difference is below curate.min_delta",
    "draft_wins": "the draft scores higher, and only winning revisions are wanted",
    "chosen_cut_off": "the winning draft stops at the token limit: it would teach to stop mid-sentence",
}


class CurateReport(StageReport):
    generated: int
    kept: int
    dropped: dict[str, int]  # reason → pairs
    train: int
    eval: int
    by_category: dict[str, int]  # of the kept
    chosen: dict[str, int]  # of the kept: which side won
    refusals_chosen: int  # kept rows whose chosen side refuses and whose rejected side does not
    refusals_rejected: int  # the other way round
    min_pairs: int

    def title(self) -> str:
        return "Preference dataset"

    def lines(self) -> list[tuple[str, str]]:
        enough = "" if self.kept >= self.min_pairs else f"  (fewer than curate.min_pairs = {self.min_pairs})"
        return [
            ("pairs", str(self.generated)),
            *(
                (f"dropped: {reason}", f"{self.dropped[reason]}  ({meaning})")
                for reason, meaning in DROP_MEANING.items()
                if reason in self.dropped
            ),
            ("kept", f"{self.kept}{enough}"),
            ("train / eval", f"{self.train} / {self.eval}, split by prompt"),
            *((f"category {name}", str(count)) for name, count in self.by_category.items()),
            ("chosen side", ", ".join(f"{side} {count}" for side, count in self.chosen.items()) or "none"),
            ("prefers a refusal over an answer", str(self.refusals_chosen)),
            ("prefers an answer over a refusal", str(self.refusals_rejected)),
        ]

    def summary(self) -> list[tuple[str, str]]:
        return [(name, figure) for name, figure in self.lines() if name == "kept" or name.startswith("dropped")]


def curate_pairs(settings: Settings, workspace: Workspace, pairs_file: Path | None = None) -> CurateReport:
    """Filter the scored pairs and write dpo_dataset/{train,eval,dropped}.jsonl and stats.json.

    pairs_file: a file from elsewhere; the eight columns suffice.

    Raises:
        CaiError: there are no scored pairs, or a row is malformed.
    """
    source = pairs_file or workspace.require(workspace.pairs, made_by="score")
    fingerprint = {"seed": settings.seed, "input pairs": file_hash(source), **section("curate", settings.curate)}
    if (report := workspace.finished("curate", fingerprint, CurateReport)) is not None:
        return report

    kept: list[PreferenceRow] = []
    dropped: list[dict] = []
    for pair in (ScoredPair.model_validate(row) for row in read_jsonl(source)):
        if reason := drop_reason(pair, settings.curate):
            dropped.append({**pair.model_dump(), "drop_reason": reason})
        else:
            kept.append(preference_row(pair))
    eval_ids = _held_out({row.id for row in kept}, settings)
    train = [row for row in kept if row.id not in eval_ids]
    held_out = [row for row in kept if row.id in eval_ids]

    report = _report(kept, dropped, len(train), len(held_out), settings)
    write_jsonl(workspace.train_rows, (row.model_dump() for row in train))
    write_jsonl(workspace.eval_rows, (row.model_dump() for row in held_out))
    write_jsonl(workspace.dropped_rows, dropped)
    write_json(workspace.curation_stats, report.model_dump())
    outputs = [workspace.train_rows, workspace.eval_rows, workspace.dropped_rows, workspace.curation_stats]
    workspace.seal("curate", fingerprint, outputs, report)
    return report


def drop_reason(pair: ScoredPair, settings: Curate) -> str | None:
    """The first rule of DROP_MEANING that `pair` breaks, or None: it is a training row."""
    if pair.outcome not in ("revised", "unknown"):
        return pair.outcome
    if pair.identical:
        return "identical"
    if pair.delta is None or abs(pair.delta) < settings.min_delta or pair.delta == 0:
        return "tie"
    if pair.delta < 0 and settings.revised_wins_only:
        return "draft_wins"
    if pair.delta < 0 and pair.base_finish == "length":
        return "chosen_cut_off"
    return None


def preference_row(pair: ScoredPair) -> PreferenceRow:
    """The pair in TRL's conversational form; the side with the higher reward is chosen."""
    messages = pair.messages or as_prompt_messages(pair.prompt)
    revised_wins = pair.delta > 0
    winner, loser = (
        (pair.revised_response, pair.base_response) if revised_wins else (pair.base_response, pair.revised_response)
    )
    return PreferenceRow(
        prompt=messages,
        chosen=[Message(role="assistant", content=winner)],
        rejected=[Message(role="assistant", content=loser)],
        id=pair.id or prompt_id(messages),
        category=pair.category,
        delta=abs(pair.delta),
        chosen_side="revised" if revised_wins else "base",
    )


def _held_out(ids: set[str], settings: Settings) -> set[str]:
    """A fixed share of the prompts, chosen by hash: the same whatever the order of the file."""
    order = sorted(ids, key=lambda name: hashlib.sha256(f"{settings.seed}:dpo eval:{name}".encode()).digest())
    return set(order[: round(len(order) * settings.curate.eval_fraction)])


def _report(
    kept: list[PreferenceRow], dropped: list[dict], train: int, held_out: int, settings: Settings
) -> CurateReport:
    sides = [(is_refusal(row.chosen[0]["content"]), is_refusal(row.rejected[0]["content"])) for row in kept]
    return CurateReport(
        generated=len(kept) + len(dropped),
        kept=len(kept),
        dropped=dict(Counter(row["drop_reason"] for row in dropped).most_common()),
        train=train,
        eval=held_out,
        by_category=dict(Counter(row.category for row in kept).most_common()),
        chosen=dict(Counter(row.chosen_side for row in kept).most_common()),
        refusals_chosen=sides.count((True, False)),
        refusals_rejected=sides.count((False, True)),
        min_pairs=settings.curate.min_pairs,
    )
