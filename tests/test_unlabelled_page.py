"""Every command of docs/unlabelled.md is one that its program takes, and every field that it names exists."""

import pathlib
import re
import shlex

import pytest

from robust_vit import commands, label, main
from robust_vit import config as config_lib
from robust_vit.objectives.encoders import ENCODERS
from robust_vit.training import validate

PAGE = pathlib.Path("docs/unlabelled.md").read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1])
def test_every_command_is_taken(words):
    assert words[0] == "robust-vit"
    if words[1] == "label":
        assert commands.parse(label._FLAGS, words[1:]) == []
        return
    config, own = main.parse(words[1:])
    assert own.workdir.startswith("runs/")
    validate.validate(config)


def test_every_field_and_every_objective_that_is_named_exists():
    named = set(re.findall(r"`((?:data|objective|optimizer|model)\.[\w.]+)`", PAGE)) - {"data.json"}
    assert len(named) > 6 and named <= set(config_lib.fields(config_lib.base()))
    assert all(f"| `{name}` |" in PAGE for name in ENCODERS)
