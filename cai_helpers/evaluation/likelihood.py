"""How likely each policy finds a text: kept on disk by what it depends on, so that nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from importlib import resources

from cai_helpers import screen
from cai_helpers.evaluation.answers import weights_of
from cai_helpers.evaluation.figures import BASE, STAGE2, STAGE3, TwoOptions
from cai_helpers.evaluation.policies import Policies
from cai_helpers.evaluation.prompt_sets import Options
from cai_helpers.machine.processes import is_main_process, this_process
from cai_helpers.measures.intervals import paired_difference, proportion
from cai_helpers.models.log_probability import LogProbability, answer_log_probabilities
from cai_helpers.schema import Messages
from cai_helpers.screen import Bar
from cai_helpers.settings import Settings
from cai_helpers.shares import own_share, take_in
from cai_helpers.store import JsonlStore

Text = tuple[Messages, str]  # a conversation and an answer to it
Known = dict[str, LogProbability]  # by key_of

_ROWS_A_WRITE = 256


def key_of(weights: str, text: Text) -> str:
    """Names a log-probability: whose, and of what."""
    return hashlib.sha256(json.dumps([weights, *text], sort_keys=True).encode()).hexdigest()[:20]


class Likelihood:
    """What the policies find likely.

    wanted: policy → texts that will be asked for. `load` is called only where something is not known yet.
    """

    def __init__(self, settings: Settings, adapters: dict[str, str | None], store: JsonlStore) -> None:
        self._settings = settings
        self._weights = {policy: weights_of(settings, adapter) for policy, adapter in adapters.items()}
        self._store = store
        self._known: Known = {}

    def measure(self, wanted: dict[str, list[Text]], load: Callable[[], Policies]) -> int:
        """Measure what is not known yet, and return how many texts that were. Several processes share them out."""
        processes = this_process()
        take_in(self._store)
        processes.wait()
        keyed = {
            policy: {key_of(self._weights[policy], text): text for text in texts} for policy, texts in wanted.items()
        }
        self._read(keyed)
        missing = {
            policy: {key: text for key, text in texts.items() if key not in self._known}
            for policy, texts in keyed.items()
        }
        total = sum(map(len, missing.values()))
        if total:
            with own_share(self._store, processes) as share, self._bar(missing) as bar:
                for policy, texts in missing.items():
                    own = processes.share(texts.items(), lambda item: len(item[1][1]))
                    if own:
                        self._measure(policy, dict(own), load(), share, bar)
            self._read(keyed)
        return total

    def _read(self, keyed: dict[str, dict[str, Text]]) -> None:
        wanted = {key for texts in keyed.values() for key in texts}
        rows = ((row["id"], LogProbability(row["total"], row["tokens"])) for row in self._store.rows())
        self._known |= {key: one for key, one in rows if key in wanted}

    def _bar(self, missing: dict[str, dict[str, Text]]) -> Bar:
        total = sum(map(len, missing.values()))
        return screen.bar(total, "likelihood", "text", hidden=not is_main_process())

    def of(self, policy: str, text: Text) -> LogProbability:
        return self._known[key_of(self._weights[policy], text)]

    def _measure(self, policy: str, texts: dict[str, Text], policies: Policies, store: JsonlStore, bar: Bar) -> None:
        keys, size = list(texts), self._settings.evaluate.batch_size
        unwritten: dict[str, LogProbability] = {}
        with policies.playing(policy) as language_model:
            try:
                for index, found in answer_log_probabilities(language_model, list(texts.values()), size):
                    unwritten[keys[index]] = found
                    bar.update()
                    if len(unwritten) >= _ROWS_A_WRITE:
                        _write(store, unwritten)
                        unwritten = {}
            finally:
                _write(store, unwritten)


def _write(store: JsonlStore, found: Known) -> None:
    store.append({"id": key, "total": one.total, "tokens": one.tokens} for key, one in found.items())


def benign_texts() -> list[Text]:
    """Plain questions with good answers, written for this package: what no tuning should make unlikely."""
    file = resources.files("cai_helpers") / "assets" / "norming.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return [([{"role": "user", "content": row["question"]}], row["responses"][0]) for row in rows]


def perplexity(likelihood: Likelihood, policy: str) -> float:
    """exp of the mean negative log-probability of a token of the benign texts."""
    found = [likelihood.of(policy, text) for text in benign_texts()]
    return math.exp(-sum(one.total for one in found) / sum(one.tokens for one in found))


def options_texts(options: Sequence[Options]) -> list[Text]:
    return [(one.messages, text) for one in options for text in (one.right, one.wrong)]


def two_options(likelihood: Likelihood, name: str, options: Sequence[Options], policies: Sequence[str]) -> TwoOptions:
    """How often each policy finds the right one more likely, by the mean log-probability of a token: options differ in length."""

    def right(policy: str) -> list[bool]:
        return [
            _mean(likelihood, policy, (one.messages, one.right)) > _mean(likelihood, policy, (one.messages, one.wrong))
            for one in options
        ]

    found = {policy: right(policy) for policy in policies if policy in (BASE, STAGE2, STAGE3)}
    both = list(zip(found[STAGE2], found[STAGE3], strict=True))
    return TwoOptions(
        name=name,
        pairs=len(options),
        right={policy: proportion(sum(hits), len(hits)) for policy, hits in found.items()},
        change=paired_difference(
            *(both.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
        ),
    )


def _mean(likelihood: Likelihood, policy: str, text: Text) -> float:
    return likelihood.of(policy, text).per_token or 0.0
