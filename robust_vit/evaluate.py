"""Evaluate: python -m robust_vit.evaluate --workdir=runs/digits --suite=clean,fgsm,pgd

Measures the selected checkpoint of a run folder on a split, prints tables, and merges the figures into the folder's
`result.json` (see `robust_vit.evaluation.record`). A classifier of your own is measured the same way, on the data and
the threat model of a configuration:

    python -m robust_vit.evaluate --logits_fn=mymodule:make_logits_fn --config=configs/digits.py --workdir=runs/mine

where `make_logits_fn()` returns images [B,H,W,C] in [0,1] -> logits [B,K]. So are converted weights
(`python -m robust_vit.convert`), with `--weights_dir=DIR` in place of `--logits_fn`.
"""

import dataclasses
import importlib
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from absl import flags

from robust_vit import config as config_lib
from robust_vit import data, models, parallel
from robust_vit.attacks import norms
from robust_vit.config import ConfigDict
from robust_vit.data import pipeline, splits
from robust_vit.errors import check, lookup
from robust_vit.evaluation import record, suites, tables
from robust_vit.models.weights import torch_weights
from robust_vit.training import checkpoint, experiment
from robust_vit.typing import LogitsFn

# Flags of this command alone: the global FLAGS would clash with those of other commands in one process.
_FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run folder: checkpoints are read from it, result.json goes to it.", flag_values=_FLAGS
)
_SUITE = flags.DEFINE_string(
    "suite", "clean,fgsm,pgd", f"Comma-separated, of: {', '.join(suites.SUITES)}.", flag_values=_FLAGS
)
_SPLIT = flags.DEFINE_string("split", "test", "train, validation or test.", flag_values=_FLAGS)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "best (by validation), latest, or a step.", flag_values=_FLAGS)
_WEIGHTS = flags.DEFINE_string(
    "weights", "", "raw or ema; by default what the run selects its best checkpoint by.", flag_values=_FLAGS
)
_LOGITS_FN = flags.DEFINE_string(
    "logits_fn", None, "module:function, which returns the classifier to measure.", flag_values=_FLAGS
)
_WEIGHTS_DIR = flags.DEFINE_string(
    "weights_dir", None, "A folder of converted weights to measure, see robust_vit.convert.", flag_values=_FLAGS
)
_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "With --logits_fn or --weights_dir: the experiment that names data and threat model.",
    flag_values=_FLAGS,
)
_NORM = flags.DEFINE_string("norm", None, "linf, l2 or l1; the run's by default.", flag_values=_FLAGS)
_EPSILON = flags.DEFINE_string(
    "epsilon", None, "Radius in pixel-range fractions: 8/255 or 0.1; the run's by default.", flag_values=_FLAGS
)
_STEPS = flags.DEFINE_integer("steps", None, "PGD steps; config.evaluation.steps by default.", flag_values=_FLAGS)
_RESTARTS = flags.DEFINE_integer(
    "restarts", None, "PGD restarts; config.evaluation.restarts by default.", flag_values=_FLAGS
)
_STEP_SIZE = flags.DEFINE_string(
    "step_size", None, "PGD step size; 2.5 epsilon / steps by default.", flag_values=_FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Examples a batch; config.evaluation.batch_size by default.", flag_values=_FLAGS
)
_LIMIT = flags.DEFINE_integer("limit", None, "At most so many examples, always the same ones.", flag_values=_FLAGS)
_SEED = flags.DEFINE_integer("seed", None, "Of the attacks; the run's by default.", flag_values=_FLAGS)
_DEVICES = flags.DEFINE_integer("devices", 0, "How many devices share a batch; 0: all.", flag_values=_FLAGS)
_OPTION = flags.DEFINE_multi_string(
    "option", [], f"name=value for single suites, of: {', '.join(suites.OPTIONS)}.", flag_values=_FLAGS
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join a multi-host run (Cloud TPU, SLURM).", flag_values=_FLAGS)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: a classifier, and the configuration that its data and threat model are taken from."""

    config: ConfigDict
    logits_fn: LogitsFn
    weights: dict[str, Any]  # what result.json says of them, besides their hash
    module: Any = None
    variables: Any = None


def from_run(workdir: str | pathlib.Path, step: str | int = "best", weights: str = "") -> Subject:
    """The classifier in a run folder; see `checkpoint.load` for the arguments and errors."""
    config, module, variables, found = checkpoint.load(workdir, step, weights)
    said = {"step": int(found)} | ({"kind": weights} if weights else {})
    return Subject(config, models.logits_fn(module, variables), said, module, variables)


def from_function(name: str, config: ConfigDict) -> Subject:
    """The classifier that `module:function` returns.

    Raises:
      ValueError: if there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    check("logits_fn", name, bool(module_name and function_name), "module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"logits_fn = {name!r}: {error}; must be importable from here") from None
    callables = {k: v for k, v in vars(module).items() if callable(v) and not k.startswith("_")}
    return Subject(config, lookup("logits_fn", function_name, callables)(), {"step": None, "function": name})


def from_converted(directory: str | pathlib.Path, config: ConfigDict) -> Subject:
    """The classifier in a folder of converted weights, on the data and threat model of a configuration.

    Raises:
      ValueError: if the folder holds none, is damaged, or its classes are not those of the data.
    """
    module, variables, description = torch_weights.load_converted(directory)
    classes = experiment.build_data(config).num_classes
    check("num_classes", module.num_classes, module.num_classes == classes, f"{classes}, as in {config.data.name}")
    source = description["source"] or {}
    said = {"step": None, "model": description["model"], "source": source.get("sha256") or source}
    return Subject(config, models.logits_fn(module, variables), said, module, variables)


def split_batches(
    config: ConfigDict, split: str, batch_size: int | None = None, limit: int | None = None
) -> tuple[pipeline.Evaluation, Any]:
    """Opens a split of a configuration's data: this host's masked batches, re-iterable, and their source."""
    dataset = experiment.build_data(config)
    source = dataset.split(split)
    batches = pipeline.evaluate(
        source,
        batch_size=batch_size or config.evaluation.batch_size,
        transforms=dataset.evaluation_transforms,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        limit=limit,
        workers=config.data.workers,
        on_bad_image=config.data.on_bad_image,
    )
    return batches, source


def radius(flag: str, text: str) -> float:
    """Reads `0.1` or `8/255`.

    Raises:
      ValueError: if it is neither, or not positive.
    """
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        value = -1.0
    check(flag, text, 0 < value < float("inf"), "a positive number such as 0.1 or 8/255")
    return value


def check_flags() -> list[str]:
    """Rejects bad flags before anything is loaded, and returns the suites' names."""
    names = suites.parse(_SUITE.value)
    lookup("split", _SPLIT.value, dict.fromkeys(splits.SPLITS))
    if _NORM.value is not None:
        lookup("norm", _NORM.value, norms.BALLS)
        check("norm", _NORM.value, _EPSILON.value is not None, "given together with --epsilon")
    for flag in (_STEPS, _RESTARTS, _BATCH_SIZE, _LIMIT):
        check(flag.name, flag.value, flag.value is None or flag.value >= 1, "at least 1")
    source = "--workdir, a folder that training wrote, or --logits_fn, or --weights_dir"
    own = bool(_LOGITS_FN.value or _WEIGHTS_DIR.value)
    check("workdir", _WORKDIR.value, bool(_WORKDIR.value or own), f"given: {source}")
    check("weights_dir", _WEIGHTS_DIR.value, not (_LOGITS_FN.value and _WEIGHTS_DIR.value), "given without --logits_fn")
    if _CONFIG.value is not None:
        check("config", _CONFIG.value, own, "given with --logits_fn or --weights_dir only; a run has its own")
    return names


def subject() -> Subject:
    """Loads what the flags name."""
    if _LOGITS_FN.value is None and _WEIGHTS_DIR.value is None:
        return from_run(_WORKDIR.value, _CHECKPOINT.value, _WEIGHTS.value)
    stored = pathlib.Path(_WORKDIR.value or ".") / "config.json"
    if _CONFIG.value is not None:
        config = config_lib.load_file(_CONFIG.value)
    else:
        check("config", None, stored.is_file(), "given, a file such as configs/digits.py, as there is no run folder")
        config = config_lib.from_json(stored.read_text())
    if _WEIGHTS_DIR.value is not None:
        return from_converted(_WEIGHTS_DIR.value, config)
    return from_function(_LOGITS_FN.value, config)


def context_of(subject: Subject, batches: Iterable[dict], class_names: Any) -> suites.Context:
    """Joins the configuration of the subject with the flags."""
    config = subject.config
    epsilon = config.attack.epsilon if _EPSILON.value is None else radius("epsilon", _EPSILON.value)
    norm = _NORM.value or config.attack.norm
    check("epsilon", epsilon, norm != "linf" or epsilon <= 1, "at most 1 for linf (a fraction of the pixel range)")
    return suites.Context(
        logits_fn=subject.logits_fn,
        batches=lambda: batches,
        norm=norm,
        epsilon=epsilon,
        steps=_STEPS.value or config.evaluation.steps,
        restarts=_RESTARTS.value or config.evaluation.restarts,
        step_size=None if _STEP_SIZE.value is None else radius("step_size", _STEP_SIZE.value),
        seed=config.seed if _SEED.value is None else _SEED.value,
        mesh=parallel.mesh(_DEVICES.value),
        module=subject.module,
        variables=subject.variables,
        workdir=pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None,
        class_names=class_names,
        options=suites.read_options(_OPTION.value),
        say=_say,
    )


def _say(line: str) -> None:
    if parallel.is_main():
        print(line, flush=True)


def evaluate() -> dict[str, Any]:
    """Does what the flags ask for and returns the content of result.json."""
    names = check_flags()
    if _DISTRIBUTED.value:
        parallel.initialize()
    path = pathlib.Path(_WORKDIR.value) / record.RESULT if _WORKDIR.value else None
    if path is not None:
        record.read(path)  # a damaged one is told before hours are spent
    measured = subject()
    batches, source = split_batches(measured.config, _SPLIT.value, _BATCH_SIZE.value, _LIMIT.value)
    limited = _LIMIT.value is not None and _LIMIT.value < len(source)
    split = f"{_SPLIT.value}, {_LIMIT.value} examples" if limited else _SPLIT.value
    context = context_of(measured, batches, getattr(source, "class_names", None))
    result = suites.evaluate(names, context, path, split=split, **measured.weights)
    if batches.bad.count:
        _say(str(batches.bad))
    if parallel.is_main():
        tables.show(result, class_names=context.class_names)
        if path is not None:
            _say(f"written to {path}")
    return result


def parse(arguments: Sequence[str]) -> None:
    """Reads the command line.

    Raises:
      ValueError: for a flag that does not exist, with the nearest that does, or a bad value.
    """
    _FLAGS.unparse_flags()  # of an earlier call in this process
    try:
        rest = _FLAGS(arguments)[1:]
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    if rest:
        raise ValueError(f"{rest[0]!r}: is no flag; see python -m robust_vit.evaluate --help")


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Runs the command; an error that the user can mend ends with one line."""
    if {"-h", "--help", "-help"} & set(arguments):
        return print(f"{__doc__}\n{_FLAGS.get_help()}")
    try:
        parse(arguments)
        return evaluate()
    except (ValueError, data.host.BadImage) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv)
