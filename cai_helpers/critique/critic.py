"""The critic: one model that drafts, criticises its draft by the constitution, and revises it. Prompts in, traces out."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cai_helpers.contents import file_hash
from cai_helpers.critique.constitution import Constitution, Principle, load_constitution, select_principles
from cai_helpers.critique.protocols import Protocol, critique_chat, load_protocol, revision_chat
from cai_helpers.critique.samples import Samples, is_samples, judge_samples, read_samples, sample_keys
from cai_helpers.critique.verdict import Verdict, judge_revision, parse_critique, parse_single
from cai_helpers.errors import CaiError
from cai_helpers.manifest import Fingerprint, section
from cai_helpers.models.hub import identity, locate
from cai_helpers.models.language import Generator, load_stage2
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

    drafter: Generator  # a LanguageModel, but for the scripted twins of tests
    critic: Generator  # the drafter itself, unless an endpoint criticises
    protocol: Protocol | Samples
    constitution: Constitution
    settings: Settings


def load_critic(settings: Settings, protocol: str) -> Critic:
    """Load the models and the texts; `protocol` is a name in the protocols file, or samples/k."""
    own_constitution = settings.generate.constitution
    texts = protocol_of(settings, protocol)
    constitution = load_constitution(Path(own_constitution) if own_constitution else None)
    endpoint = _endpoint(settings) if settings.generate.critic == "api" and isinstance(texts, Protocol) else None
    drafter = load_stage2(settings.models, merged=True)  # last: the checks above take no minutes
    return Critic(drafter, endpoint or drafter, texts, constitution, settings)


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
        **section("generate", generate, exclude={"batch_size", "protocol"}),
        "generate.top_p": generate.top_p,
        **(api if generate.critic == "api" else {}),
        **{name: file_hash(Path(path)) for name, path in own_files.items() if path},
        **{name: file_hash(Path(locate(source))) for name, source in sources.items() if source},
    }


def make_traces(critic: Critic, prompts: list[Prompt]) -> list[Trace]:
    """Draft, critique and revise `prompts` together: one batch of work, what is lost when the process is killed.

    A prompt whose endpoint request failed has no trace; it is to be tried again later.
    """
    return criticise(critic, make_drafts(critic, prompts))


def criticise(critic: Critic, drafts: list[Draft]) -> list[Trace]:
    """Critique and revise drafts, whichever protocol they were made under: they do not depend on it.

    Under samples/k the other drafts are made instead. A draft whose endpoint request failed has no trace.
    """
    protocol = critic.protocol
    if isinstance(protocol, Samples):
        return _sample(critic, protocol, drafts)
    chats = [
        critique_chat(protocol, draft.prompt.messages, draft.completion.text, draft.principles) for draft in drafts
    ]
    outputs = _ask_critic(critic, chats, [f"{draft.prompt.id}/critique" for draft in drafts])
    answered = [(draft, output) for draft, output in zip(drafts, outputs, strict=True) if output is not None]
    if protocol.revision is not None:
        return _revise(critic, protocol, answered)
    return [
        _trace(critic, draft, [output], parse_single(output, protocol, draft.question)) for draft, output in answered
    ]


def _sample(critic: Critic, protocol: Samples, drafts: list[Draft]) -> list[Trace]:
    """The k − 1 other drafts of each prompt, all prompts together."""
    asked = [(draft.prompt, key) for draft in drafts for key in sample_keys(draft.prompt.id, protocol.drafts)[1:]]
    settings = critic.settings.generate
    completions = iter(
        _complete(
            critic.drafter,
            [prompt.messages for prompt, _ in asked],
            [key for _, key in asked],
            _sampling(critic, settings.draft_tokens),
            settings.batch_size,
        )
    )
    traces = []
    for draft in drafts:
        others = list(islice(completions, protocol.drafts - 1))
        samples = [draft.completion, *(sample for sample in others if sample is not None)]
        if len(samples) == protocol.drafts:
            traces.append(_sampled_trace(protocol, draft, samples))
    return traces


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


def make_drafts(critic: Critic, prompts: list[Prompt]) -> list[Draft]:
    """Each prompt's first answer, with the principles that the critic is shown for it."""
    settings = critic.settings.generate
    completions = _complete(
        critic.drafter,
        [prompt.messages for prompt in prompts],
        [f"{prompt.id}/draft" for prompt in prompts],
        _sampling(critic, settings.draft_tokens),
        settings.batch_size,
    )
    return [
        draft_of(critic, prompt, completion)
        for prompt, completion in zip(prompts, completions, strict=True)
        if completion is not None
    ]


def draft_of(critic: Critic, prompt: Prompt, completion: Completion) -> Draft:
    """`completion` as the draft, with the principles that the critic is shown for it: always the same ones."""
    return Draft(prompt, completion, _principles(critic, prompt, completion.text))


def _principles(critic: Critic, prompt: Prompt, draft: str) -> list[Principle]:
    text = f"{prompt.messages[-1]['content']}\n{draft}"
    settings = critic.settings
    return select_principles(critic.constitution, prompt.id, text, settings.seed, settings.generate.most_principles)


def _revise(critic: Critic, protocol: Protocol, criticised: list[tuple[Draft, Completion]]) -> list[Trace]:
    """Second call of a two-call protocol, for the rows whose critique did not settle them."""
    verdicts = [parse_critique(output) for _, output in criticised]
    traces = [
        _trace(critic, draft, [output], verdict)
        for (draft, output), verdict in zip(criticised, verdicts, strict=True)
        if verdict is not None
    ]
    open_rows = [row for row, verdict in zip(criticised, verdicts, strict=True) if verdict is None]
    chats = [
        revision_chat(protocol, draft.prompt.messages, draft.completion.text, output.text)
        for draft, output in open_rows
    ]
    revisions = _ask_critic(critic, chats, [f"{draft.prompt.id}/revision" for draft, _ in open_rows])
    for (draft, output), revision in zip(open_rows, revisions, strict=True):
        if revision is not None:
            verdict = judge_revision(output.text, revision, protocol, draft.question)
            traces.append(_trace(critic, draft, [output, revision], verdict))
    return traces


def _ask_critic(critic: Critic, chats: list[Messages], keys: list[str]) -> list[Completion | None]:
    settings = critic.settings.generate
    return _complete(critic.critic, chats, keys, _sampling(critic, settings.critic_tokens), settings.batch_size)


def _complete(
    generator: Generator, chats: list[Messages], keys: list[str], sampling: Sampling, batch_size: int
) -> list[Completion | None]:
    """In the order of `chats`; None where the generator gave nothing."""
    completions = dict(generator.generate(chats, sampling, keys, batch_size))
    return [completions.get(index) for index in range(len(chats))]


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
