"""The end of a run: the selected checkpoint on the test split, then the pictures and the page."""

import pathlib
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from robust_vit import attacks, models, parallel, provenance, randomness
from robust_vit.analysis import plots, report
from robust_vit.config import ConfigDict
from robust_vit.evaluation import record, suites, tables
from robust_vit.evaluation.record import pixels
from robust_vit.pixels import as_float
from robust_vit.training import checkpoint
from robust_vit.training.experiment import Experiment, evaluation_batches

PICTURED = 8  # images in examples.png
FINISHED = "finished.json"  # in the folder of a run that has come to its end, the evaluation included


def finish(experiment: Experiment, workdir: pathlib.Path) -> dict[str, Any]:
    """Evaluates on the test split, draws `curves.png`, `examples.png` and `sweep.png`, writes `report/index.html`, and
    marks the run as finished.

    Args:
      experiment: the run's parts.
      workdir: its folder, with checkpoints.

    Returns:
      The content of result.json.
    """
    config, module, variables, step = checkpoint.load(workdir, "best")
    context = context_of(experiment, module, variables, workdir)
    path = workdir / record.RESULT
    if config.evaluation.suite:
        result = suites.evaluate(config.evaluation.suite, context, path, step=step)
    else:
        result = record.read(path)
    if parallel.is_main():
        tables.show(result, class_names=context.class_names)
        draw_curves(config, workdir, step)
        draw(context, workdir, result)
        if result:
            some = config.evaluation.report_examples
            batches = evaluation_batches(experiment, "test", some) if some else None
            report.attempt(workdir, context, batches, some)
        provenance.write_json(workdir / FINISHED, {"step": step})
    return result


def context_of(experiment: Experiment, module: Any, variables: dict, workdir: pathlib.Path) -> suites.Context:
    """What the evaluation suites need to know of a run."""
    config = experiment.config
    return suites.Context(
        logits_fn=models.logits_fn(module, variables),
        batches=lambda: evaluation_batches(experiment, "test"),
        norm=config.attack.norm,
        epsilon=config.attack.epsilon,
        steps=config.evaluation.steps,
        restarts=config.evaluation.restarts,
        seed=config.seed,
        mesh=experiment.mesh,
        module=module,
        variables=variables,
        workdir=workdir,
        class_names=list(experiment.dataset.class_names or ()) or None,
    )


def draw_curves(config: ConfigDict, workdir: pathlib.Path, step: int) -> Figure:
    """Writes `curves.png`: the checkpoint that is reported circled, the attacks of training and validation named."""
    c, validation = config.attack, config.validation
    steps = f"-{c.steps}" if c.name == "pgd" else ""
    threat = f"{c.norm.capitalize()} {pixels(c.epsilon)}"
    return plots.curves(
        workdir / "metrics.jsonl",
        workdir / "curves.png",
        selected=step,
        select=checkpoint.selection(config),
        training_attack=f"{c.name.upper()}{steps}, {c.norm.capitalize()}",
        validation_attack=f"PGD-{validation.steps}, {threat}",
    )


def draw(context: suites.Context, workdir: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes `examples.png`, and `sweep.png` where a sweep was measured."""
    if "sweep" in result:
        plots.sweep(result["sweep"], workdir / "sweep.png")
    images, labels, indices = pictured(context)
    attack = attacks.pgd(norm=context.norm, epsilon=context.epsilon, steps=context.steps, keep="success")
    keys = randomness.example_keys(context.seed, indices, randomness.EVALUATION_ATTACK)
    adversarial = jax.jit(attack)(keys, context.logits_fn, images, labels)
    probabilities = jax.jit(lambda f, x: jax.nn.softmax(f(x)))
    plots.examples(
        np.asarray(images),
        np.asarray(adversarial),
        np.asarray(labels),
        np.asarray(probabilities(context.logits_fn, images)),
        np.asarray(probabilities(context.logits_fn, adversarial)),
        context.class_names or [str(k) for k in range(context.module.num_classes)],
        context.epsilon,
        workdir / "examples.png",
        f"PGD-{context.steps}, {context.norm.capitalize()} {pixels(context.epsilon)}",
    )


def pictured(context: suites.Context) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """The first test image of each class in turn, up to PICTURED: (images, labels, dataset indices)."""
    chosen: dict[int, tuple[np.ndarray, int]] = {}
    for batch in context.batches():
        for image, label, index, real in zip(batch["image"], batch["label"], batch["index"], batch["mask"]):
            if real and int(label) not in chosen and len(chosen) < PICTURED:
                chosen[int(label)] = (image, int(index))
        if len(chosen) == PICTURED:
            break
    labels = sorted(chosen)
    images = as_float(jax.numpy.asarray(np.stack([chosen[label][0] for label in labels])))
    return images, jax.numpy.asarray(labels), np.array([chosen[label][1] for label in labels])
