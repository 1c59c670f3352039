"""The rows of `docs/recipes.md`, and what is typed for each."""

import pathlib
from typing import NamedTuple

from robust_vit import sweep

RUNS = pathlib.Path("runs")
SUITES = ("clean", "autoattack")
SMALL = "ablations/small_digits"


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      words: in the table.
      flags: of `robust-vit train` beside seed, suite and run folder.
      begins: the row whose weights of the same seed it begins with.
      teacher: the row that it learns from, likewise.
      measured: False where it is there to be begun from, and has no head to evaluate.
    """

    words: str
    flags: str = ""
    begins: str = ""
    teacher: str = ""
    measured: bool = True


ROWS: dict[str, Row] = {
    "best": Row(
        "PGD-2 on turned, shifted, zoomed images, average of the weights, 100 epochs",
        "--config=digits:best",
    ),
    "adversarial": Row("Madry: PGD-7, 40 epochs", "--config=digits:adversarial"),
    "trades": Row("TRADES, beta 6, PGD-7, 40 epochs", "--config=digits:trades"),
}
# on the small model; each is the recipe of its name in configs/ablations/small_digits.py
METHODS: dict[str, Row] = {
    "adversarial": Row("Madry, PGD-7"),
    "standard": Row("standard, no attack"),
    "trades": Row("TRADES, uniform start"),
    "moved": Row("Madry, PGD-2, images turned, shifted, zoomed, average of the weights"),
    "adversarial_2": Row("Madry, PGD-2"),
    "mart": Row("MART"),
    "awp": Row("AWP around Madry"),
    "awp_trades": Row("AWP around TRADES"),
    "hat": Row("HAT", teacher="standard"),
    "score_adversarial": Row("SCORE, Madry's form"),
    "score_trades": Row("SCORE, TRADES' form"),
    "ikl": Row("IKL"),
    "gkl": Row("GKL"),
    "fgsm": Row("FGSM, from the image itself"),
    "fgsm_random": Row("fast AT: FGSM, random start"),
    "fgsm_noise": Row("N-FGSM"),
    "fgsm_aligned": Row("fast AT with GradAlign"),
    "gradient_norm": Row("input-gradient norm, no attack"),
    "mixed": Row("mixed: clean and attacked images"),
    "natural": Row("standard, half the budget"),
    "hardened": Row("first natural, then Madry", begins="natural"),
    "dropping": Row("ARD and PRM, PGD-7"),
    "adversarial_apgd": Row("Madry, APGD-2"),
    "adversarial_adam": Row("Madry, PGD-7, Adam steps"),
    "trades_normal": Row("TRADES, normal start"),
    "deit_hard": Row("DeiT hard, no attack", teacher="adversarial"),
    "deit_soft": Row("DeiT soft, no attack", teacher="adversarial"),
    "rslad": Row("RSLAD", teacher="adversarial"),
    "ard": Row("ARD, adversarially robust distillation", teacher="adversarial"),
    "ltd": Row("LTD", teacher="standard"),
    "painted": Row("MIMIR, pre-training alone", measured=False),
    "painted_hardened": Row("MIMIR, then Madry", "--config.initial.checkpoint=latest", begins="painted"),
    "fare": Row("FARE, head frozen, no labels", begins="natural", teacher="natural"),
    "tecoa": Row("TeCoA, head frozen", begins="natural", teacher="natural"),
    "sim_clip": Row("Sim-CLIP, head frozen, no labels", begins="natural"),
    "staged": Row("two stages: 4x4 by PGD-1, then 8x8 by PGD-3"),
    "fgsm_alarm": Row("FGSM, from the image itself; the alarm rolls back"),
}
ROWS |= {f"small/{name}": row for name, row in METHODS.items()}
SWEEPS = ("warmup", "weight_decay", "attack_steps", "architectures", "augmentation")


def chosen(rows: str) -> list[str]:
    """The rows that are asked for, those that no table shows left out."""
    named = [row for row in rows.split(",") if row]
    every = [row for row in ROWS if row.startswith("small/")]
    return [row for name in named for row in (every if name == "small" else [name]) if ROWS[row].measured]


def command(row: str, seed: int, runs: pathlib.Path = RUNS) -> list[str]:
    """What is typed for a row, after `robust-vit`."""
    own, folder = ROWS[row], lambda name: runs / f"{name}-{seed}"
    room, _, name = row.rpartition("/")
    if not room:
        suite = f"--config.evaluation.suite={','.join(SUITES)}"
        return ["train", *own.flags.split(), f"--config.seed={seed}", suite, f"--workdir={folder(row)}"]
    flags = [f"--config={SMALL}:{name}", *own.flags.split()]
    flags += [f"--config.initial.weights={folder(f'{room}/{own.begins}')}"] if own.begins else []
    flags += [f"--config.objective.teacher={folder(f'{room}/{own.teacher}')}"] if own.teacher else []
    return ["train", *flags, f"--config.seed={seed}", f"--workdir={folder(row)}"]


def begins(row: str) -> list[str]:
    """The row whose weights one begins with, if any."""
    room = row.rpartition("/")[0]
    return [f"{room}/{ROWS[row].begins}"] if ROWS[row].begins else []


def needs(row: str) -> list[str]:
    """The rows that are run before one: what it begins with and what it learns from."""
    room, own = row.rpartition("/")[0], ROWS[row]
    return list(dict.fromkeys([*begins(row), *([f"{room}/{own.teacher}"] if own.teacher else [])]))


def variants(name: str, seed: int, runs: pathlib.Path = RUNS) -> list[sweep.Run]:
    """The runs of a sweep with one seed, as `robust-vit sweep` makes them."""
    return sweep.plan(sweep_command(name, str(seed), runs))


def sweep_command(name: str, seeds: str, runs: pathlib.Path = RUNS) -> list[str]:
    """What is typed for a sweep, after `robust-vit`."""
    return ["sweep", f"--config={SMALL}", f"--sweep={name}", f"--seeds={seeds}", f"--workdir={runs / 'small' / name}"]
