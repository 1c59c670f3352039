"""Which fields of its section a chosen attack, objective, optimiser, model or augmentation takes, and how it is made.

A field that the chosen one does not take has to stand at its default: nothing that a user set is dropped.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from robust_vit import attacks, models, objectives
from robust_vit import config as config_lib
from robust_vit.attacks import updates
from robust_vit.config import ConfigDict
from robust_vit.data import mixing
from robust_vit.errors import check, lookup, nearest
from robust_vit.models.parts import taps
from robust_vit.training import optimizer, schedules
from robust_vit.training.adversary import ramp
from robust_vit.typing import Array, Attack, Objective

# Fields of the section "attack" that are no keywords of an attack, but say how training uses it.
OF_TRAINING = ("name", "options", "batch_norm", "ard_epochs", "prm_epochs")
OF_TRAINING += ("schedule", "warmup_epochs", "zero_epochs", "per_epoch")
# Objectives that the alarm leaves alone: they make no attack, or train no classifier yet.
UNWATCHED = objectives.WITHOUT_ATTACK | {"mimir"}
# Fields of the section "optimizer" that all optimisers and schedules take.
EVERY_OPTIMIZER = ("name", "schedule", "learning_rate", "scale_with_batch", "base_batch", "clip_norm", "accumulation")
EVERY_OPTIMIZER += ("ema_decay", "layer_decay", "freeze", "per_epoch", "warmup_epochs", "warmup_learning_rate")
# Keywords that training cannot give a meaning, an attack towards the label, or gives itself (`attack_at`).
UNTRAINABLE = {
    "pgd": {"targeted", "stochastic", "eot", "patch_keep", "patch_size"},
    "fgsm": {"targeted", "stochastic"},
    "patch": {"targeted", "stochastic", "eot", "mask"},
    "transfer": {"targeted", "patch_keep", "patch_size"},
    "apgd": {"eot", "stochastic"},
}
OF_THREAT = ("norm", "epsilon")  # what an objective that takes it is handed of the section "attack"
IMPLIED = {"fgsm": {"steps": 1}}  # what may be said although it is not taken


def training_defaults(section: ConfigDict) -> dict[str, Any]:
    """The keywords of the chosen attack that are others in training than `config.base` or its factory says."""
    name, own = attacks.known_as(section.name, "attack.name")
    options = own | config_lib.plain(section.options)
    # Wong et al. 2020, arXiv 2001.03994; N-FGSM: de Jorge et al. 2022, arXiv 2202.01181
    fast = section.epsilon if options.get("noise") else 1.25 * section.epsilon
    table = {
        "pgd": {"keep": "last" if section.restarts == 1 else "loss"},  # "last" spends no forward pass on a verdict
        "fgsm": {"keep": "last", "step_size": fast},
        # "success" would return the clean image where the attack fails, and train on that.
        "apgd": {"keep": "loss", "last_gradient": False},
        "square": {"keep": "loss", "queries": 100, "rescale_schedule": True},  # 5000 by default, for evaluation
        "transfer": {"keep": "last", "momentum": 1.0, "step_size": section.epsilon / max(section.steps, 1)},
        "patch": {"keep": "last"},
        "fab": {"targets": 1},  # of its steps each; 9 by default, for evaluation
    }
    if options.get("update") == "adam":
        table["pgd"]["step_size"] = updates.ADAM_STEP_SIZE
    return table.get(name, {}) | own


def attack_keywords(section: ConfigDict) -> dict[str, Any]:
    """The keywords that a section's attack is made with.

    Raises:
      ValueError: for a changed field that the attack does not take, or an option that is none of its keywords.
    """
    name, _ = attacks.known_as(section.name, "attack.name")
    takes = parameters(attacks.ATTACKS[name])
    default = config_lib.base().attack
    default.epsilon = section.epsilon  # which the default step size follows
    implied = IMPLIED.get(name, {})
    rest = [field for field in section if implied.get(field, _MISSING) != section[field]]
    unchanged("attack", section, rest, default, {*takes, *OF_TRAINING}, section.name)
    options = config_lib.plain(section.options)
    known = [one for one in takes if one not in section and one not in UNTRAINABLE.get(name, ())]
    _known_options("attack", section, options, known)
    own = {field: config_lib.plain(section[field]) for field in section if field in takes}
    unset = {k: v for k, v in training_defaults(section).items() if k not in section or own[k] == default[k]}
    return own | unset | options


def attack(section: ConfigDict) -> Attack:
    """Makes the attack that a section describes.

    Raises:
      ValueError: one line that names the field.
    """
    return _made("attack", attacks.factory(section.name), attack_keywords(section))


def drawing(section: ConfigDict) -> bool:
    """Whether the training attack sees a model that draws: it is called with keys then.

    Raises:
      ValueError: if the chosen attack cannot do what the section asks for.
    """
    takes = parameters(attacks.factory(section.name))
    for field, keyword, instead in (
        ("prm_epochs", "patch_keep", "0"),
        ("ard_epochs", "stochastic", "0"),
        ("batch_norm", "stochastic", "'running' or 'batch'"),
    ):
        fits = keyword in takes or section[field] in (0, "running", "batch")
        check(f"attack.{field}", section[field], fits, f"{instead} with attack.name = {section.name!r}")
    return section.batch_norm == "train" or section.ard_epochs > 0


def attack_at(section: ConfigDict, module: Any) -> Callable[[Array], Attack] | None:
    """The training attack of an epoch, where it changes with it or sees a model that draws; None where it does not.

    Args:
      section: of the attack.
      module: the model, whose patches are masked and whose branches are dropped.

    Raises:
      ValueError: if the model has no patches, or no such branches.
    """
    given = attack_keywords(section) | ({"stochastic": True} if drawing(section) else {})
    if section.ard_epochs:
        images = jax.ShapeDtypeStruct((1, *models.image_shape(module)), jnp.float32)
        branches = taps.found(module, images) & set(taps.BRANCHES)
        check("attack.ard_epochs", section.ard_epochs, bool(branches), "0: this model has no attention to drop")
    if section.prm_epochs:
        fits = hasattr(module, "patch_size")
        check("attack.prm_epochs", section.prm_epochs, fits, "0: this model has no patch_size, whose patches to mask")
        factory, given = attacks.factory(section.name), given | {"patch_size": module.patch_size}
        _made("attack", factory, given | {"patch_keep": 1.0})  # tells of a bad keyword now
        return lambda epoch: factory(**given, patch_keep=ramp(epoch, section.prm_epochs))
    if drawing(section):
        made = _made("attack", attacks.factory(section.name), given)
        return lambda epoch: made
    return None


def objective(section: ConfigDict, threat: ConfigDict) -> Objective:
    """Makes the objective that a section describes; some know the ball too, that of the section `threat`, "attack".

    Raises:
      ValueError: one line that names the field.
    """
    factory = lookup("objective.name", section.name, objectives.every())
    takes, options = parameters(factory), config_lib.plain(section.options)
    ball = {name: threat[name] for name in OF_THREAT if name in takes}
    rest = [field for field in section if field != "options"]
    unchanged("objective", section, rest, config_lib.base().objective, {"name", "teacher", *takes}, section.name)
    _known_options("objective", section, options, [one for one in takes if one not in section and one not in ball])
    try:
        return factory(**config_lib.keywords(section, factory), **options, **ball)
    except ValueError as error:  # which names the section, and a field that may be an option
        field, _, rest = str(error).removeprefix("objective.").partition(" ")
        raise ValueError(f"objective.options.{field} {rest}" if field in options else str(error)) from None


def model(name: str, keywords: Mapping[str, Any]) -> Any:
    """Makes a module.

    Raises:
      ValueError: one line that names the field.
    """
    return _made("model", functools.partial(models.build, name), keywords)


def optimizer_keywords(section: ConfigDict) -> dict[str, Any]:
    """The keywords of `optimizer.build` that a section holds.

    Raises:
      ValueError: for a changed field that neither the optimiser nor the schedule takes.
    """
    factory = lookup("optimizer.name", section.name, optimizer.OPTIMIZERS)
    shape = lookup("optimizer.schedule", section.schedule, schedules.LEARNING_RATES)
    takes = {*EVERY_OPTIMIZER, *parameters(factory), *parameters(shape)}
    chosen = f"{section.name} with schedule {section.schedule}"
    unchanged("optimizer", section, section, config_lib.base().optimizer, takes, chosen)
    common = {name: config_lib.plain(section[name]) for name in ("name", "clip_norm", "layer_decay", "freeze")}
    return config_lib.keywords(section, factory) | common


def augmentation(section: ConfigDict) -> mixing.Augment | None:
    """Makes what happens to a batch on the device before the attack; None where nothing does.

    Raises:
      ValueError: for a value outside its range, or a changed field of what is not switched on.
    """
    mixes, both = section.mixup or section.cutmix, section.mixup and section.cutmix
    taken = {"mixup", "cutmix", "erase"} | ({"mix_probability"} if mixes else set())
    taken |= {"switch_probability"} if both else set()
    taken |= {name for name in section if name.startswith("erase_")} if section.erase else set()
    on = [name for name in ("mixup", "cutmix", "erase") if section[name]]
    words = f"{' and '.join(on)} alone" if on else "an augmentation without mixup, cutmix and erase"
    unchanged("augmentation", section, section, config_lib.base().augmentation, taken, words)
    return _made("augmentation", mixing.build, config_lib.plain(section))


def unchanged(
    prefix: str, section: ConfigDict, fields: Iterable[str], default: Mapping, taken: set[str], chosen: str
) -> None:
    """Raises ValueError if a field that the chosen one does not take is not at its default."""
    for field in fields:
        if field not in taken:
            value, usual = config_lib.plain(section[field]), config_lib.plain(default[field])
            check(f"{prefix}.{field}", value, value == usual, f"left at {usual!r}: {chosen} does not take it")


def _known_options(prefix: str, section: ConfigDict, options: Iterable[str], known: list[str]) -> None:
    """Raises ValueError for an option that a field says already, or that the chosen one does not take."""
    for option in options:
        if option in section:
            raise ValueError(f"{prefix}.options.{option}: must be left out; {prefix}.{option} says it")
        if option not in known:
            raise ValueError(
                f"{prefix}.options.{option}: {section.name} takes {', '.join(known) or 'no options'}"
                f"{nearest(option, known)}"
            )


def parameters(factory: Callable[..., Any]) -> list[str]:
    """The keywords of a factory."""
    return list(inspect.signature(factory).parameters)


_MISSING = object()


def _made(prefix: str, factory: Callable[..., Any], keywords: Mapping[str, Any]) -> Any:
    """Calls a factory; its errors name the field as the configuration does."""
    try:
        return factory(**keywords)
    except (ValueError, TypeError) as error:
        field = str(error).partition(" ")[0]
        known = field in keywords
        own = prefix != "attack" or field in config_lib.base().attack
        place = f"{prefix}: " if not known else f"{prefix}." if own else f"{prefix}.options."
        raise ValueError(place + str(error)) from None
