import gzip
import json

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.prompts.sources import Malformed, as_prompt_messages, parse_transcript
from cai_helpers.prompts.split import _fit, load_prompts, prompt_id, write_prompts
from cai_helpers.settings import Prompts, load_settings
from cai_helpers.store import read_jsonl


def words(chat) -> int:
    return sum(len(message["content"].split()) for message in chat)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_transcript_keeps_all_its_turns():
    text = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Yeah."
    assert as_prompt_messages(text) == [user("Hi"), assistant("Hello!"), user("Yeah.")]


def test_the_closing_response_of_a_chosen_column_is_cut_off():
    assert as_prompt_messages("\n\nHuman: Hi\n\nAssistant: Hello!") == [user("Hi")]


def test_colons_and_the_word_human_inside_a_turn_survive():
    text = "\n\nHuman: Note: he said Human: stop\nHuman: is a word\n\nAssistant: Assistant: yes"
    assert parse_transcript(text) == [
        user("Note: he said Human: stop\nHuman: is a word"),
        assistant("Assistant: yes"),
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("\n\nAssistant: Hello!", "no user turn"),
        ("\n\nHuman: \n\nAssistant: Hello!", "an empty turn"),
        ("\n\nHuman: a\n\nHuman: b", "user and assistant do not alternate"),
        ([assistant("a"), user("b")], "user and assistant do not alternate"),
        ([{"role": "tool", "content": "a"}], "a message without role or text"),
        (["a"], "a message is not an object"),
        (7, "neither text nor a list of messages"),
        ("   ", "an empty turn"),
    ],
)
def test_a_malformed_conversation_has_a_reason(value, reason):
    with pytest.raises(Malformed, match=reason):
        as_prompt_messages(value)


def test_the_id_ignores_case_and_white_space_but_not_earlier_turns():
    assert prompt_id([user("How  do I\nknit?")]) == prompt_id([user("how do i knit?")])
    assert prompt_id([user("Yes.")]) != prompt_id([user("Shall I?"), assistant("Yes?"), user("Yes.")])


def test_the_same_words_from_another_role_are_another_prompt():
    asked, told = (
        [{"role": role, "content": "Be brief."}, {"role": "user", "content": "Hi"}] for role in ("user", "system")
    )
    assert prompt_id(asked) != prompt_id(told)


def test_every_row_becomes_a_prompt_or_a_counted_reason(tmp_path):
    source = write(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "one one"},
            {"prompt": "ONE   one"},
            {"prompt": "two"},
            {"other": "x"},
            {"prompt": "much " * 50},
            {"messages": [user("a " * 15), assistant("b " * 15), user("the last turn")]},
        ],
    )
    split = load_prompts(Prompts(source=source, eval_count=1, limit=None, max_tokens=20), 0, words)
    summary = split.summary
    assert (summary.rows, summary.duplicates, summary.shortened) == (6, 1, 1)
    assert summary.skipped == {"no known conversation column": 1, "the last turn alone is longer than 20 tokens": 1}
    assert (summary.train, summary.eval) == (2, 1)
    assert [user("the last turn")] in [prompt.messages for prompt in split.train + split.eval]


def test_no_training_prompt_is_in_the_evaluation_file(tmp_path):
    source = write(tmp_path / "train.jsonl", [{"prompt": f"question {n}"} for n in range(10)])
    held_out = write(tmp_path / "eval.jsonl", [{"prompt": "Question  3"}, {"prompt": "another"}])
    split = load_prompts(Prompts(source=source, eval_source=held_out, limit=None), 0, words)
    assert split.summary.leaks == 1
    assert not {prompt.id for prompt in split.train} & {prompt.id for prompt in split.eval}


def test_a_larger_limit_begins_with_the_same_prompts(tmp_path):
    source = write(tmp_path / "train.jsonl", [{"prompt": f"question {n}"} for n in range(50)])
    few, many = (load_prompts(Prompts(source=source, eval_count=5, limit=n), 0, words) for n in (10, 30))
    assert many.train[:10] == few.train
    assert many.eval == few.eval


def test_a_source_without_a_usable_prompt_says_so(tmp_path):
    source = write(tmp_path / "rows.jsonl", [{"other": "x"}])
    with pytest.raises(CaiError, match="1 rows read, 0 held out for evaluation, 1 × no known conversation column"):
        load_prompts(Prompts(source=source), 0, words)


def test_a_text_file_is_one_prompt_a_line(tmp_path):
    (tmp_path / "prompts.txt").write_text("first\n\nsecond\u2028still second\n", encoding="utf-8")
    split = load_prompts(Prompts(source=str(tmp_path / "prompts.txt"), eval_count=0, limit=None), 0, words)
    assert sorted(prompt.text for prompt in split.train) == ["first", "second\u2028still second"]


def test_a_parquet_file_and_its_columns_are_read(tmp_path):
    from pyarrow import Table, parquet

    columns = {"talk": [[user("Hi")], [user("Bye")]], "kind": ["helpful", "harmless"]}
    parquet.write_table(Table.from_pydict(columns), tmp_path / "rows.parquet")
    settings = Prompts(source=str(tmp_path / "rows.parquet"), column="talk", category_column="kind", eval_count=0)
    split = load_prompts(settings, 0, words)
    assert {(prompt.text, prompt.category) for prompt in split.train} == {("Hi", "helpful"), ("Bye", "harmless")}


def test_a_system_turn_is_folded_into_the_first_user_turn_for_a_model_without_a_system_role(tmp_path, workspace):
    system = {"role": "system", "content": "Be brief."}
    source = write(tmp_path / "rows.jsonl", [{"messages": [system, user("Hi"), assistant("Hello!"), user("And you?")]}])
    settings = load_settings("smoke", [f"prompts.source={source}", "prompts.eval_source=null", "prompts.eval_count=0"])
    write_prompts(settings, workspace)
    [row] = read_jsonl(workspace.prompts)
    assert row["messages"] == [user("Be brief.\n\nHi"), assistant("Hello!"), user("And you?")]


@pytest.fixture
def hh_rlhf(tmp_path):
    """A folder laid out like Anthropic/hh-rlhf: two subsets with a train and a test file each."""
    for subset in ("harmless-base", "helpful-base"):
        (tmp_path / "hh-rlhf" / subset).mkdir(parents=True)
        for split, count in (("train", 30), ("test", 10)):
            rows = [{"chosen": f"\n\nHuman: {subset} {split} {n}?\n\nAssistant: Yes."} for n in range(count)]
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            (tmp_path / "hh-rlhf" / subset / f"{split}.jsonl.gz").write_bytes(gzip.compress(content))
    return str(tmp_path / "hh-rlhf")


def test_a_dataset_is_read_by_subset_and_split_expression_and_mixed_half_and_half(hh_rlhf):
    settings = Prompts(source=hh_rlhf, split="test[:5]+train[:20]", eval_count=10, limit=20)
    split = load_prompts(settings, 0, words)
    assert split.summary.rows == 50
    assert split.summary.categories == {"harmless": 10, "helpful": 10}
    assert sorted(split.summary.sources.values()) == [10, 10]
    assert sum(prompt.category == "harmless" for prompt in split.eval) == 5


def test_a_missing_file_is_not_taken_for_a_hub_dataset():
    with pytest.raises(CaiError, match="There is no file"):
        load_prompts(Prompts(source="nowhere/prompts.jsonl"), 0, words)


def test_all_real_red_team_transcripts_become_prompts_or_counted_reasons(shared_data):
    source = shared_data / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    split = load_prompts(Prompts(source=str(source), eval_count=100, limit=None, max_tokens=2000), 0, words)
    summary = split.summary
    assert summary.rows == 2312
    assert summary.train + summary.eval + summary.duplicates + sum(summary.skipped.values()) == 2312
    assert summary.skipped == {"user and assistant do not alternate": 4}
    with gzip.open(source, "rt", encoding="utf-8") as file:
        text = " ".join(json.loads(line)["chosen"] for line in file)
    turns = [message["content"] for prompt in split.train for message in prompt.messages]
    quoting = [content for content in turns if ": " in content or "Human:" in content]
    assert len(quoting) > 20
    assert all(content in text for content in quoting)


def test_a_thousand_exchanges_are_shortened_with_few_counts():
    counted = []

    def count(messages):
        counted.append(len(messages))
        return len(messages)

    turns = [{"role": ("user", "assistant")[place % 2], "content": str(place)} for place in range(2001)]
    assert _fit(turns, 8, count) == turns[-7:]
    assert len(counted) < 20
    with pytest.raises(Malformed, match="the last turn alone"):
        _fit(turns, 0, count)
