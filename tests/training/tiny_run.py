"""A run that compiles in seconds: the digits, a ViT of depth 1 and width 16, one attack step.

python tests/training/tiny_run.py WORKDIR [INDEX PORT]      1.2 epochs; as host INDEX of two
"""

import sys

from robust_vit import commands, parallel
from robust_vit import config as config_lib

OVERRIDES = {
    "model.depth": 1,
    "model.width": 16,
    "model.heads": 2,
    "attack.steps": 1,
    "data.batch_size": 64,
    "training.epochs": 0.6,
    "training.log_every_steps": 1,
    "training.save_every_epochs": 0.1,
    "training.validate_every_epochs": 0.3,
    "attack.warmup_epochs": 0.1,
    "optimizer.warmup_epochs": 0.1,
    "alarm.examples": 0,
    "validation.steps": 1,
    "validation.examples": 64,
    "evaluation.suite": "clean",
    "evaluation.batch_size": 64,
    "evaluation.report_examples": 0,
    "parallel.devices": 1,
}


def config(**overrides):
    """configs/digits.py:adversarial made tiny; overrides use double underscores for dots: attack__steps=2."""
    made = config_lib.load_file("configs/digits.py:adversarial")
    for name, value in (OVERRIDES | {k.replace("__", "."): v for k, v in overrides.items()}).items():
        section, field = name.split(".")
        made[section][field] = value
    return made


def flags(**overrides) -> list[str]:
    """The same as command-line flags."""
    values = OVERRIDES | {k.replace("__", "."): v for k, v in overrides.items()}
    return [f"--config.{name}={value}" for name, value in values.items()]


def main(arguments: list[str]) -> None:
    """Trains in a process of its own, with what a command has around it."""
    from robust_vit.training import loop

    if len(arguments) > 2:
        parallel.initialize(f"localhost:{arguments[3]}", 2, int(arguments[2]))
    made = config(training__epochs=1.2, evaluation__suite="", optimizer__ema_decay=0.9, parallel__devices=0)
    loop.run(made, arguments[1], live=False)


if __name__ == "__main__":
    commands.run(main, sys.argv)
