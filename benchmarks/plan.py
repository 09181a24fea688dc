"""Does the plan tell the truth? What `cai plan` says of memory and time, beside what is measured, on one card.

    python benchmarks/plan.py           # needs an NVIDIA GPU; about 4 minutes on an H100; nothing is fetched
    python benchmarks/plan.py --tiny    # that it works, on a CPU: figures without meaning, in seconds

First the card is measured as `cai plan` does it. Then models with random weights work in fp16 within a T4's 14.5 GiB: shapes
of gemma-2b and SmolLM2-135M generate in 128 slots and train with DPO as `cai train` does, that of DeBERTa-v3-large scores
as `cai score` does. The plan is asked about the very texts that are worked on. Everything is warmed up once, then timed;
memory is torch's peak of what was allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dpo
import flow
import generation
import transformers
from transformers import AutoModelForSequenceClassification, DebertaV2Config

from cai_helpers.machine.hardware import GIB, this_machine
from cai_helpers.models.batches import release_memory
from cai_helpers.models.language import load_tokenizer
from cai_helpers.models.shapes import KNOWN
from cai_helpers.planning.card import Card, measure_card
from cai_helpers.planning.generation import Chain, Length, generation_memory, generation_seconds
from cai_helpers.planning.scoring import scoring_memory, scoring_seconds
from cai_helpers.planning.shape import count
from cai_helpers.planning.training import Pair, steps_seconds
from cai_helpers.scoring.reward_model import RewardModel
from cai_helpers.sections import USUAL_REWARD, RewardSource
from cai_helpers.settings import load_settings
from cai_helpers.training.memory_plan import plan_of_sizes, plan_room
from cai_helpers.training.trainer import quiet_libraries

MEMORY_AIM, TIME_AIM = 0.10, 0.30
SLOTS, BATCH = 128, 16


class Figure(NamedTuple):
    shape: str
    work: str
    planned: float  # seconds
    measured: float
    planned_memory: float  # GiB
    measured_memory: float  # 0: on a CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models on a CPU")
    parser.add_argument("--gib", type=float, default=14.5, help="memory this process may use")
    parser.add_argument("--only", choices=("generation", "scoring", "DPO"), help="only this part")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.tiny:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.gib * GIB / total))
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    began = time.monotonic()
    card = measure_card(this_machine(), "fp32" if options.tiny else "fp16")
    print(f"{card.line()}\nmeasured in {time.monotonic() - began:.0f} s: {json.dumps(card.model_dump())}", flush=True)
    figures: list[Figure] = []
    for figure in figures_of(card, options.tiny, options.only):
        print(f"  {figure}", flush=True)
        figures.append(figure)
        release_memory()
    print(table(figures))


def figures_of(card: Card, tiny: bool, only: str | None) -> Iterator[Figure]:
    if only in (None, "generation"):
        for shape, config in generation.SHAPES.items():
            yield generating(card, shape, config, tiny)
            yield flowing(card, shape, config, tiny)
    if only in (None, "scoring"):
        yield scoring(card, tiny)
    if only in (None, "DPO"):
        for shape, config in dpo.SHAPES.items():
            for kind, lengths in dpo.data(tiny).items():
                yield training(card, f"{shape}, {kind}", config, lengths, tiny)


def generating(card: Card, name: str, config: Any, tiny: bool) -> Figure:
    model, prompts = model_and_prompts(config, tiny, 512)
    slots = 4 if tiny else SLOTS
    texts = [[Length(len(prompt.tokens), prompt.answer)] for prompt in prompts]
    longest = max(row.prompt + row.new for [row] in texts)

    def work() -> int:
        generation.in_slots(model, prompts, slots)
        return longest

    return generated(card, name, f"{len(texts)} texts in {slots} slots", texts, slots, model, work)


def flowing(card: Card, name: str, config: Any, tiny: bool) -> Figure:
    """Draft, critique and revision of each prompt, with critiques' and revisions' opening of 18 tokens."""
    model, prompts = model_and_prompts(config, tiny, 384)
    slots = 4 if tiny else SLOTS
    variant = flow.Variant("short", barrier=False, once=False)
    chains = [flow.chain_of(prompt, variant) for prompt in prompts]

    def work() -> int:
        return flow.make_pairs(model, prompts, variant).capacity

    return generated(card, name, f"{len(chains)} pairs in {slots} slots", chains, slots, model, work)


def model_and_prompts(config: Any, tiny: bool, prompts: int) -> tuple[Any, list[generation.Prompt]]:
    model = generation.random_model(config, "cpu" if tiny else "cuda")
    return model, generation.make_prompts(
        model.config.vocab_size, *((12, 24) if tiny else (prompts, generation.LONGEST))
    )


def generated(
    card: Card, name: str, what: str, chains: list[Chain], slots: int, model: Any, work: Callable[[], int]
) -> Figure:
    """work: returns the tokens that a slot came to."""
    shape, longest = count(model), max(row.prompt + row.new for chain in chains for row in chain)
    capacity = 0

    def worked() -> None:
        nonlocal capacity
        capacity = work()

    seconds, peak = timed(worked)
    planned = generation_seconds(shape, card, chains, slots, longest)
    return Figure(name, what, planned, seconds, generation_memory(shape, card, slots, capacity).total / GIB, peak)


def scoring(card: Card, tiny: bool) -> Figure:
    """The embedded reward model's tokenizer cuts the words; how many tokens that gives is asked of the scorer."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    given = {key: value for key, value in KNOWN[USUAL_REWARD].items() if key != "model_type"} | (small if tiny else {})
    torch.manual_seed(0)
    with torch.device("cpu" if tiny else "cuda"):
        model = AutoModelForSequenceClassification.from_config(DebertaV2Config(**given), dtype=torch.float32)
    shape = count(model)
    source = RewardSource(model="embedded:reward")
    draw = random.Random(0)
    lengths = [max(20, min(480, round(draw.lognormvariate(5.3, 0.6)))) for _ in range(20 if tiny else 1024)]
    texts = [([{"role": "user", "content": "How is tea made?"}], "tea " * (length // 2)) for length in lengths]
    if not tiny:
        torch.cuda.reset_peak_memory_stats()
    scorer = RewardModel(model, load_tokenizer("embedded:chat"), source, BATCH)
    del model
    if not tiny:
        scorer.use_fp16_if_it_agrees()
    tokens = [len(scorer._encode(*text).ids) for text in texts]
    halved = torch.cuda.max_memory_allocated() / GIB if not tiny else 0.0
    seconds, peak = timed(lambda: scorer(texts))
    planned = scoring_memory(shape, card, BATCH, max(tokens))
    print(f"  scored in {scorer.precision}; {statistics.mean(tokens):.0f} tokens on average", flush=True)
    return Figure(
        "DeBERTa-v3-large",
        f"{len(texts)} texts scored",
        scoring_seconds(shape, card, tokens, BATCH),
        seconds,
        planned.total / GIB,
        max(peak, halved),
    )


def training(card: Card, name: str, config: Any, lengths: list[dpo.Lengths], tiny: bool) -> Figure:
    """One pass over the pairs: the median of those after the first."""
    model = dpo.random_model(config, "cpu" if tiny else "cuda", tiny)
    shape = count(model)
    tokenizer = load_tokenizer("embedded:chat")
    trainer = dpo.by_us(model, dpo.make_rows(tokenizer, lengths), tokenizer, passes=3)
    folder = Path(trainer.args.output_dir)
    settings = load_settings("t4", [f"models.base={folder}"])
    machine = this_machine()
    room = plan_room(settings, card.dtype, machine)
    pairs = [
        Pair(len(row["prompt_ids"]), len(row["chosen_ids"]), len(row["rejected_ids"])) for row in trainer.train_dataset
    ]
    batch = trainer.args.per_device_train_batch_size
    planned = plan_of_sizes(settings, card.dtype, machine, [pair.size(shape.shares_prompts) for pair in pairs], batch)
    times = dpo.PassTimes()
    trainer.add_callback(times)
    if not tiny:
        torch.cuda.reset_peak_memory_stats()
    with quiet_libraries():
        trainer.train()
    peak = 0.0 if tiny else torch.cuda.max_memory_allocated() / GIB
    print(f"  {room}, batch {batch}: {planned.line()}", flush=True)
    return Figure(
        name,
        f"DPO, {len(pairs)} pairs",
        steps_seconds(shape, card, pairs, batch, room),
        statistics.median(times.seconds[1:]),
        planned.total / GIB,
        peak,
    )


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, GiB at the peak), the second time."""
    work()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = dpo.now()
    work()
    return dpo.now() - began, torch.cuda.max_memory_allocated() / GIB if cuda else 0.0


def table(figures: list[Figure]) -> str:
    lines = [
        "",
        "| shape | work | seconds planned | measured | off by | GiB planned | measured | off by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in figures:
        time_off = each.planned / each.measured - 1
        memory = "– | –"
        if each.measured_memory:
            memory = f"{each.measured_memory:.2f} | {each.planned_memory / each.measured_memory - 1:+.0%}"
        lines.append(
            f"| {each.shape} | {each.work} | {each.planned:.2f} | {each.measured:.2f} | {time_off:+.0%} | "
            f"{each.planned_memory:.2f} | {memory} |"
        )
    times = [abs(each.planned / each.measured - 1) for each in figures]
    lines.append(f"\nTime within {TIME_AIM:.0%}: {sum(off <= TIME_AIM for off in times)} of {len(times)}.")
    memories = [abs(one.planned_memory / one.measured_memory - 1) for one in figures if one.measured_memory]
    if memories:
        lines.append(
            f"Memory within {MEMORY_AIM:.0%}: {sum(off <= MEMORY_AIM for off in memories)} of {len(memories)}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
