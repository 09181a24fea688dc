"""README.md, a model card, and DATASET.md, a dataset card: every figure in them is one of a stage's report."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from cai_helpers import __version__
from cai_helpers.artifacts.account import OTHER_ADAPTER, Account, as_table, as_text
from cai_helpers.artifacts.parquet import PARQUET_OF
from cai_helpers.critique.samples import FAMILY
from cai_helpers.measures.intervals import Interval
from cai_helpers.models.hub import EMBEDDED, hub_name, local_folder
from cai_helpers.settings import Settings
from cai_helpers.training.policy.losses import readable

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# Licences of bases that carry none in their files, by the beginning of their names on the Hub.
_LICENCES = {
    "google/gemma-4": "apache-2.0",
    "google/gemma": "gemma",
    "Qwen/Qwen3": "apache-2.0",
    "HuggingFaceTB/SmolLM2": "apache-2.0",
    EMBEDDED: "apache-2.0",
}
_NOT_MEASURED = "The pairs were scored but not curated."


def model_card(account: Account) -> str:
    """README.md, in the form of the Hub's model cards."""
    from huggingface_hub import ModelCardData

    settings, trained = account.settings, account.adapter is not None
    tables = {stage: as_table(rows) for stage, rows in account.tables().items()}
    data = ModelCardData(
        model_name="Constitutional AI, Stage 3",
        base_model=_hub_id(settings.models.base),
        datasets=_datasets(settings),
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "dpo", "trl", "constitutional-ai"],
        eval_results=eval_results(account) or None,
        **_licence(settings.models.base),
    )
    body = _template("model_card.md").substitute(
        base=as_text(settings.models.base),
        stage2=f"`{as_text(settings.models.adapter)}`" if settings.models.adapter else "none: the base model itself",
        reward=as_text(settings.models.reward.model),
        version=__version__,
        status="LoRA adapter" if trained else "data without an adapter",
        loading="`USE.md` has code that runs as it stands: to chat, to train on, to merge."
        if trained
        else f"There is no adapter in this archive: {account.without_adapter}",
        origin=_origin(account),
        data=tables.get("curate", _NOT_MEASURED),
        training=f"{_method(account)}\n\n{tables.get('train', '')}" if trained else "Nothing was trained.",
        evaluation=_evaluation(account, tables),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def dataset_card(account: Account) -> str:
    """DATASET.md, in the form of the Hub's dataset cards."""
    from huggingface_hub import DatasetCardData

    settings, tables = account.settings, {stage: as_table(rows) for stage, rows in account.tables().items()}
    train, held_out = PARQUET_OF.values()
    data = DatasetCardData(
        pretty_name="Constitutional AI preference pairs",
        task_categories=["text-generation"],
        tags=["constitutional-ai", "dpo", "preference", "rlaif"],
        source_datasets=_datasets(settings),
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": train}, {"split": "test", "path": held_out}],
            }
        ],
        **_licence(settings.models.base),
    )
    body = _template("dataset_card.md").substitute(
        version=__version__,
        base=as_text(settings.models.base),
        stage2=f" with the Stage-2 adapter `{as_text(settings.models.adapter)}`" if settings.models.adapter else "",
        prompts=as_text(settings.prompts.source),
        reward=as_text(settings.models.reward.model),
        origin=_origin(account),
        constitution="no critic was asked, so no constitution was read"
        if account.sampled
        else "the principles are in `constitution.yaml`, the words put to the critic in `protocols.yaml`",
        generated=tables.get("generate", "How they were generated is not known: they come from elsewhere."),
        scored=tables.get("score", "Who scored them is not known: they come from elsewhere."),
        calibrated=tables.get(
            "calibrate", "The scorer was not tried on gold pairs: how often its labels are right is not known."
        ),
        curated=tables.get("curate", _NOT_MEASURED),
        analyzed=tables.get("analyze", "They were not analysed."),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def eval_results(account: Account) -> list[EvalResult]:
    """The comparison as the Hub's evaluation results: each share with its 95 % interval."""

    found: list[EvalResult] = []
    for name, comparison in account.comparisons().items():
        shares: dict[str, Interval | None] = {
            "win rate over Stage 2": comparison.win_rate,
            "refusals": comparison.refusals.after,
            "degenerate answers": comparison.degenerate.after,
        }
        for metric, interval in shares.items():
            if interval is not None:
                found.append(_result(name, metric, interval))
    return found


def _result(group: str, metric: str, interval: Interval) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        dataset_type="held-out-prompts",
        dataset_name=f"held-out prompts, {group}",
        dataset_config=group,
        metric_type=metric.replace(" ", "_").lower(),
        metric_name=metric,
        metric_value=round(interval.value, 4),
        metric_args={"low": round(interval.low, 4), "high": round(interval.high, 4), "n": interval.n},
    )


def _hub_id(name: str | None) -> str | None:
    """A name that the Hub knows; a folder and an embedded model are none."""
    found = hub_name(name) if name is not None else None
    return None if found is None else found.repository


def _datasets(settings: Settings) -> list[str] | None:
    sources = [_hub_id(settings.prompts.source), _hub_id(settings.prompts.eval_source)]
    return list(dict.fromkeys(name for name in sources if name and not Path(name).suffix)) or None


def _licence(base: str) -> dict[str, Any]:
    """The licence of the base, by its own card where that is here; what is trained from it inherits it."""
    from huggingface_hub import ModelCard

    folder = local_folder(base, "README.md")
    if folder is not None and not base.startswith(EMBEDDED):
        values = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
        if named := {key: values[key] for key in ("license", "license_name", "license_link") if values.get(key)}:
            return named
    known = next((licence for start, licence in _LICENCES.items() if base.startswith(start)), None)
    if known is not None:
        return {"license": known}
    link = {"license_link": f"https://huggingface.co/{base}"} if _hub_id(base) else {}
    return {"license": "other", "license_name": "that-of-the-base-model", **link}


def _template(name: str) -> Template:
    return Template((resources.files("cai_helpers") / "assets" / name).read_text(encoding="utf-8"))


def _origin(account: Account) -> str:
    """Where the two sides of a pair come from."""
    if account.sampled:
        return (
            f"it answered each prompt {account.protocol.removeprefix(FAMILY)} times (protocol {account.protocol}; no critique, "
            "no constitution), a scorer judged all answers, and the best one became `chosen`, the worst one `rejected`."
        )
    return (
        "it drafted an answer to each prompt, criticised it by a constitution, revised it, a reward model scored both, "
        "and the better one became `chosen`."
    )


def _method(account: Account) -> str:
    train = account.settings.train
    learned = "the best samples" if account.sampled else "the winning revisions (Bai et al. 2022, section 3)"
    phases = []
    if "sft" in train.method:
        phases.append(
            f"Supervised fine-tuning on {learned} with learning rate "
            f"{train.sft_learning_rate:g}, {train.sft_epochs:g} epochs"
        )
    if "dpo" in train.method:
        phases.append(
            f"DPO (Rafailov et al. 2023; loss {readable(train.loss_type, train.loss_weights)}) with beta "
            f"{train.beta:g}, learning rate {train.learning_rate:g}"
        )
    if train.method == "kto":
        phases.append(
            f"KTO (Ethayarajh et al. 2024) on both sides of the pairs and on one-sided answers, with beta {train.beta:g}, "
            f"learning rate {train.learning_rate:g}"
        )
    text = f"{', then '.join(phases)}, {train.warmup:.0%} warm-up, effective batch {train.effective_batch}; the checkpoint "
    text += "with the lowest held-out loss was kept."
    if train.fresh_adapter and account.settings.models.adapter:
        text += " A new LoRA was trained on the merged Stage 2; the adapter here is both, their ranks stacked."
    return text


def _evaluation(account: Account, tables: dict[str, str]) -> str:
    if account.adapter is not None and "evaluate" in account.manifests and account.evaluated is None:
        return OTHER_ADAPTER
    return tables.get("evaluate", "Not evaluated.")
