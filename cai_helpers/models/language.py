"""Language models: where they come from, how they are loaded, and the Generator seam."""

from __future__ import annotations

import gc
import hashlib
import importlib
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tqdm.auto import tqdm

from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import choose_dtype, this_machine, torch_dtype
from cai_helpers.schema import Completion, Messages
from cai_helpers.settings import Models

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cai_helpers.models.sampling import Sampling

EMBEDDED = "embedded:"
_HASHED_WHOLE = 256 * 1024**2  # bytes; larger weight files count by name and size
STAGE2, STAGE3 = "stage2", "stage3"  # adapter names on the one base model, for inference


class Generator(Protocol):
    def generate(
        self, chats: list[Messages], sampling: Sampling, keys: list[str], batch_size: int
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index into `chats`, completion) as rows finish; a row that failed for now is left out.

        keys: one a chat; they name the rows' randomness.
        """


class LanguageModel:
    """A causal language model on its device, with its tokenizer: the real Generator."""

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self._said_batches = False
        self._largest_batch: int | None = None  # known to fit, once memory has run out

    def generate(
        self, chats: list[Messages], sampling: Sampling, keys: list[str], batch_size: int
    ) -> Iterator[tuple[int, Completion]]:
        """Longest prompts first, so that running out of memory shows at once; the batch is halved then and stays so.

        In slots (engine.py) where the model can, which on a GPU are as many as fit; else in batches.
        """
        from cai_helpers.models.slot_cache import why_no_slots

        texts = [self.render(chat) for chat in chats]
        if chats and (reason := why_no_slots(self.model)) is None:
            yield from self._in_slots(texts, sampling, keys, batch_size)
            return
        if chats and not self._said_batches:
            tqdm.write(f"generation: in batches, because this model {reason}")
            self._said_batches = True
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        size = min(batch_size, self._largest_batch or batch_size)

        def complete(rows: list[int]) -> list[Completion]:
            return self._batch([texts[i] for i in rows], sampling, [keys[i] for i in rows])

        for indices, completions in in_batches(order, size, complete, self._remember_batch):
            yield from zip(indices, completions, strict=True)

    def _in_slots(
        self, texts: list[str], sampling: Sampling, keys: list[str], batch_size: int
    ) -> Iterator[tuple[int, Completion]]:
        from cai_helpers.models.engine import Row, generate_rows, slots_that_fit
        from cai_helpers.models.sampling import row_key

        prompts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: -len(prompts[index]))
        rows = deque(Row(index, prompts[index], row_key(sampling.seed, keys[index]), sampling) for index in order)
        slots = batch_size
        if self.model.device.type == "cuda":
            slots = slots_that_fit(self.model.config, rows[0].length, self.model.dtype, this_machine())
        slots = min(slots, self._largest_batch or slots)
        for row, tokens in generate_rows(self.model, rows, self._ends(), slots, self._remember_batch):
            yield row.index, self._completion(tokens)

    def _remember_batch(self, size: int) -> None:
        self._largest_batch = size

    def render(self, chat: Messages) -> str:
        return self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    def count_tokens(self, chat: Messages) -> int:
        return len(self.tokenizer(self.render(chat), add_special_tokens=False)["input_ids"])

    def _batch(self, texts: list[str], sampling: Sampling, keys: list[str]) -> list[Completion]:
        import torch
        from transformers import LogitsProcessorList

        from cai_helpers.models.sampling import GumbelNucleus

        # left padding: generation continues from the last token; the template has written <bos> already
        self.tokenizer.padding_side = "left"
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        batch = batch.to(self.model.device)
        length = batch["input_ids"].shape[1]
        draws = [GumbelNucleus(sampling, keys, length)] if sampling.temperature > 0 else []
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,  # GumbelNucleus draws
                logits_processor=LogitsProcessorList(draws),
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return [self._completion(row) for row in output[:, length:].tolist()]

    def _ends(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends])

    def _completion(self, tokens: list[int]) -> Completion:
        stop = next((place for place, token in enumerate(tokens) if token in self._ends()), None)
        kept = tokens if stop is None else tokens[:stop]
        text = self.tokenizer.decode(kept, skip_special_tokens=True).strip()
        return Completion(text=text, tokens=len(kept) + (stop is not None), finish="length" if stop is None else "stop")


def in_batches(
    indices: list[int],
    batch_size: int,
    work: Callable[[list[int]], list],
    on_halved: Callable[[int], None] = lambda size: None,
) -> Iterator[tuple[list[int], list]]:
    """Yield (indices, work(indices)) in batches; on out-of-memory halve the batch, keep it so, and go on.

    Raises:
        CaiError: a single row does not fit.
    """
    start = 0
    while start < len(indices):
        rows = indices[start : start + batch_size]
        result = None
        try:
            result = work(rows)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if result is None:  # outside `except`: there the traceback would still hold the tensors
            if len(rows) == 1:
                raise CaiError(
                    "One single row does not fit into the accelerator's memory.",
                    "Lower prompts.max_tokens, restart the runtime so that nothing else holds memory, or take a larger card.",
                )
            batch_size = len(rows) // 2
            on_halved(batch_size)
            release_memory()
            continue
        yield rows, result
        start += len(rows)


def is_out_of_memory(error: RuntimeError) -> bool:
    """cuBLAS and the CUDA driver report it in words of their own, not as OutOfMemoryError."""
    text = str(error)
    return any(sign in text for sign in ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory"))


def release_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def accepts_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template knows a system role; Gemma's raises."""
    from jinja2 import TemplateError

    try:
        tokenizer.apply_chat_template(
            [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], tokenize=False
        )
    except TemplateError:
        return False
    return True


def fold_system(chat: Messages) -> Messages:
    """A system turn put in front of the first user turn, for templates without a system role."""
    if not chat or chat[0]["role"] != "system":
        return chat
    first = {"role": "user", "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}
    return [first, *chat[2:]]


def locate(name: str) -> str:
    """A Hub id or folder as it is; "embedded:chat" as the folder inside the package."""
    if not name.startswith(EMBEDDED):
        return name
    return str(resources.files("cai_helpers") / "assets" / "tiny" / name.removeprefix(EMBEDDED))


def identity(name: str | None) -> str | None:
    """What `name` stands for: a Hub id as it is; a folder by the hash of its files, so that retraining shows."""
    if name is None or not (folder := Path(locate(name))).is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        if file.stat().st_size < _HASHED_WHOLE:
            digest.update(file.read_bytes())
    return f"{name} ({digest.hexdigest()[:12]})"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = from_hub(lambda: AutoTokenizer.from_pretrained(locate(name)), name)
    if tokenizer.chat_template is None:
        raise CaiError(f"{name} has no chat template.", "Take an instruct model, such as google/gemma-2b-it.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(models: Models) -> PreTrainedModel:
    """The base model on this machine's device, in the precision `hardware.choose_dtype` picks."""
    from transformers import AutoModelForCausalLM

    machine = this_machine()
    dtype = torch_dtype(choose_dtype(models.dtype, machine))
    model = from_hub(
        lambda: AutoModelForCausalLM.from_pretrained(locate(models.base), dtype=dtype, attn_implementation="sdpa"),
        models.base,
    )
    return model.to(machine.device)


def load_stage2(models: Models, merged: bool = False) -> LanguageModel:
    """The policy Stage 3 starts from: the base with the Stage-2 adapter, or the base alone if there is none.

    merged: fold the adapter into the weights, which generates faster; in fp16 that moves logits by about 2e-3.
    """
    model = load_base(models)
    if models.adapter is not None:
        model = attach_adapter(model, models.adapter, STAGE2)
        if merged:
            model = model.merge_and_unload()
    return LanguageModel(model, load_tokenizer(models.base))


def attach_adapter(model: PreTrainedModel, name: str, adapter_name: str, trainable: bool = False) -> PeftModel:
    """Put the LoRA adapter at `name` on `model` under `adapter_name`.

    Raises:
        CaiError: it is no adapter, or was made for a model of another shape.
    """
    from peft import PeftModel

    try:
        return from_hub(
            lambda: PeftModel.from_pretrained(model, locate(name), adapter_name=adapter_name, is_trainable=trainable),
            name,
        )
    except (RuntimeError, ValueError) as error:
        raise CaiError(
            f"The adapter {name} does not fit the base model: {str(error).splitlines()[0]}",
            "Set models.base to the model that the adapter was trained on (base_model_name_or_path in adapter_config.json).",
        ) from error


def from_hub(load: Callable, name: str):
    """Call `load`; turn what the Hub and the disk answer into an error that says what to do.

    transformers wraps the Hub's errors in OSError, so the cause is looked at as well.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        with warnings.catch_warnings():
            # transformers warns of a name that peft still uses; the user can do nothing about it
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            return load()
    except (OSError, ValueError, transport_error()) as error:
        chain = [error, error.__cause__, error.__context__]
        if any(isinstance(link, GatedRepoError) for link in chain):  # a subclass of RepositoryNotFoundError: first
            raise CaiError(
                f"{name} is gated: its licence must be accepted once.",
                f"Open https://huggingface.co/{name}, accept, and set HF_TOKEN to a token of that account.",
            ) from error
        if any(isinstance(link, RepositoryNotFoundError) for link in chain):
            raise CaiError(
                f"{name} is not on the Hub, or is private.", "Check the name; for a private one set HF_TOKEN."
            ) from error
        if not isinstance(error, ValueError) or any(isinstance(link, HfHubHTTPError) for link in chain):
            raise CaiError(
                f"{name} could not be loaded: {str(error).splitlines()[0]}",
                "Check the name or path, and that this machine reaches the Hub.",
            ) from error
        raise


def transport_error() -> type[Exception]:
    """The connection error of the HTTP library that huggingface_hub uses: httpx, or httpx2 from its version 2 on."""
    from huggingface_hub import get_session

    library = type(get_session()).__module__.partition(".")[0]
    return importlib.import_module(library).TransportError
