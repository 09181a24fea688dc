"""Build the embedded models: writes the whole of cai_helpers/assets/tiny from a seed.

    python tools/build_tiny_models.py                    # as shipped; about 20 minutes on one CPU core
    python tools/build_tiny_models.py --out /tmp/tiny --steps 0.1    # a quick look that everything runs

The same seed on the same kind of machine gives the same files bit by bit; elsewhere the weights differ in the last
digits and the bars of assets/tiny/README.md still hold (tools/measure_tiny_models.py).
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import torch  # noqa: E402
from tiny_world import prompts, training  # noqa: E402

SHIPPED = ROOT / "cai_helpers" / "assets" / "tiny"
BASE_NAME = "embedded:chat"  # what an adapter's config calls its base


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(options.device == "cpu")
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)

    scratch = options.out.with_name(options.out.name + ".building")
    shutil.rmtree(scratch, ignore_errors=True)
    prompts.write_all(scratch / "prompts", options.seed)
    build_models(scratch, options, say)
    put_in_place(scratch, options.out)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    say(f"{options.out}: {size / 1e6:.1f} MB")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder to write (default: assets/tiny)")
    parser.add_argument("--seed", type=int, default=1, help="1 made what is shipped")
    parser.add_argument("--steps", type=float, default=1.0, help="factor on the number of updates (default 1.0)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="two were slower than one on a shared machine")
    return parser.parse_args()


def build_models(folder: Path, options: argparse.Namespace, say) -> None:
    steps = training.Steps(*(max(2, round(count * options.steps)) for count in training.Steps()))
    seed, device = options.seed, options.device
    tokenizer = training.train_tokenizer(seed)
    say(f"tokenizer: {len(tokenizer)} pieces")

    base = training.train_chat(tokenizer, seed, steps.chat, device, say)
    say(f"chat model: {sum(parameter.numel() for parameter in base.parameters()):,} parameters")
    save_chat(base, tokenizer, folder / "chat")

    # a copy: peft rewrites the base's layers in place
    stage2 = training.train_stage2(copy.deepcopy(base), tokenizer, seed, steps.stage2, device, say)
    save_adapter(stage2, folder / "stage2")

    reward = training.train_reward(base, tokenizer, seed, steps.reward, device, say)
    reward.half().save_pretrained(folder / "reward")
    tokenizer.padding_side = "right"  # a score is read at the last token
    tokenizer.save_pretrained(folder / "reward")


def save_chat(model, tokenizer, folder: Path) -> None:
    model.generation_config.eos_token_id = model.config.eos_token_id  # <eos> and <end_of_turn>
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)


def save_adapter(model, folder: Path) -> None:
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card; ours is assets/tiny/README.md
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = BASE_NAME
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order differs from run to run
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def put_in_place(scratch: Path, out: Path) -> None:
    """Swap the new folders in one by one; the model card beside them stays."""
    out.mkdir(parents=True, exist_ok=True)
    for part in sorted(scratch.iterdir()):
        shutil.rmtree(out / part.name, ignore_errors=True)
        part.rename(out / part.name)
    scratch.rmdir()


if __name__ == "__main__":
    main()
