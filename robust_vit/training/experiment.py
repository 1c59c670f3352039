"""A configuration turned into the parts of a run: nothing is compiled here."""

import dataclasses
from typing import Any

import jax
import optax

from robust_vit import attacks, data, models, objectives, parallel
from robust_vit import config as config_lib
from robust_vit.config import ConfigDict
from robust_vit.data import pipeline
from robust_vit.training import optimizer, schedules, step
from robust_vit.typing import Attack


def model_keywords(config: ConfigDict) -> dict[str, Any]:
    """The keywords of the model that a configuration describes: every field of its section but the name."""
    section = config_lib.plain(config.model)
    return {name: value for name, value in section.items() if name != "name"}


@dataclasses.dataclass
class Experiment:
    """The parts of a run, built from a configuration; nothing is compiled yet."""

    config: ConfigDict
    mesh: Any
    dataset: Any
    module: Any
    attack: Attack
    tx: optax.GradientTransformation
    step: step.Step
    learning_rate: schedules.Schedule
    strength: schedules.Schedule
    total_steps: int
    steps_per_epoch: float


def build(config: ConfigDict) -> Experiment:
    """Checks a configuration and builds the parts it describes.

    Raises:
      ValueError: one line that names the field, its value and what is allowed.
    """
    mesh = parallel.mesh(config.parallel.devices)
    config_lib.validate(config, mesh.size)
    dataset = build_data(config)
    resolve(config, dataset)
    module = models.build(config.model.name, **model_keywords(config))
    attack = build_attack(config.attack)
    factory = objectives.OBJECTIVES[config.objective.name]
    objective = factory(**config_lib.keywords(config.objective, factory))
    tx = optimizer.build(**config_lib.keywords(config.optimizer, optimizer.build))
    made = step.make(
        module,
        objective,
        attack,
        tx,
        num_classes=dataset.num_classes,
        seed=config.seed,
        ema_decay=config.optimizer.ema_decay,
        accumulation=config.optimizer.accumulation,
        batch_norm=config.attack.batch_norm,
    )
    steps_per_epoch = len(dataset.train) / config.data.batch_size
    total = max(1, round(config.training.epochs * steps_per_epoch))
    rates = config_lib.keywords(config.optimizer, schedules.learning_rate)
    rate = schedules.learning_rate(total_steps=total, steps_per_epoch=steps_per_epoch, **rates)
    warmup = config_lib.keywords(config.attack, schedules.strength)
    strength = schedules.strength(steps_per_epoch=steps_per_epoch, **warmup)
    return Experiment(config, mesh, dataset, module, attack, tx, made, rate, strength, total, steps_per_epoch)


def build_data(config: ConfigDict) -> data.Dataset:
    """Describes the data of a configuration; nothing is read yet."""
    return data.build(
        config.data.name,
        train_transforms=config_lib.plain(config.data.train_transforms),
        evaluation_transforms=config_lib.plain(config.data.evaluation_transforms),
        **config_lib.plain(config.data.options),
    )


def build_attack(section: ConfigDict, **changes: Any) -> Attack:
    """Makes the attack that a configuration section describes, with some of its keywords changed."""
    factory = attacks.ATTACKS[section.name]
    return factory(**(config_lib.keywords(section, factory) | changes))


def resolve(config: ConfigDict, dataset: Any) -> None:
    """Fills in what the model takes from the data, so that the stored configuration rebuilds it alone."""
    with config.unlocked():
        for name, value in (("num_classes", dataset.num_classes), ("image_size", tuple(dataset.image_shape[:2]))):
            if name not in config.model:
                config.model[name] = value


def evaluation_batches(experiment: Experiment, split: str) -> Any:
    """Padded, masked batches of a split for this host."""
    c, dataset = experiment.config, experiment.dataset
    return pipeline.evaluate(
        dataset.split(split),
        batch_size=c.evaluation.batch_size,
        transforms=dataset.evaluation_transforms,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        limit=(c.validation.examples or None) if split == "validation" else None,
        workers=c.data.workers,
        on_bad_image=c.data.on_bad_image,
    )
