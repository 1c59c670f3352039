"""What the README tells people to type works: every command and every block, made small."""

import pathlib
import re
import shlex

import numpy as np
import pytest

from robust_vit import commands

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
MODULES = {module: name for name, (module, _) in commands.COMMANDS.items()}
# What makes a command small enough for a test; none of it changes what the command is.
SMALLER = {
    "train": "--config.model.depth=1 --config.model.width=16 --config.model.heads=2 --config.training.epochs=0.5 "
    "--config.attack.steps=1 --config.attack.warmup_epochs=0 --config.optimizer.warmup_epochs=0 "
    "--config.validation.steps=1 --config.evaluation.suite=clean "
    "--config.evaluation.report_examples=2",
    "evaluate": "--limit=16 --report_examples=2 --option=autoattack_budget=0.01 --option=masking_points=16 "
    "--option=masking_queries=20",
    "explain": "--limit=8 --examples=2",
}
# Commands whose data cannot come with a test: their flags are read and nothing more.
DATA = ("imagenet", "xcit", "--data=folder:/path")


def lines():
    """Every command of the README: comments gone, `&&` chains taken apart."""
    for language, block in BLOCKS:
        if language == "":
            for line in block.splitlines():
                for part in re.split(r"\s+#\s", line)[0].split("&&"):
                    if part.strip():
                        yield part.strip()


def named(line):
    """(command, arguments) of a line that calls one of ours, else None."""
    words = shlex.split(line)
    if words[0] == "robust-vit":
        return words[1], words[2:]
    if words[0].endswith("python") and words[1] == "-m" and words[2] in MODULES:
        return MODULES[words[2]], words[3:]
    return None


OURS = list(dict.fromkeys(line for line in lines() if named(line)))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder to type in, as a clone is one."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "docs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


SLOW = ("runs/wider", "runs/plain", "runs/madry", "runs/mart", "runs/trades", "autoattack,masking")
CASES = [pytest.param(line, marks=[pytest.mark.slow] if any(word in line for word in SLOW) else []) for line in OURS]


@pytest.mark.parametrize("line", CASES)
def test_every_command_runs(line, home, monkeypatch):
    monkeypatch.chdir(home)
    name, arguments = named(line)
    if any(word in line for word in DATA):
        return reads_its_flags(name, arguments)
    if name in ("evaluate", "explain", "compare", "leaderboard"):
        train_first(arguments, home)
    typed(name, arguments)
    for argument in arguments:
        if name in ("train", "evaluate") and argument.startswith("--workdir="):
            assert (home / argument.partition("=")[2] / "result.json").is_file()


def typed(name, arguments):
    commands.main(["robust-vit", name, *arguments, *shlex.split(SMALLER.get(name, ""))])


def train_first(arguments, home):
    """The runs that a command is about: a test that is chosen alone finds them too."""
    for folder in re.findall(r"runs/\w+", " ".join(arguments)):
        if not (home / folder).exists():
            typed(*next(named(line) for line in OURS if f"--workdir={folder}" in line and named(line)[0] == "train"))


def reads_its_flags(name, arguments):
    """The command gets as far as to what is not there."""
    with pytest.raises(SystemExit) as stop:
        commands.main(["robust-vit", name, *arguments])
    said = str(stop.value)
    assert re.search("checkpoint.pth.tar|weights.xcit|/path|no such file|must be prepared", said), said
    assert "\n" not in said and "flag" not in said and "no such field" not in said


def test_the_python_examples_run(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    examples = [block for language, block in BLOCKS if language == "python"]
    assert examples
    for code in examples:
        found: dict = {}
        exec(code, found)  # the reader's own first program
        moved = np.abs(np.asarray(found["adversarial"]) - found["images"] / np.float32(255)).max()
        assert 0 < moved <= found["classifier"].threat.epsilon + 1e-6
    printed = dict(re.findall(r"^([\w-]+) ([\d.]+)$", capsys.readouterr().out, re.MULTILINE))
    assert {"clean", "PGD-20"} <= printed.keys() and float(printed["PGD-20"]) <= float(printed["clean"])


def test_the_other_commands_are_known():
    for line in lines():
        if not named(line):
            assert re.match(r"python3 -m venv|\.venv/bin/(pip install|python -m pytest)|python benchmarks/", line), line


def test_every_file_it_names_exists():
    for name in set(re.findall(r"(?:configs|robust_vit|tests|docs|benchmarks)/[\w/]+\.(?:py|png|md|json)", README)):
        assert (ROOT / name).is_file(), name
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
