"""What recipes are put together from. Each part changes a configuration in place and returns it.

Learning rates and batch sizes are those of a whole step, over all devices. Epsilon and step sizes are fractions of the
pixel range.
"""

from robust_vit import config as config_lib
from robust_vit.config import ConfigDict

HALF = (0.5, 0.5, 0.5)
# dataset -> mean and standard deviation of its training pixels, as the published checkpoints have them
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": (HALF, HALF),
}
HELD_OUT = {"imagenet2012:5.1.0": 5000, "cifar10": 1000, "cifar100": 1000}  # of the training part, to select by


def tfds(config: ConfigDict, dataset: str, batch_size: int) -> ConfigDict:
    """Data of TFDS, prepared once as array_record: `launch/prepare_data.py`.

    Published runs select by the test split. Here some training images are kept back for that, and nobody trains on
    them.
    """
    config.data.name = "tfds"
    config.data.options.dataset = dataset
    config.data.options.data_dir = config_lib.placeholder(str)  # TFDS's own folder by default
    if dataset in HELD_OUT:
        config.data.options.validation_examples = HELD_OUT[dataset]
    config.data.batch_size = batch_size
    return config


def photographs(
    config: ConfigDict, size: int = 224, jitter: float = 0.0, crop_fraction: float = 1.0, more: tuple[str, ...] = ()
) -> ConfigDict:
    """Random crops of 8 to 100 % of a photograph, mirrored, and `more` transforms; evaluation on the centre.

    Args:
      config: is changed.
      size: of the images, pixels.
      jitter: of brightness, contrast and saturation.
      crop_fraction: of the resized shorter side that the evaluated centre has.
      more: further transforms of the host, after the jitter.
    """
    jitters = (f"color_jitter({jitter}, {jitter}, {jitter})",) if jitter else ()
    config.data.train_transforms = (f"random_resized_crop({size})", "flip", *jitters, *more)
    config.data.evaluation_transforms = (f"resize_centre_crop({size}, crop_fraction={crop_fraction})",)
    return config


def model(config: ConfigDict, name: str, **fields: object) -> ConfigDict:
    """A model and its keywords."""
    config.model.name = name
    for field, value in fields.items():
        config.model[field] = value
    return config


def normalised(config: ConfigDict, statistics: str) -> ConfigDict:
    """Pixels normalised inside the model: "cifar10", "cifar100" or "half", which is mean and deviation 0.5."""
    config.model.mean, config.model.std = STATISTICS[statistics]
    return config


def pgd(config: ConfigDict, epsilon: float, steps: int, factor: float = 1.5) -> ConfigDict:
    """PGD from a uniform point, every step of factor * epsilon / steps; it follows both when they are overridden."""
    config.attack.epsilon = epsilon
    config.attack.steps = steps
    config.attack.step_size = config.attack.get_ref("epsilon") * factor / config.attack.get_ref("steps")
    return config


def trades(config: ConfigDict, beta: float) -> ConfigDict:
    """TRADES in place of adversarial training."""
    config.objective.name = "trades"
    config.objective.beta = beta
    return config


def clean(config: ConfigDict) -> ConfigDict:
    """Training without an attack; the checkpoint is selected by clean accuracy."""
    config.objective.name = "standard"
    config.validation.select = "clean_accuracy"
    return config


def adamw(
    config: ConfigDict,
    learning_rate: float,
    final: float,
    warmup_epochs: float,
    weight_decay: float,
    start: float = 0.0,
) -> ConfigDict:
    """AdamW whose learning rate rises from `start` over `warmup_epochs`, then falls as a cosine to `final`."""
    config.optimizer.learning_rate = learning_rate
    config.optimizer.final_learning_rate = final
    config.optimizer.warmup_epochs = warmup_epochs
    config.optimizer.weight_decay = weight_decay
    if start:
        config.optimizer.warmup_learning_rate = start
    return config


def sgd(config: ConfigDict, learning_rate: float, weight_decay: float) -> ConfigDict:
    """SGD with Nesterov momentum 0.9."""
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.weight_decay = weight_decay
    return config


def epochs(config: ConfigDict, scheduled: float, cooldown: float = 0.0) -> ConfigDict:
    """The length of training: `scheduled` epochs, then `cooldown` more at the final learning rate."""
    config.training.epochs = float(scheduled + cooldown)
    if cooldown:
        config.optimizer.cooldown_epochs = float(cooldown)
    return config


def canonical_augmentation(
    config: ConfigDict, mixup: float = 0.8, cutmix: float = 1.0, erase: float = 0.25
) -> ConfigDict:
    """What clean recipes of vision transformers use: MixUp or CutMix by the batch, and random erasing.

    RandAugment is a transform of the host: `RAND_AUGMENT`.
    """
    config.augmentation.mixup = mixup
    config.augmentation.cutmix = cutmix
    config.augmentation.erase = erase
    return config


RAND_AUGMENT = "rand_augment('rand-m9-mstd0.5-inc1')"


def occasional(config: ConfigDict, log_steps: int, validate_epochs: float, save_epochs: float) -> ConfigDict:
    """Reports, validates on 5000 images at most and saves less often than a run of minutes does."""
    config.training.log_every_steps = log_steps
    config.training.validate_every_epochs = validate_epochs
    config.training.save_every_epochs = save_epochs
    config.validation.steps = 10  # more than training's one, which cannot see catastrophic overfitting
    config.validation.examples = 5000
    return config
