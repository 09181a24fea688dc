"""How much of what DPO computes is necessary? Counted, not timed: a T4 is bound by arithmetic.

    python benchmarks/flops.py           # on a CPU, tensors without contents (torch's meta device); a minute
    python benchmarks/flops.py --tiny    # the same of a small model and few pairs, in seconds

gemma-2b's shape with a LoRA of rank 16; pairs as in dpo.py, of 494 tokens on average; three epochs, 8 pairs an update, on a
card of 14.5 GiB. Necessary is the forward and backward pass of both sides of each pair in each epoch, without padding, the
head at answer tokens alone; neither the reference nor a second forward pass counts as necessary. So without sharing
prompts nothing can come below 1.17, the reference's one pass included. Every batch is computed by
training/arithmetic.py; "counted" is torch.utils.flop_counter's figure for three of them, over that.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from trl.trainer.utils import add_fused_lm_head

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from dpo import AN_UPDATE, AVERAGES, LONGEST, SHAPES, TINY, drawn

from cai_helpers.machine.hardware import GIB, Machine
from cai_helpers.settings import load_settings
from cai_helpers.training.arithmetic import Arithmetic, PairLengths, arithmetic_of
from cai_helpers.training.memory_plan import empty_model, parts_of, plan_room
from cai_helpers.training.policy.shared_prompt import SharedPrompt, attending_in_pairs, keeping
from cai_helpers.training.rows.batches import Layout, LikeLengths, lay_out, shortest_first

T4 = Machine("cpu", "T4", None, int(14.5 * GIB), 1)  # "cpu", so that no card is asked
EPOCHS, RANK, SEED = 3, 16, 0
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")


class Batch(NamedTuple):
    pairs: list[PairLengths]
    shared: bool
    checkpointed: bool


class Work(NamedTuple):
    steps: list[Batch]  # forward and backward
    reference: list[Batch]  # forward


class Variant(NamedTuple):
    name: str
    work: Callable[[list[PairLengths], Any], Work]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model and few pairs")
    options = parser.parse_args()
    print(run(options.tiny))


def run(tiny: bool) -> str:
    pairs = drawn(16, (12, 20), 60) if tiny else drawn(512, AVERAGES, LONGEST)
    with TemporaryDirectory() as folder:
        shape = SHAPES["gemma-2b"]
        type(shape).from_dict(shape.to_dict() | (TINY if tiny else {})).save_pretrained(folder)
        room = plan_room(load_settings("t4", [f"models.base={folder}"]), "fp16", T4)
        model = empty_model(folder)
    arithmetic = arithmetic_of(model, RANK)
    add_fused_lm_head(model, outputs=OUTPUTS)
    with torch.device("meta"):
        policy = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    necessary = EPOCHS * sum(map(arithmetic.necessary, pairs))
    sums = sum(2 * pair.prompt + pair.answers for pair in pairs)
    lines = [
        f"{len(pairs)} pairs of {sums / len(pairs):.0f} tokens, necessary {necessary / EPOCHS / len(pairs) / 1e12:.3g} TFLOP a "
        f"pair and epoch; {room.tokens:,} tokens fit at once",
        "",
        "| variant | TFLOP a pair and epoch | executed / necessary | counted |",
        "|---|---|---|---|",
    ]
    for variant in VARIANTS:
        work = variant.work(pairs, room)
        executed = sum(arithmetic.step(*batch) for batch in work.steps)
        executed += sum(arithmetic.reference(batch.pairs, batch.shared) for batch in work.reference)
        with patch("torch.is_autocast_enabled", lambda *device: False):  # it knows no meta device
            counted = compare(policy, arithmetic, work)
        each = executed / EPOCHS / len(pairs) / 1e12
        lines.append(f"| {variant.name} | {each:.3g} | {executed / necessary:.2f} | {counted:.3f} |")
    return "\n".join(lines)


# ---- which batches


def as_trl(pairs: list[PairLengths], batch: int, stored: bool, checkpointed: bool) -> Work:
    """Batches of any pairs, in a new order each epoch; the reference stored, or computed with every step."""
    chance, steps = random.Random(SEED), []
    for _ in range(EPOCHS):
        order = chance.sample(pairs, len(pairs))
        steps += [Batch(order[at : at + batch], False, checkpointed) for at in range(0, len(order), batch)]
    once = [Batch(pairs[at : at + batch], False, False) for at in range(0, len(pairs), batch)]
    return Work(steps, once if stored else steps)


def as_we(pairs: list[PairLengths], room: Any, shared: bool) -> Work:
    sizes = [pair.width(shared) for pair in pairs]
    steps = []
    for epoch in range(EPOCHS):
        order = list(LikeLengths(sizes, AN_UPDATE, SEED, lambda epoch=epoch: epoch))
        for at in range(0, len(order), AN_UPDATE):
            rows = order[at : at + AN_UPDATE]
            for part in parts_of([sizes[row] for row in rows], room):
                steps.append(Batch([pairs[rows[place]] for place in part.rows], shared, part.checkpointed))
    order = shortest_first(sizes)
    once = [[pairs[row] for row in order[at : at + AN_UPDATE]] for at in range(0, len(order), AN_UPDATE)]
    return Work(steps, [Batch(rows, shared, False) for rows in once])


VARIANTS = [
    Variant("TRL's default (8 at once, checkpointing, live reference)", lambda pairs, _: as_trl(pairs, 8, False, True)),
    Variant("the same, one at once", lambda pairs, _: as_trl(pairs, 1, False, True)),
    Variant(
        "stored reference, 4 at once, checkpointing (the preset before)", lambda pairs, _: as_trl(pairs, 4, True, True)
    ),
    Variant("stored reference, one at once, no checkpointing", lambda pairs, _: as_trl(pairs, 1, True, False)),
    Variant("cut batches of like length", lambda pairs, room: as_we(pairs, room, shared=False)),
    Variant("**the same, prompts shared (`cai train`)**", lambda pairs, room: as_we(pairs, room, shared=True)),
]


# ---- torch's own count


def compare(policy: Any, arithmetic: Arithmetic, work: Work) -> float:
    """What torch counts over what arithmetic.py says, of three steps."""
    some = work.steps[:: max(1, len(work.steps) // 3)][:3]
    return sum(count(policy, *batch) for batch in some) / sum(arithmetic.step(*batch) for batch in some)


def count(policy: Any, pairs: list[PairLengths], shared: bool, checkpointed: bool) -> int:
    """As cut_batches.py and TRL compute it; without Triton TRL would compute the head at every token."""
    model = policy.get_base_model()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    answers = sum(pair.answers for pair in pairs)
    side = max(pair.side for pair in pairs)
    policy.train()
    with torch.device("meta"):
        sources = torch.zeros(answers, dtype=torch.long)
        tokens = torch.zeros(2 * len(pairs), side, dtype=torch.long)
        mask = torch.zeros(len(tokens), 1, side, side)  # padded batches have one
    with FlopCounterMode(display=False) as counter, attending_in_pairs(policy) if shared else nullcontext():
        if shared:
            rows = [{"prompt_ids": [1] * p, "chosen_ids": [1] * c, "rejected_ids": [1] * r} for p, c, r in pairs]
            layout = Layout(*(part.to("meta") for part in lay_out(rows, pad=0)))
            found = SharedPrompt(policy, layout)(labels=tokens)
        else:
            with keeping(model.base_model, sources):
                found = policy(
                    input_ids=tokens,
                    attention_mask=mask,
                    shift_labels=sources[None],
                    use_cache=False,
                    fused_lm_head=True,
                )
        found.log_probs.sum().backward()
    model.gradient_checkpointing_disable()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
