"""The critic: one model that drafts, criticises its draft by the constitution, and revises it. Prompts in, traces out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


def make_traces(critic: Critic, prompts: list[Prompt]) -> Iterator[Trace]:
    """Draft, critique and revise `prompts` together: one batch of work. Traces come as they are done.

    A prompt whose endpoint request failed has no trace; it is to be tried again later.

    Raises:
        CaiError: the endpoint failed for good; what it had answered came before.
    """
    yield from criticise(critic, make_drafts(critic, prompts))


def criticise(critic: Critic, drafts: list[Draft]) -> Iterator[Trace]:
    """Critique and revise drafts, whichever protocol they were made under: they do not depend on it.

    Under samples/k the other drafts are made instead. A draft whose endpoint request failed has no trace.

    Raises:
        CaiError: the endpoint failed for good; what it had answered came before.
    """
    protocol = critic.protocol
    if isinstance(protocol, Samples):
        yield from _sample(critic, protocol, drafts)
        return
    chats = [
        critique_chat(protocol, draft.prompt.messages, draft.completion.text, draft.principles) for draft in drafts
    ]
    outputs = _ask_critic(critic, chats, [f"{draft.prompt.id}/critique" for draft in drafts])
    if protocol.revision is not None:
        yield from _revise(critic, protocol, ((drafts[index], output) for index, output in outputs))
        return
    for index, output in outputs:
        draft = drafts[index]
        yield _trace(critic, draft, [output], parse_single(output, protocol, draft.question))


def _sample(critic: Critic, protocol: Samples, drafts: list[Draft]) -> Iterator[Trace]:
    """The k − 1 other drafts of each prompt, all prompts together; a trace as soon as its drafts are there."""
    keys = [sample_keys(draft.prompt.id, protocol.drafts)[1:] for draft in drafts]
    asked = [(place, key) for place, others in enumerate(keys) for key in others]
    settings = critic.settings.generate
    completions = critic.drafter.generate(
        [drafts[place].prompt.messages for place, _ in asked],
        _sampling(critic, settings.draft_tokens),
        [key for _, key in asked],
        settings.batch_size,
    )
    made: dict[int, list[Completion]] = {}
    for index, completion in in_order(completions):
        place = asked[index][0]
        samples = made.setdefault(place, [drafts[place].completion])
        samples.append(completion)
        if len(samples) == protocol.drafts:
            yield _sampled_trace(protocol, drafts[place], made.pop(place))


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
    completions = in_order(
        critic.drafter.generate(
            [prompt.messages for prompt in prompts],
            _sampling(critic, settings.draft_tokens),
            [f"{prompt.id}/draft" for prompt in prompts],
            settings.batch_size,
        )
    )
    return [draft_of(critic, prompts[index], completion) for index, completion in completions]


def draft_of(critic: Critic, prompt: Prompt, completion: Completion) -> Draft:
    """`completion` as the draft, with the principles that the critic is shown for it: always the same ones."""
    return Draft(prompt, completion, _principles(critic, prompt, completion.text))


def _principles(critic: Critic, prompt: Prompt, draft: str) -> list[Principle]:
    text = f"{prompt.messages[-1]['content']}\n{draft}"
    settings = critic.settings
    return select_principles(critic.constitution, prompt.id, text, settings.seed, settings.generate.most_principles)


def _revise(critic: Critic, protocol: Protocol, criticised: Iterable[tuple[Draft, Completion]]) -> Iterator[Trace]:
    """Second call of a two-call protocol, for the rows whose critique did not settle them."""
    open_rows: list[tuple[Draft, Completion]] = []
    for draft, output in criticised:
        if (verdict := parse_critique(output)) is not None:
            yield _trace(critic, draft, [output], verdict)
        else:
            open_rows.append((draft, output))
    assert protocol.revision is not None, "whoever calls this has asked"
    chats = [
        revision_chat(protocol, draft.prompt.messages, draft.completion.text, output.text)
        for draft, output in open_rows
    ]
    revisions = _ask_critic(critic, chats, [f"{draft.prompt.id}/revision" for draft, _ in open_rows])
    for index, revision in revisions:
        draft, output = open_rows[index]
        verdict = judge_revision(output.text, revision, protocol, draft.question)
        yield _trace(critic, draft, [output, revision], verdict)


def _ask_critic(critic: Critic, chats: list[Messages], keys: list[str]) -> Iterator[tuple[int, Completion]]:
    settings = critic.settings.generate
    sampling = _sampling(critic, settings.critic_tokens)
    return in_order(critic.critic.generate(chats, sampling, keys, settings.batch_size))


def in_order(rows: Iterator[tuple[int, Completion]]) -> Iterator[tuple[int, Completion]]:
    """The rows of a Generator by index, each as soon as those before it are there, so that files do not depend on haste.

    Rows that wait for one that never comes follow at the end, also where that is an error.
    """
    waiting: dict[int, Completion] = {}
    following = 0
    try:
        for index, completion in rows:
            waiting[index] = completion
            while following in waiting:
                yield following, waiting.pop(following)
                following += 1
    except (CaiError, KeyboardInterrupt):  # what was paid for is kept
        yield from sorted(waiting.items())
        raise
    yield from sorted(waiting.items())


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
