from __future__ import annotations

SECRETS: dict[str, str | type[Exception]] = {}  # a value, or the error that asking raises
ASKED: list[str] = []


class SecretNotFoundError(Exception):
    """The secret is not there."""

    def __init__(self, key):
        super().__init__(f"Secret {key} does not exist.")


class NotebookAccessError(Exception):
    """The notebook may not read the secret."""

    def __init__(self, key):
        super().__init__(f"Notebook does not have access to secret {key}")


class TimeoutException(Exception):
    """The front end did not answer: it is closed or detached."""

    def __init__(self, key):
        super().__init__(
            f"Requesting secret {key} timed out. Secrets can only be fetched when running from the Colab UI."
        )


def get(key):
    ASKED.append(key)
    found = SECRETS.get(key, SecretNotFoundError)
    if isinstance(found, str):
        return found
    raise found(key)
