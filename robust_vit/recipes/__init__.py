"""Starting points for `configs/`: sets of differences from `config.base()` that several experiments share.

`parts` holds what recipes are put together from (a data set, an attack, a schedule), `light_recipe` the runs of
Debenedetti et al., `published` those of other papers, `ablations` the variants that sweeps are made of.
"""

from robust_vit import config as config_lib
from robust_vit.config import ConfigDict
from robust_vit.errors import lookup
from robust_vit.recipes import ablations, light_recipe, parts, published

__all__ = ["ablations", "build", "light", "light_recipe", "parts", "published", "synthetic"]


def build(name: str, data: str, **model: object) -> ConfigDict:
    """Returns the recipe for a model on one of two kinds of data.

    Args:
      name: a model of `robust_vit.models`.
      data: "imagenet", the light recipe at 4/255; or "synthetic", rendered 32x32 shapes that need no download, to
        see a model train on a laptop.
      **model: keywords of the model, in both.

    Raises:
      ValueError: for another kind of data.
    """
    make = lookup("config argument", data, {"imagenet": light, "synthetic": lambda _: synthetic()})
    return parts.model(make(name), name, **model)


def light(name: str | None = None) -> ConfigDict:
    """The light recipe for a model on ImageNet at epsilon 4/255."""
    return light_recipe.imagenet_resnet() if name == "resnet50_gelu" else light_recipe.imagenet(name)


def synthetic() -> ConfigDict:
    """Rendered 32x32 shapes, 10 classes, epsilon 8/255: minutes on a laptop for a small model."""
    config = config_lib.base()
    config.data.name = "synthetic"
    config.data.options.size = 32
    config.data.options.classes = 10
    config.data.options.examples = 2000
    config.data.batch_size = 64
    config.data.train_transforms = ("random_crop(32, padding=4)",)
    config.attack.epsilon = 8 / 255
    config.attack.steps = 2
    config.attack.warmup_epochs = 2.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 1.0
    config.training.epochs = 10.0
    config.validation.steps = 10
    config.evaluation.steps = 20
    config.evaluation.restarts = 1
    return config
