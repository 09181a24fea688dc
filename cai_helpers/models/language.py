"""Language models: loaded whole, on their device, behind the Generator seam."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_helpers import screen
from cai_helpers.errors import CaiError
from cai_helpers.machine.hardware import choose_dtype, this_machine, torch_dtype
from cai_helpers.models.chat_format import ChatFormat
from cai_helpers.models.flow import answers_of
from cai_helpers.models.generator import Generator, Session
from cai_helpers.models.hub import from_hub, locate
from cai_helpers.models.shapes import attends_by_matrix, config_of
from cai_helpers.models.whole_weights import require_whole, require_whole_adapter
from cai_helpers.schema import Completion, Messages
from cai_helpers.settings import Models

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cai_helpers.models.sampling import Sampling

_PORTION = 256  # prompts that keep the slots of a GPU full for a while
STAGE2, STAGE3 = "stage2", "stage3"  # adapter names on the one base model, for inference


def portion(generator: Generator, batch_size: int) -> int:
    """How many prompts show how fast many of them are made: on a GPU several times what its slots hold."""
    on_gpu = isinstance(generator, LanguageModel) and generator.model.device.type == "cuda"
    return max(batch_size, _PORTION) if on_gpu else batch_size


class LanguageModel:
    """A causal language model on its device, with its tokenizer: the real Generator."""

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.format = ChatFormat(tokenizer, model.generation_config)
        self.largest_batch: int | None = None  # known to fit, once memory has run out
        self.longest_row = 0  # tokens of a slot that sufficed so far
        self._said_batches = False

    def open(self, batch_size: int) -> Session:
        """In slots where the model can, which on a GPU are as many as fit; else in batches of `batch_size`."""
        from cai_helpers.models.sessions import BatchSession, SlotSession  # bring torch: late
        from cai_helpers.models.slot_cache import why_no_slots

        reason = why_no_slots(self.model)
        if reason is None:
            return SlotSession(self, batch_size)
        if not self._said_batches:
            screen.write(f"generation: in batches, because this model {reason}")
            self._said_batches = True
        return BatchSession(self, batch_size)

    def generate(
        self, chats: list[Messages], sampling: Sampling, keys: list[str], batch_size: int
    ) -> Iterator[tuple[int, Completion]]:
        """Longest prompts first, so that running out of memory shows at once; batch or slots are halved then and stay so."""
        order = sorted(range(len(chats)), key=lambda index: -len(self.render(chats[index])))
        return answers_of(self, ((index, chats[index]) for index in order), sampling, keys, batch_size)

    def remember_batch(self, size: int) -> None:
        self.largest_batch = size

    def render(self, chat: Messages) -> str:
        return self.format.render(chat)

    def count_tokens(self, chat: Messages) -> int:
        return self.format.count_tokens(chat)

    def notes(self) -> list[tuple[str, str]]:
        """What a person should know of the answers so far, as (what, figure)."""
        thoughts = self.format.thoughts
        cut = [("thinking aloud", f"cut out of {thoughts} answers")] if thoughts else []
        return [("how the model talks", self.format.line()), *cut]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = from_hub(lambda: AutoTokenizer.from_pretrained(locate(name), trust_remote_code=False), name)
    if tokenizer.chat_template is None:
        raise CaiError(f"{name} has no chat template.", "Take an instruct model, such as google/gemma-2b-it.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_chat_format(name: str) -> ChatFormat:
    """How the model in a folder talks, without its weights."""
    from transformers import GenerationConfig

    file = "generation_config.json" if (Path(locate(name)) / "generation_config.json").is_file() else "config.json"
    generation = from_hub(lambda: GenerationConfig.from_pretrained(locate(name), config_file_name=file), name)
    return ChatFormat(load_tokenizer(name), generation)


def load_base(models: Models, device: str | None = None) -> PreTrainedModel:
    """The base model on `device`, or on this machine's, in the precision `hardware.choose_dtype` picks."""
    from transformers import AutoModelForCausalLM

    machine = this_machine()
    dtype = torch_dtype(choose_dtype(models.dtype, machine))
    model = load_weights(AutoModelForCausalLM, models.base, dtype=dtype)
    # all that follows stops there: generation, training's check, what is written beside the trained adapter
    model.generation_config.eos_token_id = ChatFormat(load_tokenizer(models.base), model.generation_config).ends
    return model.to(device or machine.device)


def without_weights(name: str) -> PreTrainedModel:
    """The model that config.json describes, with all its layers and their shapes, and no memory behind them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = from_hub(lambda: AutoConfig.from_pretrained(locate(name), trust_remote_code=False), name)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def load_weights(auto_class: Any, name: str, classifier: bool = False, **options: Any) -> PreTrainedModel:
    """The model at `name` by one of transformers' Auto classes, whole, and without running code that came with it.

    Raises:
        CaiError: it cannot be loaded, needs code of its own, or its files lack a tensor or hold one too many.
    """
    if attends_by_matrix(config_of(name).config):
        options["attn_implementation"] = "eager"  # Colab's transformers takes sdpa, which leaves it out in silence
    model, info = from_hub(
        lambda: auto_class.from_pretrained(
            locate(name),
            trust_remote_code=False,  # unset, transformers asks on standard input
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with their names
            **options,
        ),
        name,
    )
    require_whole(info, name, classifier)
    return model


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


def attach_adapter(
    model: PreTrainedModel | PeftModel, name: str, adapter_name: str, trainable: bool = False
) -> PeftModel:
    """Put the LoRA adapter at `name` on `model` under `adapter_name`; beside the others, if there are some.

    Raises:
        CaiError: it is no adapter, lacks a tensor or holds one too many, or was made for a model of another shape.
    """
    from peft import PeftModel

    options = {"adapter_name": adapter_name, "is_trainable": trainable}

    def attach() -> PeftModel:
        try:
            if not isinstance(model, PeftModel):
                return PeftModel.from_pretrained(model, locate(name), **options)
            model.load_adapter(locate(name), **options)
            return model
        except (RuntimeError, ValueError) as error:
            if getattr(error, "response", None) is not None or type(error).__name__ == "OutOfMemoryError":
                raise  # the Hub's, and the device's
            raise CaiError(
                f"The adapter {name} does not fit the base model: {' '.join(str(error).split())[:300]}",
                "Set models.base to the model that the adapter was trained on (base_model_name_or_path in "
                "adapter_config.json).",
            ) from error

    with_adapter = from_hub(attach, name)
    require_whole_adapter(with_adapter, adapter_name, locate(name), name)
    return with_adapter
