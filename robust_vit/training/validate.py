"""What values a configuration may hold: one table of field to rule, and the few rules that join fields.

The rules themselves are in `rules`. Nothing here opens data, builds a model or compiles. To add a field: its line in
`config.base`, its line in `FIELDS`.
"""

import dataclasses
import math
import os
import pathlib
from typing import Any

import jax

from robust_vit import attacks, data, models, objectives, parallel
from robust_vit import config as config_lib
from robust_vit.attacks import norms
from robust_vit.config import ConfigDict
from robust_vit.data import mixing, pipeline, sources
from robust_vit.errors import check
from robust_vit.models.weights import adapt
from robust_vit.objectives import encoders
from robust_vit.training import chosen, encoding, optimizer, remat, schedules, stages
from robust_vit.training.rules import (
    FACTOR,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    RATE,
    Rule,
    attack_name,
    each,
    finite,
    image_size,
    like,
    listed,
    milestones,
    name,
    numbers,
    one_of,
    patterns,
    span,
    step,
    suite,
    transforms,
    truth,
    whole,
    word,
)

SEEDS = 2**32  # more bits than that are cut off by JAX's key, and two seeds would be one

FIELDS: dict[str, Rule] = {
    "seed": whole(0, SEEDS - 1),
    "data.name": name(data.names),
    "data.batch_size": whole(1),
    "data.repeats": whole(1),
    "data.extra.name": name(lambda: ["", *data.names()]),
    "data.extra.ratio": RATE,
    "data.extra.label_smoothing": RATE,
    "data.train_transforms": transforms,
    "data.evaluation_transforms": transforms,
    "data.workers": whole(-1, 8 * (os.cpu_count() or 1)),
    "data.on_bad_image": one_of("error", "skip"),
    "augmentation.mixup": NOT_NEGATIVE,
    "augmentation.cutmix": NOT_NEGATIVE,
    "augmentation.switch_probability": PROBABILITY,
    "augmentation.mix_probability": PROBABILITY,
    "augmentation.erase": PROBABILITY,
    "augmentation.erase_area": span("(low, high), fractions of the image with 0 < low <= high <= 1", 1.0),
    "augmentation.erase_aspect": span("(low, high) with 0 < low <= high", math.inf),
    "augmentation.erase_fill": name(lambda: mixing.FILLS),
    "model.name": name(models.names),
    "model.drop_path": RATE,
    "model.dtype": one_of("float32", "bfloat16"),
    "model.remat": truth,
    "model.scan": truth,
    "model.mean": numbers,
    "model.std": numbers,
    "initial.weights": word,
    "initial.checkpoint": step,
    "initial.average": one_of("", "raw", "ema"),
    "initial.head": one_of("auto", "keep", "new"),
    "initial.leave_out": patterns,
    "initial.resize": name(lambda: adapt.RESIZE),
    "attack.name": attack_name,
    "attack.norm": name(lambda: norms.BALLS),
    "attack.epsilon": finite,  # its range depends on the norm
    "attack.step_size": finite,
    "attack.steps": whole(1),
    "attack.random_start": truth,
    "attack.restarts": whole(1),
    "attack.loss": word,  # each attack knows its own
    "attack.momentum": NOT_NEGATIVE,
    "attack.keep": lambda field, value: None if value is None else one_of("last", "loss", "success")(field, value),
    "attack.batch_norm": one_of("running", "batch", "train"),
    "attack.ard_epochs": NOT_NEGATIVE,
    "attack.prm_epochs": NOT_NEGATIVE,
    "attack.schedule": name(lambda: schedules.STRENGTHS),
    "attack.warmup_epochs": NOT_NEGATIVE,
    "attack.zero_epochs": NOT_NEGATIVE,
    "attack.per_epoch": truth,
    "objective.name": name(objectives.every),
    "objective.label_smoothing": RATE,
    "objective.beta": NOT_NEGATIVE,
    "objective.statistics": one_of("clean", "adversarial", "both"),
    "objective.teacher": word,
    "awp.gamma": RATE,
    "awp.from_epoch": NOT_NEGATIVE,
    "optimizer.name": name(lambda: optimizer.OPTIMIZERS),
    "optimizer.learning_rate": POSITIVE,
    "optimizer.scale_with_batch": name(lambda: schedules.BATCH_RULES),
    "optimizer.base_batch": whole(1),
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.b1": RATE,
    "optimizer.b2": RATE,
    "optimizer.lion_b2": RATE,
    "optimizer.momentum": RATE,
    "optimizer.moment": one_of("float32", "bfloat16"),
    "optimizer.layer_decay": FACTOR,
    "optimizer.freeze": patterns,
    "optimizer.clip_norm": NOT_NEGATIVE,
    "optimizer.accumulation": whole(1),
    "optimizer.ema_decay": RATE,
    "optimizer.schedule": name(lambda: schedules.LEARNING_RATES),
    "optimizer.per_epoch": truth,
    "optimizer.warmup_epochs": NOT_NEGATIVE,
    "optimizer.warmup_learning_rate": NOT_NEGATIVE,
    "optimizer.warmup_prefix": truth,
    "optimizer.final_learning_rate": NOT_NEGATIVE,
    "optimizer.cooldown_epochs": NOT_NEGATIVE,
    "optimizer.decay_every_epochs": POSITIVE,
    "optimizer.decay_factor": FACTOR,
    "optimizer.milestones": milestones,
    "training.epochs": POSITIVE,
    "training.log_every_steps": whole(1),
    "training.validate_every_epochs": POSITIVE,
    "training.save_every_epochs": POSITIVE,
    "training.remat_policy": name(lambda: remat.POLICIES),
    "training.keep_checkpoints": whole(1),
    "training.trackers": listed,
    "stages.epochs": each(POSITIVE, "epochs"),
    "stages.image_sizes": each(whole(1), "sides in pixels"),
    "stages.steps": each(whole(1), "numbers of steps"),
    "stages.step_sizes": each(POSITIVE, "fractions of the pixel range"),
    "alarm.examples": whole(0),
    "alarm.steps": whole(1),
    "alarm.gap": RATE,
    "alarm.action": one_of("report", "stop", "rollback"),
    "validation.steps": whole(1),
    "validation.step_size": NOT_NEGATIVE,
    "validation.restarts": whole(1),
    "validation.select": one_of("robust_accuracy", "clean_accuracy"),
    "validation.examples": whole(0),
    "evaluation.suite": suite,
    "evaluation.batch_size": whole(1),
    "evaluation.steps": whole(1),
    "evaluation.restarts": whole(1),
    "evaluation.report_examples": whole(0),
    "parallel.devices": whole(0),
    "parallel.sharding": one_of(*parallel.SHARDINGS),
    "parallel.whole": patterns,
}
FREE = (
    "data.options.",
    "data.extra.options.",
    "model.",
    "attack.options.",
    "objective.options.",
)  # sections whose further fields are keywords of what they name


def validate(config: ConfigDict, devices: int = 1) -> None:
    """Rejects a bad value before anything is compiled.

    Args:
      config: a complete configuration.
      devices: over how many devices a batch is split.

    Raises:
      ValueError: one line that names the field, its value and what is allowed.
    """
    for field, rule in FIELDS.items():
        rule(field, _value(config, field))
    for field in config_lib.fields(config):
        if field not in FIELDS:
            _free(field, _value(config, field))
    _model(config)
    sources.check_options(config.data.name, config_lib.plain(config.data.options))
    _extra(config)
    _joined(config)
    encoding.validate(config)
    _options("attack", config.attack, attacks.options(config.attack.name))
    _options("objective", config.objective, objectives.options(config.objective.name))
    chosen.attack(config.attack)
    _draws(config)
    _start(config)
    chosen.objective(config.objective, config.attack)
    chosen.optimizer_keywords(config.optimizer)
    chosen.augmentation(config.augmentation)
    batches(config, devices)


def _value(config: ConfigDict, field: str) -> Any:
    try:
        return config_lib.plain(config_lib.get(config, field))
    except (KeyError, AttributeError):
        raise ValueError(f"{field}: is missing; config.base() has every field") from None
    except TypeError as error:  # of a field that is computed from another, whose value is no number
        raise ValueError(f"{field}: cannot be computed ({error})") from None


def _free(field: str, value: Any) -> None:
    """A field that the table does not have: a keyword of what a section names, all of whose numbers are finite."""
    if not field.startswith(FREE):
        raise ValueError(config_lib.explain_override(field, config_lib.base()))
    for one in jax.tree.leaves(value):
        if isinstance(one, float):
            check(field, value, math.isfinite(one), "finite")


def _model(config: ConfigDict) -> None:
    """The keywords of the model, by the kind of each one's default."""
    known = {field.name: field.default for field in dataclasses.fields(models.MODELS[config.model.name].func)}
    for keyword, value in config_lib.plain(config.model).items():
        field = f"model.{keyword}"
        if field not in FIELDS and keyword in known:  # `models.build` names the others
            (image_size if keyword == "image_size" else like(known[keyword]))(field, value)


def _extra(config: ConfigDict) -> None:
    """The second source: all of it, or nothing."""
    section, size = config_lib.plain(config.data.extra), config.data.batch_size
    if section["name"]:
        data.Extra(section["name"], section["options"], section["ratio"])
    else:
        chosen.unchanged(
            "data.extra", config.data.extra, section, config_lib.base().data.extra, {"name"}, "no second source"
        )
    pipeline.lay_out(size, section["ratio"], config.data.repeats)


def _options(prefix: str, section: ConfigDict, defaults: dict[str, Any]) -> None:
    """The options of the attack or the objective, by the kind of each one's default; their ranges are its to check."""
    kinds = {bool: truth, int: whole(1), float: finite, str: word}
    for option, value in config_lib.plain(section.options).items():
        rule = kinds.get(type(defaults.get(option)))  # `chosen` names those that it does not take
        if rule is not None:
            rule(f"{prefix}.options.{option}", value)


def _joined(config: ConfigDict) -> None:
    """The rules that join fields."""
    c, o, t = config.attack, config.optimizer, config.training
    top, unit = (1.0, "[0, 1]") if c.norm == "linf" else (math.inf, "[0, inf)")
    check("attack.epsilon", c.epsilon, 0 <= c.epsilon <= top, f"in {unit} (a fraction of the pixel range)")
    check("attack.step_size", c.step_size, c.step_size > 0 or c.epsilon == 0, "> 0")
    check(
        "optimizer.warmup_epochs",
        o.warmup_epochs,
        o.warmup_epochs < t.epochs,
        f"shorter than training.epochs = {t.epochs:g}",
    )
    _learning_rate(o, t.epochs)
    stages.validate(config.stages, t.epochs)
    sides = tuple(config.stages.image_sizes)
    check("stages.image_sizes", sides, not (sides and config.objective.teacher), "left out with objective.teacher")
    _alarm(config)
    kept, split = tuple(config.parallel.whole), config.parallel.sharding == "fsdp"
    check("parallel.whole", kept, split or not kept, "left out with parallel.sharding = 'replicated'")
    allowed = f"with attack.zero_epochs = {c.zero_epochs:g} no longer than training.epochs = {t.epochs:g}"
    check("attack.warmup_epochs", c.warmup_epochs, c.warmup_epochs + c.zero_epochs <= t.epochs, allowed)
    unused = c.schedule == "constant" and c.warmup_epochs > 0
    check("attack.warmup_epochs", c.warmup_epochs, not unused, "0 with attack.schedule = 'constant'")
    teacher, needs = config.objective.teacher, config.objective.name in objectives.TEACHERS | encoders.TEACHERS
    wanted = "a run folder or a folder of converted weights" if needs else "left out"
    check(
        "objective.teacher",
        teacher,
        bool(teacher) == needs,
        f"{wanted} with objective.name = {config.objective.name!r}",
    )
    mean, std = config_lib.plain(config.model.mean), config_lib.plain(config.model.std)
    check("model.mean", mean, len(mean) == len(std), "as long as model.std")


def _alarm(config: ConfigDict) -> None:
    """The rules that join the fields of the alarm with each other and with the objective."""
    section, objective = config.alarm, config.objective.name
    quiet = section.examples == 0 or objective in chosen.UNWATCHED
    where = "alarm.examples = 0" if section.examples == 0 else f"objective.name = {objective!r}: no attack to hold"
    check("alarm.gap", section.gap, not (quiet and section.gap), f"0 with {where}")
    idle = section.action != "report" and not section.gap
    check("alarm.action", section.action, not idle, "'report' with alarm.gap = 0, which never alarms")


def initial(section: ConfigDict) -> None:
    """The weights to begin from are there, and nothing else is asked for where there are none."""
    path, usual = pathlib.Path(section.weights), config_lib.base().initial
    for field in section:
        if not section.weights:
            unset = config_lib.plain(section[field]) == usual[field]
            check(f"initial.{field}", section[field], unset, f"left at {usual[field]!r} without initial.weights")
    known = path.is_file() or any((path / one).is_file() for one in ("config.json", "model.json"))
    kinds = "a run folder, a folder of converted weights, or a PyTorch or .safetensors file"
    check("initial.weights", section.weights, known or not section.weights, kinds)


def _learning_rate(o: ConfigDict, epochs: float) -> None:
    """The rules that join what says how the learning rate runs."""
    begin, warmup = o.warmup_learning_rate, o.warmup_epochs
    check("optimizer.warmup_learning_rate", begin, warmup > 0 or not begin, "0 with optimizer.warmup_epochs = 0")
    left = f"shorter than what optimizer.warmup_epochs = {warmup:g} leaves of training.epochs = {epochs:g}"
    check("optimizer.cooldown_epochs", o.cooldown_epochs, o.cooldown_epochs + warmup < epochs, left)
    whole = not o.per_epoch or all(float(one).is_integer() for one in (epochs, warmup, o.cooldown_epochs))
    allowed = "False unless training.epochs, warmup_epochs and cooldown_epochs are whole numbers"
    check("optimizer.per_epoch", o.per_epoch, whole, allowed)
    stones = config_lib.plain(o.milestones)
    needs, inside = o.schedule == "multistep", all(one < epochs for one in stones)
    check("optimizer.milestones", stones, bool(stones) or not needs, "given with optimizer.schedule = 'multistep'")
    check("optimizer.milestones", stones, inside, f"before the end, training.epochs = {epochs:g}")
    scaled, usual = o.scale_with_batch != "off", config_lib.base().optimizer.base_batch
    allowed = f"left at {usual} with optimizer.scale_with_batch = 'off'"
    check("optimizer.base_batch", o.base_batch, scaled or o.base_batch == usual, allowed)


def _draws(config: ConfigDict) -> None:
    """The attack that sees a model that draws is shown that model, and not a function of an encoder's features."""
    draws, objective = chosen.drawing(config.attack), config.objective.name
    for field, value, instead in (
        ("ard_epochs", config.attack.ard_epochs, "0"),
        ("batch_norm", config.attack.batch_norm, "'running' or 'batch'"),
    ):
        fits = not draws or objective not in encoders.ENCODERS or value in (0, "running", "batch")
        check(f"attack.{field}", value, fits, f"{instead} with objective.name = {objective!r}")


def _start(config: ConfigDict) -> None:
    """An attack whose gradient is 0 at the image, that of TRADES or of an encoder's objective, starts away from it."""
    keywords = chosen.attack_keywords(config.attack)
    still = keywords.get("random_start") is False and not keywords.get("noise")
    objective = config.objective.name
    fits = objective not in objectives.AWAY_FROM_PREDICTION | encoders.STILL or not still
    check("attack.random_start", False, fits, f"True for {objective}: its gradient is 0 at the image itself")


def batches(config: ConfigDict, devices: int) -> None:
    """Batches divide over the devices."""
    size, parts = config.data.batch_size, config.optimizer.accumulation
    check("data.batch_size", size, size % devices == 0, f"divisible by the number of devices, {devices}")
    allowed = f"such that data.batch_size / accumulation divides over {devices} devices; the batch is {size}"
    check("optimizer.accumulation", parts, size % (parts * devices) == 0, allowed)
    field = "mixup" if config.augmentation.mixup else "cutmix"
    alpha, pairs = config.augmentation[field], size % (mixing.PAIR * devices) == 0
    allowed = f"0 unless data.batch_size divides over {devices} devices in pairs, which mix; the batch is {size}"
    check(f"augmentation.{field}", alpha, pairs or not alpha, allowed)
    evaluation = config.evaluation.batch_size
    check("evaluation.batch_size", evaluation, evaluation % devices == 0, f"divisible by {devices} devices")
