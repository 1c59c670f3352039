"""A bad value is named in one line before anything is compiled."""

import pytest

from robust_vit import config as config_lib
from robust_vit import main, models
from robust_vit.training import experiment, validate


def broken(**changes):
    config = config_lib.load_file("configs/digits.py:adversarial")
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attack__epsilon=-0.1), r"attack.epsilon = -0.1: must be in \[0, 1\]"),
        (dict(attack__epsilon=8.0), r"attack.epsilon = 8.0: must be in \[0, 1\]"),
        (dict(attack__step_size=0.0), r"attack.step_size = 0.0: must be > 0"),
        (dict(attack__norm="linff"), r"attack.norm = 'linff': must be one of l1, l2, linf; did you mean 'linf'"),
        (dict(attack__loss="cross_entrpy"), r"attack.loss = 'cross_entrpy': .*did you mean 'cross_entropy'"),
        (dict(model__name="deit_smal_patch16_224"), r"model.name = .*did you mean 'deit_small_patch16_224'"),
        (dict(data__name="digit"), r"data.name = 'digit': .*did you mean 'digits'"),
        (dict(objective__name="trade"), r"objective.name = 'trade': .*did you mean 'trades'"),
        (dict(optimizer__name="adam"), r"optimizer.name = 'adam': must be one of adamw, lion, sgd"),
        (dict(optimizer__warmup_epochs=50.0), r"optimizer.warmup_epochs = 50.0: must be shorter than training.epochs"),
        (
            dict(attack__warmup_epochs=1000.0),
            r"attack.warmup_epochs = 1000.0: must be .* no longer than training.epochs",
        ),
        (dict(data__batch_size=12), r"data.batch_size = 12: must be divisible by the number of devices, 8"),
        (dict(optimizer__accumulation=3), r"optimizer.accumulation = 3: must be such that"),
        (dict(attack__batch_norm="clean"), r"attack.batch_norm = 'clean': must be one of batch, running, train"),
        (dict(training__epochs=0.0), r"training.epochs = 0.0: must be > 0"),
        (dict(model__mean=(0.5,), model__std=()), r"model.mean = .*as long as model.std"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        validate.validate(broken(**changes), devices=8)
    assert "\n" not in str(error.value)


def test_a_patch_that_does_not_divide_the_image_is_named():
    with pytest.raises(ValueError, match="patch_size = 3"):
        experiment.build(broken(model__patch_size=3))


def test_a_misspelt_model_keyword_is_named():
    config = broken()
    config.model.dephth = 3
    with pytest.raises(ValueError, match=r"dephth.*did you mean 'depth'"):
        experiment.build(config)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.optimizer.learing_rate=1",
            "config.optimizer.learing_rate: no such field; did you mean 'optimizer.learning_rate'",
        ),
        ("--config.atack.epsilon=0.1", "did you mean 'attack.epsilon'"),
        ("--config.attack.steps=many", "steps"),
    ],
)
def test_a_misspelt_override_suggests_the_nearest_field(flag, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["main", "--config=configs/digits.py", "--workdir=unused", flag])
    assert message in str(stop.value) and "\n" not in str(stop.value)


def test_every_shipped_config_is_valid():
    import pathlib

    for path in sorted(pathlib.Path("configs").glob("*.py")):
        validate.validate(config_lib.load_file(str(path)), devices=1)
        assert config_lib.load_file(str(path)).model.name in models.names(), path


def test_json_round_trip_resolves_references():
    config = config_lib.base()
    config.attack.epsilon = 0.2
    back = config_lib.from_json(config_lib.to_json(config))
    assert back.attack.step_size == pytest.approx(0.05)
    assert config_lib.differences(config, back) == []
    back.attack.steps = 99
    assert config_lib.differences(config, back) == ["attack.steps = 7 there, 99 here"]


def test_the_step_size_follows_epsilon_until_it_is_set():
    config = config_lib.base()
    config.attack.epsilon = 0.4
    assert config.attack.step_size == pytest.approx(0.1)
