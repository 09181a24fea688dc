"""Who labelled the training pairs: a win rate by the same scorer says that training obeyed, not that it is better."""

from __future__ import annotations

from cai_helpers.contents import file_hash
from cai_helpers.scoring.ensemble import members_of
from cai_helpers.workspace import Workspace


def labeller_of(workspace: Workspace) -> str | None:
    """The identity of the scorer whose labels were curated; None: the pairs came from elsewhere, with their labels."""
    scored, curated = workspace.manifest("score"), workspace.manifest("curate")
    if scored is None:
        return None
    if curated is not None and curated.fingerprint["input pairs"] != file_hash(workspace.pairs):
        return None
    return str(scored.report["scorer"])


def is_own_labeller(judge: str, labeller: str | None) -> bool:
    """Whether any model of the scorer `judge` labelled the pairs, alone or in an ensemble. Both are identities.

    A model that reads the same texts in another form or at another length is still the same judge.
    """
    return labeller is not None and not _models(judge).isdisjoint(_models(labeller))


def _models(identity: str) -> set[str]:
    """The models in "NAME, INPUT input, …" of each member (reward_model.source_identity), or the one that gives feedback."""
    return {member.partition(", ")[0] for member in members_of(identity)}
