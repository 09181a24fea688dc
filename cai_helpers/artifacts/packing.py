"""What goes into the archive, without the paths of the machine that made it, and how it is written."""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import IO, Any

from cai_helpers.artifacts.record import PackedFile
from cai_helpers.critique.samples import is_samples
from cai_helpers.errors import CaiError
from cai_helpers.models.hub import EMBEDDED, locate
from cai_helpers.settings import Settings
from cai_helpers.workspace import Workspace

NAME = "stage3_constitutional"
BASE = "models/base"  # of a model that lives in this package and nowhere else
SUFFIXES = frozenset({".json", ".jsonl", ".md", ".parquet", ".safetensors", ".png", ".html", ".yaml", ".jinja"})
_TEXT = SUFFIXES - {".parquet", ".safetensors", ".png"}
# What a stage that runs again on another machine needs, and what a person wants to read. Not checkpoints: they hold pickles.
_FILES = (
    "metrics.json",
    "logs/history.jsonl",
    "logs/history_sft.jsonl",
    "logs/held_out_pairs.jsonl",
    "bakeoff/result.json",
)
_FOLDERS = ("pairs", "dpo_dataset", "reports", "evaluation", "calibration", "rounds", "manifests")
_OF_TRAINING = ("train", "train.begun", "sft", "evaluate", "reference")
_NEVER = ("manifests/export.json", "manifests/reference.json")
_CHUNK = 1024**2
_LONGEST_TOKEN = 256  # bytes; chunks overlap by as many when tokens are looked for
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")  # a Hugging Face access token
_USER = re.compile(r"://[^/\s@]+@")  # of an address: who signs in there, and how
_SECRET = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")  # how variables of the environment end that hold one
_SHORTEST_SECRET = 8  # characters

Packed = dict[str, Path | bytes]  # name in the archive → a file as it lies, or what is written for the archive


def gather(settings: Settings, workspace: Workspace, with_adapter: bool) -> Packed:
    """A list of what goes in, so that nothing new gets in by itself; paths of this machine are taken out.

    with_adapter: else the manifests of the training and of what judged it stay behind as well.
    """
    wanted = [workspace.root / name for name in _FILES]
    wanted += [path for folder in _FOLDERS for path in _below(workspace.root / folder)]
    if with_adapter:
        wanted += _below(workspace.adapter)
    packed: Packed = {}
    for path in wanted:
        name = path.relative_to(workspace.root).as_posix()
        if path.is_file() and path.suffix in SUFFIXES and name not in _NEVER:
            packed[name] = path
    if not with_adapter:
        for stage in _OF_TRAINING:
            packed.pop(f"manifests/{stage}.json", None)
    return _without_paths(packed | _written(settings, packed), settings, workspace)


def _written(settings: Settings, packed: Packed) -> Packed:
    """The settings, and the texts that shaped the pairs."""
    home = settings.model_copy(update={"train": settings.train.model_copy(update={"copy_to": None})})
    written: Packed = {"settings.json": as_json(home.model_dump(mode="json"))}
    assets = resources.files("cai_helpers") / "assets"
    for name, own in (
        ("constitution.yaml", settings.generate.constitution),
        ("protocols.yaml", settings.generate.protocols_file),
    ):
        source = Path(own) if own else assets / name
        if source.is_file():
            written[name] = source.read_bytes()
    if settings.models.base.startswith(EMBEDDED):
        for file in _below(Path(locate(settings.models.base))):
            written[f"{BASE}/{file.name}"] = file
    if is_samples(settings.generate.protocol):  # no critic: neither was read
        del written["constitution.yaml"], written["protocols.yaml"]
    return written


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _without_paths(packed: Packed, settings: Settings, workspace: Workspace) -> Packed:
    """The texts with this machine's folders taken out of them; hashes of files that changed by it follow."""
    words = _replacements(settings, workspace)
    changed: Packed = {}
    hashes: dict[bytes, bytes] = {}
    for name, source in packed.items():
        if Path(name).suffix not in _TEXT:
            continue
        content = source.read_bytes() if isinstance(source, Path) else source
        plain = _replaced(content, words)
        if plain != content:
            changed[name] = plain
            hashes[_hex(content)] = _hex(plain)
    if changed:
        hashes |= _folder_hashes(packed, changed, workspace)
        for name in packed:
            if name.startswith("manifests/"):
                with opened(changed.get(name, packed[name])) as file:
                    changed[name] = _replaced(file.read(), list(hashes.items()))
    return packed | changed


def _folder_hashes(packed: Packed, changed: Packed, workspace: Workspace) -> dict[bytes, bytes]:
    from cai_helpers.artifacts.record import adapter_hash
    from cai_helpers.contents import file_hash

    if not any(name.startswith("models/lora_adapters/") for name in changed):
        return {}
    before = file_hash(workspace.adapter)
    after = adapter_hash({name: packed_file(source).sha256 for name, source in (packed | changed).items()})
    return {str(before).encode(): str(after).encode()}


def _replacements(settings: Settings, workspace: Workspace) -> list[tuple[bytes, bytes]]:
    """What stands in texts → what is written instead. Longer paths first: they may lie in shorter ones."""
    plain: dict[str, str] = {}
    texts = list(_texts(settings.model_dump(mode="json")))
    for path in (text.rstrip("/") for text in texts if _is_local_path(text)):
        plain[path] = f"./{Path(path).name}"
        plain.setdefault(str(Path(path).expanduser().absolute()), f"./{Path(path).name}")
    plain |= (
        {str(workspace.root.absolute()): ".", str(workspace.root): "."}
        if workspace.root.is_absolute()
        else {str(workspace.root.absolute()): "."}
    )
    plain[str(resources.files("cai_helpers"))] = "cai_helpers"
    plain[str(Path.home())] = "~"
    plain |= dict.fromkeys((user for text in texts for user in _USER.findall(text)), "://***@")
    ordered = sorted(((old, new) for old, new in plain.items() if len(old) > 1), key=lambda pair: -len(pair[0]))
    forms = [lambda text: text, lambda text: json.dumps(text)[1:-1], lambda text: html.escape(text)]
    words = {form(old).encode(): form(new).encode() for old, new in ordered for form in forms}
    return sorted(words.items(), key=lambda pair: -len(pair[0]))


def _texts(value: Any) -> Iterable[str]:
    """Every setting that is a text."""
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


def _is_local_path(text: str) -> bool:
    """A path of this machine that does not lie below the current folder by its own words."""
    return text.startswith(("/", "~")) or re.match(r"[A-Za-z]:\\", text) is not None


def _replaced(content: bytes, words: list[tuple[bytes, bytes]]) -> bytes:
    for old, new in words:
        content = content.replace(old, new)
    return content


def _own_secrets() -> dict[str, bytes]:
    """What this person's environment calls a key or a token. Short values stand in any text."""
    return {
        name: value.strip().encode()
        for name, value in os.environ.items()
        if name.upper().endswith(_SECRET) and len(value.strip()) >= _SHORTEST_SECRET
    }


def _leak(name: str, what: str) -> CaiError:
    return CaiError(
        f"{name} holds {what}; nothing was exported.", "Take it out of that file, and revoke it where it was issued."
    )


def refuse_secrets(packed: Packed) -> None:
    """Model output may repeat anything, and a settings file may have been pasted into.

    Raises:
        CaiError: a file holds an access token, or what a variable of the environment such as OPENAI_API_KEY holds.
    """
    own = _own_secrets()
    overlap = max(_LONGEST_TOKEN, *map(len, own.values()), 0)
    for name, source in packed.items():
        with opened(source) as content:
            tail = b""
            while chunk := content.read(_CHUNK):
                text = tail + chunk
                if _TOKEN.search(text):
                    raise _leak(name, "an access token")
                if variable := next((variable for variable, secret in own.items() if secret in text), None):
                    raise _leak(name, f"what your environment variable {variable} holds")
                tail = text[-overlap:]


def opened(source: Path | bytes) -> IO[bytes]:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


def packed_file(source: Path | bytes) -> PackedFile:
    """Its hash and size, read in pieces."""
    with opened(source) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return PackedFile(sha256=digest, size=source.stat().st_size if isinstance(source, Path) else len(source))


def _hex(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def write_archive(target: Path, packed: Packed) -> None:
    """Members in the order of their names, with one fixed date: the bytes depend on nothing but the content."""
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(packed):
            member = zipfile.ZipInfo(f"{NAME}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3  # Unix, whatever this is
            member.external_attr = 0o100644 << 16
            source = packed[name]
            large = isinstance(source, Path) and source.stat().st_size >= 2**31
            with archive.open(member, "w", force_zip64=large) as sink, opened(source) as content:
                while chunk := content.read(_CHUNK):
                    sink.write(chunk)
