"""What a place holds comes back to a machine that has less; what differs on both sides is never overwritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from cai_helpers.errors import CaiError
from cai_helpers.keeping.listing import Listing, Mark, Part, Scanner
from cai_helpers.keeping.places import Place


def bring_back(root: Path, place: Place, mark: Mark | None, say: Callable[[str], None]) -> Listing | None:
    """Bring what the place has and this machine has not; the list of what lies there whole. None: nothing lies there.

    Where this machine wrote the place last, nothing is brought: it is ahead, or level. A file that is not what the list
    says (a drive that tore it) is left out, with its whole checkpoint, and said.

    Raises:
        CaiError: both sides have changed since they were the same.
    """
    listing = place.listing()
    if listing is None:
        return None
    parts = Scanner(root).parts()
    if mark is not None and mark.where == place.where and listing.token in mark.tokens:
        return listing
    known = mark.listing if mark is not None and mark.where == place.where else listing
    if changed := [name for name, part in parts.items() if not known.holds(name, part.content)]:
        raise CaiError(
            f"The run in {root} and the one kept at {place.where} have both gone on, each without the other: {changed[0]} "
            "is not what was kept. Nothing was overwritten.",
            "Go on with one of them: move the folder of the other away, or give this run another name or another place.",
        )
    torn = _fetch(root, place, listing, parts)
    for name in parts.keys() - listing.files.keys():
        parts[name].path.unlink()  # as it was kept once, and the run that went on elsewhere has it no more
    kept = listing.model_copy(
        update={"files": {name: found for name, found in listing.files.items() if name not in torn}}
    )
    if count := len(kept.files):
        say(f"brought back from {place.where}: {said(kept) or f'{count} files'} (kept {listing.saved})")
    if torn:
        say(
            f"WARNING: not whole at {place.where}, and left out: {', '.join(sorted(torn)[:5])}"
            f"{f' and {len(torn) - 5} more' if len(torn) > 5 else ''}. What depends on it is made anew."
        )
    return kept


def _fetch(root: Path, place: Place, listing: Listing, parts: dict[str, Part]) -> set[str]:
    """Names of what was not whole there, and is not here."""
    torn: set[str] = set()
    for name, wanted in sorted(listing.files.items()):
        here = name in parts and listing.holds(name, parts[name].content)
        if not here and not place.get(name, wanted, root / name):
            torn.add(name)
    halves = {folder for name in torn if (folder := _checkpoint_of(name))}
    for name in listing.files:
        if name not in torn and _checkpoint_of(name) in halves:
            (root / name).unlink(missing_ok=True)
            torn.add(name)
    return torn


def _checkpoint_of(name: str) -> str:
    """The folder of the checkpoint that a file belongs to; "": it belongs to none."""
    for folder in PurePosixPath(name).parents:
        if folder.name.startswith("checkpoint-"):
            return folder.as_posix()
    return ""


def said(listing: Listing) -> str:
    """What a person asks for: "512 pairs, checkpoint 40, 96 answers"."""
    told = []
    for name, unit in (("pairs/traces.jsonl", "pairs"), ("evaluation/answers.jsonl", "answers")):
        if name in listing.files and (rows := listing.files[name][-1].rows):
            told.append(f"{rows:,} {unit}")
    steps = [
        _checkpoint_of(name).rpartition("-")[2] for name in listing.files if name.startswith("checkpoints/checkpoint-")
    ]
    if steps:
        told.insert(1 if told else 0, f"checkpoint {max(int(step) for step in steps)}")
    if any(name.startswith("models/lora_adapters/") for name in listing.files):
        told.append("the trained adapter")
    return ", ".join(told)
