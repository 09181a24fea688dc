import pytest

from cai_helpers.errors import CaiError
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
