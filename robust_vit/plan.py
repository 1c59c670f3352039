"""Plan before you pay: robust-vit plan --config=imagenet/light_recipe/xcit_s12_eps4 --topology=v5e:4x4

Compiles the run's own training step and its AutoAttack for the chips of a TPU that is not here (libtpu does it, no TPU
is needed), and says what each needs of a chip's memory, how chips talk, how much arithmetic the run is, and how long
that takes at a utilisation that you state. What does not fit is answered with the largest batch that does, and with
what to turn on. Of GPUs, `--topology=gpu:8xH100`, there is the arithmetic and the state's memory: no compiler for them
is here.

    robust-vit plan --config=xcit_s12 --topology=v5e:4x4 --config.model.scan=true --price=1.2
    robust-vit plan --config=deit_s --topology=gpu:8xH100 --utilisation=0.45
    robust-vit plan --config=digits --topology=v5e:2x2 --points=360 --noautoattack

Data that are not here are described: ImageNet and CIFAR by name, others by --examples and --classes. Nothing is
measured: seconds are operations / (chips x peak x utilisation), hours are those of the arithmetic alone. Other flags
are those of `robust-vit train`: `--config.NAME=VALUE`, `--data`.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from robust_vit import commands, errors
from robust_vit import config as config_lib
from robust_vit import main as training
from robust_vit.errors import check

_FLAGS = flags.FlagValues()
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "v5e:4x4, v5p:2x2x1, gpu:8xH100, ...", flag_values=_FLAGS)
_UTILISATION = flags.DEFINE_float("utilisation", 0.4, "Share of the chips' peak that is reached.", flag_values=_FLAGS)
_PRICE = flags.DEFINE_float("price", None, "Of a chip for an hour, in any currency.", flag_values=_FLAGS)
_EXAMPLES = flags.DEFINE_integer("examples", None, "Training images, where the data are not here.", flag_values=_FLAGS)
_CLASSES = flags.DEFINE_integer("classes", None, "Their classes.", flag_values=_FLAGS)
_POINTS = flags.DEFINE_integer("points", 1000, "Images that AutoAttack is estimated for.", flag_values=_FLAGS)
_TILE = flags.DEFINE_integer("tile", 128, "Images in a call of AutoAttack, over all chips.", flag_values=_FLAGS)
_AUTOATTACK = flags.DEFINE_bool("autoattack", True, "Compile AutoAttack's programs too.", flag_values=_FLAGS)
_SEARCH = flags.DEFINE_bool("search", True, "Of what does not fit, look for what does.", flag_values=_FLAGS)


def plan(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Does what the command line asks for, and returns its figures."""
    if commands.wants_help(arguments):
        return print(f"{__doc__}\n{_FLAGS.get_help()}")
    config = _parse(arguments)
    from robust_vit.planning import chips, data, report

    topology = chips.describe(_TOPOLOGY.value)
    dataset, described = data.dataset(config, _EXAMPLES.value, _CLASSES.value)
    say(f"{config.model.name}, {config.data.batch_size} images a step, on {_TOPOLOGY.value}: {topology}")
    if described:
        say(described)
    values = {name: _FLAGS[name].value for name in ("utilisation", "price", "points", "tile", "autoattack", "search")}
    figures = report.Plan(config, topology, dataset, say, report.Settings(**values)).figures()
    if not figures["fits"]:
        raise errors.Mendable(f"plan: the training step does not fit on {topology.name}; above stands what does")
    return figures


def _parse(arguments: Sequence[str]) -> config_lib.ConfigDict:
    """Reads the flags, checks what can be known at once, keeps JAX from devices that are here."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _FLAGS.unparse_flags()  # of an earlier call in this process
    try:
        rest = _FLAGS(list(arguments), known_only=True)
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    check("utilisation", _UTILISATION.value, 0 < _UTILISATION.value <= 1, "a share of the peak, in (0, 1]")
    for flag in (_PRICE, _EXAMPLES, _CLASSES, _POINTS, _TILE):
        check(flag.name, flag.value, flag.value is None or flag.value > 0, "above 0")
    config, _ = training.parse([*rest, "--workdir=none"])  # which nothing is written to
    return config


def say(line: str) -> None:
    """Prints at once: the next line may be minutes away."""
    print(line, flush=True)


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Runs the command; an error that the user can mend ends with one line."""
    return commands.run(plan, arguments)


if __name__ == "__main__":
    main(sys.argv)
