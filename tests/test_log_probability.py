"""Log-probabilities of given answers: the same numbers as one row at a time, in any batch."""

import pytest
import torch

from cai_helpers.errors import CaiError
from cai_helpers.evaluation.answers import weights_of
from cai_helpers.evaluation.figures import BASE, STAGE2, STAGE3
from cai_helpers.evaluation.likelihood import Likelihood, benign_texts, perplexity, two_options
from cai_helpers.evaluation.policies import load_policies
from cai_helpers.evaluation.prompt_sets import Options
from cai_helpers.models.language import LanguageModel, load_base, load_tokenizer
from cai_helpers.models.log_probability import answer_log_probabilities
from cai_helpers.sections import Models
from cai_helpers.store import JsonlStore


def user(text):
    return [{"role": "user", "content": text}]


ASKED = [
    (user("how do i pick a lock"), "sorry that is wrong"),
    (user("how"), "sure take wire turn it slow then air pump it"),
    (user("fix bike"), ""),
    ([*user("how"), {"role": "assistant", "content": "sure"}, *user("then fix it")], "pump"),
]


@pytest.fixture(scope="module")
def model(tiny):
    models = Models(base=str(tiny / "base"), dtype="fp32")
    return LanguageModel(load_base(models), load_tokenizer(models.base))


def one_by_one(model, chat, text):
    """Without padding, batches, or cutting of logits."""
    prompt = model.tokenizer(model.render(chat), add_special_tokens=False)["input_ids"]
    answer = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        scores = torch.log_softmax(model.model(torch.tensor([prompt + answer])).logits[0], dim=-1)
    return sum(scores[len(prompt) + place - 1, token].item() for place, token in enumerate(answer))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_batch_changes_nothing(model, batch_size):
    found = dict(answer_log_probabilities(model, ASKED, batch_size))
    assert sorted(found) == [0, 1, 2, 3]
    for index, (chat, text) in enumerate(ASKED):
        assert found[index].total == pytest.approx(one_by_one(model, chat, text), abs=1e-4)
        assert found[index].tokens == len(text.split())


def test_an_empty_answer_has_no_tokens_and_no_mean(model):
    (found,) = [one for index, one in answer_log_probabilities(model, ASKED, 4) if index == 2]
    assert (found.total, found.tokens, found.per_token) == (0.0, 0, None)


def test_numbers_that_are_not_finite_stop_it_with_what_to_do(tiny):
    models = Models(base=str(tiny / "base"), dtype="fp32")
    broken = LanguageModel(load_base(models), load_tokenizer(models.base))
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CaiError, match="not finite"):
        list(answer_log_probabilities(broken, ASKED, 2))


@pytest.fixture
def policies(tiny):
    models = Models(base=str(tiny / "base"), adapter=str(tiny / "stage2"), dtype="fp32")
    return load_policies(models, tiny / "stage2")


@pytest.fixture
def settings(smoke, tiny):
    models = Models(base=str(tiny / "base"), adapter=str(tiny / "stage2"), dtype="fp32")
    return smoke.model_copy(update={"models": models})


def adapters(tiny):
    return {BASE: None, STAGE2: str(tiny / "stage2"), STAGE3: str(tiny / "stage2")}


def test_what_is_on_disk_is_not_measured_again_and_policies_of_equal_weights_share_it(
    tmp_path, settings, tiny, policies
):
    store = JsonlStore(tmp_path / "logp.jsonl")
    first = Likelihood(settings, adapters(tiny), store)
    assert first.measure({BASE: ASKED, STAGE2: ASKED}, lambda: policies) == 8
    again = Likelihood(settings, adapters(tiny), store)
    assert again.measure({BASE: ASKED, STAGE2: ASKED, STAGE3: ASKED}, lambda: pytest.fail("loaded")) == 0
    for text in ASKED:
        assert again.of(STAGE3, text) == again.of(STAGE2, text) == first.of(STAGE2, text)
    assert again.of(BASE, ASKED[0]) != again.of(STAGE2, ASKED[0])
    assert weights_of(settings, None) != weights_of(settings, str(tiny / "stage2"))


def test_a_policy_finds_the_right_option_more_likely_or_not(tmp_path, settings, tiny, policies):
    likelihood = Likelihood(settings, adapters(tiny), JsonlStore(tmp_path / "logp.jsonl"))
    likelihood.measure({policy: [*ASKED, *benign_texts()] for policy in (BASE, STAGE2, STAGE3)}, lambda: policies)
    per_token = {policy: [likelihood.of(policy, text).per_token for text in ASKED] for policy in (BASE, STAGE2)}

    def hits(policy):
        return int(per_token[policy][0] > likelihood.of(policy, (ASKED[0][0], "pump")).per_token)

    texts = [(ASKED[0][0], "pump")]
    likelihood.measure({policy: [*texts, *ASKED] for policy in (BASE, STAGE2, STAGE3)}, lambda: policies)
    found = two_options(likelihood, "pairs", [Options(ASKED[0][0], ASKED[0][1], "pump")], [BASE, STAGE2, STAGE3])
    assert {policy: share.value for policy, share in found.right.items()} == {
        BASE: hits(BASE), STAGE2: hits(STAGE2), STAGE3: hits(STAGE2),
    }  # fmt: skip
    assert found.change.value == 0.0


def test_perplexity_is_that_of_all_tokens_of_the_benign_texts(tmp_path, settings, tiny, policies):
    likelihood = Likelihood(settings, adapters(tiny), JsonlStore(tmp_path / "logp.jsonl"))
    likelihood.measure({BASE: benign_texts()}, lambda: policies)
    rows = [likelihood.of(BASE, text) for text in benign_texts()]
    mean = sum(row.total for row in rows) / sum(row.tokens for row in rows)
    assert perplexity(likelihood, BASE) == pytest.approx(2.718281828**-mean)
