"""A batch, a model of two layers, its teacher and an attack that is known: what every objective is tried on."""

import types

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robust_vit import objectives, randomness
from robust_vit.objectives.gkl import ClassMeans
from robust_vit.typing import Aside

K, EPSILON = 4, 0.1


def logits(w, images):
    a, b = w
    return jnp.tanh(images.reshape(len(images), -1) @ a) @ b


class Case(types.SimpleNamespace):
    """The batch and everything around it; `run` calls an objective on it."""

    def attack(self, keys, logits_fn, images, targets, strength=1.0):
        """A known point of the ball for every example, whatever the model says."""
        self.told.append(targets)
        return jnp.clip(images + EPSILON * strength * self.pattern[: len(images)], 0.0, 1.0)

    def forward(self, w):
        """Counts the passes that moved the averages, and has two equal heads."""

        def forward(images, statistics, heads=False):
            z = logits(w, images)
            return (jnp.stack([z, z], 1) if heads else z), statistics + 1

        return forward

    def keys(self, start=0, stop=None):
        return randomness.example_keys(7, jnp.arange(len(self.x))[start:stop], randomness.TRAIN_ATTACK)

    def aside(self, name, **changes):
        memory = ClassMeans(jnp.asarray(self.means), *objectives.memory("gkl", K)[1:])
        memory = memory if name in objectives.MEMORIES else ()
        teacher = Partial(logits, self.teacher) if name in objectives.TEACHERS else None
        return Aside(teacher, memory)._replace(**changes)

    def run(self, name, objective, w=None, *, strength=1.0, part=slice(None), targets=None, attack=None, **changes):
        w = self.w if w is None else w
        keys = self.keys(part.start or 0, part.stop)
        y = self.y if targets is None else targets
        given = (keys, jnp.asarray(self.x[part], jnp.float32), jnp.asarray(y[part], jnp.float32))
        aside = self.aside(name, **changes)
        return objective(self.forward(w), 0, Partial(logits, w), attack or self.attack, *given, strength, aside)


def make() -> Case:
    """The case of every test, drawn from one seed."""
    rng = np.random.default_rng(0)

    def weights(rng):
        return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((12, 6), (6, K))]

    return Case(
        x=rng.uniform(size=(6, 2, 2, 3)).astype(np.float32),
        y=np.eye(K)[[0, 1, 2, 3, 0, 1]],
        soft=rng.dirichlet(np.ones(K), size=6),
        pattern=jnp.asarray(rng.choice([-1.0, 1.0], size=(6, 2, 2, 3)), jnp.float32),
        w=weights(rng),
        teacher=weights(np.random.default_rng(1)),  # which names several classes
        means=rng.dirichlet(np.ones(K), size=K).astype(np.float32),
        told=[],
    )
