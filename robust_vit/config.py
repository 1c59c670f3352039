"""Configuration: `base()` holds every field with its default, unit and meaning; `validate()` rejects a bad value early.

The only library file that knows ml_collections: factories take plain keywords, which `keywords` picks out of a section.
A file in `configs/` is one experiment and holds only its differences from `base()`.
"""

import importlib.util
import inspect
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from robust_vit.errors import check, lookup, nearest

ConfigDict = ml_collections.ConfigDict


def base() -> ConfigDict:
    """Returns the defaults. Epsilon and step sizes are fractions of the pixel range; frequencies carry their unit."""
    config = ConfigDict()
    config.seed = 0  # of weights, data order, augmentation and attacks

    config.data = ConfigDict()
    config.data.name = "digits"  # robust_vit.data.names()
    config.data.options = ConfigDict()  # keywords of that source: path, split names, sizes
    config.data.batch_size = 128  # images a step, over all devices and hosts
    config.data.train_transforms = ()  # robust_vit.data.host specs, applied to each training image on the host
    config.data.evaluation_transforms = ()  # the same for validation and test
    config.data.workers = 0  # processes that decode and augment; 0: in this one
    config.data.on_bad_image = "error"  # "error": stop and name the file; "skip": count, report, replace

    config.model = ConfigDict()
    config.model.name = "vit"  # robust_vit.models.names(); further fields of the section are keywords of that model
    config.model.drop_path = 0.0  # stochastic depth, probability
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16; weights, logits and losses stay float32
    config.model.remat = False  # recompute activations in the backward pass: less memory, about a third more time
    config.model.scan = False  # one compiled block for all depths
    config.model.mean = ()  # normalisation inside the model, a number a channel; () for none
    config.model.std = ()

    config.attack = ConfigDict()  # the training attack
    config.attack.name = "pgd"  # robust_vit.attacks.names()
    config.attack.norm = "linf"  # linf, l2, l1
    config.attack.epsilon = 8 / 255  # radius of the ball
    config.attack.step_size = config.attack.get_ref("epsilon") / 4  # follows epsilon unless set
    config.attack.steps = 7
    config.attack.random_start = True
    config.attack.restarts = 1
    config.attack.loss = "cross_entropy"
    config.attack.momentum = 0.0  # MI-FGSM decay
    config.attack.keep = "last"  # which iterate is trained on; "last" spends no extra forward pass
    config.attack.batch_norm = "running"  # statistics during the attack: "running" averages or those of the "batch"
    config.attack.schedule = "linear"  # of epsilon: linear, sine, constant
    config.attack.warmup_epochs = 0.0  # epochs until epsilon is reached, counted after zero_epochs
    config.attack.zero_epochs = 0.0  # epochs at epsilon 0 before that

    config.objective = ConfigDict()  # fields that the chosen objective does not take are ignored
    config.objective.name = "adversarial"  # standard, adversarial, trades
    config.objective.label_smoothing = 0.0
    config.objective.beta = 6.0  # trades: weight of the divergence
    config.objective.statistics = "both"  # trades: which pass updates BatchNorm: clean, adversarial, both

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, sgd (Nesterov)
    config.optimizer.learning_rate = 1e-3  # at its peak
    config.optimizer.weight_decay = 0.05  # on kernels only: never on biases, norms, tokens, positions
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.momentum = 0.9  # sgd
    config.optimizer.clip_norm = 0.0  # global gradient norm; 0: no clipping
    config.optimizer.accumulation = 1  # parts that a batch is processed in, to save memory
    config.optimizer.ema_decay = 0.0  # average of the weights, evaluated beside the raw ones; 0: none
    config.optimizer.schedule = "cosine"  # of the learning rate, per step: cosine, step, constant
    config.optimizer.warmup_epochs = 0.0
    config.optimizer.final_learning_rate = 0.0  # where cosine ends
    config.optimizer.decay_every_epochs = 30.0  # step: multiply by decay_factor every so often
    config.optimizer.decay_factor = 0.1

    config.training = ConfigDict()
    config.training.epochs = 30.0  # passes over the training split
    config.training.log_every_steps = 10
    config.training.validate_every_epochs = 5.0
    config.training.save_every_epochs = 5.0
    config.training.keep_checkpoints = 2  # the latest so many, and the best by validation
    config.training.trackers = ""  # besides metrics.jsonl: csv, tensorboard, wandb, mlflow; comma separated

    config.validation = ConfigDict()  # PGD on the validation split, which alone selects the best checkpoint
    config.validation.steps = 20
    config.validation.restarts = 1
    config.validation.select = "robust_accuracy"  # or clean_accuracy
    config.validation.examples = 0  # 0: all

    config.evaluation = ConfigDict()  # on the test split, with the selected checkpoint, when training ends
    config.evaluation.suite = "clean,fgsm,pgd,sweep"  # comma separated; "" for none
    config.evaluation.batch_size = 256
    config.evaluation.steps = 50  # of PGD
    config.evaluation.restarts = 5

    config.parallel = ConfigDict()
    config.parallel.devices = 0  # 0: all that are present
    return config


def keywords(section: ConfigDict, factory: Callable[..., Any]) -> dict[str, Any]:
    """Picks from a section the fields that a factory takes, as plain keywords."""
    accepted = inspect.signature(factory).parameters
    return {name: plain(section[name]) for name in section if name in accepted}


def plain(value: Any) -> Any:
    """Turns ConfigDicts into dicts and lists into tuples."""
    if isinstance(value, ConfigDict):
        return {name: plain(value[name]) for name in value}
    return tuple(plain(item) for item in value) if isinstance(value, list | tuple) else value


def fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Lists the dotted names of all fields."""
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from fields(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def load_file(path: str) -> ConfigDict:
    """Runs `get_config` of a config file; `file.py:argument` hands it the argument."""
    file, _, argument = str(path).partition(":")
    if not pathlib.Path(file).is_file():
        raise ValueError(f"config = {file!r}: no such file")
    spec = importlib.util.spec_from_file_location("experiment", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def explain_override(name: str, config: ConfigDict) -> str:
    """The line that answers an override of a field that does not exist."""
    return f"config.{name}: no such field{nearest(name, fields(config))}"


def to_json(config: ConfigDict) -> str:
    """Serialises the resolved configuration."""
    return json.dumps(
        plain(ml_collections.FrozenConfigDict(config).as_configdict().copy_and_resolve_references()), indent=1
    )


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote."""
    return ConfigDict(json.loads(text), convert_dict=True)


def differences(there: ConfigDict, here: ConfigDict) -> list[str]:
    """Lists fields whose values differ, as `name = value there, value here`."""
    old, new = ({name: plain(_get(c, name)) for name in fields(c)} for c in (there, here))
    missing = "absent"
    return [
        f"{name} = {old.get(name, missing)!r} there, {new.get(name, missing)!r} here"
        for name in sorted(old | new)
        if old.get(name, missing) != new.get(name, missing)
    ]


def _get(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def validate(config: ConfigDict, devices: int = 1) -> None:
    """Rejects a bad value before anything is compiled.

    Args:
      config: a complete configuration.
      devices: over how many devices a batch is split.

    Raises:
      ValueError: one line that names the field, its value and what is allowed.
    """
    _validate_names(config)
    _validate_numbers(config)
    _validate_batch(config, devices)


def _validate_names(config: ConfigDict) -> None:
    from robust_vit import attacks, data, models, objectives
    from robust_vit.attacks import losses, norms
    from robust_vit.training import optimizer, schedules

    lookup("data.name", config.data.name, dict.fromkeys(data.names()))
    lookup("model.name", config.model.name, dict.fromkeys(models.names()))
    lookup("objective.name", config.objective.name, objectives.OBJECTIVES)
    lookup("attack.name", config.attack.name, attacks.ATTACKS)
    lookup("attack.norm", config.attack.norm, norms.BALLS)
    lookup("attack.loss", config.attack.loss, losses.LOSSES)
    lookup("attack.schedule", config.attack.schedule, schedules.STRENGTHS)
    lookup("optimizer.name", config.optimizer.name, optimizer.OPTIMIZERS)
    lookup("optimizer.schedule", config.optimizer.schedule, schedules.LEARNING_RATES)
    choices = {
        "data.on_bad_image": ("error", "skip"),
        "attack.batch_norm": ("running", "batch"),
        "attack.keep": ("last", "loss", "success"),
        "model.dtype": ("float32", "bfloat16"),
        "validation.select": ("robust_accuracy", "clean_accuracy"),
    }
    for name, allowed in choices.items():
        lookup(name, _get(config, name), dict.fromkeys(allowed))


def _validate_numbers(config: ConfigDict) -> None:
    c, o, t = config.attack, config.optimizer, config.training
    top = 1.0 if c.norm == "linf" else float("inf")
    check("attack.epsilon", c.epsilon, 0 <= c.epsilon <= top, f"in [0, {top:g}] (a fraction of the pixel range)")
    check("attack.step_size", c.step_size, c.step_size > 0 or c.epsilon == 0, "> 0")
    for name in ("seed", "data.workers", "validation.examples", "parallel.devices"):
        check(name, _get(config, name), _get(config, name) >= 0, ">= 0")
    for name in (
        *("data.batch_size", "attack.steps", "attack.restarts", "optimizer.accumulation", "training.log_every_steps"),
        *("training.keep_checkpoints", "validation.steps", "validation.restarts"),
        *("evaluation.batch_size", "evaluation.steps", "evaluation.restarts"),
    ):
        check(name, _get(config, name), _get(config, name) >= 1, ">= 1")
    for name in ("epochs", "validate_every_epochs", "save_every_epochs"):
        check(f"training.{name}", t[name], t[name] > 0, "> 0")
    check("optimizer.learning_rate", o.learning_rate, o.learning_rate > 0, "> 0")
    for name in ("weight_decay", "clip_norm", "final_learning_rate", "warmup_epochs"):
        check(f"optimizer.{name}", o[name], o[name] >= 0, ">= 0")
    check("optimizer.ema_decay", o.ema_decay, 0 <= o.ema_decay < 1, "in [0, 1)")
    check("model.drop_path", config.model.drop_path, 0 <= config.model.drop_path < 1, "in [0, 1)")
    check(
        "optimizer.warmup_epochs",
        o.warmup_epochs,
        o.warmup_epochs < t.epochs,
        f"shorter than training.epochs = {t.epochs:g}",
    )
    warmup = c.warmup_epochs + c.zero_epochs
    allowed = f"with attack.zero_epochs = {c.zero_epochs:g} no longer than training.epochs = {t.epochs:g}"
    check("attack.warmup_epochs", c.warmup_epochs, c.warmup_epochs >= 0 and warmup <= t.epochs, allowed)
    check("attack.zero_epochs", c.zero_epochs, c.zero_epochs >= 0, ">= 0")


def _validate_batch(config: ConfigDict, devices: int) -> None:
    size, parts = config.data.batch_size, config.optimizer.accumulation
    check("data.batch_size", size, size % devices == 0, f"divisible by the number of devices, {devices}")
    allowed = f"such that data.batch_size / accumulation divides over {devices} devices; the batch is {size}"
    check("optimizer.accumulation", parts, size % (parts * devices) == 0, allowed)
    evaluation = config.evaluation.batch_size
    check("evaluation.batch_size", evaluation, evaluation % devices == 0, f"divisible by {devices} devices")
    check(
        "model.mean", plain(config.model.mean), len(config.model.mean) == len(config.model.std), "as long as model.std"
    )
