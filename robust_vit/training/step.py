"""One training step as a pure function of (state, batch, learning rate, strength, frozen classifier).

augment -> attack -> forward -> gradient -> update, with the batch's mean taken once, here. Under `jax.jit` over a
sharded batch XLA inserts one all-reduce, of the gradients and the metrics together.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robust_vit import pixels, randomness
from robust_vit.data.mixing import Augment
from robust_vit.training import groups, remat, stages
from robust_vit.training.adversary import adversary_view, ramp
from robust_vit.training.state import TrainState, averaged
from robust_vit.training.weight_perturbation import perturbed
from robust_vit.typing import Array, Aside, Attack, Forward, LogitsFn, Objective, Outcome

Step = Callable[..., tuple[TrainState, dict[str, Array]]]  # see `make`


def training_forward(module: Any, params: Any, key: Array) -> Forward:
    """Makes the pass that weights get gradients through; every call draws its own dropout and drop-path noise."""
    calls = itertools.count()
    whole = module
    while isinstance(whole, stages.Resized | remat.Kept):
        whole = whole.module
    several = getattr(whole, "distilled", False)  # a model of two heads, which shows them when asked

    def forward(images: Array, statistics: Any, heads: bool = False) -> tuple[Array, Any]:
        keywords = {"train": True, "rngs": {"dropout": jax.random.fold_in(key, next(calls))}}
        keywords |= {"heads": True} if heads and several else {}
        if statistics:
            variables = {"params": params, "batch_stats": statistics}
            logits, updated = module.apply(variables, images, mutable=["batch_stats"], **keywords)
            statistics = updated["batch_stats"]
        else:
            logits = module.apply({"params": params}, images, **keywords)
        return logits[:, None] if heads and not several else logits, statistics

    return forward


class Pass(NamedTuple):
    """What a batch leaves beside its gradient."""

    statistics: Any
    memory: Any
    sums: dict[str, Array]
    attacked: Array | None  # [B,H,W,C], None where the objective calls no attack


def _sums(outcome: Outcome, labels: Array) -> dict[str, Array]:
    """What the batch's metrics are made of; of logits that the objective did not look at there is none."""
    sums = {"loss": jnp.sum(outcome.loss)}
    for name, logits in (("clean_correct", outcome.clean_logits), ("robust_correct", outcome.adversarial_logits)):
        if logits is not None:
            sums[name] = jnp.sum((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
    return sums


def _known(attacked: Array, *_: Any) -> Array:
    """An attack whose result is known."""
    return attacked


def _loss(
    params: Any,
    *,
    module: Any,
    objective: Objective,
    view: Callable[..., LogitsFn],
    attack: Attack,
    strength: Array,
    stats: Any,
    aside: Aside,
    batch: dict,
):
    forward = training_forward(module, params, batch["noise"])
    adversary = view(module, params, stats)
    if "attacked" in batch:  # by the same attack, at other weights
        attack = functools.partial(_known, batch["attacked"])
    given = (batch["keys"], batch["image"], batch["targets"], strength, aside)
    outcome: Outcome = objective(forward, stats, adversary, attack, *given)
    attacked = None if outcome.attacked is None else jax.lax.stop_gradient(outcome.attacked)
    return jnp.mean(outcome.loss), Pass(outcome.statistics, outcome.memory, _sums(outcome, batch["label"]), attacked)


def _gradients(gradient: Callable[..., Any], parts: int, params: Any, *, stats: Any, aside: Aside, batch: dict):
    """The gradient of the batch's mean loss and its `Pass`, the batch taken in `parts` one after the other."""
    if parts == 1:
        return gradient(params, stats=stats, aside=aside, batch=batch)
    examples = {name: value for name, value in batch.items() if name != "noise"}
    # [B] -> [B / parts, parts] -> [parts, B / parts]: every part keeps its examples on the devices that hold them
    examples = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), examples)

    def accumulate(carry: Any, part: dict):
        stats, memory, total = carry
        grads, left = gradient(params, stats=stats, aside=aside._replace(memory=memory), batch=part)
        return (left.statistics, left.memory, jax.tree.map(jnp.add, total, grads)), (left.sums, left.attacked)

    start = (stats, aside.memory, jax.tree.map(jnp.zeros_like, params))
    noise = jax.random.split(batch["noise"], parts)
    (stats, memory, grads), (sums, attacked) = jax.lax.scan(accumulate, start, examples | {"noise": noise})
    sums = jax.tree.map(lambda x: jnp.sum(x, 0), sums)
    attacked = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), attacked)
    return jax.tree.map(lambda g: g / parts, grads), Pass(stats, memory, sums, attacked)


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
    gather: Callable[[Any], Any] = lambda tree: tree,
    scatter: Callable[[Any], Any] = lambda tree: tree,
    once: Callable[..., Any] = lambda gradients: gradients,
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
      extra_smoothing: label smoothing of the examples that batch["extra"], [B] bool, marks, alone.
      awp_gamma: of `weight_perturbation`; 0 for none.
      awp_from_epoch: before it gamma counts as 0.
      freeze: patterns of what stays as it is, averages of BatchNorm included: `groups.scales`.
      gather: makes weights that are split over devices whole. Once a step: every pass of the attack takes the same.
      scatter: splits the gradient as the weights are split.
      once: around the gradients of a batch in parts: has devices add them up once, `reduction.once`.

    Returns:
      step(state, batch, learning_rate, strength, teacher=None) -> (state, metrics). A step whose loss, gradient or
      new state is not finite leaves the state as it was and says so in metrics["finite"]; metrics["attacked"] says
      whether the objective called the attack.
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
        loss = functools.partial(_loss, module=module, objective=objective, attack=own, strength=strength, view=view)
        gradient = groups.held(jax.grad(loss, has_aux=True), freeze)
        gradients = once(functools.partial(_gradients, gradient, accumulation))
        if awp_gamma:
            gradients = perturbed(gradients, jnp.where(epoch >= awp_from_epoch, awp_gamma, 0.0))
        grads, left = gradients(gather(state.params), stats=state.batch_stats, aside=aside, batch=batch)
        left = left._replace(statistics=groups.without_frozen(left.statistics, state.batch_stats, freeze))
        grads = scatter(grads)
        norm = optax.tree.norm(grads)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        params = jax.tree.map(lambda w, u: w - learning_rate * u, state.params, updates)
        average = state.average
        if ema_decay:
            average = averaged(average, {"params": params, "batch_stats": left.statistics}, ema_decay, state.step)
        new = TrainState(state.step + 1, params, left.statistics, optimizer, average, left.memory)
        finite = jnp.isfinite(norm) & jnp.isfinite(left.sums["loss"]) & _all_finite(new)
        new = jax.tree.map(lambda fresh, old: jnp.where(finite, fresh, old), new, state)
        metrics = {name: value / count for name, value in left.sums.items()}
        return new, metrics | {"gradient_norm": norm, "finite": finite, "attacked": left.attacked is not None}

    return step
