"""The losses of DPO and its relatives: which value each must have before the first update.

There the policy is the reference, so every log-ratio is 0 and a loss is its formula at 0: a function of beta and the
label smoothing alone. A run that starts elsewhere has another reference than it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

_LN2 = math.log(2)


def _at_zero(beta: float, smoothing: float) -> dict[str, Callable[[], float]]:
    """Each loss of one pair at log-ratio 0. beta: DPO's (IPO's tau); smoothing: epsilon."""
    return {
        "sigmoid": lambda: _LN2,  # -log sigmoid(0): Rafailov et al. 2023, arXiv 2305.18290, eq. 7
        "sigmoid_norm": lambda: _LN2,  # the same of log-ratios a token
        "hinge": lambda: 1.0,  # max(0, 1 - 0): Zhao et al. 2023, arXiv 2305.10425
        "ipo": lambda: (1 / (2 * beta)) ** 2,  # Azar et al. 2023, arXiv 2310.12036, eq. 17
        # KL of (1/2, 1/2) from (1 - epsilon, epsilon): Ji et al. 2024, arXiv 2402.00856, eq. 16
        "exo_pair": lambda: 0.5 * math.log(0.5 / (1 - smoothing)) + 0.5 * math.log(0.5 / smoothing),
        "nca_pair": lambda: 2 * _LN2,  # Chen et al. 2024, arXiv 2402.05369
        # Chowdhury et al. 2024, arXiv 2403.00409
        "robust": lambda: ((1 - smoothing) * _LN2 - smoothing * _LN2) / (1 - 2 * smoothing),
        "bco_pair": lambda: 2 * _LN2,  # Jung et al. 2024, arXiv 2404.04656
        "sppo_hard": lambda: 2 * (0.5 / beta) ** 2,  # Wu et al. 2024, arXiv 2405.00675, eq. 4.7
        "aot": lambda: _LN2,  # Melnyk et al. 2024, arXiv 2406.05882
        "aot_unpaired": lambda: _LN2,
        "apo_zero": lambda: 1 - 0.5 + 0.5,  # D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7
        "apo_down": lambda: 0.5 + (1 - 0.5),  # eq. 8
        "discopop": lambda: 0.5 * _LN2 + 0.5 * math.exp(0),  # Lu et al. 2024, arXiv 2406.08414, eq. 5
    }


def start_value(
    losses: Sequence[str], weights: Sequence[float], beta: float, smoothing: float, chosen_nll: float | None
) -> float | None:
    """The weighted sum of the losses before the first update; None where it cannot be known.

    chosen_nll: nats a token of the chosen answers under the reference, which is what "sft" begins at; None: unknown.
    """
    known = _at_zero(beta, smoothing)
    total = 0.0
    for loss, weight in zip(losses, weights, strict=True):
        value = chosen_nll if loss == "sft" else known[loss]()
        if value is None:
            return None
        total += weight * value
    return total


def kto_start_value(desirable: Sequence[bool], desirable_weight: float, undesirable_weight: float) -> float:
    """KTO's loss of one batch before the first update: 1 - sigmoid(0) = 1/2 an answer, times its weight.

    Log-ratios and KL are 0 there: Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7, without its constant.
    desirable: of each answer, whether it is.
    """
    return 0.5 * sum(desirable_weight if one else undesirable_weight for one in desirable) / len(desirable)


def readable(losses: Sequence[str], weights: Sequence[float] | None) -> str:
    """ "sigmoid", or "sigmoid + 0.5·sft"."""
    return " + ".join(
        loss if weight == 1 else f"{weight:g}·{loss}"
        for loss, weight in zip(losses, weights or [1.0] * len(losses), strict=True)
    )
