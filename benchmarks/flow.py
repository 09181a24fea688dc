"""Draft, critique and revision of the same prompts: step by step, or each row on its way by itself? On random weights.

    python benchmarks/flow.py           # needs an NVIDIA GPU; 6 minutes on an H100; nothing is fetched
    python benchmarks/flow.py --tiny    # that it works, on a CPU: figures without meaning, in seconds

The prompts and lengths of benchmarks/generation.py: 97 tokens in, drafts and revisions of 93 and critiques of 47 on average.
A critique's prompt holds instruction, prompt, draft and principles, a revision's the critique instead of the principles.
The instruction's opening, the same in all rows, has 18 tokens (two_step/short under a usual chat template) or 330 (with two
worked examples, two_step/short+2). With a barrier every step of 256 prompts ends before the next begins, as before; in the
flow a row that has its draft goes on. "read once": the opening's keys and values are copied into the slots.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from generation import GIB_OF_A_T4, LONGEST, SAMPLING, SHAPES, Prompt, make_prompts, random_model, synchronize
from transformers import PreTrainedModel

from cai_helpers.machine.hardware import GIB, this_machine
from cai_helpers.models.batches import release_memory
from cai_helpers.models.row import NO_OPENING, Opening, Row
from cai_helpers.models.sampling import row_key
from cai_helpers.models.slots import MOST_SLOTS, Slots, slots_that_fit
from cai_helpers.planning.generation import Length

OPENINGS = {"short": 18, "two examples": 330}  # tokens
PROMPTS = 768  # --prompts asks for more
PORTION = 256  # prompts between two barriers
PRINCIPLES = 80  # tokens, with the end of the instruction


class Variant(NamedTuple):
    opening: str  # of OPENINGS
    barrier: bool
    once: bool  # the opening is read once


Said = dict[int, list[list[int]]]  # tokens of draft, critique and revision, by prompt


class Figure(NamedTuple):
    said: Said
    pairs_a_second: float
    read: int  # tokens of prompts
    peak: float  # GiB


VARIANTS = [
    Variant("short", barrier=True, once=False),
    Variant("short", barrier=False, once=False),
    Variant("two examples", barrier=True, once=False),
    Variant("two examples", barrier=False, once=False),
    Variant("two examples", barrier=False, once=True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models on a CPU")
    parser.add_argument("--gib", type=float, default=GIB_OF_A_T4, help="memory this process may use")
    parser.add_argument("--shape", choices=list(SHAPES), help="only this one")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--times", type=int, default=1, help="each variant is timed, after a warm-up")
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    if options.tiny:
        torch.set_num_threads(1)
    else:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.gib * GIB / total))
        print(f"{torch.cuda.get_device_name(0)}, held to {options.gib} GiB, torch {torch.__version__}", flush=True)
    print(
        "\n| shape | opening | | pairs/s | x with barriers | rows the same as there | prompt tokens read | peak GiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for shape in [options.shape] if options.shape else SHAPES:
        model = random_model(SHAPES[shape], device)
        prompts = make_prompts(model.config.vocab_size, *((8, 12) if options.tiny else (options.prompts, LONGEST)))
        for variant in VARIANTS:
            figure = measure(model, prompts, variant, options.times)
            if variant.barrier:
                before = figure
            same = sum(figure.said[index] == before.said[index] for index in figure.said)
            how = (
                "barriers, 256 prompts at a time"
                if variant.barrier
                else "flow, opening read once"
                if variant.once
                else "flow"
            )
            print(
                f"| {shape} | {variant.opening} | {how} | {figure.pairs_a_second:.1f} | "
                f"{figure.pairs_a_second / before.pairs_a_second:.2f} | {same} of {len(prompts)} | {figure.read:,} | {figure.peak:.1f} |",
                flush=True,
            )
        del model
        release_memory()


def measure(model: PreTrainedModel, prompts: list[Prompt], variant: Variant, times: int) -> Figure:
    cuda, seconds = model.device.type == "cuda", []
    if cuda:
        make_pairs(model, prompts[:32], variant)
        torch.cuda.reset_peak_memory_stats()
    for _ in range(times):
        synchronize(cuda)
        started = time.perf_counter()
        said, read, _ = make_pairs(model, prompts, variant)
        synchronize(cuda)
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / GIB if cuda else 0.0
    release_memory()
    return Figure(said, len(prompts) / statistics.median(seconds), read, peak)


class Made(NamedTuple):
    said: Said
    read: int  # tokens of prompts
    capacity: int  # tokens that the slots came to


def chain_of(prompt: Prompt, variant: Variant) -> list[Length]:
    """Draft, critique and revision in tokens."""
    drafted = OPENINGS[variant.opening] + len(prompt.tokens) + prompt.answer
    critique = max(1, prompt.answer // 2)
    return [
        Length(len(prompt.tokens), prompt.answer),
        Length(drafted + PRINCIPLES, critique),
        Length(drafted + critique, prompt.answer),
    ]


def make_pairs(model: PreTrainedModel, prompts: list[Prompt], variant: Variant) -> Made:
    """All three answers to every prompt, the longest first."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].tokens))
    size = PORTION if variant.barrier else len(order)
    said: Said = {}
    read = capacity = 0
    for start in range(0, len(order), size):
        part = make_portion(model, {index: prompts[index] for index in order[start : start + size]}, variant)
        said |= part.said
        read, capacity = read + part.read, max(capacity, part.capacity)
    return Made(said, read, capacity)


def make_portion(model: PreTrainedModel, prompts: dict[int, Prompt], variant: Variant) -> Made:
    cuda = model.device.type == "cuda"
    fitting = partial(slots_that_fit, model.config, dtype=model.dtype, machine=this_machine())
    slots = Slots(model, [], lambda capacity, held: fitting(capacity=capacity, held=held) if cuda else 4)
    openings = [NO_OPENING, *(Opening((step + 3,) * OPENINGS[variant.opening]) for step in (1, 2))]
    waiting = deque(prompts)
    said: Said = {index: [] for index in waiting}
    behind: list[Row] = []  # the barrier
    read, opened = 0, set()

    def ask(index: int) -> Row:
        nonlocal read
        step, prompt = len(said[index]), prompts[index]
        extra = [[], [7] * PRINCIPLES, said[index][1] if step == 2 else []][step]
        draft = said[index][0] if step else []
        opening = openings[step]
        tokens = [*opening.tokens, *prompt.tokens, *draft, *extra]
        shared = opening if variant.once else NO_OPENING
        read += len(tokens) - (len(shared) if shared in opened else 0)
        opened.add(shared)
        length = chain_of(prompt, variant)[step].new
        sampling = SAMPLING.model_copy(update={"max_new_tokens": length})
        return Row(index, tokens, row_key(0, f"{index}/{step}"), sampling, shared)

    try:
        while waiting or behind or slots.unfinished:
            if behind and not slots.unfinished and not waiting:
                slots.close()  # each step had its own slots
                slots.waiting.extend(sorted(behind, key=lambda row: -len(row.prompt)))
                behind = []
            room = len(waiting) if variant.barrier else MOST_SLOTS * 3 // 2 - slots.unfinished
            for _ in range(min(room, len(waiting))):
                slots.waiting.append(ask(waiting.popleft()))
            for row, tokens in slots.step():
                said[row.number].append(tokens)
                if len(said[row.number]) < 3:
                    (behind if variant.barrier else slots.waiting).append(ask(row.number))
    finally:
        slots.close()
    return Made(said, read, slots.capacity)


if __name__ == "__main__":
    main()
