"""Configuration: `base()` holds every field with its default, unit and meaning; files in `configs/` hold differences.

The only library file that knows ml_collections: factories take plain keywords, which `keywords` picks out of a section.
Which values are allowed is said in `training.validate`. What is read from outside is read here: a file by its name, a
number as people write it, the JSON of an earlier version's run.
"""

import ast
import importlib.util
import inspect
import io
import json
import math
import pathlib
import tokenize
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_collections

from robust_vit.errors import check, lookup, nearest
from robust_vit.threat import fraction

ConfigDict = ml_collections.ConfigDict
placeholder = ml_collections.config_dict.placeholder


def base() -> ConfigDict:
    """Returns the defaults. Epsilon and step sizes are fractions of the pixel range; frequencies carry their unit."""
    config = ConfigDict()
    config.seed = 0  # of weights, data order, augmentation and attacks

    config.data = ConfigDict()
    config.data.name = "digits"  # robust_vit.data.names()
    config.data.options = ConfigDict()  # keywords of that source: path, split names, sizes
    config.data.batch_size = 128  # images a step, over all devices and hosts
    config.data.repeats = 1  # copies of every training image in a batch, each augmented and attacked by itself
    config.data.extra = ConfigDict()  # a second source to train on: generated or pseudo-labelled images
    config.data.extra.name = ""  # robust_vit.data.names(); "": none
    config.data.extra.options = ConfigDict()  # keywords of that source; path of npz may be a single file
    config.data.extra.ratio = 0.0  # share of every batch that it gives; an epoch stays len(training split) images
    config.data.extra.label_smoothing = 0.0  # of its labels alone
    config.data.train_transforms = ()  # robust_vit.data.host specs, applied to each training image on the host
    config.data.evaluation_transforms = ()  # the same for validation and test
    config.data.workers = -1  # processes that decode and augment; 0: in this one; -1: as many as help
    config.data.on_bad_image = "error"  # "error": stop and name the file; "skip": count, report, replace

    config.augmentation = ConfigDict()  # on the device, before the attack; transforms on the host are data's
    config.augmentation.mixup = 0.0  # alpha of MixUp's Beta distribution, 0.8 in heavy recipes; 0: none
    config.augmentation.cutmix = 0.0  # alpha of CutMix's, 1.0 in heavy recipes; 0: none
    config.augmentation.switch_probability = 0.5  # of CutMix, where both are on; each example draws its own
    config.augmentation.mix_probability = 1.0  # of mixing an example at all
    config.augmentation.erase = 0.0  # probability of random erasing, after mixing; 0.25 in heavy recipes
    config.augmentation.erase_area = (0.02, 1 / 3)  # range of the box's area, a fraction of the image
    config.augmentation.erase_aspect = (0.3, 3.3)  # range of the box's height / width
    config.augmentation.erase_fill = "pixel"  # noise of every "pixel", one "colour" a box, "black" (Cutout)

    config.model = ConfigDict()
    config.model.name = "vit"  # robust_vit.models.names(); further fields of the section are keywords of that model
    config.model.drop_path = 0.0  # stochastic depth, probability
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16; weights, logits and losses stay float32
    config.model.remat = False  # recompute activations in the backward pass: less memory, about a third more time
    config.model.scan = False  # one compiled block for all depths
    config.model.mean = ()  # normalisation inside the model, a number a channel; () for none
    config.model.std = ()  # as long as mean

    config.initial = ConfigDict()
    config.initial.weights = ""  # to begin from: a run folder, one of converted weights, a PyTorch file; "": chance
    config.initial.checkpoint = "best"  # of a run folder: best, latest or a step
    config.initial.average = ""  # raw or ema; "": what a run selected its best by, raw of a file
    config.initial.head = "auto"  # keep, new; auto: new where the classes are others in number
    config.initial.leave_out = ()  # parts not taken, and drawn anew where the model has them: "conv1", "patch_embed"
    config.initial.resize = "plain"  # of positions to another grid: plain (bicubic, as DeiT), antialias (as timm), ""

    config.attack = ConfigDict()
    config.attack.name = "pgd"  # of the training attack: robust_vit.attacks.names(), or an alias such as bim
    config.attack.norm = "linf"  # of the threat model, also where the run is validated and evaluated: linf, l2, l1
    config.attack.epsilon = 8 / 255  # radius of the ball, likewise
    config.attack.step_size = config.attack.get_ref("epsilon") / 4  # unset: pgd epsilon / 4, fgsm 1.25 epsilon
    config.attack.steps = 7  # of pgd, apgd, fab
    config.attack.random_start = True  # of pgd, fgsm, apgd: from a random point of the ball
    config.attack.restarts = 1  # the best of so many starts, of every attack but fgsm
    config.attack.loss = "cross_entropy"  # what pgd, fgsm, apgd maximise
    config.attack.momentum = 0.0  # of pgd: MI-FGSM's decay
    config.attack.keep = placeholder(str)  # which iterate is trained on; unset: pgd, fgsm "last", apgd, square "loss"
    config.attack.options = ConfigDict()  # further keywords of the chosen attack: noise of fgsm, queries of square
    config.attack.batch_norm = "running"  # in the attack: running averages, of the "batch", or all as in "train"
    config.attack.ard_epochs = 0.0  # attention random dropping fades over so many epochs; 0: none
    config.attack.prm_epochs = 0.0  # pgd: perturbation random masking fades over so many epochs; 0: none
    config.attack.schedule = "linear"  # of epsilon: linear, sine, constant
    config.attack.warmup_epochs = 0.0  # epochs until epsilon is reached, counted after zero_epochs
    config.attack.zero_epochs = 0.0  # epochs at epsilon 0 before that
    config.attack.per_epoch = False  # epsilon changes once an epoch, as in the light recipe's code; False: every step

    config.objective = ConfigDict()
    config.objective.name = "adversarial"  # robust_vit.objectives.names()
    config.objective.options = ConfigDict()  # further keywords of the chosen objective
    config.objective.teacher = ""  # frozen classifier to learn from: a run folder, or one of converted weights
    config.objective.label_smoothing = 0.0  # mass moved from the label to the uniform distribution
    config.objective.beta = 6.0  # weight of the divergence; as published: trades 6, mart 5, hat 2.5, score 4, gkl 20
    config.objective.statistics = "both"  # which of two passes updates BatchNorm: clean, adversarial, both

    config.awp = ConfigDict()
    config.awp.gamma = 0.0  # adversarial weight perturbation: step uphill, relative to each kernel's norm; 0: none
    config.awp.from_epoch = 0.0  # before it gamma counts as 0

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # adamw, lion, sgd (Nesterov)
    config.optimizer.learning_rate = 1e-3  # at its peak
    config.optimizer.scale_with_batch = "off"  # times data.batch_size / base_batch: linear, or its root: sqrt
    config.optimizer.base_batch = 256  # images a step that learning_rate is meant for, with scale_with_batch
    config.optimizer.weight_decay = 0.05  # on kernels only: never on biases, norms, tokens, positions
    config.optimizer.b1 = 0.9  # adamw, lion: decay of the mean of gradients
    config.optimizer.b2 = 0.999  # adamw: decay of the mean of their squares
    config.optimizer.lion_b2 = 0.99  # lion: decay of the mean that it keeps; it steps by that of b1
    config.optimizer.momentum = 0.9  # sgd
    config.optimizer.moment = "float32"  # what the mean of gradients is kept in: float32, or bfloat16 for its memory
    config.optimizer.layer_decay = 1.0  # the learning rate falls by it from each layer to the one below; 1: it does not
    config.optimizer.freeze = ()  # what stays as it is: patterns of parameters, such as "patch_embed", "blocks_[0-5]"
    config.optimizer.clip_norm = 0.0  # global gradient norm; 0: no clipping
    config.optimizer.accumulation = 1  # parts that a batch is processed in, to save memory
    config.optimizer.ema_decay = 0.0  # average of the weights, evaluated beside the raw ones; 0: none
    config.optimizer.schedule = "cosine"  # of the learning rate: cosine, step, multistep, constant
    config.optimizer.per_epoch = False  # it changes once an epoch, as timm's do; False: every step
    config.optimizer.warmup_epochs = 0.0  # linear to the peak
    config.optimizer.warmup_learning_rate = 0.0  # where that begins; 0: near 0
    config.optimizer.warmup_prefix = True  # cosine begins after the warm-up; False: runs below it, as timm's does
    config.optimizer.final_learning_rate = 0.0  # where cosine ends
    config.optimizer.cooldown_epochs = 0.0  # cosine: the last so many of training.epochs stay there
    config.optimizer.decay_every_epochs = 30.0  # step: multiply by decay_factor every so often
    config.optimizer.decay_factor = 0.1  # step, multistep
    config.optimizer.milestones = ()  # multistep: epochs at which to multiply by decay_factor

    config.training = ConfigDict()
    config.training.epochs = 30.0  # of as many images as the training split has, whatever their source or copies
    config.training.log_every_steps = 10  # rows of metrics.jsonl
    config.training.validate_every_epochs = 5.0  # and at the end
    config.training.save_every_epochs = 5.0  # and at every validation
    config.training.remat_policy = ""  # what passes keep for gradients: "" all, dots products, dots_no_batch by weights
    config.training.keep_checkpoints = 2  # the latest so many, and the best by validation
    config.training.trackers = ""  # besides metrics.jsonl: csv, tensorboard, wandb, mlflow; comma separated

    config.stages = ConfigDict()
    config.stages.epochs = ()  # training in stages, coarse to fine: passes of each, training.epochs in all; (): one
    config.stages.image_sizes = ()  # side that images are resized to in each, on the device; (): the data's
    config.stages.steps = ()  # of the attack in each; (): attack.steps
    config.stages.step_sizes = ()  # of the attack in each; (): attack.step_size

    config.alarm = ConfigDict()
    config.alarm.examples = 256  # of validation, on which the training attack is held against APGD; 0: none
    config.alarm.steps = 10  # of that APGD
    config.alarm.gap = 0.0  # alarm where the accuracies under the two are further apart; 0: only report them
    config.alarm.action = "report"  # then report, stop, or rollback: stop at the last checkpoint that was sound

    config.validation = ConfigDict()
    config.validation.steps = 20  # of PGD on the validation split, which alone selects the best checkpoint
    config.validation.step_size = 0.0  # 0: 2.5 epsilon / steps, whatever the training attack's is
    config.validation.restarts = 1  # of that PGD
    config.validation.select = "robust_accuracy"  # what the best checkpoint is best by; or clean_accuracy
    config.validation.examples = 0  # 0: all

    config.evaluation = ConfigDict()
    config.evaluation.suite = "clean,fgsm,pgd,sweep"  # on the test split at the end, comma separated; "" for none
    config.evaluation.batch_size = 256  # images at once, over all devices and hosts; of validation too
    config.evaluation.steps = 50  # of PGD
    config.evaluation.restarts = 5  # of PGD
    config.evaluation.report_examples = 256  # that the page of the run attacks and shows; 0: a page without them

    config.parallel = ConfigDict()
    config.parallel.devices = 0  # 0: all that are present
    config.parallel.sharding = "replicated"  # of weights, moments, averages: a copy a device, or split over them: fsdp
    config.parallel.whole = ()  # fsdp: what is not split, patterns of parameters, such as "head", "patch_embed"
    return config


class Field(NamedTuple):
    """A field of the configuration, for `--help`."""

    name: str  # with dots
    default: Any
    comment: str


def describe() -> list[Field]:
    """Lists every field of `base()`, in its order, with the comment beside it in the source."""
    source = inspect.getsource(base)
    words = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {word.start[0]: word.string.lstrip("# ") for word in words if word.type == tokenize.COMMENT}
    found, config = [], base()
    for line in ast.walk(ast.parse(source)):
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Attribute):
            name = ast.unparse(line.targets[0]).partition(".")[2]
            found.append((line.lineno, Field(name, plain(get(config, name)), comments.get(line.end_lineno, ""))))
    return [field for _, field in sorted(found) if not (isinstance(field.default, dict) and field.default)]


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


def sections(config: ConfigDict) -> list[str]:
    """Lists the names of the sections."""
    return [name for name in config if isinstance(config[name], ConfigDict)]


def get(config: ConfigDict, name: str) -> Any:
    """Returns the field of a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def number(text: str, field: str = "number") -> float:
    """Reads a number as people write it: `0.1`, `1e-3`, `8/255`.

    Raises:
      ValueError: if it is none, or not finite; `field` is what the line calls it.
    """
    try:
        value = fraction(str(text))
    except ValueError:
        value = math.nan
    check(field, text, math.isfinite(value), "a number such as 0.1 or 8/255")
    return value


def folders() -> list[pathlib.Path]:
    """Where names of configurations are looked up, in this order: here, in the installed package, in its checkout."""
    package = pathlib.Path(__file__).parent
    places = [pathlib.Path("configs"), package / "_configs"]
    if (package.parent / "pyproject.toml").is_file():
        places.append(package.parent / "configs")
    return [place for place in places if place.is_dir()]


def _files() -> dict[str, pathlib.Path]:
    """Every configuration by its name, `digits` of `configs/digits.py`: the first folder that has it."""
    found: dict[str, pathlib.Path] = {}
    for folder in folders():
        for path in sorted(folder.rglob("[!_.]*.py")):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def available() -> dict[str, str]:
    """Returns {name: first line of the docstring} of all configurations that `load_file` knows by name."""
    found = {}
    for name, path in sorted(_files().items()):
        try:
            tree = ast.parse(path.read_text())
        except (SyntaxError, UnicodeDecodeError):
            continue  # `load_file` tells; a listing goes on
        if any(isinstance(part, ast.FunctionDef) and part.name == "get_config" for part in tree.body):
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def load_file(path: str | pathlib.Path) -> ConfigDict:
    """Runs `get_config` of a configuration; what follows a colon is handed to it.

    Args:
      path: a file (`configs/digits.py:standard`), or a name of `available()` (`digits:standard`): of `configs/` in the
        working directory, or of those that come with the package. The end of a name will do where only one ends so:
        `xcit_s12_eps8` for `imagenet/light_recipe/xcit_s12_eps8`.

    Raises:
      ValueError: if there is no such file, or it does not make a configuration.
    """
    file, argument, module = _module(path)
    make = getattr(module, "get_config", None)
    check("config", file, callable(make), "a file with a function get_config")
    takes = len(inspect.signature(make).parameters)
    check("config", str(path), takes or not argument, f"{file}, whose get_config takes no argument")
    config = make(argument) if argument else make()
    check("config", file, isinstance(config, ConfigDict), "a file whose get_config returns a ConfigDict")
    return config


def sweeps(path: str | pathlib.Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What the function `sweeps` of a configuration's file returns, {name: {variant: {field: value}}}; {} without one.

    A file with one sweep may have a function `sweep` instead, which returns the variants.
    """
    file, _, module = _module(path)
    made = module.sweeps() if hasattr(module, "sweeps") else {}
    made |= {"sweep": module.sweep()} if hasattr(module, "sweep") else {}
    fits = all(isinstance(one, dict) and one for one in made.values())
    fits = fits and all(isinstance(variant, dict) for one in made.values() for variant in one.values())
    check("config", file, fits, "a file whose sweeps return {name: {variant: {field: value}}}")
    return made


def _module(path: str | pathlib.Path) -> tuple[str, str, Any]:
    """Executes a configuration's file; returns the file, what follows the colon, and the module."""
    file, _, argument = str(path).partition(":")
    if not file.endswith(".py"):
        file = str(_named(file))
    if not pathlib.Path(file).is_file():
        raise ValueError(f"config = {file!r}: no such file{nearest(pathlib.Path(file).stem, _files())}")
    spec = importlib.util.spec_from_file_location("experiment", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"config = {file!r}: line {error.lineno}: {error.msg}") from None
    return file, argument, module


def _named(name: str) -> pathlib.Path:
    """The file of a name, or of the only name that ends so."""
    known = _files()
    ends = [full for full in known if full.endswith(f"/{name}")]
    if name not in known and len(ends) > 1:
        raise ValueError(f"config = {name!r}: must be one of {', '.join(ends)}")
    return lookup("config", ends[0] if name not in known and ends else name, known)


def explain_override(name: str, config: ConfigDict) -> str:
    """The line that answers an override of a field that does not exist."""
    return f"config.{name}: no such field{nearest(name, fields(config))}"


def to_json(config: ConfigDict) -> str:
    """Serialises the resolved configuration."""
    return json.dumps(
        plain(ml_collections.FrozenConfigDict(config).as_configdict().copy_and_resolve_references()), indent=1
    )


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote, in this version or an earlier one: fields that it did not know are added.

    Raises:
      ValueError: if the text is no configuration.
    """
    try:
        stored = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"configuration: no JSON ({error}); must be what training wrote as config.json") from None
    config = base()
    known = isinstance(stored, dict) and all(isinstance(stored.get(name, {}), dict) for name in sections(config))
    check("configuration", text[:40], known, "what training wrote as config.json")
    with config.ignore_type():
        config.update(_as_today(stored))
    return config


def _as_today(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with what an earlier version did and did not write, where that is not today's default."""
    if "options" in stored.get("attack", {"options": {}}):
        return stored
    model = {"channels": 3} | stored["model"]  # the default of every model
    validation = {"step_size": stored["attack"]["step_size"]} | stored["validation"]  # it took the training attack's
    return stored | {"model": model, "validation": validation}


def differences(there: ConfigDict, here: ConfigDict) -> list[str]:
    """Lists fields whose values differ, as `name = value there, value here`."""
    old, new = ({name: plain(get(c, name)) for name in fields(c)} for c in (there, here))
    missing = "absent"
    return [
        f"{name} = {old.get(name, missing)!r} there, {new.get(name, missing)!r} here"
        for name in sorted(old | new)
        if old.get(name, missing) != new.get(name, missing)
    ]
