"""Lists the models with parameters, multiply-adds and tokens: python -m robust_vit.models ['PATTERN' ...]

python -m robust_vit.models                                          # all, from a table that tests check
python -m robust_vit.models 'xcit*' 'deit_*_patch16_224'
python -m robust_vit.models 'xcit*p16*' --image_size=384             # counted now, a few seconds each
python -m robust_vit.models vit_tiny_patch16_224 --memory --batch=32
"""

import argparse
import fnmatch
import sys
from collections.abc import Sequence

from robust_vit import commands, models
from robust_vit.errors import lookup
from robust_vit.models import summary

OVERRIDES = ("image_size", "patch_size", "num_classes")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; an error that the user can mend ends with one line."""
    commands.run(work, arguments)


def work(arguments: Sequence[str]) -> None:
    """Prints the table for the models asked for; figures that are not in the checked table are counted.

    Raises:
      ValueError: an unknown name, with the nearest, or fields that do not make one of the models.
    """
    flags = _flags(arguments)
    chosen = select([*flags.pattern, *flags.names.split(",")])
    overrides = {field: getattr(flags, field) for field in OVERRIDES if getattr(flags, field) is not None}
    counted = overrides or flags.memory or flags.write
    if flags.write and overrides:
        raise ValueError("--write: keeps figures of models as they are named; leave the fields out")
    known = {} if counted else summary.figures()
    rows = []

    def found():
        for name in chosen:
            rows.append(known.get(name) or summary.summarize(name, flags.batch, flags.memory, **overrides))
            yield rows[-1]

    for line in summary.lines(found(), flags.batch, flags.memory):
        print(line, flush=bool(counted))
    if flags.write:
        summary.write_figures(rows)
        print(f"written to {summary.FIGURES}")


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=arguments[0] if arguments[0].startswith("robust-vit") else "python -m robust_vit.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pattern", nargs="*", help="names, '*' matches anything (quote it); all models when omitted")
    parser.add_argument("--names", default="", help="the same, separated by commas")
    parser.add_argument("--image_size", type=int, help="pixels; each model's own when omitted")
    parser.add_argument("--patch_size", type=int, help="pixels; each model's own when omitted")
    parser.add_argument("--num_classes", type=int, help="each model's own when omitted")
    parser.add_argument("--batch", type=int, default=8, help="images in the input gradient")
    parser.add_argument(
        "--memory", action="store_true", help="measure the input gradient's memory (compiles each model)"
    )
    parser.add_argument("--write", action="store_true", help="count, and keep the figures in the checked table")
    return parser.parse_args(arguments[1:])


def select(patterns: Sequence[str]) -> list[str]:
    """Names matching any of the patterns; all where there is none.

    Raises:
      ValueError: a pattern matches nothing.
    """
    chosen: dict[str, None] = {}
    for part in filter(None, patterns):
        found = fnmatch.filter(models.names(), part)
        if not found:
            lookup("model", part, models.MODELS)
        chosen |= dict.fromkeys(found)
    return list(chosen) or models.names()


if __name__ == "__main__":
    main(sys.argv)
