"""Worlds whose truth is known: tables of answers in which Stage 3 is the same, better, or harmed in one certain way.

No model runs: each world draws, prompt by prompt, what an evaluation would have measured. `shares_of` counts the
verdicts over seeded repetitions; tests/test_verdict.py holds the goals, benchmarks/trust.py writes them down.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cai_helpers.evaluation.table import Table
from cai_helpers.evaluation.verdict import judge
from cai_helpers.schema import BENIGN, HARMFUL

SAMPLED, GREEDY = True, False


@dataclass(frozen=True)
class World:
    """What is true of Stage 3 (and of the base model), beside a Stage 2 that is always the same.

    Gains are of the judge's score, in standard deviations of the difference of two answers: 0.84 wins 80 %.
    """

    harmful_gain: float = 0.0
    benign_gain: float = 0.0
    base_gain: float = 0.0  # of the base model over Stage 2, on harmful requests
    harmful_refusals: tuple[float, float] = (0.2, 0.2)  # share, before and after
    benign_refusals: tuple[float, float] = (0.05, 0.05)
    refused_loses: bool = True  # the judge likes no refusal of a benign request
    same: float = 0.0  # share of prompts with the same answer twice, as of a greedy model that changed little
    cut: tuple[float, float] = (0.02, 0.02)
    degenerate: tuple[float, float] = (0.01, 0.01)
    logp: float = 0.0  # change under the base model, nats a token
    fit: tuple[float, float] = (0.95, 0.95)
    longer: float = 1.0  # times as long, on average
    length_bias: float = 0.0  # score for each e-fold of length
    is_base: bool = False  # Stage 3 is the base model: the Stage-2 adapter taken off


SAME = World()
CLEARLY_BETTER = World(harmful_gain=1.0, benign_gain=0.4, harmful_refusals=(0.2, 0.8), logp=-0.1)
_FOOLED = {"harmful_gain": 1.0, "benign_gain": 0.8}  # the judge likes what is broken
_REFUSING = {"harmful_gain": 1.0, "benign_gain": 0.4, "harmful_refusals": (0.2, 0.8), "benign_refusals": (0.05, 0.20)}
HARMS: dict[str, World] = {
    "flipped labels": World(harmful_gain=-0.7, benign_gain=-0.2, harmful_refusals=(0.2, 0.05)),
    "adapter in the opposite direction": World(harmful_gain=-1.0, benign_gain=-0.4, harmful_refusals=(0.3, 0.02)),
    "every answer cut off": World(**_FOOLED, cut=(0.02, 1.0)),
    "own words shuffled": World(**_FOOLED, logp=-5.0),
    "benign refusals +15 points": World(**_REFUSING, refused_loses=False),
    "the same, and the judge dislikes them": World(**_REFUSING),
    "length hack, half as long again": World(longer=1.5, length_bias=2.5),
    "length hack, three times as long": World(longer=3.0, length_bias=2.5),
    "the bare base model": World(harmful_gain=0.8, benign_gain=0.3, is_base=True),
}
# Not always seen in 160 prompts, and so no goal there.
SUBTLE_HARMS: dict[str, World] = {
    "a fifth of the answers cut off": World(**_FOOLED, cut=(0.02, 0.22)),
    "loops in a tenth of the answers": World(**_FOOLED, degenerate=(0.01, 0.11)),
    "a third of the answers about something else": World(**_FOOLED, fit=(0.95, 0.6)),
}
STRONG_AGAINST_WEAK = World(
    harmful_gain=1.6, benign_gain=1.6, harmful_refusals=(0.3, 0.6), fit=(0.95, 0.90), longer=2.0, logp=-0.3
)


def draw(world: World, prompts: int, seed: int, sampled: bool = SAMPLED) -> Table:
    """A table of `prompts` prompts, half of them harmful; the same seed draws the same table."""
    random = np.random.default_rng([seed, prompts, sampled])
    n = prompts
    harmful = np.arange(n) % 2 == 0
    gain = np.where(harmful, world.harmful_gain, world.benign_gain)
    before_length = np.exp(random.normal(6.0, 0.5, n))
    growth = np.log(world.longer) + random.normal(0, 0.35, n)
    stage2, stage3, again = random.normal(0, np.sqrt(0.5), (3, n))
    stage3 = stage3 + gain + world.length_bias * growth * (world.length_bias > 0)
    base = random.normal(0, np.sqrt(0.5), n) + np.where(harmful, world.base_gain, 0.0)
    levels = np.where(harmful, world.harmful_refusals[0], world.benign_refusals[0])
    later = np.where(harmful, world.harmful_refusals[1], world.benign_refusals[1])
    inclined, noise_before, noise_after = random.random(n), random.normal(0, 0.05, n), random.normal(0, 0.05, n)
    refuses_before, refuses_after = inclined + noise_before < levels, inclined + noise_after < later
    newly = refuses_after & ~refuses_before & ~harmful
    if world.refused_loses:
        stage3 = np.where(newly, stage2 - 1.0, stage3)
    same = random.random(n) < world.same
    stage3 = np.where(same, stage2, stage3)
    fits = [np.where(random.random(n) < share, 1.0, 0.5) for share in world.fit]
    logps = [random.normal(-0.3, 0.15, n), random.normal(-0.3 + world.logp, 0.15, n)]

    def broken(shares: tuple[float, float]) -> list[np.ndarray]:
        return [random.random(n) < share for share in shares]

    cut, degenerate = broken(world.cut), broken(world.degenerate)
    return Table(
        category=np.where(harmful, HARMFUL, BENIGN),
        wins=_wins(stage3, stage2),
        refuses_before=refuses_before,
        refuses_after=refuses_after,
        characters_before=before_length,
        characters_after=before_length * np.exp(growth),
        deltas=stage3 - stage2,
        wins_over_base=_wins(stage3, stage3 if world.is_base else base),
        wins_by_chance=_wins(again, stage2) if sampled else None,
        degenerate_before=degenerate[0],
        degenerate_after=degenerate[1],
        cut_before=cut[0],
        cut_after=cut[1],
        logp_before=logps[0],
        logp_after=logps[1],
        fit_before=np.where(refuses_before, np.nan, fits[0]),
        fit_after=np.where(refuses_after, np.nan, fits[1]),
    )


def shares_of(table: Callable[[int], Table], repetitions: int) -> dict[str, float]:
    """Share of each verdict over the tables of the seeds 0 … repetitions - 1."""
    counts = Counter(judge(table(seed)).verdict for seed in range(repetitions))
    return {verdict: count / repetitions for verdict, count in counts.items()}


def read_alpaca(path: Path) -> dict[str, np.ndarray]:
    """Model → array (prompts, 3): characters of the baseline (GPT-4-turbo), of the model, preference for the model."""
    rows: dict[str, list[list[float]]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values = [float(row[name]) for name in ("baseline_chars", "model_chars", "preference_for_model")]
            rows.setdefault(row["model"], []).append(values)
    return {model: np.array(values) for model, values in rows.items()}


def strong_over_weak(rows: np.ndarray, prompts: int, seed: int) -> Table:
    """GPT-4-turbo in the place of Stage 3, a weak model in that of Stage 2, on a draw of AlpacaEval's prompts: all benign."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:prompts]
    strong, weak, preference = rows[chosen].T
    none = np.zeros(len(chosen), dtype=bool)
    return Table(
        category=np.full(len(chosen), BENIGN),
        wins=np.where(preference < 0.5, 1.0, np.where(preference > 0.5, 0.0, 0.5)),
        refuses_before=none,
        refuses_after=none,
        characters_before=weak,
        characters_after=strong,
        deltas=0.5 - preference,
    )


def _wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.where(first > second, 1.0, np.where(first < second, 0.0, 0.5))
