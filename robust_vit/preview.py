"""What training sees: robust-vit preview --config=digits --out=augmentations.png

Draws eight training images: as they are stored, after each transform of the configuration in turn, after MixUp or
CutMix with their labels, after random erasing. `--all` shows every augmentation there is instead, each by itself.
Nothing is trained, and what cannot be applied to the data is one line.

    robust-vit preview --config=digits --config.augmentation.mixup=0.8 --config.augmentation.erase=0.25
    robust-vit preview --config=digits --config.data.train_transforms='("random_affine(10, translate=0.5)",)'
    robust-vit preview --config=xcit_s12:synthetic --all --out=all.png

Other flags are those of `robust-vit train`: `--config.NAME=VALUE`, `--data`.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from robust_vit import commands
from robust_vit import config as config_lib
from robust_vit import main as training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", "augmentations.png", "Where the picture goes.", flag_values=_FLAGS)
_ALL = flags.DEFINE_bool("all", False, "Every augmentation there is, each by itself.", flag_values=_FLAGS)


def preview(arguments: Sequence[str]) -> "Figure | None":
    """Does what the command line asks for, and returns the figure."""
    if commands.wants_help(arguments):
        return print(f"{__doc__}\n{_FLAGS.get_help()}")
    _FLAGS.unparse_flags()  # of an earlier call in this process
    try:
        rest = _FLAGS(list(arguments), known_only=True)
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    config, _ = training.parse([*rest, "--workdir=none"])  # which nothing is written to
    from robust_vit.analysis import augmentations
    from robust_vit.training import experiment, validate

    validate.validate(config)
    dataset = experiment.build_data(config)
    dataset.check("train")
    if _ALL.value:
        rows = augmentations.every(dataset, config.seed)
    else:
        transforms, section = config_lib.plain(config.data.train_transforms), config_lib.plain(config.augmentation)
        rows = augmentations.configured(dataset, transforms, section, config.seed)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure = augmentations.sheet(rows, out, f"{config.data.name}: what training sees" if not _ALL.value else "")
    print(f"written to {out}")
    return figure


def main(arguments: Sequence[str]) -> "Figure | None":
    """Runs the command."""
    return commands.run(preview, arguments)


if __name__ == "__main__":
    main(sys.argv)
