"""The Generator seam: who answers chats. Requests may be added while others are under way; answers come as they end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cai_helpers.schema import Completion, Messages

if TYPE_CHECKING:
    from cai_helpers.models.sampling import Sampling

PLAIN: Messages = [{"role": "user", "content": ""}]  # how a chat opens that shares no words with others


class Request(NamedTuple):
    """One answer that is wanted of `generator`."""

    generator: Generator
    chat: Messages
    sampling: Sampling
    key: str  # names the randomness
    # What the chats of its kind begin with: whole turns, and the first words of the last. Tokens that it comes to are read
    # once for all of them, where the generator can.
    opening: Messages = PLAIN


Answered = tuple[Request, Completion | None]  # None: it failed for now, and may be asked again later


class Session(Protocol):
    """Requests under way at one generator."""

    def add(self, requests: Iterable[Request]) -> None: ...

    @property
    def unfinished(self) -> int:
        """Requests without an answer so far."""

    @property
    def room(self) -> int:
        """How many more requests keep it busy; what is beyond waits, and a kill loses it. May be negative."""

    def step(self, wait: bool) -> list[Answered]:
        """Work a little on what is unfinished; what has ended since. wait: until anything happens elsewhere, too.

        Raises:
            CaiError: it cannot go on. What had ended before was handed out by earlier steps.
        """

    def close(self) -> None:
        """Drop what is unfinished, and the memory behind it."""


class Generator(Protocol):
    def open(self, batch_size: int) -> Session:
        """batch_size: requests at once, where the generator does not know better."""

    def generate(
        self, chats: list[Messages], sampling: Sampling, keys: list[str], batch_size: int
    ) -> Iterator[tuple[int, Completion]]:
        """Yield (index into `chats`, completion) as rows finish; a row that failed for now is left out.

        keys: one a chat; they name the rows' randomness.
        """
