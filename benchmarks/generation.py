"""Which way of generating is fastest on a card of a T4's memory? All in one process, on models with random weights.

    python benchmarks/generation.py           # needs an NVIDIA GPU; under 8 minutes on an H100; nothing is fetched
    python benchmarks/generation.py --tiny    # that it works, on a CPU: figures without meaning, in seconds

256 prompts with log-normal lengths, of 97 tokens on average with answers of 93, at most 256 each; sampled at temperature
0.7 and top-p 0.95 where the table does not say greedy. Every row's answer has a length given beforehand, so that all
variants do the same useful work: `generate` computes each batch to the end of its longest row, the others stop a row
where it ends. Useful tokens/s count what is kept. Slow variants get the first 64 or 128 of the prompts. Each variant is
warmed up with the same calls and then timed; the median counts. A variant that fails stands in the table with its error.

The weights are random, but the last norm is scaled so that the scores are as peaked as a trained model's: else top-p would
need most of the vocabulary, and no sampler would do its usual work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    ContinuousBatchingConfig,
    GemmaConfig,
    GenerationConfig,
    LlamaConfig,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cai_helpers.machine.hardware import GIB, this_machine
from cai_helpers.models.batches import release_memory
from cai_helpers.models.engine import SlotEngine
from cai_helpers.models.row import NO_OPENING, Row
from cai_helpers.models.sampling import GumbelNucleus, Sampling, draw, row_key
from cai_helpers.models.slots import generate_rows, slots_that_fit

LONGEST = 256  # tokens of a prompt, and of an answer
GIB_OF_A_T4 = 14.5
PEAKED = 7.0  # standard deviation of the scores, by the last norm
ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ImportError,
    AssertionError,
    OSError,
)  # libraries'
SAMPLING = Sampling(max_new_tokens=LONGEST, temperature=0.7, top_p=0.95)
SHAPES: dict[str, PreTrainedConfig] = {
    "gemma-2b": GemmaConfig(
        vocab_size=256_000, hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256,
    ),
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192,
    ),
}  # fmt: skip
TINY = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


class Prompt(NamedTuple):
    tokens: list[int]
    answer: int  # tokens


class Variant(NamedTuple):
    name: str
    run: Callable[[PreTrainedModel, list[Prompt]], int]  # returns useful tokens
    prompts: int
    times: int  # it is timed
    needs_gpu: bool = False


class Figure(NamedTuple):
    shape: str
    variant: str
    prompts: int
    rate: float  # useful tokens/s; 0: it failed
    peak: float  # GiB
    error: str


VARIANTS = [
    Variant("generate, dynamic cache, batch 32 (the default before)", lambda m, p: in_batches(m, p, 32), 64, 1),
    Variant("generate, dynamic cache, batch 128", lambda m, p: in_batches(m, p, 128), 128, 1),
    Variant(
        "generate, static cache, cudagraphs, batch 64", lambda m, p: in_batches(m, p, 64, static=True), 128, 2, True
    ),
    Variant("continuous batching, paged|sdpa, greedy", lambda m, p: continuously(m, p, False, False), 256, 1, True),
    Variant("continuous batching, greedy, graphs", lambda m, p: continuously(m, p, False, True), 256, 1, True),
    Variant("continuous batching, sampled", lambda m, p: continuously(m, p, True, False), 256, 1, True),
    Variant("slots: 32", lambda m, p: in_slots(m, p, 32), 256, 3),
    Variant("slots: 64", lambda m, p: in_slots(m, p, 64), 256, 3),
    Variant("slots: 128", lambda m, p: in_slots(m, p, 128), 256, 3),
    Variant("slots: 256", lambda m, p: in_slots(m, p, 256), 256, 3),
    Variant("slots: 128, greedy", lambda m, p: in_slots(m, p, 128, temperature=0.0), 256, 3),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models on a CPU")
    parser.add_argument("--gib", type=float, default=GIB_OF_A_T4, help="memory this process may use")
    parser.add_argument("--shape", choices=list(SHAPES), help="only this one")
    parser.add_argument("--only", default="", help="only variants whose name contains this")
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    if options.tiny:
        torch.set_num_threads(1)
    else:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.gib * GIB / total))
        print(f"{torch.cuda.get_device_name(0)}, held to {options.gib} GiB", end=", ")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    figures = []
    for shape in [options.shape] if options.shape else SHAPES:
        model = random_model(SHAPES[shape], device)
        prompts = make_prompts(model.config.vocab_size, *((12, 24) if options.tiny else (256, LONGEST)))
        lengths = [statistics.mean(map(len, (p.tokens for p in prompts))), statistics.mean(p.answer for p in prompts)]
        print(
            f"\n{shape}: {len(prompts)} prompts, {lengths[0]:.0f} tokens in, {lengths[1]:.0f} out on average",
            flush=True,
        )
        print_parts(model, 4 if options.tiny else 128)
        release_memory()
        for variant in VARIANTS:
            if options.only in variant.name and not (options.tiny and variant.needs_gpu):
                figures.append(measure(shape, model, variant, prompts))
        del model
        release_memory()
    print_table(figures)


def random_model(config: PreTrainedConfig, device: str) -> PreTrainedModel:
    """fp16 on a GPU; on a CPU a small one of the same architecture, in fp32."""
    torch.manual_seed(0)
    if device == "cpu":
        config = type(config)(**config.to_dict() | TINY | {"num_key_value_heads": 1, "head_dim": 16})
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16 if device == "cuda" else torch.float32)
    model.eval()
    weight = model.model.norm.weight
    scale = PEAKED / (config.initializer_range * config.hidden_size**0.5)
    torch.nn.init.constant_(weight, scale - 1 if config.model_type == "gemma" else scale)  # Gemma's is 1 + weight
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def make_prompts(vocabulary: int, count: int, longest: int) -> list[Prompt]:
    """Random tokens, log-normal lengths with means of 97 and 93 for a `longest` of 256."""
    random = numpy.random.default_rng(0)
    into, out = (log_normal(random, count, mean * longest / 256, longest) for mean in (97, 93))
    return [
        Prompt(random.integers(3, vocabulary, length).tolist(), answer)
        for length, answer in zip(into, out, strict=True)
    ]


def log_normal(random: numpy.random.Generator, count: int, mean: float, longest: int) -> list[int]:
    """`count` lengths of that mean after those above `longest` are cut to it; sigma 0.8."""
    shape = numpy.exp(0.8 * random.standard_normal(count))
    low, high = 0.0, 4 * mean
    for _ in range(40):  # bisection for the scale
        middle = (low + high) / 2
        low, high = (middle, high) if numpy.clip(middle * shape, 1, longest).mean() < mean else (low, middle)
    return [max(1, round(length)) for length in numpy.clip(low * shape, 1, longest)]


def measure(shape: str, model: PreTrainedModel, variant: Variant, prompts: list[Prompt]) -> Figure:
    some = prompts[: variant.prompts]
    cuda = model.device.type == "cuda"
    seconds, peak, error = [], 0.0, ""
    try:
        variant.run(model, some[:128] if variant.times > 1 else [p._replace(answer=min(p.answer, 16)) for p in some])
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(variant.times):
            synchronize(cuda)
            started = time.perf_counter()
            made = variant.run(model, some)
            synchronize(cuda)
            seconds.append(time.perf_counter() - started)
            expected = sum(prompt.answer for prompt in some)
            if made != expected:
                raise RuntimeError(f"{made} tokens came back, {expected} were asked for")
    except ERRORS as problem:  # the table names it, and the other variants still run
        error = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:100]}"
    if cuda:
        peak = torch.cuda.max_memory_allocated() / GIB
    torch._dynamo.reset()
    release_memory()
    rate = 0.0 if error else sum(prompt.answer for prompt in some) / statistics.median(seconds)
    figure = Figure(shape, variant.name, len(some), rate, peak, error)
    print(line(figure), flush=True)
    return figure


def synchronize(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def line(figure: Figure) -> str:
    result = f"{figure.rate:8.0f} tokens/s, peak {figure.peak:4.1f} GiB" if not figure.error else figure.error
    return f"  {figure.variant.ljust(55)} {figure.prompts:4} prompts {result}"


def print_table(figures: list[Figure]) -> None:
    """Ratios to the default before, and to the best variant that is not the project's own."""
    print("\n| shape | variant | prompts | useful tokens/s | × default before | × best other | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for shape in dict.fromkeys(figure.shape for figure in figures):
        of_shape = [figure for figure in figures if figure.shape == shape]
        before = next((figure.rate for figure in of_shape if "before" in figure.variant), 0.0)
        best = max((figure.rate for figure in of_shape if not figure.variant.startswith("slots")), default=0.0)
        for figure in of_shape:
            ratios = " | ".join(f"{figure.rate / base:.1f}" if base else "" for base in (before, best))
            result = f"{figure.rate:,.0f} | {ratios}" if not figure.error else f"{figure.error} | |"
            print(f"| {shape} | {figure.variant} | {figure.prompts} | {result} | {figure.peak:.1f} |")


# ---- the variants


def in_batches(model: PreTrainedModel, prompts: list[Prompt], size: int, static: bool = False) -> int:
    """`generate`, the longest prompts first, each batch until its longest answer has ended, with our draw."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].tokens))
    useful = 0
    for start in range(0, len(order), size):
        batch = [prompts[index] for index in order[start : start + size]]
        # the static cache is compiled for one shape, so all batches get it
        width = LONGEST if static else max(len(prompt.tokens) for prompt in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
            mask[row, width - len(prompt.tokens) :] = 1
        longest = max(prompt.answer for prompt in batch)
        keys = [str(index) for index in order[start : start + size]]
        options = {"max_new_tokens": longest}
        if static:
            options = {
                "max_new_tokens": LONGEST,
                "stopping_criteria": StoppingCriteriaList([EndsAt(width + longest)]),
                "cache_implementation": "static",
                "compile_config": CompileConfig(backend="cudagraphs"),
            }
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=False,
                logits_processor=LogitsProcessorList([GumbelNucleus(SAMPLING, keys, width)]),
                pad_token_id=0,
                **options,
            )
        useful += sum(min(prompt.answer, output.shape[1] - width) for prompt in batch)
    return useful


class EndsAt(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self._length, device=input_ids.device)


def continuously(model: PreTrainedModel, prompts: list[Prompt], sampled: bool, graphs: bool) -> int:
    """transformers' own continuous batching, with its own sampler. It sizes itself by the whole card unless told."""
    config = ContinuousBatchingConfig(
        num_blocks=320, max_batch_tokens=1024, use_cuda_graph=graphs, allow_block_sharing=False
    )
    sampler = {"temperature": SAMPLING.temperature, "top_k": 256, "top_p": SAMPLING.top_p} if sampled else {}
    generation = GenerationConfig(do_sample=sampled, eos_token_id=-1, pad_token_id=0, max_new_tokens=LONGEST, **sampler)
    attention, useful, left = model.config._attn_implementation, 0, len(prompts)
    try:
        with model.continuous_batching_context_manager(generation, continuous_batching_config=config) as manager:
            for prompt in prompts:
                manager.add_request(prompt.tokens, max_new_tokens=prompt.answer, eos_token_id=-1)
            deadline = time.monotonic() + 90
            while left:
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    left -= 1
                    useful += len(result.generated_tokens)
                elif not manager.is_running() or time.monotonic() > deadline:
                    raise RuntimeError(f"the manager left {left} of {len(prompts)} prompts unanswered")
    finally:
        model.set_attn_implementation(attention)
    return useful


def in_slots(model: PreTrainedModel, prompts: list[Prompt], slots: int, temperature: float = 0.7) -> int:
    sampling = SAMPLING.model_copy(update={"temperature": temperature})
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index].tokens))
    rows = deque(
        Row(
            index, prompts[index].tokens, row_key(0, str(index)), sampling.model_copy(update={"max_new_tokens": answer})
        )
        for index in order
        if (answer := prompts[index].answer)
    )
    return sum(len(tokens) for _, tokens in generate_rows(model, rows, [], slots))


# ---- where a step's time goes


def print_parts(model: PreTrainedModel, slots: int) -> None:
    """Milliseconds of the slot engine's parts, and whether the candidates are enough for the draw."""
    with torch.no_grad():
        fits = slots_that_fit(model.config, 2 * LONGEST, model.dtype, this_machine())
        engine = SlotEngine(model, [], slots, 2 * LONGEST)
        rows = deque(Row(index, list(range(3, LONGEST)), index, SAMPLING) for index in range(slots))
        engine._admit(rows)
        scores = engine._scores()
        enough = slots - int(draw(scores, *engine._state.draw_arguments()).short.sum())
        parts = {
            "a step": engine._step,
            "of it, the model": engine._scores,
            "of it, the draw": lambda: draw(scores, *engine._state.draw_arguments()),
        }
        times = {name: milliseconds(engine, name, part) for name, part in parts.items()}
        for width in (32, 128, LONGEST):
            size = min(1024 // width, 16, slots)
            mini_batch = partial(engine._prefill, list(range(size)), NO_OPENING, width, size)
            times[f"{size} prompts of {width}"] = milliseconds(engine, None, mini_batch)
    print("  ms: " + ", ".join(f"{name} {time:.2f}" for name, time in times.items()), flush=True)
    print(f"  {fits} slots planned for this memory; 256 candidates were enough in {enough} of {slots} rows", flush=True)


def milliseconds(engine: SlotEngine, name: str | None, part: Callable[[], None], times: int = 20) -> float:
    """Of one call, as a graph; name None: the part captures itself."""

    def call() -> None:
        part() if name is None else engine._graphs.call(name, part)

    cuda = engine._graphs.capture
    for _ in range(3):
        call()
    synchronize(cuda)
    started = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(cuda)
    return 1000 * (time.perf_counter() - started) / times


if __name__ == "__main__":
    main()
