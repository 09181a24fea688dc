"""USE.md: code that runs as it stands, with transformers and peft alone. Every block is run by a test."""

from __future__ import annotations

import json

from cai_helpers.artifacts.account import Account
from cai_helpers.artifacts.packing import BASE
from cai_helpers.artifacts.record import ADAPTER
from cai_helpers.models.chat_format import TEMPLATE_OPTIONS
from cai_helpers.models.hub import EMBEDDED, hub_name

_NOTHING = "There is no adapter in this archive: {why} The pairs are described in DATASET.md.\n"


def use_page(account: Account) -> str:
    """The page, or one sentence where there is no adapter."""
    if account.adapter is None:
        return f"# How to use this\n\n{_NOTHING.format(why=account.without_adapter)}"
    parts = [_head(account), _chat(account), _continue(account), _merge(account), _GGUF]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def loading(account: Account, trainable: bool = False, dtype: str = "dtype") -> str:
    """The lines that load base, adapter and tokenizer."""
    base = account.settings.models.base
    local = base.startswith(("./", "~", "/"))
    repository, pin = hub_name(base) or (base, None)
    name = BASE if base.startswith(EMBEDDED) else repository
    revision = "" if pin is None else f", revision={json.dumps(pin)}"
    note = "  # a folder of the machine that trained it: put yours here" if local else ""
    stops = (
        f'model.generation_config = GenerationConfig.from_pretrained("{ADAPTER}")  # where answers end\n'
        if account.stops
        else ""
    )
    return f'''base = {json.dumps(name)}{note}
tokenizer = AutoTokenizer.from_pretrained(base{revision})
model = AutoModelForCausalLM.from_pretrained(base{revision}, dtype={dtype})
model = PeftModel.from_pretrained(model, "{ADAPTER}"{", is_trainable=True" if trainable else ""})
{stops}'''


def _imports(account: Account) -> str:
    stops = ", GenerationConfig" if account.stops else ""
    return f"""import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer{stops}
"""


def _head(account: Account) -> str:
    base = account.settings.models.base
    if base.startswith(EMBEDDED):
        where = f"The base model is a toy that no hub has; it lies in `{BASE}`."
    else:
        where = f"The base model is `{base}`; where it is gated, accept its licence and set `HF_TOKEN` first."
    return f"""# How to use this

```
pip install torch transformers peft
```

Run the code in the folder in which this file lies. {where}
The adapter goes on the base model itself: where there was a Stage 2, it continues and holds it, so do not load both."""


def _chat(account: Account) -> str:
    sample = account.sample
    question = "How do I stay calm before an exam?" if sample is None else sample.question
    options = "".join(f", {name}={value!r}" for name, value in TEMPLATE_OPTIONS.items())
    told = ""
    if sample is not None:
        quoted = "\n".join(f"> {line}" for line in sample.answer.replace("<", "&lt;").split("\n"))
        told = f"\n\nWhere it was evaluated, the answer to this held-out question was:\n\n{quoted}"
    return f"""## Chat

```python
{_imports(account)}
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.float32
{loading(account)}model = model.to(device).eval()

chat = [{{"role": "user", "content": {json.dumps(question, ensure_ascii=False)}}}]
options = dict(add_generation_prompt=True, return_tensors="pt", return_dict=True{options})
inputs = tokenizer.apply_chat_template(chat, **options).to(device)
output = model.generate(**inputs, max_new_tokens={account.settings.evaluate.max_tokens}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```{told}"""


def _continue(account: Account) -> str:
    train = account.settings.train
    return f"""## Continue training

TRL takes the adapter as it is loaded for its frozen reference. `pip install "trl>=1.15"` first.

```python
{_imports(account)}from datasets import load_dataset
from trl import DPOConfig, DPOTrainer

gpu = torch.cuda.is_available()
{loading(account, trainable=True, dtype="torch.float16 if gpu else torch.float32")}
rows = load_dataset("parquet", data_files={{"train": "dpo_dataset/train.parquet", "test": "dpo_dataset/eval.parquet"}})
rows = rows.select_columns(["prompt", "chosen", "rejected"])
config = DPOConfig(
    "continued", num_train_epochs=1, beta={train.beta:g}, learning_rate={train.learning_rate:g}, max_length={train.max_length},
    per_device_train_batch_size={train.batch_size}, gradient_accumulation_steps={train.accumulation},
    fp16=gpu, bf16=False, logging_steps=5, save_strategy="no", report_to="none",
)
trainer = DPOTrainer(
    model, args=config, train_dataset=rows["train"], eval_dataset=rows["test"], processing_class=tokenizer
)
trainer.train()
print(trainer.evaluate())
model.save_pretrained("continued/adapter", selected_adapters=["default"])
```"""


def _merge(account: Account) -> str:
    keep = f'GenerationConfig.from_pretrained("{ADAPTER}").save_pretrained("merged")\n' if account.stops else ""
    return f"""## Merge and save

One model that needs no PEFT: merged in fp32, saved in fp16.

```python
{_imports(account)}
{loading(account, dtype="torch.float32")}
model.merge_and_unload().to(torch.float16).save_pretrained("merged")
tokenizer.save_pretrained("merged")
{keep}```"""


_GGUF = """## GGUF, for llama.cpp and Ollama

The merged model is what llama.cpp's own converter reads:

```
git clone https://github.com/ggml-org/llama.cpp
pip install -r llama.cpp/requirements.txt
python llama.cpp/convert_hf_to_gguf.py merged --outfile policy-f16.gguf --outtype f16
llama.cpp/build/bin/llama-quantize policy-f16.gguf policy-Q4_K_M.gguf Q4_K_M    # after building llama.cpp
```"""
