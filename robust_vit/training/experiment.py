"""A configuration turned into the parts of a run: nothing is compiled here."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from robust_vit import attacks, data, parallel
from robust_vit import config as config_lib
from robust_vit.config import ConfigDict
from robust_vit.data import pipeline
from robust_vit.errors import check, nearest
from robust_vit.models import summary
from robust_vit.training import chosen, encoding, groups, optimizer, reduction, remat, schedules, stages, step, validate
from robust_vit.typing import Array, Attack


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
    stages: list[stages.Stage]  # one, or several of growing images and attacks
    learning_rate: schedules.Schedule
    strength: schedules.Schedule
    total_steps: int
    steps_per_epoch: float

    @property
    def step(self) -> step.Step:
        """The step of the last stage."""
        return self.stages[-1].step


def build(config: ConfigDict, resumed: bool = False, mesh: Mesh | None = None, dataset: Any = None) -> Experiment:
    """Checks a configuration and builds the parts it describes.

    Args:
      config: a complete configuration; what follows from others of its fields is filled in.
      resumed: of a run that is under way, and does not look again at what it began from.
      mesh: devices that are described and not here; those of the configuration by default.
      dataset: in place of the configuration's.

    Raises:
      ValueError: one line that names the field, its value and what is allowed.
    """
    validate.validate(config)
    if not resumed:
        validate.initial(config.initial)
    mesh = parallel.mesh(config.parallel.devices) if mesh is None else mesh
    validate.batches(config, mesh.size)
    if dataset is None:
        dataset = build_data(config)
        dataset.check()
    resolve(config, dataset)
    encoding.resolve(config)
    module = chosen.model(config.model.name, model_keywords(config))
    _check_training_size(config.model.name, model_keywords(config), module, dataset)
    attack = chosen.attack(config.attack)
    o = config.optimizer
    if o.freeze or o.layer_decay != 1:
        groups.validate(summary.shapes(module)["params"], o.layer_decay, config_lib.plain(o.freeze))
    _check_whole(config, module)
    tx = optimizer.build(**chosen.optimizer_keywords(o))
    steps_per_epoch = len(dataset.train) / config.data.batch_size
    total = max(1, round(config.training.epochs * steps_per_epoch))
    rates = config_lib.keywords(o, schedules.learning_rate)
    rates["learning_rate"] = schedules.scaled(o.learning_rate, o.scale_with_batch, config.data.batch_size, o.base_batch)
    rate = schedules.learning_rate(total_steps=total, steps_per_epoch=steps_per_epoch, **rates)
    warmup = config_lib.keywords(config.attack, schedules.strength)
    strength = schedules.strength(steps_per_epoch=steps_per_epoch, **warmup)
    parts = build_stages(config, module, tx, dataset, total, steps_per_epoch, mesh)
    return Experiment(config, mesh, dataset, module, attack, tx, parts, rate, strength, total, steps_per_epoch)


def build_stages(
    config: ConfigDict, module: Any, tx: Any, dataset: Any, total: int, steps_per_epoch: float, mesh: Mesh | None = None
) -> list[stages.Stage]:
    """The stages of training, each with its step: one, where the configuration has none.

    Raises:
      ValueError: if the model or the attack cannot be what `config.stages` says.
    """
    section, made = config.stages, []
    count = max(1, len(section.epochs))
    whole = pipeline.image_shape(dataset.train, dataset.train_transforms)
    sizes = stages.sizes(section, whole)
    ends = stages.boundaries(section.epochs, steps_per_epoch, total)
    for i, (size, until) in enumerate(zip(sizes, ends, strict=True)):
        own = config_lib.ConfigDict(config_lib.plain(config.attack))
        own.steps = section.steps[i] if section.steps else own.steps
        own.step_size = section.step_sizes[i] if section.step_sizes else own.step_size
        try:
            attack, on = chosen.attack(own), stages.at(module, size)
        except ValueError as error:
            raise ValueError(f"stages: stage {i + 1}: {error}") from None
        said = f"stage {i + 1} of {count}: images of {size[0]}x{size[1]}, {own.name} of {own.steps} steps"
        attack_at = chosen.attack_at(own, module)
        shrink = None if size == whole[:2] else size
        one = build_step(config, on, attack, tx, dataset, steps_per_epoch, shrink, attack_at, mesh)
        made.append(stages.Stage(until, size, on, attack, one, said))
    return made


def build_step(
    config: ConfigDict,
    module: Any,
    attack: Attack,
    tx: Any,
    dataset: Any,
    steps_per_epoch: float,
    size: tuple[int, int] | None = None,
    attack_at: Callable[[Array], Attack] | None = None,
    mesh: Mesh | None = None,
) -> step.Step:
    """The step of a stage.

    Args:
      config, module, attack, tx, dataset, steps_per_epoch: the parts of the run, `module` and `attack` as the stage has
        them.
      size: what its images are resized to; None for as they are.
      attack_at: see `step.make`.
      mesh: what the state lies on; one device by default.
    """
    return step.make(
        remat.kept(encoding.trained(module, config.objective.name), config.training.remat_policy),
        chosen.objective(config.objective, config.attack),
        attack,
        tx,
        num_classes=dataset.num_classes,
        seed=config.seed,
        ema_decay=config.optimizer.ema_decay,
        accumulation=config.optimizer.accumulation,
        batch_norm=config.attack.batch_norm,
        ard_epochs=config.attack.ard_epochs,
        attack_at=attack_at,
        steps_per_epoch=steps_per_epoch,
        extra_smoothing=config.data.extra.label_smoothing,
        augment=chosen.augmentation(config.augmentation),
        size=size,
        awp_gamma=config.awp.gamma,
        awp_from_epoch=config.awp.from_epoch,
        freeze=config_lib.plain(config.optimizer.freeze),
        **_placement(config, mesh),
    )


def _placement(config: ConfigDict, mesh: Mesh | None) -> dict[str, Any]:
    """What the step does about devices: keywords of `step.make`."""
    parts, section, found = config.optimizer.accumulation, config.parallel, {}
    if mesh is None or mesh.size == 1:
        return found
    if section.sharding != "replicated":
        found["gather"] = parallel.constrained(mesh)
        found["scatter"] = parallel.constrained(mesh, section.sharding, tuple(section.whole))
    # An attack on the training pass draws that pass's noise from the batch's first example, which is on one device.
    noisy = config.attack.batch_norm == "train" and config.model.drop_path > 0
    if parts > 1 and not noisy:
        found["once"] = functools.partial(reduction.once, mesh=mesh, parts=parts)
    return found


def build_data(config: ConfigDict) -> data.Dataset:
    """Describes the data of a configuration; nothing is read yet."""
    extra = config_lib.plain(config.data.extra)
    return data.build(
        config.data.name,
        extra=data.Extra(extra["name"], extra["options"], extra["ratio"]) if extra["name"] else None,
        train_transforms=config_lib.plain(config.data.train_transforms),
        evaluation_transforms=config_lib.plain(config.data.evaluation_transforms),
        **config_lib.plain(config.data.options),
    )


def _check_training_size(name: str, keywords: dict[str, Any], module: Any, dataset: data.Dataset) -> None:
    """Training images may be of another size than the evaluation's where the model takes both; it is traced for that.

    Raises:
      ValueError: where it does not.
    """
    trained, evaluated = pipeline.image_shape(dataset.train, dataset.train_transforms), tuple(dataset.image_shape)
    if trained == evaluated:
        return

    def both(key: jax.Array) -> jax.Array:
        return module.apply(module.init(key, jnp.zeros((1, *evaluated))), jnp.zeros((1, *trained)))

    try:
        chosen.model(name, keywords | {"image_size": trained[:2]})
        jax.eval_shape(both, jax.random.key(0))
    except Exception as error:  # of a reshape, a kernel, an addition: each model fails in its own place
        allowed = f"{evaluated}, as data.evaluation_transforms make them: {name} takes no two sizes"
        raise ValueError(f"image shape after data.train_transforms = {trained}: must be {allowed}") from error


def _check_whole(config: ConfigDict, module: Any) -> None:
    """Raises ValueError for a pattern of `parallel.whole` that names no parameter."""
    found = groups.every_name(summary.shapes(module)["params"]) if config.parallel.whole else []
    for pattern in config.parallel.whole:
        known = any(parallel.named(name, [pattern]) for name in found)
        check("parallel.whole", pattern, known, f"a pattern of the model's parameters{nearest(pattern, found)}")


def validation_attack(config: ConfigDict) -> Attack:
    """The PGD that selects checkpoints: its step size is its own.

    With the training attack's, such as 1.5 epsilon of a one-step recipe, it would go to the same corners of the ball as
    training does, and not see that the model fits to those (catastrophic overfitting).
    """
    v = config.validation
    return attacks.pgd(
        norm=config.attack.norm,
        epsilon=config.attack.epsilon,
        step_size=v.step_size or None,
        steps=v.steps,
        restarts=v.restarts,
        keep="success",
    )


def resolve(config: ConfigDict, dataset: Any) -> None:
    """Fills in what follows from other fields and from the data, so that the stored configuration says all by itself.

    Raises:
      ValueError: if the model is set for other images or classes than those of the data.
    """
    from_data = {
        "num_classes": dataset.num_classes,
        "image_size": tuple(dataset.image_shape[:2]),
        "channels": dataset.image_shape[2],
    }
    with config.unlocked():
        for name, value in from_data.items():
            given = config_lib.plain(config.model.get(name, value))
            square = isinstance(given, int) and name == "image_size"
            check(f"model.{name}", given, value == ((given, given) if square else given), f"{value}, as in the data")
            config.model[name] = given
        for name, value in chosen.attack_keywords(config.attack).items():
            section = config.attack if name in config.attack else config.attack.options
            if section.get(name) != value:
                section[name] = value
        if not config.validation.step_size:
            config.validation.step_size = 2.5 * config.attack.epsilon / config.validation.steps


def evaluation_batches(experiment: Experiment, split: str, examples: int = 0) -> Any:
    """Padded, masked batches of a split for this host; of its first examples, or 0 for as many as the split's rule."""
    c, dataset = experiment.config, experiment.dataset
    usual = c.validation.examples if split == "validation" else 0
    return pipeline.evaluate(
        dataset.split(split),
        batch_size=c.evaluation.batch_size,
        transforms=dataset.evaluation_transforms,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        limit=examples or usual or None,
        workers=c.data.workers,
        on_bad_image=c.data.on_bad_image,
    )
