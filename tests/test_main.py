"""The training command: how a command line becomes a configuration."""

import pytest

from robust_vit import config as config_lib
from robust_vit import main


def parsed(*arguments):
    return main.parse(["main", "--workdir=unused", *arguments])[0]


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--config.attack.epsilon=8/255"], "attack.epsilon", 8 / 255),
        (["--config.attack.epsilon", "8/255"], "attack.epsilon", 8 / 255),
        (["--config.optimizer.learning_rate=1e-4"], "optimizer.learning_rate", 1e-4),
        (["--config=digits:trades"], "objective.name", "trades"),
        (["--config=configs/digits.py"], "data.name", "digits"),
        (["--config.model.layer_scale=0.1"], "model.layer_scale", 0.1),
        (["--config.model.name=swin", "--config.model.window_size=4"], "model.window_size", 4),
        (["--noconfig.model.remat"], "model.remat", False),
        (["--config.attack.name=square", "--config.attack.options.queries=9"], "attack.options.queries", 9),
        (["--config.data.name=synthetic", "--config.data.options.size=16"], "data.options.size", 16),
        (["--config.objective.name=ikl", "--config.objective.options.alpha=2"], "objective.options.alpha", 2),
        (["--data=folder:/pets"], "data.name", "folder"),
        (["--data=folder:/pets"], "data.options.path", "/pets"),
        (["--data=folder:/pets", "--config.data.options.test_fraction=0.3"], "data.options.test_fraction", 0.3),
    ],
)
def test_what_is_typed_arrives(arguments, name, value):
    assert config_lib.get(parsed(*arguments), name) == pytest.approx(value)


def test_the_step_size_follows_an_overridden_epsilon():
    typed = "--config.attack.epsilon=16/255"
    assert parsed("--config=digits:adversarial", typed).attack.step_size == pytest.approx(4 / 255)
    assert parsed("--config=digits:best", typed).attack.step_size == pytest.approx(12 / 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.optimizer.learing_rate=1"],
            "config.optimizer.learing_rate: no such field; did you mean 'optimizer",
        ),
        (["--config.attack.steps=many"], "steps"),
        (["--config.attack.epsilon=8/0"], "8/0"),
        (["--config.data.options.sise=3"], "sise"),
        (["--config.model.window_size=3"], "window_size"),  # of swin, not of vit
        (["--config.attack.options.queries=9"], "queries"),  # of square, not of pgd
        (["--config.objective.options.alpha=2"], "alpha"),  # of ikl, not of adversarial training
        (["--config=digit"], "config = 'digit'.*did you mean 'digits'"),
        (["--data=foldr:/pets"], "data = 'foldr'.*did you mean 'folder'"),
        (["--data=folder"], "folder:PATH"),
        (["--worksdir=x"], "worksdir"),
        (["stray"], "arguments = .'stray'.: must be flags"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        parsed(*arguments)
    assert "\n" not in str(error.value)


def test_a_run_folder_is_asked_for():
    with pytest.raises(ValueError, match="workdir = None: must be given"):
        main.parse(["main"])


def test_help_lists_every_field_and_every_configuration():
    text = main.help_text()
    for name in (*config_lib.fields(config_lib.base()), *config_lib.available()):
        assert name in text
