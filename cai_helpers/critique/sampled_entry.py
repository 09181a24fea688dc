"""What a bake-off found of samples/k: by how much best and worst differ, and whether labels are right at such differences.

The best of k beats the worst by construction, so a win rate would say nothing, and none is given.
"""

from __future__ import annotations

from cai_helpers.measures.intervals import Interval
from cai_helpers.schema import Record


class Labels(Record):
    """How far labels can be believed at the differences that samples have, by gold pairs: see calibration.differences."""

    min_delta: float | None  # what the calibration recommends; None: it trusts the scorer at no difference
    above: int  # sampled pairs that differ by as much
    right: Interval | None  # share of right labels at the differences of those; None: there are none


class SampledEntry(Record):
    """One row of the bake-off for samples/k."""

    protocol: str
    prompts: int
    outcomes: dict[str, int]
    deltas: list[float]  # best less worst, of the prompts with two usable samples
    tokens_a_pair: float
    seconds_a_pair: float
    labels: Labels | None = None  # None: the scorer was not calibrated

    @property
    def mean_delta(self) -> float | None:
        return sum(self.deltas) / len(self.deltas) if self.deltas else None

    @property
    def recommendable(self) -> bool:
        """Labels at the differences of its pairs are right more often than a coin's, as far as gold pairs tell."""
        right = self.labels.right if self.labels is not None else None
        return right is not None and right.low > 0.5

    def figures(self, planned: int) -> dict[str, str]:
        """The row of the table, under the heads of protocol_choice.Entry."""
        return {
            "protocol": self.protocol,
            "parsed": "–",
            "kept": "–",
            "identical": f"{self.outcomes.get('samples_alike', 0) / self.prompts:.0%}",
            "meta": "–",
            "degenerate": f"{self.outcomes.get('samples_unusable', 0) / self.prompts:.0%}",
            "revised wins": "by construction",
            "won − lost": "–",
            "mean delta": "none" if self.mean_delta is None else f"{self.mean_delta:+.2f}",
            "tokens/pair": f"{self.tokens_a_pair:.0f}",
            "s/pair": f"{self.seconds_a_pair:.2f}",
            f"minutes for {planned}": f"{self.seconds_a_pair * planned / 60:.1f}",
        }

    def line(self) -> str:
        """Its honest figures in words."""
        if self.mean_delta is None:
            return f"no prompt of {self.prompts} gave two usable samples"
        return f"best less worst {self.mean_delta:+.2f} on average of {len(self.deltas)} pairs; {self._trust()}"

    def _trust(self) -> str:
        labels, pairs = self.labels, len(self.deltas)
        if labels is None:
            return "whether labels are right there, `cai calibrate` must tell first"
        if labels.min_delta is None:
            return "by its calibration the scorer is to be trusted at no difference"
        if labels.right is None:
            return f"not one reaches {labels.min_delta:.2f}, from where on the calibration believes a label"
        share = f"{labels.above} of {pairs} ({labels.above / pairs:.0%}) reach the calibration's min_delta {labels.min_delta:.2f}"
        return f"{share}; labels right in {labels.right.percent()} there, by gold pairs that differ as much"
