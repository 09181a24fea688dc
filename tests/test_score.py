import statistics

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from cai_helpers.errors import CaiError
from cai_helpers.models.batches import in_batches, in_token_batches
from cai_helpers.scoring.ensemble import Ensemble
from cai_helpers.scoring.judge import scorer_identity
from cai_helpers.scoring.reward_model import RewardModel
from cai_helpers.scoring.sanity import check_sanity, check_spread, norming_texts
from cai_helpers.sections import RewardSource
from cai_helpers.settings import load_settings
from cai_helpers.stages.score import choose_side

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]


@pytest.fixture(scope="module")
def classifier():
    """A small random model whose tokenizer takes text pairs, as the default reward model's does."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=1,
    )
    return BertForSequenceClassification(config), tokenizer


def scorer(classifier, **changes) -> RewardModel:
    return RewardModel(*classifier, RewardSource(model="small", **changes), batch_size=2)


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_a_pair_is_scored_as_the_models_card_calls_it(classifier):
    model, tokenizer = classifier
    with torch.inference_mode():
        expected = model.eval()(**tokenizer("a b c", "d e", return_tensors="pt")).logits[0, 0].item()
    assert scorer(classifier)([(ask("a b c"), "d e")]) == [pytest.approx(expected, abs=1e-6)]


def test_scores_do_not_depend_on_the_batch(classifier):
    pairs = [(ask("a " * n), "b c d"[: 2 * n]) for n in (5, 1, 3, 2, 7)]
    alone = [scorer(classifier)([pair])[0] for pair in pairs]
    assert scorer(classifier)(pairs) == pytest.approx(alone, abs=1e-6)


def test_a_long_question_loses_its_beginning_and_never_the_answer(classifier):
    reward_model = scorer(classifier, max_length=32)
    encoded = reward_model._encode(ask("a " * 50 + "b"), "c d e")
    text = classifier[1].decode(encoded.ids)
    assert len(encoded.ids) == 32
    assert text.endswith("a a b [SEP] c d e [SEP]")
    assert reward_model.truncated == 1


def test_an_answer_longer_than_the_model_reads_stops_with_what_to_do(classifier):
    with pytest.raises(CaiError, match="A response of 40 tokens is longer"):
        scorer(classifier, max_length=32)([(ask("a"), "c " * 40)])


def test_a_score_that_is_not_finite_stops_the_run(classifier):
    model, tokenizer = classifier
    broken = BertForSequenceClassification(model.config)
    torch.nn.init.constant_(broken.classifier.bias, torch.nan)
    with pytest.raises(CaiError, match="gave nan to the response 'c d'"):
        RewardModel(broken, tokenizer, RewardSource(model="small"), 2)([(ask("a"), "c d")])


def test_a_scorer_that_prefers_word_salad_is_refused():
    class Backwards:
        identity = "backwards"

        def __call__(self, pairs):
            return [float(response.startswith("the")) for _, response in pairs]

    with pytest.raises(CaiError, match="1.00 to word salad and 0.00 to an answer"):
        check_sanity(Backwards())


def test_a_tie_keeps_the_draft():
    assert [choose_side(1.0, 2.0), choose_side(2.0, 1.0), choose_side(1.0, 1.0)] == ["revised", "base", "base"]


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to …", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when …"]
)
def test_out_of_memory_halves_the_batch_loses_no_row_and_is_remembered(message):
    halved = []

    def work(rows):
        if len(rows) > 3:
            raise RuntimeError(message)
        return rows

    batches = list(in_batches(list(range(10)), 8, work, halved.append))
    assert [rows for rows, _ in batches] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert halved == [4, 2]


def test_another_error_is_not_taken_for_memory():
    def work(rows):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches([0, 1], 2, work))


def test_a_single_row_that_does_not_fit_says_what_to_do():
    def work(rows):
        raise RuntimeError("out of memory")

    with pytest.raises(CaiError, match="One single row does not fit"):
        list(in_batches([0, 1], 2, work))


def labelled(labels: list[str]) -> BertForSequenceClassification:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label=dict(enumerate(labels)),
    )
    return BertForSequenceClassification(config)


def test_named_labels_count_with_their_signs(classifier):
    model, tokenizer = labelled(["harmful", "fine", "helpful"]), classifier[1]
    with torch.inference_mode():
        logits = model.eval()(**tokenizer("a b c", "d e", return_tensors="pt")).logits[0]
    harmful, _, helpful = logits.softmax(dim=-1).tolist()
    source = RewardSource(model="small", labels={"harmful": -1.0, "helpful": 0.5})
    score = RewardModel(model, tokenizer, source, 2)([(ask("a b c"), "d e")])[0]
    assert score == pytest.approx(0.5 * helpful - harmful, abs=1e-6)


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["harmful", "fine"], {"harm": -1.0}, "no label harm; it has harmful, fine"),
        (["harmful", "fine"], {}, r"has 2 labels \(harmful, fine\); a reward model has one logit"),
        (["reward"], {"reward": 1.0}, "one logit, whose softmax is always 1"),
    ],
)
def test_labels_that_do_not_suit_the_model_are_named(classifier, names, labels, message):
    with pytest.raises(CaiError, match=message):
        RewardModel(labelled(names), classifier[1], RewardSource(model="small", labels=labels), 2)


def test_a_classifier_that_scores_everything_alike_is_refused(classifier):
    model = labelled(["harmful", "fine"])
    torch.nn.init.zeros_(model.classifier.weight)
    flat = RewardModel(model, classifier[1], RewardSource(model="small", labels={"harmful": -1.0}), 2)
    with pytest.raises(CaiError, match="nearly the same score to 24 very different texts"):
        check_spread(flat)


class Fixed:
    """A member whose scores are a line over the length of the response."""

    def __init__(self, slope: float, height: float) -> None:
        self.identity = f"{slope}x{height}"
        self._slope, self._height = slope, height
        self.scored = self.truncated = 0

    def __call__(self, pairs):
        return [self._slope * len(response) + self._height for _, response in pairs]

    def notes(self):
        return [("scored in", "fp32")]


def test_an_ensemble_is_the_mean_of_z_scores_whatever_the_members_scales():
    lengths = [len(response) for _, response in norming_texts()]
    expected = (5 - statistics.fmean(lengths)) / statistics.stdev(lengths)
    same = Ensemble([Fixed(1, 0), Fixed(100, -7)])
    assert same([(ask("?"), "12345")]) == [pytest.approx(expected)]
    opposed = Ensemble([Fixed(1, 0), Fixed(-3, 2)])
    assert opposed([(ask("?"), "1" * n) for n in (1, 90)]) == [pytest.approx(0.0)] * 2


def test_a_score_of_an_ensemble_does_not_depend_on_the_other_texts():
    ensemble = Ensemble([Fixed(1, 0), Fixed(0.5, 3)])
    texts = [(ask("?"), "1" * n) for n in range(600)]
    assert ensemble(texts)[3] == ensemble(texts[3:4])[0]


def test_a_member_without_any_spread_cannot_be_standardised():
    with pytest.raises(CaiError, match="one score to every text"):
        Ensemble([Fixed(1, 0), Fixed(0, 2)])


def test_truncated_questions_are_reported(classifier):
    reward_model = scorer(classifier, max_length=32)
    reward_model([(ask("a " * 50 + "b"), "c d e"), (ask("a"), "b")])
    assert dict(reward_model.notes())["truncated inputs"] == "1 of 2 questions lost their beginning at 32 tokens"


def test_the_identity_of_a_scorer_names_all_that_its_scores_depend_on():
    plain = load_settings("smoke")
    one = load_settings("smoke", ["models.reward.labels={bad: -1}"])
    two = load_settings("smoke", ["models.reward_ensemble=[{model: other/reward, max_length: 256}]"])
    fed = load_settings("smoke", ["score.by=ai_feedback"])
    more = load_settings("smoke", ["score.by=ai_feedback", "score.feedback_principles=2"])
    names = [scorer_identity(settings) for settings in (plain, one, two, fed, more)]
    assert len(set(names)) == 5
    assert "-1·P(bad)" in names[1]
    assert "other/reward, pair input, 256 tokens" in names[2]
    assert scorer_identity(load_settings("smoke", ["score.batch_size=3"])) == names[0]


TEMPLATE = (
    "<s>{% for m in messages %}{{ m.role[0] }} {{ m.content }}</s>{% endfor %}"  # closes each turn with the end token
)
OPEN_TEMPLATE = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}"  # ends on the answer's own words
SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "num_labels": 1}
DECODERS = {
    "llama": ("Llama", SIZE),
    "qwen2": ("Qwen2", SIZE | {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", SIZE | {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma": ("Gemma", SIZE | {"num_key_value_heads": 2, "head_dim": 8}),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 1}),
}


def chat_tokenizer(template: str, pad: str | None) -> PreTrainedTokenizerFast:
    vocabulary = ["[PAD]", "[UNK]", "<s>", "</s>", *"abcdefghu"]
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])  # one more <s>
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", bos_token="<s>", eos_token="</s>", pad_token=pad
    )
    tokenizer.chat_template = template
    return tokenizer


def chat_model(family: str, pad_token_id: int | None):
    name, size = DECODERS[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=13, **size)
    config.pad_token_id = pad_token_id
    model = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight)  # scores that tell positions apart, the same ones whatever is padding
    return model


CONVERSATIONS = [(ask("a b c d e f"), "g h a b c"), (ask("a"), "b"), (ask("c d"), "e f")]


@pytest.mark.parametrize("template", [TEMPLATE, OPEN_TEMPLATE], ids=["closed", "open"])
@pytest.mark.parametrize("tokenizer_pad", ["[PAD]", "</s>", None])
@pytest.mark.parametrize("config_pad", [None, -1, 1])
@pytest.mark.parametrize("family", DECODERS)
def test_a_chat_reward_model_reads_the_end_of_each_text_whatever_pads_it(family, config_pad, tokenizer_pad, template):
    """Expected is what the model says of each text by itself, read at its very last token."""
    tokenizer, model = chat_tokenizer(template, tokenizer_pad), chat_model(family, None)
    expected = []
    for messages, response in CONVERSATIONS:
        text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": response}], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            expected.append(model(ids).logits[0, 0].item())
    source = RewardSource(model="small", input="chat")
    reward_model = RewardModel(chat_model(family, config_pad), tokenizer, source, batch_size=3)
    assert reward_model(CONVERSATIONS) == pytest.approx(expected, abs=1e-5)
    reward_model.require_same_in_a_batch()


def test_a_deberta_is_scored_alike_alone_and_in_a_batch(classifier):
    torch.manual_seed(0)
    config = transformers.DebertaV2Config(vocab_size=len(WORDS), position_buckets=8, relative_attention=True, **SIZE)
    reward_model = RewardModel(
        transformers.DebertaV2ForSequenceClassification(config), classifier[1], RewardSource(model="small"), 3
    )
    alone = [reward_model([pair])[0] for pair in CONVERSATIONS]
    assert reward_model(CONVERSATIONS) == pytest.approx(alone, abs=1e-5)
    reward_model.require_same_in_a_batch()


def test_a_model_whose_scores_depend_on_the_padding_is_refused():
    class ReadsTheLastPlace(transformers.LlamaForSequenceClassification):
        def forward(self, input_ids, attention_mask):
            logits = self.score(self.model(input_ids).last_hidden_state)[:, -1]
            return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)

    model = ReadsTheLastPlace(chat_model("llama", None).config)
    torch.nn.init.normal_(model.score.weight)
    reward_model = RewardModel(
        model, chat_tokenizer(TEMPLATE, "[PAD]"), RewardSource(model="small", input="chat"), batch_size=2
    )
    with pytest.raises(CaiError, match="to a text alone and .* beside a longer one"):
        reward_model.require_same_in_a_batch()


def test_a_chat_is_encoded_with_one_beginning_and_without_thinking():
    template = "<s>{% if enable_thinking is not defined or enable_thinking %} h {% endif %}" + TEMPLATE[3:]
    reward_model = RewardModel(
        chat_model("qwen3", None), chat_tokenizer(template, "[PAD]"), RewardSource(model="small", input="chat"), 1
    )
    ids = reward_model._encode(ask("a"), "b").ids
    assert classifier_words(ids) == ["<s>", "u", "a", "</s>", "a", "b", "</s>"]


def classifier_words(ids: list[int]) -> list[str]:
    return chat_tokenizer(TEMPLATE, None).convert_ids_to_tokens(ids)


def test_batches_by_tokens_hold_rows_of_like_size_and_little_padding():
    sizes = [(row * 7919) % 397 + 12 for row in range(300)]
    batches = [rows for rows, _ in in_token_batches(sizes, 4096, lambda rows: rows)]
    assert sorted(row for rows in batches for row in rows) == list(range(300))
    for rows in batches:
        width, real = max(sizes[row] for row in rows), sum(sizes[row] for row in rows)
        assert len(rows) == 1 or len(rows) * width <= 4096
        assert real >= 0.9 * len(rows) * width
    assert len(batches) < 40


def test_out_of_memory_halves_the_tokens_of_a_batch_and_loses_no_row():
    sizes, tried = [10] * 12, []

    def work(rows):
        tried.append(len(rows))
        if len(rows) > 3:
            raise RuntimeError("CUDA out of memory")
        return rows

    batches = [rows for rows, _ in in_token_batches(sizes, 100, work)]
    assert sorted(row for rows in batches for row in rows) == list(range(12))
    assert tried == [10, 5, 2, 2, 2, 2, 2, 2]
