"""Code that comes with a model never runs, whatever stands on standard input."""

import json
import shutil
from pathlib import Path

import pytest

from cai_helpers.models.hub import locate

LOADERS = {
    "base": "from cai_helpers.models.language import load_base as load; load(Models(base={name!r}, adapter=None))",
    "tokenizer": "from cai_helpers.models.language import load_tokenizer; load_tokenizer({name!r})",
    "reward": "from cai_helpers.scoring.reward_model import load_reward_model as load; load(RewardSource(model={name!r}), 2)",
    "dataset": "import datasets; from cai_helpers.models.hub import from_hub; "
    "from_hub(lambda: datasets.load_dataset({name!r}), {name!r})",
    "memory plan": "from cai_helpers.training.memory_plan import _shape; _shape(Settings(models=dict(base={name!r})))",
}
PROGRAM = """
from cai_helpers.errors import CaiError
from cai_helpers.sections import Models, RewardSource
from cai_helpers.settings import Settings
try:
    {load}
except CaiError as error:
    print(error.what)
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Path:
    """A model folder that brings its own classes; importing them leaves a mark."""
    root = tmp_path_factory.mktemp("stranger")
    folder = Path(shutil.copytree(locate("embedded:reward"), root / "model"))
    (folder / "model.py").write_text(f"open({str(root / 'it ran')!r}, 'w').close()\n")  # a dataset's loading script
    (folder / "own.py").write_text(
        f"open({str(root / 'it ran')!r}, 'w').close()\n"
        "from transformers import GemmaConfig as OwnConfig, PreTrainedTokenizerFast as OwnTokenizer\n"
        "from transformers import GemmaForCausalLM as OwnModel, GemmaForSequenceClassification as OwnClassifier\n"
    )
    own = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
        "AutoModelForSequenceClassification": "own.OwnClassifier",
        "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"],
    }
    for name, changes in {
        "config.json": {"model_type": "own"},
        "tokenizer_config.json": {"tokenizer_class": "OwnTokenizer"},
    }.items():
        written = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(written | changes | {"auto_map": own}))
    return folder


@pytest.mark.parametrize("loader", LOADERS)
def test_yes_on_standard_input_runs_no_code_of_a_model(warm, stranger, loader):
    program = PROGRAM.format(load=LOADERS[loader].format(name=str(stranger)))
    run = warm.python(program, stdin="y\n" * 9)
    assert not (stranger.parent / "it ran").exists()
    assert "brings Python code of its own" in run.out, run.err
    assert "[y/N]" not in run.out


def test_a_known_architecture_is_loaded_by_transformers_and_not_by_the_code_beside_it(warm, stranger, tmp_path):
    known = Path(shutil.copytree(stranger, tmp_path / "model"))
    for name, changes in {
        "config.json": {"model_type": "gemma"},
        "tokenizer_config.json": {"tokenizer_class": "TokenizersBackend"},
    }.items():
        (known / name).write_text(json.dumps(json.loads((known / name).read_text()) | changes))
    load = (
        LOADERS["reward"]
        .format(name=str(known))
        .replace(f"model={str(known)!r}", f"model={str(known)!r}, input='chat'")
    )
    program = PROGRAM.format(load=f"{load}; print('loaded')")
    run = warm.python(program, stdin="y\n" * 9)
    assert run.out.endswith("loaded\n"), run.err
    assert not (stranger.parent / "it ran").exists()
