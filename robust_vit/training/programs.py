"""The compiled programs of a run, and the shapes that they are compiled for, on devices at hand or described ones.

The trainer runs them; `robust_vit.planning` compiles the same ones for devices that are not there.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robust_vit import objectives, parallel
from robust_vit.data import pipeline
from robust_vit.training import state
from robust_vit.training.experiment import Experiment
from robust_vit.training.stages import Stage
from robust_vit.training.state import TrainState
from robust_vit.typing import Variables


def compile_step(experiment: Experiment, stage: Stage) -> Callable[..., Any]:
    """The step of a stage over the mesh, its state donated: (state, batch, learning rate, strength, teacher)."""
    state = places(experiment)
    return parallel.compile(stage.step, experiment.mesh, arguments="sbrrr", results="sr", donate=(0,), state=state)


def places(experiment: Experiment) -> TrainState:
    """Where every leaf of the state lies, by `config.parallel`."""
    section, shapes = experiment.config.parallel, jax.eval_shape(_create(experiment))
    return parallel.layout(experiment.mesh, shapes, section.sharding, tuple(section.whole))


def initial_state(experiment: Experiment, initial: Variables | None = None) -> TrainState:
    """The state that training begins with, on the mesh.

    Args:
      experiment: the run.
      initial: weights to begin from, see `state.create`.
    """
    return jax.jit(_create(experiment), out_shardings=places(experiment))(initial=initial)


def abstract_state(experiment: Experiment) -> TrainState:
    """Its shapes, and where they lie."""
    return jax.tree.map(_at, jax.eval_shape(_create(experiment)), places(experiment))


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch, and where they lie."""
    e, size = experiment, experiment.config.data.batch_size
    shape = pipeline.image_shape(e.dataset.train, e.dataset.train_transforms)
    batch = {
        "image": jax.ShapeDtypeStruct((size, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    batch |= {"extra": jax.ShapeDtypeStruct((size,), bool)} if e.dataset.extra else {}
    return _placed(batch, parallel.batched(e.mesh))


def abstract_arguments(experiment: Experiment, teacher: Any = None) -> tuple[Any, ...]:
    """The shapes of all that a compiled step takes.

    Args:
      experiment: the run.
      teacher: the frozen classifier that the objective learns from, None for most.
    """
    whole = parallel.replicated(experiment.mesh)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    return abstract_state(experiment), abstract_batch(experiment), number, number, _placed(teacher, whole)


def _create(experiment: Experiment) -> Callable[..., TrainState]:
    e = experiment
    memory = functools.partial(objectives.memory, e.config.objective.name, e.dataset.num_classes)
    shape, averaged = tuple(e.dataset.image_shape), e.config.optimizer.ema_decay > 0
    return functools.partial(state.create, e.module, e.tx, shape, e.config.seed, averaged, memory)


def _placed(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda leaf: _at(leaf, sharding), tree)


def _at(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
