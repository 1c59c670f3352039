"""Starting points for `configs/`: sets of differences from `config.base()` that several experiments share."""

import ml_collections

from robust_vit import config as config_lib
from robust_vit.config import ConfigDict
from robust_vit.errors import lookup


def build(name: str, data: str, **model: object) -> ConfigDict:
    """Returns the recipe for a model on one of two kinds of data.

    Args:
      name: a model of `robust_vit.models`.
      data: "imagenet", the light recipe at 224 pixels; or "synthetic", rendered 32x32 shapes that need no download, to
        see a model train on a laptop.
      **model: keywords of the model, in both.

    Raises:
      ValueError: for another kind of data.
    """
    table = {"imagenet": light, "synthetic": synthetic}
    config = lookup("config argument", data, table)()
    config.model.name = name
    for field, value in model.items():
        config.model[field] = value
    return config


def light() -> ConfigDict:
    """The light recipe for ImageNet at epsilon 4/255: weak augmentation, epsilon warm-up, strong weight decay, PGD-1.

    Written for 512 images a step; scale the learning rate with the batch. Pixels are not normalised.

    Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023,
    arXiv 2209.07399; github.com/dedeswim/vits-robustness-torch, configs/xcit-adv-training.yaml.
    """
    config = config_lib.base()
    config.data.name = "tfds"  # prepared once as array_record: launch/prepare_data.py
    config.data.options.dataset = "imagenet2012:5.1.0"
    config.data.options.data_dir = ml_collections.config_dict.placeholder(str)  # TFDS's own folder by default
    config.data.batch_size = 512
    config.data.train_transforms = ("random_resized_crop(224)", "flip", "color_jitter(0.4, 0.4, 0.4)")
    config.data.evaluation_transforms = ("resize_centre_crop(224)",)
    config.model.drop_path = 0.05
    config.attack.epsilon = 4 / 255
    config.attack.step_size = config.attack.get_ref("epsilon") * 1.5
    config.attack.steps = 1
    config.attack.warmup_epochs = 10.0
    config.objective.label_smoothing = 0.1
    config.optimizer.learning_rate = 5e-4
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.weight_decay = 0.5
    config.optimizer.warmup_epochs = 10.0
    config.training.epochs = 110.0
    config.training.log_every_steps = 100
    config.training.validate_every_epochs = 5.0
    config.training.save_every_epochs = 1.0
    config.validation.steps = 10  # more than training's one, which cannot see catastrophic overfitting
    config.validation.examples = 5000
    return config


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
