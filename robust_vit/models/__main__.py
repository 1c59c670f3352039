"""python -m robust_vit.models: a table of the models, with parameters, multiply-adds, tokens and memory."""

import argparse
import fnmatch
import sys
from collections.abc import Sequence

from robust_vit import models
from robust_vit.errors import lookup
from robust_vit.models import summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table for the models asked for.

    Returns:
      The exit status: 0, or 2 after a line on what is wrong with the arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m robust_vit.models", description=__doc__)
    parser.add_argument("--names", default="", help="comma-separated, '*' matches anything; all models when empty")
    parser.add_argument("--image_size", type=int, help="pixels; each model's own when omitted")
    parser.add_argument("--patch_size", type=int, help="pixels; each model's own when omitted")
    parser.add_argument("--num_classes", type=int, help="each model's own when omitted")
    parser.add_argument("--batch", type=int, default=8, help="images in the input gradient")
    parser.add_argument(
        "--memory", action="store_true", help="measure the input gradient's memory (compiles each model)"
    )
    flags = parser.parse_args(arguments)
    overrides = {
        field: getattr(flags, field)
        for field in ("image_size", "patch_size", "num_classes")
        if getattr(flags, field) is not None
    }
    try:
        rows = [summary.summarize(name, flags.batch, flags.memory, **overrides) for name in select(flags.names)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(summary.table(rows, flags.batch))
    return 0


def select(pattern: str) -> list[str]:
    """Names matching comma-separated patterns; all for an empty one.

    Raises:
      ValueError: a pattern without '*' is not a model, or one with it matches nothing.
    """
    chosen: list[str] = []
    for part in filter(None, pattern.split(",")):
        found = fnmatch.filter(models.names(), part)
        if not found:
            lookup("--names", part, models.MODELS)
        chosen += found
    return chosen or models.names()


if __name__ == "__main__":
    sys.exit(main())
