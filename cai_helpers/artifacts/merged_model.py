"""The policy as one model that needs no PEFT: what quantisers and converters read."""

from __future__ import annotations

import shutil
from pathlib import Path

from cai_helpers.ground import make_folder
from cai_helpers.models.language import load_tokenizer, load_weights
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace


def write_merged(settings: Settings, workspace: Workspace) -> Path:
    """Write export/merged_model/: base and adapter added up in fp32, in the precision in which the base is published.

    Raises:
        CaiError: the adapter is more than plain LoRA matrices, or the base cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    from cai_helpers.training.policy.lora import GENERATION_FILE
    from cai_helpers.training.policy.merged import merge_stage2

    tokenizer = load_tokenizer(settings.models.base)
    base = load_weights(AutoModelForCausalLM, settings.models.base, dtype="auto")
    probe = tokenizer("How do I bake bread?")["input_ids"]
    model, merged = merge_stage2(base, str(workspace.adapter), probe)
    workspace.say("export", f"merged; rounding moves a logit by {merged.moved:.4f} at most")
    target = workspace.export_dir / "merged_model"
    draft = target.with_name("merged_model.tmp")
    make_folder(target.parent)
    shutil.rmtree(draft, ignore_errors=True)
    if (workspace.adapter / GENERATION_FILE).is_file():
        model.generation_config = GenerationConfig.from_pretrained(workspace.adapter)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    shutil.rmtree(target, ignore_errors=True)
    draft.replace(target)
    return target
