"""All of Stage 3 on a language model of real weights, as a person calls it: by the command, on the files it leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections import Counter

import pytest
from real_run import PATIENCE, Run, environment, figure, wilson, write_pairs_by_hand, written
from safetensors.torch import load_file

pytestmark = pytest.mark.real

CLOSE = 1e-3  # two ways to compute one score in fp32: padded in a batch, and alone


def test_the_converted_model_answers_a_question_and_ends_by_itself(real_base):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(real_base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(real_base)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=60)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id == 2


def test_the_reward_tool_trains_says_how_right_it_is_and_writes_it_down(reward_training):
    folder, said = reward_training
    made = json.loads((folder / "accuracy.json").read_text())
    people = made["held_out"]["judged by people"]
    interval = wilson(round(people["value"] * people["n"]), people["n"])
    assert (people["low"], people["high"]) == pytest.approx(interval, abs=1e-4)
    assert people["words"] in said
    assert made["steps"] == 6
    assert {"garbled", "looping"} <= made["held_out"].keys()
    assert not list(folder.glob("*.bin"))  # no pickle


def test_the_doctor_finds_the_models_and_asks_for_nothing(bakeoff, real_base, reward_model):
    run, _ = bakeoff
    said = run("doctor")
    assert re.findall(r"^TODO\s+(\S.*?):", said, re.MULTILINE) == []
    assert f"ok    base model: {real_base}, on this machine" in said
    assert f"ok    reward model: {reward_model}, on this machine" in said
    assert "ok    chat format: answers end at <|im_end|>" in said


def test_preflight_tries_the_whole_path_and_leaves_only_what_it_found(bakeoff):
    run, _ = bakeoff
    before = files_below(run.root)
    said = run("preflight", "--set", "train.max_length=96", "--set", "generate.batch_size=2")
    assert figure(said, "verdict").startswith("ready: everything ran")
    assert "2 DPO steps of 2 pairs" in figure(said, "trained")
    assert files_below(run.root) == before | {run.root / "manifests" / "preflight.json"}


def files_below(root):
    return {path for path in root.rglob("*") if path.is_file() and "logs" not in path.parts}


def test_what_the_bakeoff_says_follows_from_its_rows(bakeoff, reward_of):
    run, said = bakeoff
    result = json.loads((run.root / "bakeoff" / "result.json").read_text())
    net, won, decided = {}, {}, {}
    for entry in result["entries"]:
        name = entry["protocol"]
        rows = run.rows(f"bakeoff/{name.replace('/', '-')}.jsonl")
        revised = [row for row in rows if row["outcome"] == "revised"]
        deltas = [
            reward_of(row["prompt"]["messages"], row["revision"]) - reward_of(row["prompt"]["messages"], row["draft"])
            for row in revised
        ]
        wins, losses = sum(delta > 0 for delta in deltas), sum(delta < 0 for delta in deltas)
        assert entry["outcomes"] == Counter(row["outcome"] for row in rows)
        assert (entry["prompts"], entry["wins"], entry["losses"]) == (3, wins, losses)
        assert entry["tokens_a_pair"] == sum(row["tokens"] for row in rows) / 3
        if deltas:
            assert entry["mean_delta"] == pytest.approx(sum(deltas) / len(deltas), abs=CLOSE)
        else:
            assert entry["mean_delta"] is entry["win_rate"] is None
        assert re.search(rf"^  {name}\s.*\s{re.escape(f'{wins - losses:+d}')}\s", said, re.MULTILINE)
        net[name] = wins - losses
        decided[name] = wins + losses
        won[name] = wins
    sound = [name for name in net if decided[name] and wilson(won[name], decided[name])[0] > 0.5]
    if not sound:
        assert result["recommended"] is None
        assert figure(said, "recommended").startswith("none: ")
        return
    best = max(net[name] for name in sound)
    near = [one for one in result["entries"] if one["protocol"] in sound and net[one["protocol"]] >= best - 1]
    quickest = min(near, key=lambda entry: entry["seconds_a_pair"])["protocol"]
    assert result["recommended"] == quickest
    assert figure(said, "recommended").startswith(quickest)


def test_generate_counts_what_is_in_its_rows(undisturbed):
    run, said = undisturbed
    rows = run.rows("pairs/traces.jsonl")
    assert {row["protocol"] for row in rows} == {"two_step/short"}
    assert figure(said, "pairs generated") == "10"
    for outcome, count in Counter(row["outcome"] for row in rows).items():
        assert figure(said, outcome).startswith(f"{count}  (")
    assert figure(said, "tokens generated") == f"{sum(row['tokens'] for row in rows):,}"
    assert all(row["draft"] and "<|im_" not in row["draft"] for row in rows)


def test_a_generation_killed_by_sigkill_and_resumed_writes_the_rows_of_an_undisturbed_one(undisturbed, settings_file):
    run, _ = undisturbed
    other = Run(run.root.with_name("to-be-killed"), settings_file)
    traces = other.root / "pairs" / "traces.jsonl"
    other.killed("generate", when=lambda: written(traces) >= 4)
    before = traces.read_bytes()
    assert 4 <= before.count(b"\n") < 10
    assert not (other.root / "manifests" / "generate.json").exists()
    said = other("generate")
    assert f"{before.count(bytes([10]))} of 10 pairs are there already" in said
    after = traces.read_bytes().splitlines(keepends=True)  # in the order of the prompts, not in that of their ends
    assert {line for line in before.splitlines(keepends=True) if line.endswith(b"\n")} <= set(after)
    by_id = lambda rows: {row["id"]: row for row in rows}  # noqa: E731
    assert by_id(other.rows("pairs/traces.jsonl")) == by_id(run.rows("pairs/traces.jsonl"))
    assert len(other.rows("pairs/traces.jsonl")) == 10
    assert "complete since" in other("generate")


def test_the_scores_are_those_of_the_reward_model_called_by_hand(scored, reward_of):
    run, said = scored
    pairs = run.rows("pairs/pairs.jsonl")
    assert len(pairs) == 10
    assert any(pair["outcome"] == "revised" for pair in pairs)
    for pair in pairs:
        assert pair["base_score"] == pytest.approx(reward_of(pair["messages"], pair["base_response"]), abs=CLOSE)
        if pair["outcome"] == "revised":
            revised = reward_of(pair["messages"], pair["revised_response"])
            assert pair["revised_score"] == pytest.approx(revised, abs=CLOSE)
            assert pair["chosen"] == ("revised" if revised > pair["base_score"] else "base")
        elif pair["outcome"] != "kept":
            assert pair["revised_score"] is None  # a failed revision is never scored
    revised = sum(pair["outcome"] == "revised" for pair in pairs)
    assert figure(said, "pairs with a usable revision") == f"{revised} of 10"


def test_curate_accounts_for_every_pair_of_a_weak_critic_and_training_refuses_too_few(scored):
    run, _ = scored
    other = run.copy("weak-critic")
    said = other("curate")
    kept = len(other.rows("dpo_dataset/train.jsonl")) + len(other.rows("dpo_dataset/eval.jsonl"))
    dropped = other.rows("dpo_dataset/dropped.jsonl")
    assert kept + len(dropped) == 10
    for reason, count in Counter(row["drop_reason"] for row in dropped).items():
        assert figure(said, f"dropped: {reason}").startswith(f"{count}  (")
    least = max(2, kept + 1)
    refusal = other("train", "--set", f"curate.min_pairs={least}", code=3)
    assert f"{kept} usable pairs, and training needs curate.min_pairs = {least}" in refusal


@pytest.fixture(scope="module")
def curated(scored, reward_of):
    """The run, curated from the model's own drafts and answers written by hand in prompts.jsonl, really scored.

    The eight columns of a file from elsewhere: SmolLM2 is too weak a critic to give enough usable pairs of its own.
    """
    run, _ = scored
    file = write_pairs_by_hand(run, reward_of)
    run("curate", "--pairs", str(file))
    return run


@pytest.fixture(scope="module")
def trained(curated):
    twin = curated.copy("train-to-be-killed")
    return curated, twin, curated("train")


def test_training_on_drafts_and_answers_written_by_hand_starts_at_ln_2_with_all_checks(trained):
    run, _, said = trained
    checks = set(re.findall(r"^train: check: (.+?): ", said, re.MULTILINE))
    assert {"trained", "reference", "sides", "prompt", "whole rows", "pad token", "end token", "start"} <= checks
    ends = re.search(r"check: end token: (\d+) of (\d+) answers close with one", said)
    assert ends[1] == ends[2]
    history = [row for row in run.rows("logs/history.jsonl") if "loss" in row]
    assert "check: start: loss 0.6931 (ln 2 is 0.6931)" in said
    assert history[0]["loss"] == pytest.approx(0.6931, abs=0.02)
    assert all(row["loss"] == row["loss"] for row in history)  # no NaN
    tensors = load_file(run.root / "models" / "lora_adapters" / "adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_training_killed_by_sigkill_and_resumed_ends_with_the_same_adapter_bit_by_bit(trained):
    run, twin, _ = trained
    sealed = lambda: list(twin.root.glob("checkpoints/checkpoint-*/complete.json"))  # noqa: E731
    twin.killed("train", when=sealed)
    assert not (twin.root / "models" / "lora_adapters").exists()
    twin("train")
    ours, theirs = (
        load_file(each.root / "models" / "lora_adapters" / "adapter_model.safetensors") for each in (run, twin)
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def evaluated(trained):
    run, _, _ = trained
    return run, run("evaluate")


def test_the_evaluation_counts_wins_that_the_reward_model_confirms(evaluated, reward_of):
    run, printed = evaluated
    rows = run.rows("evaluation/responses.jsonl")
    messages = {row["id"]: row["messages"] for row in run.rows("pairs/eval_prompts.jsonl")}
    held_out = [row for row in rows if row["prompt_set"] == "held-out prompts"]
    assert {row["id"] for row in held_out} == messages.keys()
    marks = Counter()
    for row in held_out:
        said = [row["answers"][stage] for stage in ("stage2", "stage3")]
        before, after = (reward_of(messages[row["id"]], one["text"]) for one in said)
        assert [one["score"] for one in said] == pytest.approx([before, after], abs=CLOSE)
        same = said[0]["text"] == said[1]["text"]
        marks["tied" if same else "won" if after > before else "lost"] += 1
    shown = f"{marks['won']} won, {marks['tied']} tied, {marks['lost']} lost"
    assert figure(printed, "all prompts: win rate").endswith(shown)


@pytest.fixture(scope="module")
def unpacked(evaluated, tmp_path_factory):
    run, _ = evaluated
    run("export")
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(run.root / "export" / "stage3_constitutional.zip") as archive:
        archive.extractall(folder)
    return folder / "stage3_constitutional"


ASK = """
import sys, torch
chat = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
model.eval()
with torch.inference_mode():
    ids = model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1]:]
    with_adapter = model(**inputs).logits
    with model.disable_adapter():
        apart = (model(**inputs).logits - with_adapter).abs().max().item()
print("ANSWER", tokenizer.decode(ids, skip_special_tokens=True).replace("\\n", " "))
print("ENDED", ids[-1].item() == tokenizer.eos_token_id, len(ids))
print("APART", apart)
print("OURS", "cai_helpers" in sys.modules)
"""


def test_the_zip_answers_and_ends_by_itself_in_a_clean_process_that_follows_use_md(unpacked, real_base, tmp_path):
    (unpacked / real_base.name).symlink_to(real_base)  # "a folder of the machine that trained it: put yours here"
    code = re.search(r"```python\n(.*?)```", (unpacked / "USE.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    (tmp_path / "load.py").write_text(code + ASK, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "load.py")],
        cwd=unpacked,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Paris" in re.search(r"^ANSWER (.*)$", done.stdout, re.MULTILINE)[1]
    assert "ENDED True" in done.stdout
    assert float(re.search(r"^APART (.*)$", done.stdout, re.MULTILINE)[1]) > 1e-4  # the adapter does something
    assert "OURS False" in done.stdout
