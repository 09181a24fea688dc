"""Requests under way at a language model that is loaded here: in slots where it can, else in batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cai_helpers.machine.hardware import this_machine
from cai_helpers.models.batches import in_batches
from cai_helpers.models.generator import Answered, Request
from cai_helpers.models.row import NO_OPENING, Opening, Row
from cai_helpers.models.sampling import FiniteScores, GumbelNucleus, row_key
from cai_helpers.models.slots import MOST_SLOTS, Slots, slots_that_fit
from cai_helpers.schema import Completion, Message, Messages

if TYPE_CHECKING:
    from cai_helpers.models.language import LanguageModel

_LEAST_OPENING = 32  # tokens: prompts are padded to a multiple of it, so that a shorter one saves nothing


class SlotSession:
    """In slots (engine.py); on a GPU as many as its memory holds, elsewhere `batch_size`."""

    def __init__(self, language: LanguageModel, batch_size: int) -> None:
        self._language = language
        self._on_gpu = language.model.device.type == "cuda"
        self._batch_size = batch_size
        self._slots = Slots(
            language.model, language.format.ends, self._most_slots, language.remember_batch, language.longest_row
        )
        self._requests: dict[int, Request] = {}  # under way, by the number of their row
        self._added = 0
        self._openings: dict[str, Opening] = {}

    def add(self, requests: Iterable[Request]) -> None:
        requests = list(requests)
        texts = [self._language.render(request.chat) for request in requests]
        for request, prompt in zip(requests, self._tokens(texts), strict=True):
            key = row_key(request.sampling.seed, request.key)
            row = Row(self._added, prompt, key, request.sampling, self._opening(request.opening, prompt))
            self._requests[self._added] = request
            self._slots.waiting.append(row)
            self._added += 1

    @property
    def unfinished(self) -> int:
        return self._slots.unfinished

    @property
    def room(self) -> int:
        """Half as many as there are slots wait: enough to choose prompts of one length from, and to fill what empties."""
        most = self._slots.most or (MOST_SLOTS if self._on_gpu else self._batch_size)
        return most + most // 2 - self.unfinished

    def step(self, wait: bool) -> list[Answered]:
        ended = self._slots.step()
        return [(self._requests.pop(row.number), self._language.format.completion(tokens)) for row, tokens in ended]

    def close(self) -> None:
        self._language.longest_row = self._slots.capacity
        self._slots.close()

    def _most_slots(self, capacity: int, held: int) -> int:
        model, most = self._language.model, self._batch_size
        if self._on_gpu:
            most = slots_that_fit(model.config, capacity, model.dtype, this_machine(), held)
        return min(most, self._language.largest_batch or most)

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self._language.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _opening(self, opening: Messages, prompt: list[int]) -> Opening:
        """The tokens of `opening`, if `prompt` begins with them.

        Two chats that go on from it in different words have them in common. Where a tokenizer joins the last of them with
        what follows in this prompt, the prompt is read whole: which it is depends on the row alone.
        """
        name = repr(opening)
        if name not in self._openings:
            *turns, last = opening
            going_on = [[*turns, Message(role=last["role"], content=last["content"] + more)] for more in ("Why?", "1")]
            one, other = self._tokens([self._language.render(chat) for chat in going_on])
            same = next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
            self._openings[name] = Opening(tuple(one[:same])) if same >= _LEAST_OPENING else NO_OPENING
        shared = self._openings[name]
        fits = len(shared) < len(prompt) and tuple(prompt[: len(shared)]) == shared.tokens
        return shared if fits else NO_OPENING


class BatchSession:
    """In batches of transformers' `generate`, each until its longest row has ended. Running out of memory halves them."""

    def __init__(self, language: LanguageModel, batch_size: int) -> None:
        self._language = language
        self._batch_size = batch_size
        self._waiting: list[tuple[Request, str]] = []  # with its rendered chat

    def add(self, requests: Iterable[Request]) -> None:
        self._waiting += [(request, self._language.render(request.chat)) for request in requests]

    @property
    def unfinished(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        return 2 * self._batch_size - len(self._waiting)

    def step(self, wait: bool) -> list[Answered]:
        """One batch of requests of one kind: of that which most wait for, the longest."""
        if not self._waiting:
            return []
        kinds: dict[object, list[tuple[Request, str]]] = {}
        for request, text in sorted(self._waiting, key=lambda item: -len(item[1])):
            kinds.setdefault(request.sampling, []).append((request, text))
        size = min(self._batch_size, self._language.largest_batch or self._batch_size)
        batch = max(kinds.values(), key=lambda kind: min(len(kind), size))[:size]
        indices, completions = next(
            in_batches(list(range(len(batch))), size, lambda rows: self._complete([batch[row] for row in rows]),
                       self._language.remember_batch)
        )  # fmt: skip
        answered = {id(batch[index][0]) for index in indices}
        self._waiting = [item for item in self._waiting if id(item[0]) not in answered]
        return [(batch[index][0], completion) for index, completion in zip(indices, completions, strict=True)]

    def close(self) -> None:
        self._waiting.clear()

    def _complete(self, batch: list[tuple[Request, str]]) -> list[Completion]:
        import torch
        from transformers import LogitsProcessorList

        language, sampling = self._language, batch[0][0].sampling
        tokenizer, model = language.tokenizer, language.model
        # left padding: generation continues from the last token; the template has written <bos> already
        tokenizer.padding_side = "left"
        texts = [text for _, text in batch]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        length = inputs["input_ids"].shape[1]
        finite = FiniteScores()
        keys = [request.key for request, _ in batch]
        draws = [GumbelNucleus(sampling, keys, length)] if sampling.temperature > 0 else []
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,  # GumbelNucleus draws
                logits_processor=LogitsProcessorList([finite, *draws]),
                eos_token_id=language.format.ends,
                pad_token_id=tokenizer.pad_token_id,
            )
        finite.require(model)
        return [language.format.completion(row) for row in output[:, length:].tolist()]
