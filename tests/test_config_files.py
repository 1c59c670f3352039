"""Configurations by name, in and outside a clone; fields and their comments; numbers as people write them; old runs."""

import json
import pathlib

import pytest

from robust_vit import config as config_lib
from robust_vit import main


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory that is no clone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


MINE = '''"""Mine: no more than that.

More words.
"""

from robust_vit import config as config_lib


def get_config(seed: str = "5"):
    config = config_lib.base()
    config.seed = int(seed)
    return config
'''


@pytest.mark.parametrize("name", ["digits", "configs/digits.py"])
def test_a_name_is_the_file_of_that_name(name):
    assert config_lib.load_file(name).model.patch_size == 2
    assert config_lib.load_file(f"{name}:standard").objective.name == "standard"


def test_a_name_resolves_outside_a_clone(elsewhere):
    assert config_lib.load_file("xcit_n12:synthetic").data.name == "synthetic"
    assert "digits" in config_lib.available()


def test_the_folder_at_hand_comes_before_the_package(elsewhere):
    write(elsewhere / "configs" / "digits.py", MINE)
    write(elsewhere / "configs" / "paper" / "mine.py", MINE)
    write(elsewhere / "configs" / "broken.py", "def get_config(:\n")
    write(elsewhere / "configs" / "helper.py", "x = 1\n")
    assert config_lib.load_file("digits").seed == 5
    assert config_lib.load_file("paper/mine:7").seed == 7
    listed = config_lib.available()
    assert listed["digits"] == listed["paper/mine"] == "Mine: no more than that."
    assert "xcit_s12" in listed and not {"broken", "helper"} & set(listed)


def test_every_shipped_configuration_is_listed_with_its_first_line():
    folder = pathlib.Path("configs")
    shipped = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py")}
    listed = config_lib.available()
    assert shipped == set(listed) and all(len(line) > 20 for line in listed.values())


def test_the_end_of_a_name_will_do_where_only_one_ends_so(elsewhere):
    full = config_lib.load_file("imagenet/light_recipe/xcit_s12_eps8")
    for name in ("xcit_s12_eps8", "light_recipe/xcit_s12_eps8"):
        assert config_lib.differences(config_lib.load_file(name), full) == []
    with pytest.raises(ValueError, match="must be one of cifar10/plain_vit/vit_b2, cifar100/plain_vit/vit_b2$"):
        config_lib.load_file("plain_vit/vit_b2")


def test_help_lists_the_configurations_by_folder():
    text = main.help_text()
    paragraphs = [part.splitlines() for part in text[text.index("Configurations") :].split("\n\n")]
    folders = [{line.split()[0].rpartition("/")[0] for line in part} for part in paragraphs[1:-1]]
    assert all(len(one) == 1 for one in folders) and folders == sorted(folders, key=sorted)
    assert all(len(line) <= 170 for part in paragraphs for line in part)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("digit", r"^config = 'digit': must be one of .*did you mean 'digits'"),
        ("configs/digit.py", r"^config = 'configs/digit.py': no such file; did you mean 'digits'"),
        ("other.py", r"^config = 'other.py': must be a file with a function get_config"),
        ("list.py", r"^config = 'list.py': must be a file whose get_config returns a ConfigDict"),
        ("fixed.py:large", r"^config = 'fixed.py:large': must be fixed.py, whose get_config takes no argument"),
        ("broken.py", r"^config = 'broken.py': line 1: "),
    ],
)
def test_what_is_no_configuration_is_said_in_one_line(elsewhere, path, message):
    write(elsewhere / "other.py", "x = 1\n")
    write(elsewhere / "list.py", "def get_config():\n    return []\n")
    write(elsewhere / "fixed.py", MINE.replace('seed: str = "5"', "").replace("int(seed)", "1"))
    write(elsewhere / "broken.py", "def get_config(:\n")
    with pytest.raises(ValueError, match=message) as error:
        config_lib.load_file(path)
    assert "\n" not in str(error.value)


def test_every_field_is_described_by_the_comment_beside_it():
    described = {field.name: field for field in config_lib.describe()}
    base = config_lib.base()
    options = {"data.options", "data.extra.options", "attack.options", "objective.options"}  # sections without fields
    assert set(described) == {*config_lib.fields(base), *options}
    assert all(len(field.comment) > 2 for field in described.values())
    for name, field in described.items():
        assert field.default == config_lib.plain(config_lib.get(base, name))
    assert described["optimizer.clip_norm"].comment == "global gradient norm; 0: no clipping"
    assert list(described)[:3] == ["seed", "data.name", "data.options"]


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.1", 0.1), ("1e-3", 1e-3), ("2", 2.0), ("-1/4", -0.25)]
)
def test_numbers_as_people_write_them(text, value):
    assert config_lib.number(text) == value


@pytest.mark.parametrize("text", ["", "8/", "/255", "8/0", "nan", "inf", "1e999", "eight", "8/255/2"])
def test_what_is_no_number_is_named(text):
    with pytest.raises(ValueError, match="^epsilon = .*: must be a number such as 0.1 or 8/255"):
        config_lib.number(text, "epsilon")


def earlier(**changes):
    """config.json as the version before `attack.options` wrote it."""
    stored = json.loads(config_lib.to_json(config_lib.load_file("digits:adversarial")))
    del stored["attack"]["options"], stored["validation"]["step_size"], stored["training"]["trackers"]
    stored["attack"]["keep"] = "last"
    stored["model"] |= {"num_classes": 10, "image_size": [8, 8]} | changes
    return stored


def test_the_run_of_an_earlier_version_is_read_with_what_it_did():
    config = config_lib.from_json(json.dumps(earlier()))
    assert config.validation.step_size == config.attack.step_size == pytest.approx(0.025)
    assert config.training.trackers == "" and config.model.channels == 1
    assert config_lib.plain(config.attack.options) == {} and config.attack.keep == "last"
    stored = earlier()
    del stored["model"]["channels"]
    assert config_lib.from_json(json.dumps(stored)).model.channels == 3


def test_an_earlier_run_is_the_same_but_for_how_it_validated():
    from robust_vit.training import experiment

    there, here = config_lib.from_json(json.dumps(earlier())), config_lib.load_file("digits:adversarial")
    dataset = experiment.build_data(here)
    experiment.resolve(here, dataset)
    now = config_lib.from_json(config_lib.to_json(here))
    assert config_lib.differences(there, now) == ["validation.step_size = 0.025 there, 0.0125 here"]
    here = config_lib.load_file("digits:adversarial")
    here.validation.step_size = 0.025
    experiment.resolve(here, dataset)
    assert config_lib.differences(there, config_lib.from_json(config_lib.to_json(here))) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attack": 3}'])
def test_a_text_that_is_no_configuration_is_said_in_one_line(text):
    with pytest.raises(ValueError, match="^configuration") as error:
        config_lib.from_json(text)
    assert "\n" not in str(error.value)
