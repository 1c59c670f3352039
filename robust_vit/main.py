"""Train: python -m robust_vit.main --config=configs/digits.py --workdir=runs/digits

Trains from a configuration, evaluates on the test split and leaves a run folder; the same command again resumes.

    robust-vit train --config=digits --workdir=runs/digits                                # the same
    robust-vit train --config=digits:trades --config.objective.beta=3 --workdir=runs/trades
    robust-vit train --config=digits --config.attack.epsilon=8/255 --workdir=runs/small
    robust-vit train --config=xcit_s12 --data=folder:/data/pets --workdir=runs/pets

Intentionally short: everything is in `robust_vit.training.loop`, which notebooks call with a config of their own.
"""

import ast
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from robust_vit import attacks, commands, data, errors, hosts, models, objectives
from robust_vit import config as config_lib
from robust_vit.config import ConfigDict

DEFAULT = "configs/digits.py"
OVERRIDE = re.compile(r"--?(no)?config\.([\w.]+)(?:=(.*))?", re.DOTALL)
FRACTION = re.compile(r"[-+\d.eE]+/[\d.eE]+")


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "config", DEFAULT, "The experiment: a file, the name of a shipped one, or either:argument.", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "The run folder, made if needed. Required.", flag_values=values)
    flags.DEFINE_string(
        "data",
        None,
        "Own data in place of the config's: folder:/path, npz:/path, huggingface:name.",
        flag_values=values,
    )
    hosts.define(values)
    return values


def _options_of_data(config: ConfigDict) -> Mapping[str, Any]:
    return data.options(config.data.name)


def _options_of_extra(config: ConfigDict) -> Mapping[str, Any]:
    errors.check_choice("data.extra.name", config.data.extra.name, data.names())
    return data.options(config.data.extra.name)


def _fields_of_model(config: ConfigDict) -> Mapping[str, Any]:
    return models.fields(config.model.name)


def _options_of_attack(config: ConfigDict) -> Mapping[str, Any]:
    return attacks.options(config.attack.name)


def _options_of_objective(config: ConfigDict) -> Mapping[str, Any]:
    return objectives.options(config.objective.name)


# What the fields of those sections depend on.
NAMES = ("data.name", "data.extra.name", "model.name", "attack.name", "objective.name")
# Sections whose fields are the keywords of what the section names: free to set, though no config lists them.
FREE: dict[str, Callable[[ConfigDict], Mapping[str, Any]]] = {
    "data.options": _options_of_data,
    "data.extra.options": _options_of_extra,
    "model": _fields_of_model,
    "attack.options": _options_of_attack,
    "objective.options": _options_of_objective,
}


def parse(arguments: Sequence[str]) -> tuple[ConfigDict, flags.FlagValues]:
    """Reads the command line into a configuration and the command's own flags.

    Raises:
      ValueError: for a flag or a field that does not exist, with the nearest that does, or a bad value.
    """
    own = _flags()
    try:
        rest = own(arguments, known_only=True)
        config = config_lib.load_file(own.config)
        if own.data is not None:
            name, options = data.parse_location(own.data)
            config.data.name, config.data.options = name, ConfigDict(options)
        rest = [rest[0], *_overrides(rest[1:], config)]
        typed = flags.FlagValues()
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=typed, lock_config=True, sys_argv=rest)
        left = typed(rest)[1:]
    except (TypeError, flags.Error) as error:
        raise ValueError(" ".join(str(error).split())) from None
    errors.check("arguments", left, not left, "flags: see --help")
    errors.check("workdir", own.workdir, bool(own.workdir), "given: the run folder, --workdir=runs/name")
    return holder.value, own


def _overrides(rest: Sequence[str], config: ConfigDict) -> list[str]:
    """Checks the names of overrides, sets those of free sections, and writes fractions (8/255) as numbers."""
    rest = _joined(rest)
    for argument in rest:  # what a free section may hold depends on these
        match = OVERRIDE.fullmatch(argument)
        if match and match[2] in NAMES:
            config_lib.get(config, match[2].removesuffix(".name")).name = match[3]
    known, kept = set(config_lib.fields(config)), []
    for argument in rest:
        match = OVERRIDE.fullmatch(argument)
        if match is None or match[2] in known:
            kept.append(_with_number(argument, match))
        elif not _set_free(config, match):
            raise ValueError(config_lib.explain_override(match[2], config))
    return kept


def _joined(rest: Sequence[str]) -> list[str]:
    """`--config.x 1` as `--config.x=1`."""
    joined: list[str] = []
    for argument in rest:
        last = OVERRIDE.fullmatch(joined[-1]) if joined else None
        if last and last[1] is None and last[3] is None and not argument.startswith("--"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _with_number(argument: str, match: re.Match | None) -> str:
    if match is None or match[3] is None or not FRACTION.fullmatch(match[3]):
        return argument
    return f"--config.{match[2]}={config_lib.number(match[3])!r}"


def _set_free(config: ConfigDict, match: re.Match) -> bool:
    """Sets a field of a free section; False where the name is in none."""
    section, _, field = match[2].rpartition(".")
    if section not in FREE:
        return False
    errors.lookup(f"config.{section}", field, FREE[section](config))
    config_lib.get(config, section)[field] = match[1] is None if match[3] is None else _literal(match[3])
    return True


def _literal(text: str) -> Any:
    """A Python literal, a fraction, or the text itself."""
    if FRACTION.fullmatch(text):
        return config_lib.number(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def help_text() -> str:
    """Every flag, every shipped configuration, every field with its default and meaning."""
    fields = [f"  --config.{name}={default!r}\n      {comment}" for name, default, comment in config_lib.describe()]
    parts = [__doc__, _flags().get_help(), "\nConfigurations (--config=NAME; the end of a name will do):", *_listing()]
    return "\n".join([*parts, "\nFields (--config.NAME=VALUE), with their defaults:", *fields])


def _listing() -> list[str]:
    """The configurations, a paragraph for each folder: those without one first."""
    folders: dict[str, list[str]] = {}
    known = config_lib.available()
    for name in sorted(known, key=lambda name: ("/" in name, name)):
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    lines = []
    for names in folders.values():
        width = max(map(len, names))
        lines += ["", *[f"  {name:{width}s}  {known[name]}" for name in names]]
    return lines[1:]


def train(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Does what the command line asks for; returns the test results, or None when a signal stopped the run."""
    if commands.wants_help(arguments):
        return print(help_text())
    config, own = parse(arguments)
    from robust_vit.training import loop

    hosts.join(own)
    return loop.run(config, own.workdir)


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Runs the command; an error that the user can mend ends with one line."""
    return commands.run(train, arguments)


if __name__ == "__main__":
    main(sys.argv)
