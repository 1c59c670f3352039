"""One training step as a pure function of (state, batch, learning rate, strength, frozen classifier).

augment -> attack -> forward -> gradient -> update, with the batch's mean taken once, here. Under `jax.jit` over a
sharded batch XLA inserts one all-reduce, of the gradients and the metrics together.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from robust_vit import pixels, randomness
from robust_vit.data.mixing import Augment
from robust_vit.training import groups, stages
from robust_vit.training.adversary import adversary_view, ramp
from robust_vit.training.state import TrainState, averaged
from robust_vit.training.weight_perturbation import perturbed
from robust_vit.typing import Array, Aside, Attack, Forward, LogitsFn, Objective, Outcome

Step = Callable[..., tuple[TrainState, dict[str, Array]]]  # see `make`


def training_forward(module: Any, params: Any, key: Array) -> Forward:
    """Makes the pass that weights get gradients through; every call draws its own dropout and drop-path noise."""
    calls = itertools.count()

    def forward(images: Array, statistics: Any) -> tuple[Array, Any]:
        noise = {"dropout": jax.random.fold_in(key, next(calls))}
        if not statistics:
            return module.apply({"params": params}, images, train=True, rngs=noise), statistics
        variables = {"params": params, "batch_stats": statistics}
        logits, updated = module.apply(variables, images, train=True, rngs=noise, mutable=["batch_stats"])
        return logits, updated["batch_stats"]

    return forward


def _correct(logits: Array | None, labels: Array) -> Array:
    return jnp.zeros(()) if logits is None else jnp.sum((jnp.argmax(logits, -1) == labels).astype(jnp.float32))


def _loss(
    params: Any,
    *,
    module: Any,
    objective: Objective,
    view: Callable[..., LogitsFn],
    own: Attack,
    strength: Array,
    stats: Any,
    aside: Aside,
    batch: dict,
    attack: Attack | None = None,  # in place of its own
):
    forward = training_forward(module, params, batch["noise"])
    adversary = view(module, params, stats)
    given = (batch["keys"], batch["image"], batch["targets"], strength, aside)
    outcome: Outcome = objective(forward, stats, adversary, attack or own, *given)
    sums = {
        "loss": jnp.sum(outcome.loss),
        "clean_correct": _correct(outcome.clean_logits, batch["label"]),
        "robust_correct": _correct(outcome.adversarial_logits, batch["label"]),
    }
    attacked = None if outcome.attacked is None else jax.lax.stop_gradient(outcome.attacked)
    return jnp.mean(outcome.loss), (outcome.statistics, sums, outcome.memory, attacked)


def _gradients(gradient: Callable[..., Any], params: Any, stats: Any, aside: Aside, batch: dict, parts: int):
    """Gradient of the mean loss, statistics, memory, metric sums, the batch taken in `parts` one after the other."""
    if parts == 1:
        grads, (stats, sums, memory, _) = gradient(params, stats=stats, aside=aside, batch=batch)
        return grads, stats, memory, sums
    noise = jax.random.split(batch["noise"], parts)
    # [B] -> [B / parts, parts] -> [parts, B / parts]: every part keeps its examples on the devices that hold them
    examples = {name: value for name, value in batch.items() if name != "noise"}
    examples = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), examples)

    def accumulate(carry: Any, part: dict):
        stats, memory, total, sums = carry
        grads, (stats, more, memory, _) = gradient(params, stats=stats, aside=aside._replace(memory=memory), batch=part)
        return (stats, memory, jax.tree.map(jnp.add, total, grads), jax.tree.map(jnp.add, sums, more)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    start = (stats, aside.memory, zeros, dict.fromkeys(("loss", "clean_correct", "robust_correct"), jnp.zeros(())))
    (stats, memory, grads, sums), _ = jax.lax.scan(accumulate, start, examples | {"noise": noise})
    return jax.tree.map(lambda g: g / parts, grads), stats, memory, sums


def _all_finite(tree: Any) -> Array:
    """True where every number of a tree is finite: of a replicated state, so no device asks another."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def make(
    module: Any,
    objective: Objective,
    attack: Attack,
    tx: optax.GradientTransformation,
    *,
    num_classes: int,
    seed: int,
    ema_decay: float = 0.0,
    accumulation: int = 1,
    batch_norm: str = "running",
    ard_epochs: float = 0.0,
    attack_at: Callable[[Array], Attack] | None = None,
    steps_per_epoch: float = 1.0,
    size: tuple[int, int] | None = None,
    augment: Augment | None = None,
    extra_smoothing: float = 0.0,
    awp_gamma: float = 0.0,
    awp_from_epoch: float = 0.0,
    freeze: Sequence[str] = (),
) -> Step:
    """Makes the step.

    Args:
      module: the model.
      objective: what is minimised.
      attack: the training attack.
      tx: an optimiser of `training.optimizer`.
      num_classes: K.
      seed: of the attack's and the model's randomness.
      ema_decay: of the average of the weights; 0 for none.
      accumulation: parts that the batch is processed in.
      batch_norm: what the attack sees, see `adversary_view`; "train" asks for a stochastic attack.
      ard_epochs: until which attention random dropping fades; 0 for none. It asks for a stochastic attack.
      attack_at: epoch, traced -> the training attack, in place of `attack`, where it changes with the epoch or draws.
      steps_per_epoch: by which objectives and the perturbation of the weights know the epoch.
      size: (H, W) that images are resized to before anything else; None leaves them as they are.
      augment: of the batch, on the device, before the attack: `data.mixing.build`.
      extra_smoothing: label smoothing of the examples that batch["extra"] [B] bool marks, alone.
      awp_gamma: of `weight_perturbation`; 0 for none.
      awp_from_epoch: before it gamma counts as 0.
      freeze: patterns of what stays as it is, averages of BatchNorm included: `groups.scales`.

    Returns:
      step(state, batch, learning_rate, strength, teacher=None) -> (state, metrics). A step whose loss, gradient or
      new state is not finite leaves the state as it was and says so in metrics["finite"].
    """

    def prepare(state: TrainState, batch: dict[str, Array]) -> dict[str, Array]:
        """Images as floats, labels as distributions, keys for the attack; augmented."""
        keys = randomness.example_keys(seed, batch["index"], randomness.TRAIN_ATTACK, state.step)
        noise = jax.random.fold_in(jax.random.fold_in(randomness.as_key(seed), randomness.MODEL), state.step)
        images, targets = pixels.as_float(batch["image"]), jax.nn.one_hot(batch["label"], num_classes)
        if size is not None:
            images = stages.resize(images, size)
        if extra_smoothing:
            targets = jnp.where(batch["extra"][:, None], optax.smooth_labels(targets, extra_smoothing), targets)
        if augment is not None:
            mixing = randomness.example_keys(seed, batch["index"], randomness.MIXING, state.step)
            images, targets = augment(mixing, images, targets)
        return {"image": images, "label": batch["label"], "keys": keys, "targets": targets, "noise": noise}

    def step(
        state: TrainState,
        batch: dict[str, Array],
        learning_rate: Array,
        strength: Array,
        teacher: LogitsFn | None = None,
    ):
        count, epoch = batch["label"].shape[0], state.step / steps_per_epoch
        batch, aside = prepare(state, batch), Aside(teacher, state.memory, epoch)
        own = attack if attack_at is None else attack_at(epoch)
        view = functools.partial(adversary_view, batch_norm=batch_norm, branch_keep=ramp(epoch, ard_epochs))
        loss = functools.partial(_loss, module=module, objective=objective, own=own, strength=strength, view=view)
        gradient = groups.held(jax.grad(loss, has_aux=True), freeze)
        if awp_gamma:
            gradient = perturbed(gradient, jnp.where(epoch >= awp_from_epoch, awp_gamma, 0.0))
        given = (state.params, state.batch_stats, aside, batch)
        grads, stats, memory, sums = _gradients(gradient, *given, accumulation)
        stats = groups.without_frozen(stats, state.batch_stats, freeze)
        norm = optax.tree.norm(grads)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda w, u: w - learning_rate * u, state.params, updates)
        average = state.average
        if ema_decay:
            average = averaged(average, {"params": params, "batch_stats": stats}, ema_decay, state.step)
        new = TrainState(state.step + 1, params, stats, optimizer, average, memory)
        finite = jnp.isfinite(norm) & jnp.isfinite(sums["loss"]) & _all_finite(new)
        new = jax.tree.map(lambda fresh, old: jnp.where(finite, fresh, old), new, state)
        metrics = {name: value / count for name, value in sums.items()}
        return new, metrics | {"gradient_norm": norm, "finite": finite}

    return step
