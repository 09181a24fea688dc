"""The keeper of a run: a thread that copies what changed, every minute and whenever something is complete."""

from __future__ import annotations

import atexit
import contextlib
import secrets
import threading
import time
from datetime import UTC, datetime
from types import TracebackType

from cai_helpers.errors import CaiError
from cai_helpers.keeping.coming_back import bring_back, said
from cai_helpers.keeping.listing import Content, Listing, Mark, Scanner, read_mark, write_mark
from cai_helpers.keeping.places import Place, open_place
from cai_helpers.machine.processes import is_main_process
from cai_helpers.models.hub_failures import transport_error
from cai_helpers.workspace import Workspace

_LOOK = 2.0  # seconds between two looks for something complete
_SHORTEST, _LONGEST = 10.0, 300.0  # seconds until a place that failed is tried again


class Keeper:
    """Keeps one run at one place, until it is closed. What fails is said once, tried again, and told by `line`."""

    def __init__(self, workspace: Workspace, place: Place | None) -> None:
        self._workspace, self._place = workspace, place
        self._scanner = Scanner(workspace.root)
        self._listing = Listing(token="", saved="", finished=True, files={})  # what certainly lies there
        self._possible: dict[str, list[Content]] = {}  # what may lie there
        self._tokens: list[str] = []  # of the list that lies there, and of those that were to replace it since
        self._failure: tuple[str, str] | None = None  # since when, and why
        self._alone, self._ended = threading.RLock(), threading.Event()
        self._owned = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Take the place, bring back what it holds, and keep what changes from now on.

        Raises:
            CaiError: another process has the place, it holds something else, or both sides have gone on.
            OSError: the place cannot be read.
        """
        if self._place is None:
            return
        self._owned.enter_context(self._place.owned())
        try:
            mark = read_mark(self._workspace.root)
            listing = bring_back(self._workspace.root, self._place, mark, self._say)
            if listing is not None:
                self._know(listing)
        except BaseException:
            self._owned.close()
            raise
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _know(self, listing: Listing) -> None:
        here = self._scanner.parts()
        sure = {
            name: found
            for name, found in listing.files.items()
            if listing.finished and name in here and found == [here[name].content]
        }
        self._listing, self._possible = listing.model_copy(update={"files": sure}), listing.files
        self._tokens = [listing.token]
        if self._workspace.root.is_dir():
            self._mark(self._tokens, listing)

    def save(self) -> bool:
        """Copy what changed; whether all of it is there now."""
        if self._place is None:
            return True
        with self._alone:
            try:
                self._save(self._place)
            except (OSError, ValueError, CaiError, transport_error()) as error:
                self._note(error)
                return False
            if self._failure is not None:
                self._say(f"kept at {self._place.where} again")
            self._failure = None
            return True

    def line(self) -> str:
        """What is safe, or since when nothing is and why."""
        if self._place is None:
            return "kept on this machine alone"
        safe = said(self._listing) or (f"{len(self._listing.files)} files" if self._listing.files else "nothing yet")
        when = f", {self._listing.saved}" if self._listing.saved else ""
        if self._failure is None:
            return f"safe at {self._place.where}: {safe}{when}"
        since, why = self._failure
        return f"NOT kept at {self._place.where} since {since}: {why}. Safe there: {safe}{when}"

    def close(self) -> bool:
        """Copy what is left and leave the place to others; whether all of it is there."""
        if self._ended.is_set():
            return self._failure is None
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=_LONGEST)
        atexit.unregister(self.close)
        if self._thread is not None and self._thread.is_alive():  # a drive that hangs; its lock grows old by itself
            self._failure = (f"{datetime.now(UTC):%H:%M} UTC", f"it has not answered for {_LONGEST:.0f} s")
            return False
        done = self.save()
        with contextlib.suppress(OSError):  # the place may be gone
            self._owned.close()
        return done

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _save(self, place: Place) -> None:
        if not self._workspace.root.is_dir():
            return
        before, possible, parts = self._listing, self._possible, self._scanner.parts()
        changed = {name: part for name, part in parts.items() if not before.holds(name, part.content)}
        if not changed and parts.keys() == possible.keys():
            return
        token, saved = secrets.token_hex(8), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        new = {name: [*possible.get(name, []), part.content] for name, part in changed.items()}
        both = Listing(token=token, saved=saved, finished=False, files={**possible, **new})

        def after(written: set[str]) -> Listing:
            """A file that changed while it was copied stays what it was there; the next time it is taken again."""
            files = {name: [part.content] for name, part in parts.items() if name in written or name not in changed}
            files |= {name: possible[name] for name in changed.keys() - written if name in possible}
            return Listing(token=token, saved=saved, finished=True, files=dict(sorted(files.items())))

        self._tokens.append(token)
        self._mark(self._tokens, before)
        self._possible = both.files  # what is there if the rest fails
        done = place.put(changed, both, after)
        self._possible = done.files
        sure = {name: found for name, found in done.files.items() if len(found) == 1}
        self._listing = done.model_copy(update={"files": sure})
        self._tokens = [token]
        self._mark(self._tokens, done)

    def _mark(self, tokens: list[str], listing: Listing) -> None:
        assert self._place is not None
        write_mark(self._workspace.root, Mark(where=self._place.where, tokens=tokens, listing=listing))

    def _watch(self) -> None:
        assert self._place is not None
        due, pause, complete = time.monotonic() + self._place.pause, _SHORTEST, self._complete()
        while not self._ended.wait(_LOOK):
            seen = self._complete()
            if time.monotonic() < due and (seen == complete or self._failure is not None):
                continue
            complete = seen
            if self.save():
                due, pause = time.monotonic() + self._place.pause, _SHORTEST
            else:
                due, pause = time.monotonic() + pause, min(2 * pause, _LONGEST)

    def _complete(self) -> set[tuple[str, int]]:
        """What says of itself that something is whole: manifests, and seals of checkpoints."""
        root, found = self._workspace.root, set()
        for pattern in ("manifests/*.json", "checkpoints/*/complete.json", "checkpoints/*/*/complete.json"):
            for file in root.glob(pattern):
                with contextlib.suppress(OSError):
                    found.add((str(file), file.stat().st_mtime_ns))
        return found

    def _note(self, error: Exception) -> None:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        if self._failure is None:
            self._failure = (f"{datetime.now(UTC):%H:%M} UTC", why)
            assert self._place is not None
            self._say(
                f"WARNING: not kept at {self._place.where}: {why}. The run goes on, on this machine alone; it is tried again."
            )

    def _say(self, message: str) -> None:
        with contextlib.suppress(OSError, CaiError):
            self._workspace.say("keep", message)


def keep(workspace: Workspace, place: str) -> Keeper:
    """Keep the run at `place` from now on: "" (nowhere), a folder, or "hub:owner/name", a private repository.

    First what the place holds comes back, where this machine has none of it or less. The place is named by the person's own
    command or form: nothing in a workspace's files can send it anywhere. Under `accelerate launch` the main process keeps.

    Raises:
        CaiError: another process keeps something there, it holds something else, or both sides have gone on.
    """
    keeper = Keeper(workspace, open_place(place) if place and is_main_process() else None)
    keeper.begin()
    return keeper
