"""A LoRA by DPO, KTO or supervised fine-tuning: checked before, watched while it runs, resumed, reported."""
