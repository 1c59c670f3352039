"""Every command of docs/fine_tuning.md is one that `train` takes, and every field that it names exists."""

import ast
import pathlib
import re
import shlex

import pytest

from robust_vit import config as config_lib
from robust_vit.training import validate

PAGE = pathlib.Path("docs/fine_tuning.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1])
def test_every_command_is_a_configuration(words):
    assert words[:2] == ["robust-vit", "train"]
    given = dict(word.removeprefix("--").split("=", 1) for word in words[2:])
    config = config_lib.load_file(given.pop("config"))
    assert given.pop("workdir").startswith("runs/")
    for name, value in given.items():
        section, _, field = name.removeprefix("config.").partition(".")
        old = config[section].get(field)
        config[section][field] = value if isinstance(old, str) or old is None else ast.literal_eval(value)
    validate.validate(config)


def test_every_field_that_is_named_exists():
    named = set(re.findall(r"`((?:initial|optimizer|stages|alarm|training)\.\w+)`", PAGE)) - {
        "initial.json",
        "alarm.json",
    }
    assert len(named) > 8 and named <= set(config_lib.fields(config_lib.base()))
