"""tools/train_reward_model.py on the random models; make test-real trains one of real weights with it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_reward_model
from train_reward_model import PEOPLE, Pair
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cai_helpers.store import write_jsonl

TOOL = Path(train_reward_model.__file__)


def asked(number: int) -> list[dict]:
    return [{"role": "user", "content": f"how do i fix bike {number}"}]


PAIRS = [Pair(asked(n), f"take a pump slow then turn it {n} and ask a friend", "no", PEOPLE) for n in range(40)]


def test_every_way_to_spoil_an_answer_keeps_the_prompt_and_the_better_side():
    spoiled = list(train_reward_model.spoil(PAIRS, random.Random(0)))
    kinds = {pair.kind for pair in spoiled}
    assert kinds == {"garbled", "looping", "cut off", "meta-commentary", "off topic"}
    for pair, original in zip(spoiled, PAIRS, strict=True):
        assert (pair.messages, pair.better) == (original.messages, original.better)
        assert pair.worse != pair.better
    by_kind = {pair.kind: pair for pair in spoiled}
    assert by_kind["off topic"].worse in {pair.better for pair in PAIRS}
    assert by_kind["cut off"].better.startswith(by_kind["cut off"].worse)
    assert by_kind["looping"].worse.startswith("take a pump")
    assert by_kind["looping"].worse.count("take a pump") > 1


def test_a_spoiled_answer_is_held_out_together_with_the_pair_it_was_made_from():
    pairs = PAIRS + list(train_reward_model.spoil(PAIRS, random.Random(0)))
    train, held_out = train_reward_model.split(pairs, 0.2)
    assert len(train) + len(held_out) == 80
    assert held_out
    prompts = [{pair.messages[0]["content"] for pair in part} for part in (train, held_out)]
    assert prompts[0] & prompts[1] == set()


@pytest.mark.slow
def test_the_tool_writes_a_reward_model_with_a_pad_token_and_its_held_out_accuracy(tiny, tmp_path):
    gold = tmp_path / "gold.jsonl"
    write_jsonl(gold, [{"messages": p.messages, "better": p.better, "worse": p.worse} for p in PAIRS])
    out = tmp_path / "reward"
    arguments = [
        TOOL,
        tiny / "base",
        out,
        gold,
        *"--negatives 0.5 --steps 3 --batch-size 4 --lr 1e-2 --threads 1".split(),
    ]
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert (model.config.num_labels, model.config.pad_token_id) == (1, 0)
    made = json.loads((out / "accuracy.json").read_text())
    assert made["steps"] == 3
    assert made["held_out"][PEOPLE]["words"] in done.stdout
    # the saved model ranks as often rightly as the tool says
    _, held_out = train_reward_model.split(PAIRS, 0.1)
    tokenizer = AutoTokenizer.from_pretrained(out)
    marks = []
    for pair in held_out:
        chats = [train_reward_model.chat(pair, answer) for answer in (pair.better, pair.worse)]
        ids = [tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True) for chat in chats]
        with torch.inference_mode():
            better, worse = (model(**each).logits.item() for each in ids)
        marks.append(better > worse)
    assert made["held_out"][PEOPLE]["n"] == len(marks)
    assert made["held_out"][PEOPLE]["value"] == pytest.approx(sum(marks) / len(marks))
    assert not out.with_name("reward.tmp").exists()


def test_a_file_without_pairs_is_refused_in_plain_words(tiny, tmp_path):
    (tmp_path / "gold.jsonl").write_text('{"question": "how"}\n')
    done = subprocess.run(
        [sys.executable, str(TOOL), str(tiny / "base"), str(tmp_path / "out"), str(tmp_path / "gold.jsonl")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "its columns are question" in done.stderr
    assert "Traceback" not in done.stderr
