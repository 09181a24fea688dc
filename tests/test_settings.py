import json

import pytest

from cai_helpers.errors import CaiError
from cai_helpers.sections import USUAL_REWARD, RewardSource
from cai_helpers.settings import PRESETS, Settings, load_settings


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_has_an_effective_batch_of_eight(preset):
    settings = load_settings(preset)
    assert settings.preset == preset
    assert settings.train.effective_batch == 8


def test_the_defaults_are_the_methods():
    train = load_settings("t4").train
    assert (train.epochs, train.beta, train.learning_rate, train.warmup, train.every_steps) == (3, 0.1, 5e-6, 0.1, 50)
    assert (train.lora_r, train.lora_alpha, train.lora_dropout) == (16, 32, 0.05)


def test_overrides_read_numbers_lists_and_null():
    settings = load_settings(
        "t4", ["train.learning_rate=5e-7", "prompts.subsets=[a, b]", "prompts.limit=null", "seed=3"]
    )
    assert settings.train.learning_rate == 5e-7
    assert settings.prompts.subsets == ["a", "b"]
    assert settings.prompts.limit is None
    assert settings.seed == 3


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("t5", "seed=1", "there is no preset 't5'"),
        ("t4", "train.betta=0.2", "train.betta: Extra inputs are not permitted"),
        ("t4", "train.beta=-1", "train.beta: Input should be greater than 0"),
        ("t4", "train.beta", "not of the form section.field=value"),
        ("t4", "train.beta=[1", r"train.beta=\[1: not valid YAML"),
        ("t4", "models.reward_input=chat", "models.reward_input is called models.reward.input now"),
        ("t4", "alarms.window=9", "alarms.window is no setting any more: it is always 4"),
        ("t4", "models.reward.x=1", "models.reward.x: Extra inputs are not permitted"),
        ("t4", "seed.x=1", "goes deeper than the settings do"),
    ],
)
def test_a_wrong_setting_is_named(preset, override, message):
    with pytest.raises(CaiError, match=message):
        load_settings(preset, ["seed=0", override])


def test_saved_settings_load_as_they_were(workspace):
    settings = load_settings("smoke", ["train.beta=0.3"])
    workspace.save_settings(settings)
    assert load_settings(str(workspace.settings_file)) == settings


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 1


# --- the reward model ---


def test_a_reward_model_is_its_name_or_its_name_and_how_it_is_read():
    short, long = load_settings("t4", ["models.reward=me/rm"]), load_settings("t4", ["models.reward={model: me/rm}"])
    assert short.models.reward == long.models.reward == RewardSource(model="me/rm", input="pair", max_length=512)
    assert load_settings("t4", models={"reward": "me/rm"}) == short


def test_how_the_usual_reward_model_is_read_can_be_changed_without_naming_it():
    settings = load_settings("t4", ["models.reward.max_length=256", "models.reward.labels={harmful: -1}"])
    assert settings.models.reward == RewardSource(model=USUAL_REWARD, max_length=256, labels={"harmful": -1})


def test_another_name_leaves_how_the_reward_model_is_read_as_it_was():
    assert load_settings("smoke", ["models.reward=other"]).models.reward == RewardSource(model="other", input="chat")
    inverse = load_settings("t4", ["models.reward=other", "models.reward.input=chat"])
    assert inverse.models.reward == RewardSource(model="other", input="chat")


def test_the_members_of_an_ensemble_may_be_names():
    settings = load_settings("smoke", ["models.reward_ensemble=[me/rm, {model: you/rm, max_length: 64}]"])
    assert [(source.model, source.max_length) for source in settings.models.rewards] == [
        ("embedded:reward", 512), ("me/rm", 512), ("you/rm", 64),
    ]  # fmt: skip


def test_the_settings_of_an_earlier_version_are_read_from_a_file(tmp_path):
    file = tmp_path / "settings.json"
    models = {"reward": "me/rm", "reward_input": "chat", "reward_max_length": 128, "reward_labels": {}}
    file.write_text(json.dumps({"models": models, "generate": {"top_p": 0.95}, "alarms": {"window": 4, "kl": 40}}))
    settings = load_settings(str(file))
    assert settings.models.reward == RewardSource(model="me/rm", input="chat", max_length=128)
    assert (settings.alarms.kl, settings.alarms.window, settings.generate.top_p) == (40, 4, 0.95)


def test_a_file_that_changes_what_is_a_constant_now_is_refused(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text('{"alarms": {"window": 9}}')
    with pytest.raises(CaiError, match=r"settings\.json: alarms\.window is no setting any more: it is always 4"):
        load_settings(str(file))


def test_the_environment_names_the_reward_model_only_where_nothing_else_does(monkeypatch, capsys, workspace):
    monkeypatch.setenv("STAGE3_RM_MODEL", "me/rm")
    assert load_settings("t4", ["models.reward.input=chat"]).models.reward == RewardSource(model="me/rm", input="chat")
    assert capsys.readouterr().out == "settings: the reward model is me/rm, as STAGE3_RM_MODEL says\n"
    assert load_settings("smoke").models.reward.model == "embedded:reward"
    assert load_settings("t4", ["models.reward=you/rm"]).models.reward.model == "you/rm"
    workspace.save_settings(load_settings("smoke"))
    assert load_settings(str(workspace.settings_file)).models.reward.model == "embedded:reward"
    assert capsys.readouterr().out == ""


# --- what is damaged ---


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("settings.json", b"", "is empty"),
        ("settings.json", b'{"seed": 1,\n "train": {"be', "line 2: not valid YAML"),
        ("settings.json", b"[1, 2]", "does not hold sections of settings"),
        ("mine.yaml", b"seed: 1\ntrain: {beta: 0.1\n", "line 3: not valid YAML"),
        ("mine.yaml", b"seed: \xff", "is not UTF-8"),
        ("mine.yaml", b"seed: \x07", "not valid YAML"),
    ],
)
def test_a_damaged_file_of_settings_is_named_with_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CaiError, match=message) as error:
        load_settings(str(tmp_path / name))
    assert name in error.value.what
    assert "Correct it" in error.value.todo
