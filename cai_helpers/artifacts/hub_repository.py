"""One repository on the Hub against what is to lie in it: what is new, what is ours, what is somebody else's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from cai_helpers.errors import CaiError
from cai_helpers.models.hub_failures import transport_error

WRITTEN = "cai_written.json"  # in the repository: path → hashes of what this package put there
_OF_THE_HUB = ".gitattributes"  # made by the Hub itself
_AGAIN = "Run the same command again: what has arrived is not sent once more."
Kind = Literal["model", "dataset"]
Result = TypeVar("Result")


class Plan(NamedTuple):
    """What a push would do to a repository."""

    repository: str
    kind: Kind
    exists: bool
    head: str | None  # the commit that was looked at
    add: dict[str, bytes]  # new, or changed since this package wrote it
    foreign: list[str]  # would be overwritten, and this package did not write what lies there
    delete: list[str]  # was written by this package, and is no part of it any more
    unchanged: int

    @property
    def is_empty(self) -> bool:
        return not self.add and not self.delete

    def lines(self) -> list[tuple[str, str]]:
        where = f"{self.kind} {self.repository}"
        rows = [(where, "is made" if not self.exists else f"{self.unchanged} files are there already")]
        for name, content in sorted(self.add.items()):
            what = "OVERWRITES what it did not write" if name in self.foreign else "send"
            rows.append((f"  {what}", f"{name} ({len(content) / 1e6:.2f} MB)"))
        return rows + [("  delete", name) for name in self.delete]


def make_plan(repository: str, kind: Kind, files: dict[str, bytes], public: bool) -> Plan:
    """Compare `files` with the repository, which may not be there yet. Nothing is written.

    Raises:
        CaiError: it is public and was not meant to be, or the Hub cannot be asked.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    files = files | {WRITTEN: _written(files)}
    api = HfApi()
    try:
        info = asked(lambda: api.repo_info(repository, repo_type=kind), repository, RepositoryNotFoundError)
    except RepositoryNotFoundError:
        return Plan(repository, kind, False, None, files, [], [], 0)
    if not info.private and not public:
        raise CaiError(
            f"{repository} is public, and nothing is made public unless you say so. Nothing was sent.",
            "Add --public, make it private on the Hub, or name another repository.",
        )
    tree = asked(lambda: list(api.list_repo_tree(repository, recursive=True, repo_type=kind)), repository)
    there = {entry.path: entry for entry in tree if hasattr(entry, "blob_id") and entry.path != _OF_THE_HUB}
    known = _known(api, repository, kind) if WRITTEN in there else {}
    same = [name for name, content in files.items() if name in there and _equals(content, there[name])]
    add = {name: content for name, content in files.items() if name not in same}
    ours = {name for name, entry in there.items() if _hash_there(entry) in known.get(name, [])} | {WRITTEN}
    return Plan(
        repository,
        kind,
        True,
        info.sha,
        add,
        foreign=sorted(name for name in add if name in there and name not in ours),
        delete=sorted(name for name in known if name in ours and name not in files),
        unchanged=len(same),
    )


def carry_out(plan: Plan, public: bool) -> str:
    """Make the repository where it is missing, and write all of the plan in one commit; its address.

    Large files go ahead of the commit and are kept by the Hub, so a call that was cut off sends only what is missing.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, repository, kind = HfApi(), plan.repository, plan.kind
    if not plan.exists:
        asked(lambda: api.create_repo(repository, repo_type=kind, private=not public, exist_ok=True), repository)
    operations: list[Any] = [CommitOperationAdd(name, content) for name, content in sorted(plan.add.items())]
    operations += [CommitOperationDelete(name) for name in plan.delete]
    return asked(
        lambda: (
            api.create_commit(
                repository,
                operations,
                commit_message="Constitutional AI, Stage 3",
                repo_type=kind,
                parent_commit=plan.head,  # somebody else's commit in between is not overwritten
            ).commit_url
        ),
        repository,
    )


def asked(call: Callable[[], Result], repository: str, expected: type[Exception] | tuple[()] = ()) -> Result:
    """What the Hub answers; `expected` passes through, anything else is told in words.

    Raises:
        CaiError: no token, no right to write, no connection, or the Hub's own reason.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        return call()
    except expected:
        raise
    except LocalTokenNotFoundError as error:
        raise _no_right(repository) from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise _no_right(repository) from error
        reason = (getattr(error, "server_message", None) or str(error)).splitlines()[0]
        raise CaiError(f"The Hub did not take it for {repository}: {reason}", _AGAIN) from error
    except (transport_error(), ConnectionError, OfflineModeIsEnabled, RuntimeError) as error:
        raise CaiError(f"{repository}: the Hub cannot be reached: {_first_line(error)}", _AGAIN) from error


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _no_right(repository: str) -> CaiError:
    return CaiError(
        f"The Hub lets nobody write to {repository} with this token, or there is no token. Nothing was changed.",
        "Set HF_TOKEN to a token of that account with the right to write (huggingface.co/settings/tokens).",
    )


def _written(files: dict[str, bytes]) -> bytes:
    hashes = {name: [hashlib.sha256(content).hexdigest(), _blob(content)] for name, content in sorted(files.items())}
    return json.dumps(hashes, indent=1).encode()


def _known(api: Any, repository: str, kind: Kind) -> dict[str, list[str]]:
    """What this package noted of its last push; nothing where that is no such note."""
    from pathlib import Path

    path = asked(lambda: api.hf_hub_download(repository, WRITTEN, repo_type=kind), repository)
    try:
        noted = json.loads(Path(path).read_bytes())
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) else {}


def _hash_there(entry: Any) -> str:
    """The Hub knows large files by sha256 and small ones by git's blob id."""
    return entry.lfs.sha256 if entry.lfs is not None else entry.blob_id


def _equals(content: bytes, entry: Any) -> bool:
    return _hash_there(entry) in (hashlib.sha256(content).hexdigest(), _blob(content))


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
