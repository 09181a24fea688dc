"""Who scores: the reward models are there, and load and rank; the endpoint answers."""

from __future__ import annotations

from cai_helpers.errors import CaiError
from cai_helpers.models.batches import release_all
from cai_helpers.readiness.check import Check, tried
from cai_helpers.readiness.policy import access
from cai_helpers.schema import Messages
from cai_helpers.scoring import judge
from cai_helpers.settings import Endpoint, Settings
from cai_helpers.workspace import Workspace

_PATIENCE = 15.0  # seconds that the endpoint has for one short answer
_TRIES = 4  # so many failures in a row and EndpointGenerator takes an endpoint for down
_QUESTION: Messages = [{"role": "user", "content": "Answer with one word: (A) or (B)?"}]
_TRIED: set[str] = set()  # scorers and endpoints that have worked, over the life of the process


def scorer(settings: Settings, workspace: Workspace) -> list[Check]:
    """What scores is within reach. It is loaded by `try_scorer`."""
    if settings.score.by == "ai_feedback":
        return (
            [tried("feedback", lambda: _endpoint_line(settings, True))]
            if settings.score.feedback_model == "api"
            else []
        )
    return [access("reward model", source.model, "config.json") for source in settings.models.rewards]


def critic(settings: Settings, workspace: Workspace) -> list[Check]:
    """The endpoint that drafts or criticises, where one does."""
    roles = [role for role in ("drafter", "critic") if getattr(settings.generate, role) == "api"]
    return [tried(" and ".join(roles), lambda: _endpoint_line(settings, False))] if roles else []


def try_scorer(settings: Settings) -> str | None:
    """Load the scorer, have it rank, and let it go again; what was found, or None: nothing was left to try.

    AI feedback of the starting policy is tried with the policy, that of an endpoint with the endpoint.

    Raises:
        CaiError: it cannot be loaded, has no head, or ranks an answer below unrelated words.
    """
    if settings.score.by == "ai_feedback" or (name := judge.scorer_identity(settings)) in _TRIED:
        return None
    judge.load_scorer(settings)
    release_all()  # it makes room for the generator, and is loaded again to judge
    _TRIED.add(name)
    return f"{name} loads and passes its trial; it makes room for the generator and is loaded again to judge"


def scorer_has_worked(settings: Settings) -> None:
    """Another stage of this process has scored with it: no need to try it again."""
    _TRIED.add(judge.scorer_identity(settings))


def _endpoint_line(settings: Settings, letters: bool) -> str:
    """letters: as a judge, whose answer must come with log-probabilities."""
    endpoint = settings.endpoint
    key = f"{endpoint.base_url} {endpoint.model} {endpoint.key_variable} {letters}"
    found = f"{endpoint.model} at {endpoint.base_url} answers"
    if key not in _TRIED:
        patient = endpoint.model_copy(
            update={"retries": 0, "timeout": min(endpoint.timeout, _PATIENCE), "concurrency": 1}
        )
        _ask_letters(patient) if letters else _ask(patient)
        _TRIED.add(key)
    return found


def _ask(endpoint: Endpoint) -> None:
    from cai_helpers.models.endpoint import EndpointGenerator
    from cai_helpers.models.sampling import Sampling

    generator = EndpointGenerator(endpoint)
    sampling = Sampling(max_new_tokens=8, temperature=0.0)
    for number in range(_TRIES):  # the last one raises what is wrong, unless only this question is refused
        if list(generator.generate([_QUESTION], sampling, [f"trial {number}"], 1)):
            return
    refused = ", ".join(f"{reason} {count}" for reason, count in generator.usage.failed.items())
    raise CaiError(
        f"The endpoint {endpoint.base_url} answered no request ({refused}).",
        "Check endpoint.base_url and endpoint.model, and that the server runs.",
    )


def _ask_letters(endpoint: Endpoint) -> None:
    from cai_helpers.scoring.endpoint_letters import EndpointLetters

    list(EndpointLetters(endpoint).log_odds([_QUESTION]))
