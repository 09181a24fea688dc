"""The last line of the install cell: one line that says what this kernel has. It is light: no model library is loaded."""

from __future__ import annotations

import platform

from cai_helpers import __version__
from cai_helpers.notebook import telling
from cai_helpers.readiness.versions import versions


def ready() -> None:
    """Errors are told in two sentences from here on; print what is installed, or what does not fit."""
    telling.install()
    wrong = [check for check in versions() if not check.ok]
    if wrong:
        print("\n".join(f"❗ {check.name}: {check.found}. {check.todo}" for check in wrong))
        return
    found = {check.name: check.found for check in versions()}
    libraries = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "trl") if name in found)
    print(f"✅ cai-helpers {__version__} · {libraries} · Python {platform.python_version()}")
