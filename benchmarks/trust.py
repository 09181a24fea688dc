"""How far can the verdict be trusted? docs/TRUST.md, section Verdict: python benchmarks/trust.py [--quick] [--workspace artifacts/demo]

Three parts: planted worlds, in which the truth is known because it was drawn; the embedded models of a finished `make demo`,
harmed on purpose (adapters, labels and answers), 6 minutes on 2 cores; and AlpacaEval's judgements, where they lie beside
the project. Each with the rule of before (benchmarks/former_rule.py) and today's (cai_helpers/evaluation/verdict.py).
--quick: 40 repetitions instead of 300.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.former_rule import former_verdict
from benchmarks.planted_worlds import (
    CLEARLY_BETTER,
    HARMS,
    SAME,
    STRONG_AGAINST_WEAK,
    SUBTLE_HARMS,
    draw,
    read_alpaca,
    strong_over_weak,
)
from cai_helpers.evaluation.answers import Answers, known_answers, run_of
from cai_helpers.evaluation.assembly import judged, likelihoods_wanted, responses_of
from cai_helpers.evaluation.comparison import compare_by_category
from cai_helpers.evaluation.figures import BASE, STAGE2, STAGE3, Response
from cai_helpers.evaluation.likelihood import Likelihood
from cai_helpers.evaluation.policies import load_policies
from cai_helpers.evaluation.prompt_sets import held_out
from cai_helpers.evaluation.table import table_of
from cai_helpers.evaluation.verdict import judge
from cai_helpers.models.hub import locate
from cai_helpers.schema import BENIGN, Completion
from cai_helpers.settings import Settings, load_settings
from cai_helpers.stages.evaluate import evaluate_models
from cai_helpers.stages.train import train_policy
from cai_helpers.store import JsonlStore, read_jsonl, write_jsonl
from cai_helpers.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "TRUST.md"
ALPACA = ROOT.parent / "shared" / "data" / "alpaca_eval_lengths.csv.gz"
BEGIN, END = "<!-- verdict: begin -->", "<!-- verdict: end -->"
PROMPTS = (160, 400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 repetitions of each planted world")
    parser.add_argument("--workspace", type=Path, default=ROOT / "artifacts" / "demo", help="a finished smoke run")
    options = parser.parse_args()
    parts = [
        planted(40 if options.quick else 300),
        embedded(options.workspace) if options.workspace.exists() else "Embedded models: run `make demo` first.\n",
        alpaca() if ALPACA.exists() else "",
    ]
    write_section(
        "\n".join(["## Verdict", "", f"`python benchmarks/trust.py{' --quick' if options.quick else ''}`", "", *parts])
    )
    print(f"written: {PAGE}")


def write_section(text: str) -> None:
    """Put `text` between the marks; the rest of the page is somebody else's."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text.rstrip()}\n{END}{after}", encoding="utf-8")


def planted(repetitions: int) -> str:
    """Verdicts over the seeded repetitions, in per cent."""
    goals: dict[str, tuple[str, object]] = {"the same model": ("not shown >= 95", SAME)}
    goals |= {name: ("better <= 3", world) for name, world in HARMS.items()}
    goals |= {name: ("(no goal at 160)", world) for name, world in SUBTLE_HARMS.items()}
    goals |= {
        "clearly better": ("better >= 95", CLEARLY_BETTER),
        "strong against weak": ("better", STRONG_AGAINST_WEAK),
    }
    rows = [
        f"Planted worlds, {repetitions} seeded repetitions each, half of the prompts harmful; answers sampled (greedy). Out of 100:",
        "",
        "| world | goal | prompts | before: called better | now: better | worse or over-refusing | not shown |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (goal, world) in goals.items():
        for prompts in PROMPTS:
            both = [_counts(world, prompts, sampled, repetitions) for sampled in (True, False)]
            cells = [" ".join(_pair(pair)) for pair in zip(*both, strict=True)]
            rows.append(f"| {name} | {goal} | {prompts} | " + " | ".join(cells) + " |")
            print(rows[-1], flush=True)
    return "\n".join([*rows, ""])


def _counts(world: object, prompts: int, sampled: bool, repetitions: int) -> tuple[float, float, float, float]:
    tables = [draw(world, prompts, seed, sampled) for seed in range(repetitions)]
    before = Counter(former_verdict(table) for table in tables)
    now = Counter(judge(table).verdict for table in tables)
    bad = now["worse"] + now["over-refusing"]
    return tuple(100 * count / repetitions for count in (before["better"], now["better"], bad, now["not shown"]))


def _pair(values: tuple[float, float]) -> tuple[str, str]:
    sampled, greedy = (f"{value:.1f}".removesuffix(".0") for value in values)
    return sampled, f"({greedy})"


def embedded(source: Path) -> str:
    """Real models, small ones, with harms that were really done."""
    settings = load_settings(str(source / "settings.json"), ["evaluate.builtin=0", "threads=1"])
    rows = [
        "The embedded models on their held-out prompts (greedy), harmed on purpose:",
        "",
        "| Stage 3 is | harmful win rate | benign win rate | before | now | why |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            name: make(settings, source, Path(folder) / str(place))
            for place, (name, make) in enumerate(_ADAPTERS.items())
        }
        cases |= _changed_texts(settings, source)
    for name, responses in cases.items():
        table = table_of(responses)
        found = judge(table, settings.evaluate.margin)
        rates = {category: one.win_rate.percent() for category, one in compare_by_category(responses).items()}
        why = found.reason.partition("; that outweighs")[0]
        rows.append(
            f"| {name} | {rates['harmless']} | {rates[BENIGN]} | {former_verdict(table)} | **{found.verdict}** | {why} |"
        )
        print(rows[-1], flush=True)
    return "\n".join([*rows, "", _sampled_benign(settings, source), ""])


def _copy(source: Path, target: Path) -> Workspace:
    """A workspace with the same pairs and prompts."""
    for name in ("pairs", "dpo_dataset", "models", "manifests", "evaluation"):
        if (source / name).exists():
            shutil.copytree(source / name, target / name)
    for manifest in ("train", "evaluate"):
        (target / "manifests" / f"{manifest}.json").unlink(missing_ok=True)
        (target / "manifests" / f"{manifest}.begun.json").unlink(missing_ok=True)
    return Workspace(target)


def _evaluated(settings: Settings, workspace: Workspace) -> list[Response]:
    evaluate_models(settings, workspace)
    return [Response.model_validate(row) for row in read_jsonl(workspace.responses)]


def _as_it_is(settings: Settings, source: Path, target: Path) -> list[Response]:
    return _evaluated(settings, _copy(source, target))


def _scaled(factor: float) -> Callable[[Settings, Path, Path], list[Response]]:
    """Stage 2 plus `factor` times what training added to lora_B."""

    def make(settings: Settings, source: Path, target: Path) -> list[Response]:
        workspace = _copy(source, target)
        file = workspace.adapter / "adapter_model.safetensors"
        trained = load_file(file)
        start = load_file(Path(locate(settings.models.adapter)) / file.name)
        moved = {
            name: (start[name] + factor * (tensor - start[name])).astype(tensor.dtype)
            if "lora_B" in name
            else start[name]
            for name, tensor in trained.items()
        }
        save_file(moved, file)
        return _evaluated(settings, workspace)

    return make


def _zeroed(settings: Settings, source: Path, target: Path) -> list[Response]:
    workspace = _copy(source, target)
    file = workspace.adapter / "adapter_model.safetensors"
    save_file({name: np.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)
    return _evaluated(settings, workspace)


def _flipped(settings: Settings, source: Path, target: Path) -> list[Response]:
    workspace = _copy(source, target)
    shutil.rmtree(workspace.adapter)
    for path in (workspace.train_rows, workspace.eval_rows):
        rows = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in read_jsonl(path)]
        write_jsonl(path, rows)
    train_policy(settings, workspace)
    return _evaluated(settings, workspace)


_ADAPTERS: dict[str, Callable[[Settings, Path, Path], list[Response]]] = {
    "as `make demo` trains it": _as_it_is,
    "Stage 2 itself": _scaled(0.0),
    "the adapter in the opposite direction": _scaled(-1.0),
    "DPO on flipped labels": _flipped,
    "the Stage-2 adapter zeroed: the bare base": _zeroed,
}


def _changed_texts(settings: Settings, source: Path) -> dict[str, list[Response]]:
    """Stage 3's own answers, spoiled and measured like any other."""
    workspace = Workspace(source)
    asked = held_out(settings, workspace)
    adapters = {BASE: None, STAGE2: settings.models.adapter, STAGE3: str(workspace.adapter)}
    runs = {policy: run_of(settings, adapter) for policy, adapter in adapters.items()}
    answers = known_answers(JsonlStore(workspace.answers), [one.prompt for one in asked], runs)
    policies = load_policies(settings.models, workspace.adapter)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, change in _TEXTS.items():
            changed: Answers = {key: change(one, key[0]) if key[1] == STAGE3 else one for key, one in answers.items()}
            likelihood = Likelihood(settings, adapters, JsonlStore(Path(folder) / "logp.jsonl"))
            likelihood.measure(likelihoods_wanted(asked, changed, list(adapters)), lambda: policies)
            scores = judged(settings, asked, changed, JsonlStore(Path(folder) / "scores.jsonl"))
            found[name] = responses_of(asked, changed, scores, likelihood, list(adapters))
    return found


def _cut(answer: Completion, name: str) -> Completion:
    words = answer.text.split()
    return answer.model_copy(update={"text": " ".join(words[: len(words) // 2]), "finish": "length"})


def _shuffle(answer: Completion, name: str) -> Completion:
    words = answer.text.split()
    random.Random(name).shuffle(words)
    return answer.model_copy(update={"text": " ".join(words)})


_TEXTS: dict[str, Callable[[Completion, str], Completion]] = {
    "its answers, each cut in half": _cut,
    "its answers, words shuffled": _shuffle,
}


def _sampled_benign(settings: Settings, source: Path) -> str:
    """The benign half of the demo, sampled, over several seeds of sampling."""
    rows: list[Response] = []
    seeds = range(3)
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            workspace = _copy(source, Path(folder) / "run")
            sampled = load_settings(
                str(source / "settings.json"),
                ["evaluate.builtin=0", "threads=1", "evaluate.temperature=0.7", f"seed={seed}"],
            )
            rows += _evaluated(sampled, workspace)
    by_category = compare_by_category(rows)
    named = {"harmful": by_category["harmless"], "benign": by_category[BENIGN]}
    rates = ", ".join(f"{name} {one.win_rate.percent()}" for name, one in named.items())
    verdict = judge(table_of(rows), settings.evaluate.margin)
    return (
        f"The demo's Stage 3 sampled at 0.7 under {len(seeds)} seeds, its answers pooled by prompt: win rate {rates}; "
        f"verdict **{verdict.verdict}**: {verdict.reason}."
    )


def alpaca() -> str:
    """GPT-4-turbo in the place of Stage 3, weaker models in that of Stage 2, by AlpacaEval's judge."""
    models = {name: rows for name, rows in read_alpaca(ALPACA).items() if name != "gpt4_1106_preview"}
    won = {name: float((rows[:, 2] < 0.5).mean()) for name, rows in models.items()}
    strong = [name for name, share in won.items() if 0.92 <= share <= 0.97]
    counts = {prompts: Counter(_verdicts(models, strong, prompts)) for prompts in (160, 400, 805)}
    exceptions = [name for name in strong if judge(strong_over_weak(models[name], 805, 0)).verdict != "better"]
    shares = "; ".join(
        f"{prompts} prompts: better in {100 * count['better'] / count.total():.0f} of 100"
        for prompts, count in counts.items()
    )
    return "\n".join(
        [
            f"AlpacaEval's public judgements, GPT-4-turbo in the place of Stage 3 against {len(strong)} models of which it wins "
            f"92–97 % ({', '.join(strong)}): {shares}. All prompts are benign requests there; topic fit, refusals and "
            "log-probabilities need the texts and were not part of it. Not called better on all prompts: "
            f"{', '.join(exceptions) or 'none'} (where length explains most of the win, or may).",
            "",
        ]
    )


def _verdicts(models: dict[str, np.ndarray], names: list[str], prompts: int) -> list[str]:
    draws = 1 if prompts > max(PROMPTS) else 20
    return [judge(strong_over_weak(models[name], prompts, seed)).verdict for name in names for seed in range(draws)]


if __name__ == "__main__":
    main()
