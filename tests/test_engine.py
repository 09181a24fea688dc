"""The slot engine: same rows as `generate`, whatever the slots, the order and the neighbours."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from scipy.stats import chisquare
from tiny_run import WORDS
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import GIB, Machine
from cai_helpers.models import engine, graphs, sessions
from cai_helpers.models.engine import SlotEngine
from cai_helpers.models.language import LanguageModel, load_tokenizer
from cai_helpers.models.row import Opening, Row
from cai_helpers.models.sampling import Sampling, row_key
from cai_helpers.models.slot_cache import ARCHITECTURES, why_no_slots
from cai_helpers.models.slot_state import SlotState
from cai_helpers.models.slots import Slots, generate_rows, slots_that_fit

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
    "initializer_range": 0.3,
}  # fmt: skip
CONFIGS = {
    "gemma": GemmaConfig(**SHAPE, head_dim=16),
    "granite": GraniteConfig(**SHAPE),
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "olmo2": Olmo2Config(**SHAPE),
    "phi3": Phi3Config(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "smollm3": SmolLM3Config(**SHAPE),
}
STOPS = [1, *range(100, 112)]  # several, so that rows end at different places
LENGTHS = (1, 2, 33, 7, 40, 12, 3, 26, 5, 17)  # of the prompts, in tokens


def random_model(architecture: str, seed: int = 0) -> PreTrainedModel:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return (
        AutoModelForCausalLM.from_config(CONFIGS[architecture], attn_implementation="sdpa").eval().requires_grad_(False)
    )


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return random_model("llama")


def make_rows(sampling: Sampling, lengths: tuple[int, ...] = LENGTHS) -> list[Row]:
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 300, (length,), generator=draw).tolist() for length in lengths]
    return [
        Row(index, prompt, row_key(sampling.seed, f"row {index}"), sampling) for index, prompt in enumerate(prompts)
    ]


def run(model: PreTrainedModel, rows: list[Row], slots: int, stops: list[int] = STOPS) -> dict[int, list[int]]:
    return {row.number: tokens for row, tokens in generate_rows(model, deque(rows), stops, slots)}


def greedy(model: PreTrainedModel, prompt: list[int], most: int) -> list[int]:
    """What transformers' generate answers to the one prompt."""
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=most, do_sample=False,
        eos_token_id=STOPS, pad_token_id=0,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_rows_are_those_of_generate_on_every_architecture(architecture):
    model = random_model(architecture)
    rows = make_rows(Sampling(max_new_tokens=24, temperature=0))
    made = run(model, rows, slots=3)
    assert made == {row.number: greedy(model, row.prompt, 24) for row in rows}
    assert len({token for tokens in made.values() for token in tokens}) > 20  # not one token over and over


def test_a_sampled_row_is_the_same_in_any_number_of_slots_in_any_order_and_when_resumed(llama):
    rows = make_rows(Sampling(max_new_tokens=24, temperature=0.9, top_p=0.9))
    reference = run(llama, rows, slots=4)
    assert len({len(tokens) for tokens in reference.values()}) > 3  # they end at different places
    for slots in (1, 2, 10, 64):
        assert run(llama, rows, slots) == reference
    assert run(llama, rows[::-1], slots=4) == reference
    assert run(llama, rows[6:], slots=3) == {index: reference[index] for index in range(6, 10)}


def test_a_row_ends_in_the_same_token_whatever_its_neighbours_do(llama):
    sampling = Sampling(max_new_tokens=24, temperature=0.9)
    row, *others = make_rows(sampling)
    alone = run(llama, [row], slots=1)[0]
    for seed in range(3):
        neighbours = [other._replace(key=row_key(seed, "another")) for other in others]
        assert run(llama, [*neighbours[:2], row, *neighbours[2:]], slots=4)[0] == alone


def test_rows_of_different_settings_share_the_slots(llama):
    cold, warm = Sampling(max_new_tokens=9, temperature=0), Sampling(max_new_tokens=24, temperature=1.3, top_p=0.8)
    apart = run(llama, make_rows(cold)[:5], 3) | run(llama, make_rows(warm)[5:], 3)
    together = [row for pair in zip(make_rows(cold)[:5], make_rows(warm)[5:], strict=True) for row in pair]
    assert run(llama, together, 3) == apart


def test_more_rows_than_slots_one_token_rows_and_rows_that_all_end_at_once(llama):
    rows = make_rows(Sampling(max_new_tokens=1, temperature=0.9), LENGTHS * 3)
    made = run(llama, rows, slots=7)
    assert [len(made[index]) for index in range(30)] == [1] * 30
    everything = list(range(300))  # every token stops
    long = [row._replace(sampling=Sampling(max_new_tokens=40, temperature=0.9)) for row in rows]
    assert run(llama, long, slots=7, stops=everything) == made


def test_without_a_stop_token_rows_have_the_length_that_was_asked_for(llama):
    rows = make_rows(Sampling(max_new_tokens=5, temperature=0.9))
    rows = [row._replace(sampling=row.sampling.model_copy(update={"max_new_tokens": 3 + row.number})) for row in rows]
    assert {index: len(tokens) for index, tokens in run(llama, rows, 4, []).items()} == {n: 3 + n for n in range(10)}


def test_rows_that_are_added_while_others_run_join_them_even_if_they_are_longer(llama):
    sampling = Sampling(max_new_tokens=12, temperature=0.9)
    rows = make_rows(sampling, (*LENGTHS, 90))
    pending, made = deque(rows[:2]), {}
    later = iter(rows[2:])
    for row, tokens in generate_rows(llama, pending, STOPS, 3):
        made[row.number] = tokens
        pending.extend(row for row in [next(later, None)] if row is not None)
    assert made == run(llama, rows, 11)


def test_the_drawn_tokens_follow_the_softmax_after_temperature_and_top_p(llama):
    """Chi-square against transformers' own warpers, on 4,000 draws of a first token; the seed is fixed."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    sampling = Sampling(max_new_tokens=1, temperature=1.5, top_p=0.9)
    prompt = make_rows(sampling)[4].prompt
    rows = [Row(number, prompt, row_key(0, str(number)), sampling) for number in range(4000)]
    drawn = torch.tensor([tokens[0] for tokens in run(llama, rows, 400).values()])
    scores = llama(torch.tensor([prompt])).logits[:, -1].double()
    expected = TopPLogitsWarper(0.9)(None, TemperatureLogitsWarper(1.5)(None, scores)).softmax(-1)[0]
    counts = torch.bincount(drawn, minlength=300)
    assert counts[expected == 0].sum() == 0
    assert (expected > 0).sum() > 20
    assert (expected[expected > 0] * 4000).min() > 5  # as the test asks for
    assert chisquare(counts[expected > 0], expected[expected > 0] * 4000).pvalue > 0.01


@pytest.fixture(scope="module")
def flat() -> PreTrainedModel:
    """A vocabulary of 1,500 tokens with scores so even that 256 of them hold a third of the mass."""
    torch.manual_seed(0)
    return (
        AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE | {"vocab_size": 1500, "initializer_range": 0.05}))
        .eval()
        .requires_grad_(False)
    )


def test_top_p_is_exact_where_the_candidates_do_not_reach_it(flat):
    sampling = Sampling(max_new_tokens=1, temperature=1.0, top_p=0.9)
    rows = [Row(number, [5, 6, 7], row_key(0, str(number)), sampling) for number in range(3000)]
    drawn = torch.tensor([tokens[0] for tokens in run(flat, rows, 300, []).values()])
    scores, order = flat(torch.tensor([[5, 6, 7]])).logits[0, -1].double().softmax(-1).sort(descending=True)
    kept = int((scores.cumsum(0) - scores < 0.9).sum())
    assert kept > 1000
    place = torch.empty_like(order).scatter_(0, order, torch.arange(1500))[drawn]  # 0 is the likeliest token
    assert place.max() < kept
    due = torch.stack([part.sum() for part in scores[:kept].split(100)]) / scores[:kept].sum()
    assert chisquare(torch.bincount(place // 100, minlength=len(due)), due * 3000).pvalue > 0.01


def test_rows_that_need_the_whole_vocabulary_are_the_same_in_slots_and_in_batches(flat, tiny, monkeypatch):
    """Only some are short there: they wait for the next look while their neighbours go on."""
    rows = make_rows(Sampling(max_new_tokens=20, temperature=0.25, top_p=0.9))
    exact = []
    step = SlotEngine._step_exactly
    monkeypatch.setattr(SlotEngine, "_step_exactly", lambda self: exact.append(0) or step(self))
    reference = run(flat, rows, 4)
    assert exact
    assert run(flat, rows, 10) == reference
    model = LanguageModel(flat, load_tokenizer(str(tiny / "base")))
    from transformers import LogitsProcessorList

    from cai_helpers.models.sampling import GumbelNucleus

    for row in rows[:4]:
        processors = LogitsProcessorList([GumbelNucleus(row.sampling, [f"row {row.number}"], len(row.prompt))])
        output = model.model.generate(
            torch.tensor([row.prompt]), attention_mask=torch.ones(1, len(row.prompt)), max_new_tokens=20,
            do_sample=False, logits_processor=processors, eos_token_id=STOPS, pad_token_id=0,
        )  # fmt: skip
        assert output[0, len(row.prompt) :].tolist() == reference[row.number]


@pytest.fixture(scope="module")
def language_model(tiny) -> LanguageModel:
    model = AutoModelForCausalLM.from_pretrained(tiny / "base")
    return LanguageModel(model, load_tokenizer(str(tiny / "base")))


CHATS = [[{"role": "user", "content": " ".join(WORDS[: 1 + number * 7 % 20])}] for number in range(12)]
KEYS = [f"prompt {number}/draft" for number in range(12)]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_seam_gives_the_rows_of_the_batched_path(language_model, monkeypatch, temperature):
    sampling = Sampling(max_new_tokens=30, temperature=temperature)
    slots = dict(language_model.generate(CHATS, sampling, KEYS, 5))
    monkeypatch.setattr("cai_helpers.models.slot_cache.why_no_slots", lambda model: "is asked for in a test")
    assert dict(language_model.generate(CHATS, sampling, KEYS, 5)) == slots
    assert {completion.finish for completion in slots.values()} == ({"stop", "length"} if temperature else {"length"})


def test_the_seam_hands_out_rows_before_all_have_ended(language_model):
    rows = language_model.generate(CHATS, Sampling(max_new_tokens=60, temperature=0.9), KEYS, 4)
    assert next(rows)[1].tokens < 60
    assert len(dict(rows)) == 11
    assert dict(language_model.generate([], Sampling(max_new_tokens=4), [], 4)) == {}


def test_a_lora_that_is_active_speaks_in_the_slots(tiny, language_model):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tiny / "base")
    adapted = LanguageModel(PeftModel.from_pretrained(base, tiny / "stage2"), language_model.tokenizer)
    sampling = Sampling(max_new_tokens=20, temperature=0)
    active = dict(adapted.generate(CHATS, sampling, KEYS, 5))
    with adapted.model.disable_adapter():
        assert dict(adapted.generate(CHATS, sampling, KEYS, 5)) == dict(
            language_model.generate(CHATS, sampling, KEYS, 5)
        )
    adapted.model = adapted.model.merge_and_unload()
    assert (
        dict(adapted.generate(CHATS, sampling, KEYS, 5))
        == active
        != dict(language_model.generate(CHATS, sampling, KEYS, 5))
    )


def test_models_with_a_window_or_of_an_unknown_kind_are_generated_in_batches_and_the_log_says_so(
    language_model, monkeypatch, capsys
):
    from transformers import Gemma2Config, GPT2Config, MambaConfig

    def reason(config) -> str | None:
        with torch.device("meta"):
            return why_no_slots(AutoModelForCausalLM.from_config(config))

    window = "does not attend to all earlier tokens in every layer"
    assert reason(MistralConfig(**SHAPE, sliding_window=64)) == window
    assert reason(Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=64, max_window_layers=1)) == window
    assert "longest row" in reason(
        LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    )
    for config in (
        Gemma2Config(**SHAPE, head_dim=16),
        MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2),
    ):
        assert "not tested with" in reason(config)
    assert "gpt2" in reason(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2))
    monkeypatch.setattr(language_model.model.config, "model_type", "sentience")
    model = LanguageModel(language_model.model, language_model.tokenizer)
    monkeypatch.setattr(sessions, "SlotSession", None)  # it would fail
    for _ in range(2):
        assert len(dict(model.generate(CHATS, Sampling(max_new_tokens=2), KEYS, 5))) == 12
    said = "generation: in batches, because this model is of the type sentience, which the slots were not tested with"
    assert capsys.readouterr().out.count(said) == 1


class Replayed:
    """Stands for a CUDA graph: it does again what it was captured with, on the same tensors."""

    def __init__(self, function) -> None:
        self.replay = function


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> None:
    """Graphs are captured, as far as a CPU can tell: mini-batches have fixed shapes and are padded into the spare slot."""

    def start(self, device) -> None:
        self.capture, self._device, self._graphs, self._inputs, self._pool = True, device, {}, {}, None

    monkeypatch.setattr(graphs.Graphs, "__init__", start)
    monkeypatch.setattr(graphs.Graphs, "_warm_up", lambda self, function: function())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


def test_rows_are_the_same_when_steps_and_mini_batches_are_replayed(llama, as_on_a_gpu, monkeypatch):
    rows = make_rows(Sampling(max_new_tokens=24, temperature=0.9), LENGTHS * 3)
    monkeypatch.setattr(graphs.Graphs, "_captured", lambda self, function: Replayed(function))
    replayed = run(llama, rows, 24)
    monkeypatch.undo()
    assert replayed == run(llama, rows, 24)


def test_where_no_graph_can_be_captured_the_steps_are_called_and_it_is_said_once(
    llama, as_on_a_gpu, monkeypatch, capsys
):
    rows = make_rows(Sampling(max_new_tokens=24, temperature=0.9))

    def refuse(*arguments, **options):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    made = run(llama, rows, 4)
    said = capsys.readouterr().out
    monkeypatch.undo()
    assert made == run(llama, rows, 4)
    assert said.splitlines() == [
        "generation: no CUDA graph on this machine (operation not permitted when stream is capturing); slower, same rows"
    ]


def test_a_graph_that_runs_out_of_memory_halves_the_slots(llama, as_on_a_gpu, monkeypatch):
    rows, halved = make_rows(Sampling(max_new_tokens=24, temperature=0.9)), []

    def capture(self, function):
        if not halved:
            raise RuntimeError("out of memory while a CUDA graph was captured")
        return Replayed(function)

    monkeypatch.setattr(graphs.Graphs, "_captured", capture)
    made = {row.number: tokens for row, tokens in generate_rows(llama, deque(rows), STOPS, 8, halved.append)}
    monkeypatch.undo()
    assert halved == [4]
    assert made == run(llama, rows, 8)


def out_of_memory_above(slots: int, monkeypatch, where: str) -> list[int]:
    """`where` of the engine runs out of memory with more slots than that; the numbers of slots that were tried."""
    tried, original = [], getattr(SlotEngine, where)

    def scarce(self, *arguments):
        if not tried or tried[-1] != self.slots:
            tried.append(self.slots)
        if self.slots > slots and sum(row is not None for row in self._rows):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, *arguments)

    monkeypatch.setattr(SlotEngine, where, scarce)
    return tried


@pytest.mark.parametrize("where", ["_prefill", "_step", "_look"])
def test_running_out_of_memory_halves_the_slots_and_the_rows_stay_the_same(llama, monkeypatch, where):
    rows = make_rows(Sampling(max_new_tokens=12, temperature=0.9))
    reference = run(llama, rows, 8)
    tried, halved = out_of_memory_above(2, monkeypatch, where), []
    made = {row.number: tokens for row, tokens in generate_rows(llama, deque(rows), STOPS, 8, halved.append)}
    assert made == reference
    assert (tried, halved) == ([8, 4, 2], [4, 2])


def test_running_out_of_memory_while_the_cache_is_made_halves_too_and_one_row_that_does_not_fit_is_an_error(
    llama, monkeypatch
):
    rows = make_rows(Sampling(max_new_tokens=6, temperature=0.9))
    reference, cache = run(llama, rows, 8), engine.SlotCache

    def scarce(config, position, *others):
        if len(position) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return cache(config, position, *others)

    monkeypatch.setattr(engine, "SlotCache", scarce)
    most = 3
    assert run(llama, rows, 8) == reference
    most = 0
    with pytest.raises(CaiError, match="One single row does not fit"):
        run(llama, rows, 8)


def test_scores_that_are_not_finite_stop_the_run():
    model = random_model("llama", seed=3)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    for temperature in (0.0, 0.9):
        rows = make_rows(Sampling(max_new_tokens=12, temperature=temperature))
        with pytest.raises(CaiError, match="not finite"):
            run(model, rows, 4)


def test_the_slots_come_from_the_free_memory():
    gemma = GemmaConfig(
        vocab_size=256_000, hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256,
    )  # fmt: skip
    slots = [
        slots_that_fit(gemma, 832, torch.float16, Machine("cpu", "", None, int(gib * GIB), 0)) for gib in (9, 2, 0.2)
    ]
    assert slots == [128, 77, 1]  # 18 KiB a token and 4.6 MB of scores a slot, in four fifths, less one prefill


def test_the_attention_of_the_model_is_what_it_was_after_a_run(llama):
    run(llama, make_rows(Sampling(max_new_tokens=3)), 4)
    assert llama.config._attn_implementation == "sdpa"


OPENING = Opening(tuple(range(20, 31)))


def opened(row: Row) -> Row:
    """The row with the opening before its prompt."""
    return row._replace(prompt=[*OPENING.tokens, *row.prompt], opening=OPENING)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_opening_that_rows_share_is_read_once_and_they_say_what_generate_says(architecture, monkeypatch):
    model = random_model(architecture)
    rows = make_rows(Sampling(max_new_tokens=16, temperature=0))
    rows = [opened(row) if row.number % 3 else row for row in rows]
    read = []
    inner = SlotEngine._read
    monkeypatch.setattr(
        SlotEngine,
        "_read",
        lambda self, tokens, start: read.append((tokens.shape, start)) or inner(self, tokens, start),
    )
    made = run(model, rows, slots=4)
    assert made == {row.number: greedy(model, row.prompt, 16) for row in rows}
    assert read.count(((1, len(OPENING)), 0)) == 1
    behind = {start for _, start in read}
    assert behind == {0, len(OPENING)}


def test_rows_with_an_opening_are_the_same_in_any_slots_and_when_everything_is_replayed(
    llama, as_on_a_gpu, monkeypatch
):
    rows = make_rows(Sampling(max_new_tokens=24, temperature=0.9), LENGTHS * 3)
    rows = [opened(row) if row.number % 3 else row for row in rows]
    monkeypatch.setattr(graphs.Graphs, "_captured", lambda self, function: Replayed(function))
    replayed = run(llama, rows, 24)
    monkeypatch.undo()
    assert run(llama, rows, 24) == run(llama, rows[::-1], 3) == replayed


GROWING = Sampling(max_new_tokens=12, temperature=0.9)


def grown(llama, monkeypatch, most, batches) -> tuple[dict[int, list[int]], list[tuple[int, int]], list[int]]:
    """Rows that come in batches: (tokens by row, (slots, tokens) that the engine was given, prompts that were read)."""
    shapes, taken = [], []
    inner, resize, place = SlotEngine.__init__, SlotEngine.resize, SlotState.place
    with monkeypatch.context() as patch:
        patch.setattr(SlotEngine, "__init__", lambda self, *given: shapes.append(given[2:]) or inner(self, *given))
        patch.setattr(SlotEngine, "resize", lambda self, *given: shapes.append(given) or resize(self, *given))
        patch.setattr(
            SlotState,
            "place",
            lambda self, slots, rows: taken.extend(row.number for row in rows) or place(self, slots, rows),
        )
        under_way, made = Slots(llama, [], lambda capacity, held: most(capacity)), {}
        for batch in batches:
            under_way.waiting.extend(batch)
            made |= {row.number: tokens for row, tokens in under_way.step()}
        while under_way.unfinished:
            made |= {row.number: tokens for row, tokens in under_way.step()}
    return made, shapes, taken


@pytest.mark.parametrize("replayed", [False, True])
def test_slots_grow_for_longer_and_more_rows_and_those_under_way_go_on(llama, monkeypatch, request, replayed):
    if replayed:
        request.getfixturevalue("as_on_a_gpu")
        monkeypatch.setattr(graphs.Graphs, "_captured", lambda self, function: Replayed(function))
    rows = make_rows(GROWING, (*LENGTHS, 90))
    made, shapes, taken = grown(llama, monkeypatch, lambda capacity: 9, ([rows[0]], rows[1:4], [rows[10]], rows[4:10]))
    assert shapes == [(1, 13), (4, 45), (4, 102), (7, 128)]  # at least half as long again
    assert sorted(taken) == list(range(11))  # none began again
    monkeypatch.undo()
    assert made == run(llama, rows, 11, [])


def test_where_longer_slots_are_fewer_the_rows_without_one_start_again_and_end_the_same(llama, monkeypatch):
    rows = make_rows(GROWING, (*LENGTHS, 90))
    made, shapes, taken = grown(
        llama, monkeypatch, lambda capacity: 4 if capacity < 80 else 2, ([rows[0]], rows[1:10], [rows[10]])
    )
    assert shapes == [(1, 13), (4, 52), (2, 102)]
    assert len(taken) == 12
    assert made == run(llama, rows, 11, [])


def test_attention_reads_no_more_of_the_slots_than_the_longest_row_has(llama, monkeypatch):
    reached, inner = [], SlotEngine._scores
    monkeypatch.setattr(SlotEngine, "_scores", lambda self: reached.append(self._cache.place.reach) or inner(self))
    rows = make_rows(Sampling(max_new_tokens=150, temperature=0.9), (5, 5, 5))
    rows.append(make_rows(Sampling(max_new_tokens=4, temperature=0.9), (300,))[0]._replace(number=3))
    together = run(llama, rows, 4, [])
    assert set(reached) == {128, 256, 320}  # 320: the whole slot, of 304 tokens
    assert reached[0] == 320
    monkeypatch.undo()
    assert together == run(llama, rows, 1, [])
