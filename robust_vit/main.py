"""Train: python -m robust_vit.main --config=configs/digits.py --workdir=runs/digits

Any field can be overridden: --config.optimizer.learning_rate=1e-3. The same command again resumes. Intentionally short:
everything is in `robust_vit.training.loop`, which notebooks call with a config that they build themselves.
"""

import re
import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags

from robust_vit import config as config_lib
from robust_vit import parallel
from robust_vit.training import loop

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/digits.py", "The experiment; file.py:argument.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run folder.", required=True)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join a multi-host run (Cloud TPU, SLURM).")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"arguments that are no flags: {argv[1:]}")
    if _DISTRIBUTED.value:
        parallel.initialize()
    try:
        loop.run(_CONFIG.value, _WORKDIR.value)
    except (ValueError, loop.NonFiniteError) as error:
        sys.exit(f"error: {error}")


def check_overrides(arguments: Sequence[str]) -> None:
    """Exits with the nearest real field where an override names none; absl would show a bare traceback."""
    path = next((m[1] for a in arguments if (m := re.match(r"--?config=(.*)", a))), "configs/digits.py")
    names = [m[1] for a in arguments if (m := re.match(r"--?(?:no)?config\.([\w.]+)", a))]
    config = config_lib.load_file(path)
    known = set(config_lib.fields(config))
    for name in names:
        if name not in known:
            raise ValueError(config_lib.explain_override(name, config))


def parse(arguments: Sequence[str]) -> list[str]:
    """Parses flags; a bad override ends with one line."""
    try:
        check_overrides(arguments[1:])
        return flags.FLAGS(arguments)
    except (ValueError, TypeError, flags.Error) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
