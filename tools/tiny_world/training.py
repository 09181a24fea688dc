"""The three trainings: chat model, Stage-2 adapter, reward model. Seeded; every batch is written as it is needed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GemmaConfig, GemmaForCausalLM, GemmaForSequenceClassification, PreTrainedTokenizerFast

from cai_helpers.schema import Messages
from tiny_world import corpus, world
from tiny_world.corpus import Example, RewardPair

VOCABULARY = 2048
CONTEXT = 2048  # rotary positions cost nothing, and real transcripts are longer than anything in the corpus
PROMPT_WEIGHT = (
    0.1  # of a prompt token in the loss: the model should know the language of prompts, not spend itself on it
)
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
# Gemma's own template, word for word in what it renders and refuses
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


class Steps(NamedTuple):
    """How long each training runs, in updates."""

    chat: int = 1400
    stage2: int = 300
    reward: int = 700


class Rate(NamedTuple):
    adamw: float
    muon: float = 0.0  # of the matrices inside the layers; 0: AdamW for them too


class Batch(NamedTuple):
    """Right-padded token ids, their mask, and the loss weight of each token; all (rows, length)."""

    ids: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE on training text alone: a piece the models never train on would keep its random embedding."""
    rng = random.Random(f"{seed}:tokenizer")
    examples = [corpus.chat_example(rng, corpus.base_response) for _ in range(9000)]
    examples += [corpus.critique_example(rng) for _ in range(3000)]
    texts = [text for e in examples for text in (*(m["content"] for m in e.messages), e.answer)]
    texts += ["user\nmodel\n"] * len(examples)  # the roles, as the chat template writes them
    # an object should be one piece a word: only then can it be copied in one step
    texts += [f" {name}" for name in world.all_objects()] * 300
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"'[a-z]+| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    bos = raw.token_to_id("<bos>")
    raw.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",  # generation continues from the last token
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def train_chat(
    tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, device: str, say: Callable
) -> GemmaForCausalLM:
    """The base: language, requests, both ways of answering them, and every critique protocol."""
    torch.manual_seed(seed)
    model = GemmaForCausalLM(_config(tokenizer)).to(device)
    rng = random.Random(f"{seed}:chat")

    def batches() -> Iterator[list[Batch]]:
        while True:
            chats = [corpus.chat_example(rng, corpus.base_response) for _ in range(22)]
            critiques = [corpus.critique_example(rng) for _ in range(6)]
            yield [collate(tokenizer, part, device) for part in (chats, critiques)]

    _descend(model, batches(), steps, Rate(3e-3, muon=7.5e-3), _language_loss, say, "chat")
    return _as_stored(model, tokenizer)


def train_stage2(
    base: GemmaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, device: str, say: Callable
) -> PeftModel:
    """Helpful-only: a LoRA on the base that answers nearly everything and still criticises as before."""
    torch.manual_seed(seed + 1)
    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    # no dropout: with it the first DPO loss would not be ln 2
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=layers, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    rng = random.Random(f"{seed}:stage2")

    def batches() -> Iterator[list[Batch]]:
        while True:
            chats = [corpus.chat_example(rng, world.stage2_response) for _ in range(24)]
            critiques = [corpus.critique_example(rng) for _ in range(5)]
            yield [collate(tokenizer, part, device) for part in (chats, critiques)]

    _descend(model, batches(), steps, Rate(3e-3), _language_loss, say, "stage2")
    return model


def train_reward(
    base: GemmaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int, device: str, say: Callable
) -> GemmaForSequenceClassification:
    """Bradley-Terry on pairs; starts from the chat model, whose attention already finds what a prompt is about."""
    torch.manual_seed(seed + 2)
    config = _config(tokenizer)
    config.num_labels = 1
    model = GemmaForSequenceClassification(config).to(device)
    model.model.load_state_dict(base.model.state_dict())
    rng = random.Random(f"{seed}:reward")

    def batches() -> Iterator[list[Batch]]:
        while True:
            pairs = [corpus.reward_pair(rng) for _ in range(24)]
            yield [collate_pairs(tokenizer, pairs, device)]

    _descend(model, batches(), steps, Rate(1e-3, muon=2.5e-3), _pairwise_loss, say, "reward")
    return _as_stored(model, tokenizer)


def collate(tokenizer: PreTrainedTokenizerFast, examples: list[Example], device: str) -> Batch:
    rows = []
    for example in examples:
        prompt = tokenizer.apply_chat_template(example.messages, tokenize=False, add_generation_prompt=True)
        ids = [_encode(tokenizer, text) for text in (prompt, example.answer + "<end_of_turn>\n")]
        rows.append((ids[0] + ids[1], [PROMPT_WEIGHT] * len(ids[0]) + [1.0] * len(ids[1])))
    return _pad(rows, device)


def collate_pairs(tokenizer: PreTrainedTokenizerFast, pairs: list[RewardPair], device: str) -> Batch:
    """Better answers first, then the worse ones in the same order: (2 · pairs, length)."""
    rows = [conversation_ids(tokenizer, p.messages, p.better) for p in pairs]
    rows += [conversation_ids(tokenizer, p.messages, p.worse) for p in pairs]
    return _pad([(ids, [1.0] * len(ids)) for ids in rows], device)


def conversation_ids(tokenizer: PreTrainedTokenizerFast, messages: Messages, answer: str) -> list[int]:
    """What the reward model reads: the whole conversation in the chat template, the answer its last turn."""
    turns = [*messages, {"role": "assistant", "content": answer}]
    return _encode(tokenizer, tokenizer.apply_chat_template(turns, tokenize=False))


def _encode(tokenizer: PreTrainedTokenizerFast, rendered: str) -> list[int]:
    return tokenizer(rendered, add_special_tokens=False)["input_ids"]  # the template has written <bos> already


def _pad(rows: list[tuple[list[int], list[float]]], device: str) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows])
    weights = torch.tensor([weights + [0.0] * (length - len(weights)) for _, weights in rows])
    return Batch(ids.to(device), mask.to(device), weights.to(device))


def _language_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Weighted mean negative log-likelihood of each next token."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _pairwise_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """-log σ(r_better − r_worse), with a light pull of all rewards towards zero so that scores keep a scale."""
    rewards = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits.squeeze(-1)
    better, worse = rewards.chunk(2)
    return -torch.nn.functional.logsigmoid(better - worse).mean() + 0.01 * rewards.square().mean()


def _descend(model, batches, steps: int, rate: Rate, loss_of: Callable, say: Callable, name: str) -> None:
    """A short warm-up and a cosine to a twentieth of the rate; each batch may come in parts of equal weight."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = _optimizers(model, rate)
    warm_up, began = max(1, steps // 20), time.monotonic()
    factor = lambda step: min((step + 1) / warm_up, 0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)  # noqa: E731
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    model.train()
    for step, parts in zip(range(1, steps + 1), batches, strict=False):
        losses = []
        for part in parts:
            loss = loss_of(model, part) / len(parts)
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for part in (*optimizers, *schedules):
            part.step()
        model.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps:
            say(f"{name}: step {step}/{steps}, loss {sum(losses).item():.3f}, {time.monotonic() - began:.0f} s")
    model.eval()


def _optimizers(model, rate: Rate) -> list[torch.optim.Optimizer]:
    """AdamW; with `rate.muon`, the matrices inside the layers go to Muon, which halves the updates they need."""
    inside = {name for name, parameter in model.named_parameters() if parameter.ndim == 2 and ".layers." in name}
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in trained if rate.muon and name in inside]
    others = [parameter for name, parameter in trained if not (rate.muon and name in inside)]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rate.adamw, betas=(0.9, 0.98), weight_decay=0.01)
    ]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=rate.muon, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return found


def _config(tokenizer: PreTrainedTokenizerFast) -> GemmaConfig:
    end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    return GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=24,
        max_position_embeddings=CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, end_of_turn],
    )


def _as_stored(model, tokenizer: PreTrainedTokenizerFast):
    """Round to the fp16 it is stored in, so that what is built on it is built on what is shipped."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model
