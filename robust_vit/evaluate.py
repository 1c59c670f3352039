"""Evaluate: python -m robust_vit.evaluate --workdir=runs/digits --suite=clean,fgsm,pgd

Measures the selected checkpoint of a run folder on a split, prints tables, and merges the figures into the folder's
`result.json` (see `robust_vit.evaluation.record`). A classifier of your own is measured the same way, on the data and
the threat model that a configuration or flags name:

    python -m robust_vit.evaluate --logits_fn=mymodule:make_logits_fn --config=configs/digits.py --workdir=runs/mine
    python -m robust_vit.evaluate --torch=mymodule:make_module --data=folder:/pictures --threat=linf-8/255
    python -m robust_vit.evaluate --weights_dir=weights/xcit --data=folder:/imagenet --threat=linf-4/255

`make_logits_fn()` returns images [B,H,W,C] in [0,1] -> logits [B,K], any callable; `make_module()` a PyTorch module, or
(module, mean, std); a folder of weights is what `python -m robust_vit.convert` writes.
"""

import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from robust_vit import commands, hosts, parallel
from robust_vit import config as config_lib
from robust_vit.analysis import report
from robust_vit.attacks import norms
from robust_vit.data import catalogue, splits
from robust_vit.errors import check, lookup
from robust_vit.evaluation import record, suites, tables
from robust_vit.loading import load
from robust_vit.subject import (
    Subject,
    check_fit,
    from_converted,
    from_function,
    from_run,
    from_torch,
    on_data,
    robustbench_batches,
    split_batches,
)
from robust_vit.threat import Threat, fraction

# Flags of this command alone: the global FLAGS would clash with those of other commands in one process.
_FLAGS = flags.FlagValues()


def _text(name: str, default: str | None, help: str) -> Any:
    return flags.DEFINE_string(name, default, help, flag_values=_FLAGS)


def _whole(name: str, default: int | None, help: str) -> Any:
    return flags.DEFINE_integer(name, default, help, flag_values=_FLAGS)


_WORKDIR = _text("workdir", None, "The run folder: checkpoints are read from it, result.json goes to it.")
_SUITE = _text("suite", "clean,fgsm,pgd", "Suites, joined by commas; see below.")
_SPLIT = _text("split", "test", "train, validation or test.")
_CHECKPOINT = _text("checkpoint", "best", "best (by validation), latest, or a step.")
_WEIGHTS = _text("weights", "", "raw or ema; by default what the run selects its best checkpoint by.")
_LOGITS_FN = _text("logits_fn", None, "module:function, which returns the classifier to measure.")
_TORCH = _text("torch", None, "module:function, which returns a PyTorch module, or (module, mean, std).")
_WEIGHTS_DIR = _text("weights_dir", None, "A folder of converted weights to measure, see robust_vit.convert.")
_CONFIG = _text("config", None, "Without a run: the experiment that names data and threat model.")
_DATA = _text("data", None, "Other data than the configuration's: digits, folder:/path, npz:/path, tfds:name, ...")
_THREAT = _text("threat", None, "Norm and radius in one: linf-8/255, l2-0.5; the run's by default.")
_NORM = _text("norm", None, "linf, l2 or l1; the run's by default.")
_EPSILON = _text("epsilon", None, "Radius in pixel-range fractions: 8/255 or 0.1; the run's by default.")
_STEPS = _whole("steps", None, "PGD steps; config.evaluation.steps by default.")
_RESTARTS = _whole("restarts", None, "PGD restarts; config.evaluation.restarts by default.")
_STEP_SIZE = _text("step_size", None, "PGD step size, 2/255 or 0.01; 2.5 epsilon / steps by default.")
_ADAPTIVE = _text(
    "adaptive", "", "straight_through: attacks differentiate through rounding, thresholds and stopped gradients."
)
_TRANSFER_FROM = _text(
    "transfer_from", None, "A run, a folder of converted weights: its adversarial images join the masking report."
)
_ROBUSTBENCH_LIST = _text(
    "robustbench_list", None, "RobustBench's imagenet_test_image_ids.txt: its images, of --data=folder:/validation."
)
_PREPROCESSING = _text("robustbench_preprocessing", "Res256Crop224", "RobustBench's name of the model's preprocessing.")
_BATCH_SIZE = _whole("batch_size", None, "Examples a batch; config.evaluation.batch_size by default.")
_LIMIT = _whole("limit", None, "At most so many examples, always the same ones.")
_REPORT_EXAMPLES = _whole(
    "report_examples", None, "Examples that the page attacks and shows; config.evaluation.report_examples by default."
)
_SEED = _whole("seed", None, "Of the attacks; the run's by default.")
_DEVICES = _whole("devices", 0, "How many devices share a batch; 0: all.")
_OPTION = flags.DEFINE_multi_string("option", [], "name=value for single suites; see below.", flag_values=_FLAGS)
hosts.define(_FLAGS)

_SUBJECTS = (_LOGITS_FN, _TORCH, _WEIGHTS_DIR)  # what is measured in place of a run


def help_text() -> str:
    """What --help says: the examples, every flag, every suite, every option."""
    lines = [__doc__, "flags:"]
    own = [holder.name for holder in vars(sys.modules[__name__]).values() if isinstance(holder, flags.FlagHolder)]
    for name in (*own, *hosts.NAMES):
        default = f" [{_FLAGS[name].default}]" if _FLAGS[name].default not in (None, "", []) else ""
        lines.append(f"  --{name:14s} {_FLAGS[name].help.splitlines()[0].rstrip(';')}{default}")
    lines += ["", "suites:"]
    for name, suite in suites.SUITES.items():
        lines.append(f"  {name:14s} {' '.join((suite.__doc__ or '').split())}")
    lines += ["", "options, --option=name=value:"]
    for name, option in suites.OPTIONS.items():
        lines.append(f"  {name:24s} {option.help} ({option.allowed})")
    return "\n".join(lines)


def radius(flag: str, text: str) -> float:
    """Reads `0.1` or `8/255`.

    Raises:
      ValueError: if it is neither, or not positive.
    """
    try:
        value = fraction(text)
    except ValueError:
        value = -1.0
    check(flag, text, 0 < value < float("inf"), "a positive number such as 0.1 or 8/255")
    return value


def check_flags() -> list[str]:
    """Rejects bad flags before anything is loaded, and returns the suites' names."""
    names = suites.parse(_SUITE.value)
    lookup("split", _SPLIT.value, dict.fromkeys(splits.SPLITS))
    named = _CHECKPOINT.value in ("best", "latest") or _CHECKPOINT.value.isdecimal()
    check("checkpoint", _CHECKPOINT.value, named, "best, latest or a step")
    if _NORM.value is not None:
        lookup("norm", _NORM.value, norms.BALLS)
        check("norm", _NORM.value, _EPSILON.value is not None, "given together with --epsilon")
    if _THREAT.value is not None:
        alone = _NORM.value is None and _EPSILON.value is None
        check("threat", _THREAT.value, alone, "given without --norm and --epsilon")
        Threat.parse(_THREAT.value)
    if _ADAPTIVE.value:
        lookup("adaptive", _ADAPTIVE.value, dict.fromkeys(suites.ADAPTIVE))
        some = any(name in suites.ADAPTED for name in names)
        check("adaptive", _ADAPTIVE.value, some, f"given with one of the suites {', '.join(suites.ADAPTED)}")
    if _TRANSFER_FROM.value is not None:
        check("transfer_from", _TRANSFER_FROM.value, "masking" in names, "given with the suite masking")
    for flag in (_STEPS, _RESTARTS, _BATCH_SIZE, _LIMIT):
        check(flag.name, flag.value, flag.value is None or flag.value >= 1, "at least 1")
    check("report_examples", _REPORT_EXAMPLES.value, (_REPORT_EXAMPLES.value or 0) >= 0, "at least 0")
    check("devices", _DEVICES.value, _DEVICES.value >= 0, "a number of devices, or 0 for all")
    suites.read_options(_OPTION.value)
    check_subject()
    return names


def check_subject() -> None:
    """Rejects flags that name no classifier, or two."""
    own = [flag.name for flag in _SUBJECTS if flag.value]
    source = "--workdir, a folder that training wrote, or --logits_fn, or --torch, or --weights_dir"
    check("workdir", _WORKDIR.value, bool(_WORKDIR.value or own), f"given: {source}")
    if len(own) > 1:
        raise ValueError(f"{own[1]} = {_FLAGS[own[1]].value!r}: must be given without --{own[0]}")
    if _CONFIG.value is not None:
        names = " or ".join(f"--{flag.name}" for flag in _SUBJECTS)
        check("config", _CONFIG.value, bool(own), f"given with {names} only; a run has its own")
    for flag in (_CHECKPOINT, _WEIGHTS):
        usual = flag.value == _FLAGS[flag.name].default
        check(flag.name, flag.value, usual or not own, "given for a run only")


def subject() -> Subject:
    """Loads what the flags name."""
    if not any(flag.value for flag in _SUBJECTS):
        found = from_run(_WORKDIR.value, _CHECKPOINT.value, _WEIGHTS.value)
        return found if _DATA.value is None else found.on_data(_DATA.value)
    config = configuration()
    if _WEIGHTS_DIR.value is not None:
        return from_converted(_WEIGHTS_DIR.value, config, _DATA.value)
    config = config if _DATA.value is None else on_data(config, _DATA.value)
    if _TORCH.value is not None:
        return from_torch(_TORCH.value, config)
    return from_function(_LOGITS_FN.value, config)


def configuration() -> config_lib.ConfigDict:
    """The configuration that names data and threat model of a classifier that is no run."""
    stored = pathlib.Path(_WORKDIR.value or ".") / "config.json"
    if _CONFIG.value is not None:
        return config_lib.load_file(_CONFIG.value)
    if _WORKDIR.value and stored.is_file():
        return config_lib.from_json(stored.read_text())
    threat = _THREAT.value or (_NORM.value and _EPSILON.value)
    allowed = "given, a file such as configs/digits.py, as there is no run folder; or --data and --threat"
    check("config", None, bool(_DATA.value and threat), allowed)
    return config_lib.base()


def threat_of(config: config_lib.ConfigDict) -> Threat:
    """The threat model: of the flags, else of the configuration."""
    if _THREAT.value is not None:
        return Threat.parse(_THREAT.value)
    epsilon = config.attack.epsilon if _EPSILON.value is None else radius("epsilon", _EPSILON.value)
    return Threat(_NORM.value or config.attack.norm, epsilon)


def context_of(subject: Subject, batches: Iterable[dict], source: Any) -> suites.Context:
    """Joins the configuration of the subject with the flags."""
    config = subject.config
    return suites.Context(
        logits_fn=subject.logits_fn,
        batches=lambda: batches,
        **threat_of(config).keywords,
        steps=_STEPS.value or config.evaluation.steps,
        restarts=_RESTARTS.value or config.evaluation.restarts,
        step_size=None if _STEP_SIZE.value is None else radius("step_size", _STEP_SIZE.value),
        seed=config.seed if _SEED.value is None else _SEED.value,
        mesh=parallel.mesh(_DEVICES.value),
        module=subject.module,
        variables=subject.variables,
        workdir=pathlib.Path(_WORKDIR.value) if _WORKDIR.value else None,
        class_names=catalogue.class_names(source),
        num_classes=source.num_classes,
        dataset="imagenet" if _ROBUSTBENCH_LIST.value else data_name(config),
        transfer_from=None if _TRANSFER_FROM.value is None else load(_TRANSFER_FROM.value),
        adaptive=_ADAPTIVE.value,
        options=suites.read_options(_OPTION.value),
        say=_say,
    )


def data_name(config: config_lib.ConfigDict) -> str:
    """Which data these are, in one word, as --data says it: `tfds:cifar10`."""
    texts = [value for value in config_lib.plain(config.data.options).values() if isinstance(value, str)]
    return _DATA.value or ":".join([config.data.name, *texts])


def write_page(config: config_lib.ConfigDict, context: suites.Context) -> None:
    """Writes `report/index.html`; what goes wrong with it is a line, and costs no result."""
    some = config.evaluation.report_examples if _REPORT_EXAMPLES.value is None else _REPORT_EXAMPLES.value
    some = min(some, _LIMIT.value or some)
    batches = examples(config, some)[0] if some else None
    report.attempt(context.workdir, context, batches, some, say=_say)


def examples(config: config_lib.ConfigDict, limit: int | None = None) -> tuple[Any, Any]:
    """The batches to measure, and their source."""
    size = _BATCH_SIZE.value, limit or _LIMIT.value
    if _ROBUSTBENCH_LIST.value is not None:
        return robustbench_batches(config, _ROBUSTBENCH_LIST.value, _PREPROCESSING.value, *size)
    return split_batches(config, _SPLIT.value, *size)


def _say(line: str) -> None:
    if parallel.is_main():
        print(line, flush=True)


def split_name(examples: int) -> str:
    """Which examples these are, as result.json names them."""
    limited = _LIMIT.value is not None and _LIMIT.value < examples
    listed = [f"RobustBench's list, {_PREPROCESSING.value}"] if _ROBUSTBENCH_LIST.value else []
    parts = [
        *(listed or [_SPLIT.value]),
        *([_DATA.value] if _DATA.value else []),
        *([f"{_LIMIT.value} examples"] if limited else []),
    ]
    return ", ".join(parts)


def evaluate() -> dict[str, Any]:
    """Does what the flags ask for and returns the content of result.json."""
    names = check_flags()
    hosts.join(_FLAGS)
    path = pathlib.Path(_WORKDIR.value) / record.RESULT if _WORKDIR.value else None
    if path is not None:
        check("workdir", _WORKDIR.value, path.parent.is_dir() or not path.parent.exists(), "a folder")
        record.read(path)  # a damaged one is told before hours are spent
    hosts.check_alike({"flags": _FLAGS.flag_values_dict() | {"process": None}})
    measured = subject()
    batches, source = examples(measured.config)
    check_fit(measured, batches, source)
    context = context_of(measured, batches, source)
    result = suites.evaluate(names, context, path, split=split_name(len(source)), **measured.weights)
    if batches.bad.count:
        _say(str(batches.bad))
    if parallel.is_main():
        tables.show(result)
        if path is not None:
            _say(f"written to {path}")
            write_page(measured.config, context)
    return result


def _work(arguments: Sequence[str]) -> dict[str, Any] | None:
    if commands.wants_help(arguments):
        return print(help_text())
    commands.parse(_FLAGS, arguments)
    with hosts.watched():
        return evaluate()


def main(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Runs the command; an error that the user can mend ends with one line."""
    return commands.run(_work, arguments)


if __name__ == "__main__":
    main(sys.argv)
