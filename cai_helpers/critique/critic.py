"""The critic: one model that drafts, criticises its draft by the constitution, and revises it. Prompts in, traces out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cai_helpers.contents import file_hash
from cai_helpers.critique.constitution import Constitution, Principle, load_constitution, select_principles
from cai_helpers.critique.protocols import (
    Protocol,
    critique_chat,
    critique_opening,
    load_protocol,
    revision_chat,
    revision_opening,
)
from cai_helpers.critique.samples import Samples, is_samples, judge_samples, read_samples, sample_keys
from cai_helpers.critique.verdict import Verdict, judge_revision, parse_critique, parse_single
from cai_helpers.errors import CaiError
from cai_helpers.manifest import Fingerprint, section
from cai_helpers.models.flow import Coming, Row, flow
from cai_helpers.models.generator import Generator, Request
from cai_helpers.models.hub import identity, locate
from cai_helpers.models.language import load_stage2
from cai_helpers.schema import Completion, Messages, Prompt, Trace
from cai_helpers.settings import Settings

if TYPE_CHECKING:
    from cai_helpers.models.sampling import Sampling


class Draft(NamedTuple):
    """A prompt on its way to a Trace."""

    prompt: Prompt
    completion: Completion
    principles: list[Principle]

    @property
    def question(self) -> str:
        return self.prompt.messages[-1]["content"]


class Critic(NamedTuple):
    """All that turns a prompt into a trace."""

    drafter: Generator  # a model that is loaded here, or an endpoint
    critic: Generator  # the drafter itself, unless only one of the two is an endpoint
    protocol: Protocol | Samples
    constitution: Constitution
    settings: Settings


def load_critic(settings: Settings, protocol: str) -> Critic:
    """Load the models and the texts; `protocol` is a name in the protocols file, or samples/k."""
    own_constitution = settings.generate.constitution
    texts = protocol_of(settings, protocol)
    constitution = load_constitution(Path(own_constitution) if own_constitution else None)
    drafter = settings.generate.drafter
    critic = settings.generate.critic if isinstance(texts, Protocol) else drafter
    by_name: dict[str, Generator] = {}
    if "api" in (drafter, critic):
        by_name["api"] = _endpoint(settings)
    if "local" in (drafter, critic):
        by_name["local"] = load_stage2(settings.models, merged=True)  # last: the checks above take no minutes
    return Critic(by_name[drafter], by_name[critic], texts, constitution, settings)


def protocol_of(settings: Settings, name: str) -> Protocol | Samples:
    """A protocol of the settings' protocols file, or samples/k.

    Raises:
        CaiError: there is no such protocol, or the settings make all samples the same.
    """
    if not is_samples(name):
        own = settings.generate.protocols_file
        return load_protocol(name, Path(own) if own else None)
    if settings.generate.temperature == 0:
        raise CaiError(
            f"generate.protocol={name} with generate.temperature=0: all samples would be the same text.",
            "Set generate.temperature=0.7, or 1.0 for samples that differ more.",
        )
    return read_samples(name)


def _endpoint(settings: Settings) -> Generator:
    from cai_helpers.models.endpoint import EndpointGenerator  # brings the HTTP client: late

    return EndpointGenerator(settings.endpoint)


def trace_basis(settings: Settings) -> Fingerprint:
    """What the text of a trace depends on, but for the protocol."""
    generate = settings.generate
    own_files = {"input constitution": generate.constitution, "input protocols": generate.protocols_file}
    sources = {"input prompts": settings.prompts.source, "input evaluation prompts": settings.prompts.eval_source}
    api = {"endpoint.base_url": settings.endpoint.base_url, "endpoint.model": settings.endpoint.model}
    return {
        "seed": settings.seed,
        "models.base": identity(settings.models.base),
        "models.adapter": identity(settings.models.adapter),
        "models.dtype": settings.models.dtype,
        **section("prompts", settings.prompts, exclude={"limit"}),
        **section("generate", generate, exclude={"batch_size", "protocol", "drafter"}),
        "generate.top_p": generate.top_p,
        **({"generate.drafter": "api"} if generate.drafter == "api" else {}),  # older runs, all local, do not name it
        **(api if "api" in (generate.critic, generate.drafter) else {}),
        **{name: file_hash(Path(path)) for name, path in own_files.items() if path},
        **{name: file_hash(Path(locate(source))) for name, source in sources.items() if source},
    }


def longest_first(prompts: list[Prompt]) -> list[Prompt]:
    """The order to work in: what does not fit into the memory shows at once, and rows of one length come together."""
    return sorted(prompts, key=lambda prompt: -len(prompt.text))


def make_traces(critic: Critic, prompts: list[Prompt]) -> Coming[Trace]:
    """Draft, critique and revise `prompts`; traces come as they are done, and no step of one waits for another's.

    A prompt whose endpoint request failed has no trace; it is to be tried again later.

    Raises:
        CaiError: the endpoint failed for good; what it had answered came before.
    """
    return flow((_whole_row(critic, prompt) for prompt in prompts), critic.settings.generate.batch_size)


def criticise(critic: Critic, drafts: list[Draft]) -> Coming[Trace]:
    """The same for drafts that are there, whichever protocol they were made under: they do not depend on it."""
    return flow((_further_row(critic, draft) for draft in drafts), critic.settings.generate.batch_size)


def make_drafts(critic: Critic, prompts: list[Prompt]) -> Coming[Draft]:
    """Each prompt's first answer, with the principles that the critic is shown for it."""
    return flow((_draft_row(critic, prompt) for prompt in prompts), critic.settings.generate.batch_size)


def _whole_row(critic: Critic, prompt: Prompt) -> Row[Trace]:
    draft = yield from _draft_row(critic, prompt)
    return (yield from _further_row(critic, draft))


def _draft_row(critic: Critic, prompt: Prompt) -> Row[Draft]:
    [key] = sample_keys(prompt.id, 1)
    [completion] = yield [_ask_drafter(critic, prompt, key)]
    return draft_of(critic, prompt, completion)


def _further_row(critic: Critic, draft: Draft) -> Row[Trace]:
    """Critique and revision; under samples/k the other drafts instead."""
    protocol, prompt = critic.protocol, draft.prompt
    if isinstance(protocol, Samples):
        others = sample_keys(prompt.id, protocol.drafts)[1:]
        samples = yield [_ask_drafter(critic, prompt, key) for key in others]
        return _sampled_trace(protocol, draft, [draft.completion, *samples])
    asked = critique_chat(protocol, prompt.messages, draft.completion.text, draft.principles)
    [output] = yield [_ask_critic(critic, asked, f"{prompt.id}/critique", critique_opening(protocol))]
    if protocol.revision is None:
        return _trace(critic, draft, [output], parse_single(output, protocol, draft.question))
    if (verdict := parse_critique(output)) is not None:
        return _trace(critic, draft, [output], verdict)
    asked = revision_chat(protocol, prompt.messages, draft.completion.text, output.text)
    [revision] = yield [_ask_critic(critic, asked, f"{prompt.id}/revision", revision_opening(protocol))]
    return _trace(critic, draft, [output, revision], judge_revision(output.text, revision, protocol, draft.question))


def _ask_drafter(critic: Critic, prompt: Prompt, key: str) -> Request:
    return Request(critic.drafter, prompt.messages, _sampling(critic, critic.settings.generate.draft_tokens), key)


def _ask_critic(critic: Critic, chat: Messages, key: str, opening: Messages) -> Request:
    return Request(critic.critic, chat, _sampling(critic, critic.settings.generate.critic_tokens), key, opening)


def _sampled_trace(protocol: Samples, draft: Draft, samples: list[Completion]) -> Trace:
    verdict = judge_samples(samples)
    return Trace(
        id=draft.prompt.id,
        prompt=draft.prompt,
        draft=draft.completion.text,
        draft_finish=draft.completion.finish,
        principle_ids=[],  # nobody was shown any
        protocol=protocol.name,
        critic_outputs=[],
        critique="",
        revision=draft.completion.text,
        outcome=verdict.outcome,
        reason=verdict.reason,
        tokens=sum(sample.tokens for sample in samples),
        drafts=samples,
    )


def draft_of(critic: Critic, prompt: Prompt, completion: Completion) -> Draft:
    """`completion` as the draft, with the principles that the critic is shown for it: always the same ones."""
    return Draft(prompt, completion, _principles(critic, prompt, completion.text))


def _principles(critic: Critic, prompt: Prompt, draft: str) -> list[Principle]:
    text = f"{prompt.messages[-1]['content']}\n{draft}"
    settings = critic.settings
    return select_principles(critic.constitution, prompt.id, text, settings.seed, settings.generate.most_principles)


def _sampling(critic: Critic, max_new_tokens: int) -> Sampling:
    from cai_helpers.models.sampling import Sampling  # brings torch: late

    settings = critic.settings.generate
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=critic.settings.seed,
    )


def _trace(critic: Critic, draft: Draft, outputs: list[Completion], verdict: Verdict) -> Trace:
    return Trace(
        id=draft.prompt.id,
        prompt=draft.prompt,
        draft=draft.completion.text,
        draft_finish=draft.completion.finish,
        principle_ids=[principle.id for principle in draft.principles],
        protocol=critic.protocol.name,
        critic_outputs=[output.text for output in outputs],
        critique=verdict.critique,
        revision=verdict.revision or draft.completion.text,
        outcome=verdict.outcome,
        reason=verdict.reason,
        tokens=draft.completion.tokens + sum(output.tokens for output in outputs),
    )
