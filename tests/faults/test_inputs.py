"""What a person can hand over by mistake ends in one sentence that names it, and nothing is begun with it."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from oracles import ends_in_words

from cai_helpers.models.hub import locate


def line(text: str, **more: object) -> str:
    return json.dumps({"prompt": text, "category": "harmless"} | more) + "\n"


GOOD = "".join(line(f"How do I open lock number {number}?") for number in range(12))
PROMPT_FILES: dict[str, tuple[str | bytes, str]] = {  # file → its content, what is said
    "cut.jsonl.gz": (gzip.compress(GOOD.encode() * 50)[:-30], "cut.jsonl.gz is no whole gzip file"),
    "plain.jsonl.gz": (GOOD, "plain.jsonl.gz is no whole gzip file"),
    "cut.parquet": (b"PAR1 and then nothing PAR1", "cut.parquet is no whole Parquet file"),
    "latin.txt": ("gut\nWie heißt das?\n".encode("latin-1"), "latin.txt, line 2: not UTF-8 text"),
    "latin.jsonl": (GOOD.encode() + '{"prompt": "heißt"}\n'.encode("latin-1"), "latin.jsonl, line 13: not valid JSON"),
    "digits.jsonl": (GOOD + '{"prompt": "x", "n": ' + "9" * 5000 + "}\n", "digits.jsonl, line 13: not valid JSON"),
    "deep.jsonl": (GOOD + '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "deep.jsonl, line 13: not valid JSON"),
    "system.jsonl": ('{"messages": [{"role": "system", "content": "Be nice."}]}\n', "1 × no user turn"),
    "empty-prompt.jsonl": (line(""), "1 × an empty turn"),
    "broken.jsonl": ('{"prompt": "half \\ud800 a pair"}\n', "1 × a broken character (half of a surrogate pair)"),
    "nothing.jsonl": ("", "it is empty"),
    "numbers.jsonl": ("1\n2\n", "numbers.jsonl, line 1: a JSON object was expected"),
}


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_a_file_of_prompts_that_cannot_be_used_is_named(name, warm, tmp_path, ledger):
    content, says = PROMPT_FILES[name]
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = warm.cai("generate", "--preset", "smoke", "--workspace", tmp_path / "run", "--prompts", file)
    ledger.injected += 1
    ends_in_words(ended)
    ledger.false_successes += ended.code == 0
    assert ended.code == 1
    assert says in ended.said
    ledger.survived += 1


@pytest.mark.parametrize("name", ["my data #2.jsonl", "a: b.jsonl", "null", "[x].jsonl", "{y}.jsonl", "~.jsonl"])
def test_a_path_is_taken_as_it_is_and_not_as_yaml(name, warm, tmp_path):
    ended = warm.cai(
        "generate", "--preset", "smoke", "--workspace", tmp_path / "run", "--prompts", f"{tmp_path}/{name}"
    )
    assert f"There is no file {tmp_path}/{name}." in ended.said


def test_a_comment_sign_in_a_setting_is_part_of_it(warm, tmp_path):
    source = f"prompts.source={tmp_path}/my data #2.jsonl"
    ended = warm.cai("generate", "--preset", "smoke", "--workspace", tmp_path / "run", "--set", source)
    assert f"There is no file {tmp_path}/my data #2.jsonl." in ended.said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--prompts", ""], "--prompts is empty."),
        (["--model", " "], "--model is empty."),
        (["--adapter", ""], "--adapter is empty."),
        (["--set", "threads=100000"], "setting threads: Input should be less than or equal to 512"),
        (["--set", "generate.temperature={a: [}"], "generate.temperature={a: [}: not valid YAML"),
        (["--set", "generate.temperature=!!python/object:os.system x"], "not valid YAML"),
        (["--set", "generate.temperature=.inf"], "setting generate.temperature: Input should be a finite number"),
        (["--set", "train.beta=.nan"], "setting train.beta: Input should be a finite number"),
        (["--set", "generate.draft_tokens=" + "9" * 5000], "generate.draft_tokens=9999999999"),
        (["--set", "evaluate.limit=0"], "setting evaluate.limit"),
        (["--model", "/nowhere/x"], "There is no folder /nowhere/x."),
        (["--preset", "nonsense"], "there is no preset 'nonsense'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_setting_that_cannot_be_is_named_in_one_short_sentence(options, says, warm, tmp_path, ledger):
    ended = warm.cai("generate", "--preset", "smoke", "--workspace", tmp_path / "run", *options)
    ledger.injected += 1
    ends_in_words(ended)
    assert ended.code == 1
    assert says in ended.said
    assert len(ended.said) < 800
    assert not (tmp_path / "run" / "pairs").exists()
    ledger.survived += 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def junk(path: Path) -> None:
    path.write_bytes(b"junk" * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


ROLES = {  # of a model → the setting that names it, the command that loads it, its files
    "chat": ("models.base", "generate", ("model.safetensors", "config.json", "tokenizer.json")),
    "stage2": ("models.adapter", "generate", ("adapter_model.safetensors", "adapter_config.json")),
    "reward": ("models.reward.model", "calibrate", ("model.safetensors", "config.json", "tokenizer.json")),
}


@pytest.mark.parametrize("damage", [cut, junk, empty, remove], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(("role", "file"), [(role, file) for role, (_, _, files) in ROLES.items() for file in files])
def test_a_damaged_file_of_a_model_is_refused_and_the_model_named(
    role: str, file: str, damage: Callable[[Path], None], warm, tmp_path, ledger
):
    setting, command, _ = ROLES[role]
    folder = tmp_path / f"my-{role}"
    shutil.copytree(locate(f"embedded:{role}"), folder)
    damage(folder / file)
    options = ("--preset", "smoke", "--workspace", tmp_path / "run", "--limit", "4", "--set", f"{setting}={folder}")
    ended = warm.cai(command, *options)
    ledger.injected += 1
    ends_in_words(ended)
    ledger.false_successes += ended.code == 0
    assert ended.code == 1
    assert str(folder) in ended.said
    assert not (tmp_path / "run" / "pairs" / "traces.jsonl").exists()
    ledger.survived += 1


def change_first(name: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        first, *others = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | {name: value}), *others]) + "\n", encoding="utf-8")

    return change


@pytest.mark.parametrize("command", [("curate", "--pairs"), ("analyze",)], ids=["curate", "analyze"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("base_score", value) for value in (1e308, "much", None)),
        ("revised_score", -1e308),
        ("prompt", 5),
        ("chosen", "left"),
    ],
)
def test_a_row_of_a_file_of_pairs_that_cannot_be_is_named(name, value, command, warm, run_copy, tmp_path, ledger):
    file = tmp_path / "mine.jsonl"
    shutil.copy(run_copy / "pairs" / "pairs.jsonl", file)
    change_first(name, value)(file)
    before = (run_copy / "dpo_dataset" / "train.jsonl").read_bytes()
    ended = warm.cai(*command, file, "--workspace", run_copy)
    ledger.injected += 1
    ends_in_words(ended)
    ledger.false_successes += ended.code == 0
    assert ended.code == 1
    assert f"{file}, row 1: " in ended.said
    assert (run_copy / "dpo_dataset" / "train.jsonl").read_bytes() == before
    ledger.survived += 1


def test_a_row_with_half_a_character_is_looked_at_but_not_trained_on(warm, run_copy, tmp_path):
    file = tmp_path / "mine.jsonl"
    shutil.copy(run_copy / "pairs" / "pairs.jsonl", file)
    change_first("revised_response", "half \ud800 a pair")(file)
    assert warm.cai("analyze", file, "--workspace", run_copy).code == 0
    ended = warm.cai("curate", "--pairs", file, "--workspace", run_copy)
    assert ended.code == 1
    assert f"{file}, row 1: a text holds a broken character" in ended.said


def test_a_row_without_an_id_is_a_row(warm, run_copy, tmp_path):
    lines = (run_copy / "pairs" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    file = tmp_path / "mine.jsonl"
    without = [{name: value for name, value in json.loads(text).items() if name != "id"} for text in lines]
    file.write_text("\n".join(map(json.dumps, without)), encoding="utf-8")
    ended = warm.cai("curate", "--pairs", file, "--workspace", run_copy)
    assert ended.code == 0, ended.err


def test_escape_sequences_of_a_prompt_are_shown_and_not_sent(warm, tmp_path):
    """A name with them comes back in an error, as text."""
    ended = warm.cai(
        "generate", "--preset", "smoke", "--workspace", tmp_path / "run", "--prompts", "./\x1b[2J\x1b]0;owned\x07.jsonl"
    )
    assert "\x1b[2J" not in ended.out + ended.err
    assert "\\x1b[2J\\x1b]0;owned\\x07.jsonl" in ended.said


def test_what_a_command_writes_is_its_owners_alone(finished_run):
    open_to_others = [
        str(path.relative_to(finished_run))
        for path in [finished_run, *finished_run.rglob("*")]
        if path.stat().st_mode & 0o077
    ]
    assert open_to_others == []
