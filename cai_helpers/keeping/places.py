"""Where a run is kept: a folder, on a mounted drive say, or a private repository on the Hub."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from cai_helpers import ground, lock
from cai_helpers.errors import CaiError
from cai_helpers.keeping.listing import LIST, Content, Listing, Part, content_of, copy
from cai_helpers.store import write_json

HUB = "hub:"
_BEFORE = "kept.before.json"  # the list before the last one, should a drive tear that
_LOOK = "Look into it, and name an empty place, or move what is there away."


class Place(Protocol):
    """All raise OSError, CaiError or a transport error where something cannot be done."""

    where: str
    pause: float  # seconds between two copies of rows

    def owned(self) -> contextlib.AbstractContextManager[object]:
        """Around all that is written there: one process has the place."""

    def listing(self) -> Listing | None:
        """What lies there; None: nothing was ever kept there."""

    def put(self, parts: dict[str, Part], both: Listing, after: Callable[[set[str]], Listing]) -> Listing:
        """Copy `parts`; the list of what lies there then. both: the list that holds at any moment until then; after: the
        list once these names are written. Files that `after` does not name are removed at last."""

    def get(self, name: str, wanted: list[Content], target: Path) -> bool:
        """Bring one file; False: what lies there is none of `wanted`."""


class FolderPlace:
    def __init__(self, folder: Path) -> None:
        self.where, self.pause = str(folder), 60.0
        self._folder = folder
        self._last = ""  # token of the list that this process read or wrote there last

    @contextmanager
    def owned(self) -> Iterator[None]:
        if not self._folder.parent.parent.is_dir():
            raise CaiError(
                f"There is no folder {self._folder.parent.parent} to keep the run in.",
                "Mount the drive that it lies on, or name another place.",
            )
        ground.forget(self._folder)  # an earlier call may have met another one, before the drive was mounted again
        with lock.hold(self._folder):
            yield

    def listing(self) -> Listing | None:
        files = [self._folder / name for name in (LIST, _BEFORE) if (self._folder / name).exists()]
        for file in files:
            if (found := _listing_in(file)) is not None:
                self._last = found.token
                return found
        if files or any(path.name != lock.FILE for path in self._folder.iterdir()):
            raise CaiError(
                f"{self._folder} holds something, but no list of a kept run that can be read ({LIST}).", _LOOK
            )
        return None

    def put(self, parts: dict[str, Part], both: Listing, after: Callable[[set[str]], Listing]) -> Listing:
        if not ground.is_standing(self._folder):
            self._take_up_again()
        self._write(both)
        written = set()
        for name in sorted(parts, key=_last_things_last):
            target = self._folder / name
            ground.make_folder(target.parent)
            with ground.writing(target):
                if copy(parts[name], target):
                    written.add(name)
        listing = after(written)
        self._write(listing)
        for name in both.files.keys() - listing.files.keys():
            self._remove(self._folder / name)
        return listing

    def get(self, name: str, wanted: list[Content], target: Path) -> bool:
        source = self._folder / name
        if not source.is_file():
            return False
        hashes = {content.sha256 for content in wanted}
        found = content_of(source)
        if found.sha256 not in hashes:
            return False
        ground.make_folder(target.parent)
        return copy(Part(source, found), target)

    def _take_up_again(self) -> None:
        """A drive that was mounted again is another folder to this process; it is ours if its list is the last one.

        Raises:
            WorkspaceVanished: it is not there yet.
            CaiError: while it was away, another machine has taken the run for dead and gone on with it.
        """
        file = self._folder / LIST
        if not file.exists():
            ground.require(self._folder)
        found = _listing_in(file)
        if found is None or found.token != self._last:
            raise CaiError(
                f"another machine has written to {self.where} while it was away",
                "Stop one of the two, or give one of them another place.",
            )
        ground.forget(self._folder)
        ground.open_root(self._folder)

    def _write(self, listing: Listing) -> None:
        file = self._folder / LIST
        if file.exists():
            file.replace(self._folder / _BEFORE)
        write_json(file, listing.model_dump(mode="json"))
        self._last = listing.token

    def _remove(self, file: Path) -> None:
        with ground.writing(file):
            file.unlink(missing_ok=True)
            for folder in file.parents:
                if folder == self._folder or any(folder.iterdir()):
                    return
                folder.rmdir()


class HubPlace:
    """One commit each time; a commit is there whole or not at all. Two writers are told by the commit each came from."""

    def __init__(self, repository: str) -> None:
        self.where, self.pause = HUB + repository, 300.0  # the Hub allows 128 commits an hour
        self._repository = repository
        self._head: str | None = None

    @contextmanager
    def owned(self) -> Iterator[None]:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(self._repository, private=True, exist_ok=True)
        info = api.repo_info(self._repository)
        if not info.private:
            raise CaiError(
                f"{self._repository} is public, and a run is kept in private repositories alone. Nothing was sent.",
                "Make it private on the Hub, or name another repository.",
            )
        self._head = info.sha
        yield

    def listing(self) -> Listing | None:
        from huggingface_hub import HfApi

        names = set(HfApi().list_repo_files(self._repository)) - {".gitattributes", "README.md"}
        if not names:
            return None
        with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(ValueError, ValidationError):
            if LIST in names:
                return Listing.model_validate(json.loads(self._fetch(LIST, scratch).read_bytes()))
        raise CaiError(f"{self._repository} holds something, but no list of a kept run ({LIST}).", _LOOK)

    def put(self, parts: dict[str, Part], both: Listing, after: Callable[[set[str]], Listing]) -> Listing:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with tempfile.TemporaryDirectory() as scratch:  # what is sent must not change while it is sent
            still = {name: Path(scratch) / str(number) for number, name in enumerate(sorted(parts))}
            written = {name for name, file in still.items() if copy(parts[name], file)}
            listing = after(written)
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(name, still[name]) for name in sorted(written)
            ]
            gone = sorted(both.files.keys() - listing.files.keys())
            operations += [CommitOperationDelete(name) for name in gone]
            text = json.dumps(listing.model_dump(mode="json"), indent=1).encode()
            operations.append(CommitOperationAdd(LIST, text))
            self._head = self._commit(operations, f"Kept {listing.saved}")
        return listing

    def _commit(self, operations: list[Any], message: str) -> str:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return (
                HfApi()
                .create_commit(self._repository, operations, commit_message=message, parent_commit=self._head)
                .oid
            )
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 412:
                raise CaiError(
                    f"another machine has written to {self.where} since this one did",
                    "Stop one of the two, or give one of them another place.",
                ) from error
            raise

    def get(self, name: str, wanted: list[Content], target: Path) -> bool:
        from huggingface_hub.errors import EntryNotFoundError

        hashes = {content.sha256 for content in wanted}
        with tempfile.TemporaryDirectory() as scratch:
            try:
                source = self._fetch(name, scratch)
            except EntryNotFoundError:  # it was on its way
                return False
            found = content_of(source)
            ground.make_folder(target.parent)
            return found.sha256 in hashes and copy(Part(source, found), target)

    def _fetch(self, name: str, scratch: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self._repository, name, local_dir=scratch, revision=self._head))


def _listing_in(file: Path) -> Listing | None:
    """None: it cannot be read, as when a drive tore it."""
    try:
        return Listing.model_validate(json.loads(file.read_bytes()))
    except (ValueError, ValidationError):
        return None


def open_place(place: str) -> Place:
    """`hub:owner/name`, or a folder."""
    if place.startswith(HUB):
        return HubPlace(place.removeprefix(HUB))
    return FolderPlace(Path(place).expanduser().absolute())


def _last_things_last(name: str) -> tuple[int, str]:
    """Rows, then weights with their seals, then manifests: what says that something is whole comes after it."""
    last = name.startswith("manifests/") or name.endswith("/complete.json")
    return (2 if last else 0 if name.endswith(".jsonl") else 1, name)
