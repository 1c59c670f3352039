"""Runs that train an encoder: the head stays, bit for bit, and the frozen original is asked for its features."""

from typing import Any

import jax
import jax.numpy as jnp

from robust_vit import models
from robust_vit.config import ConfigDict
from robust_vit.errors import check
from robust_vit.models.families.masked_autoencoder import MaskedAutoencoder
from robust_vit.objectives import encoders
from robust_vit.typing import LogitsFn, Variables

HEAD = "head*"  # the parts that turn features into logits, as `optimizer.freeze` names them


def validate(config: ConfigDict) -> None:
    """Raises ValueError, in one line, for fields that do not fit an encoder's objective."""
    name, attack = config.objective.name, config.attack
    if name in encoders.CLIMBING:
        allowed = f"'cross_entropy': {name} says itself what is climbed"
        check("attack.loss", attack.loss, attack.loss == "cross_entropy", allowed)
    autoencoder = models.MODELS[config.model.name].func is MaskedAutoencoder
    check("model.name", config.model.name, name != "mimir" or autoencoder, "a masked_autoencoder with mimir")


def trained(module: Any, objective: str) -> Any:
    """The module that the step applies: with an encoder's objective, the one without its head."""
    return module.clone(num_classes=0) if objective in encoders.ENCODERS else module


def resolve(config: ConfigDict) -> None:
    """With an encoder's objective, freezes the head: the stored configuration says so."""
    freeze = tuple(config.optimizer.freeze)
    if config.objective.name in encoders.ENCODERS and HEAD not in freeze:
        config.optimizer.freeze = (*freeze, HEAD)


def features(path: str, module: Any, variables: Variables, own: Any) -> LogitsFn:
    """The frozen model's features, images -> [B,D].

    Args:
      path: where it is from, for the message.
      module, variables: the model, whose head stays among the variables.
      own: the module that learns from it.

    Raises:
      ValueError: if its features are of another width.
    """
    encoder = models.logits_fn(module.clone(num_classes=0), variables)
    image = jax.ShapeDtypeStruct((1, *models.image_shape(own)), jnp.float32)
    learned, _ = jax.eval_shape(own.clone(num_classes=0).init_with_output, jax.random.key(0), image)
    width, wanted = jax.eval_shape(encoder, image).shape[-1], learned.shape[-1]
    check("objective.teacher", path, width == wanted, f"a model of {wanted} features, as this one; it has {width}")
    return encoder
