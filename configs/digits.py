"""Adversarial training of a small ViT on the handwritten digits that ship with scikit-learn (1,797 real 8x8 images).

    python -m robust_vit.main --config=configs/digits.py --workdir=runs/digits               # the best recipe found
    python -m robust_vit.main --config=configs/digits.py:adversarial --workdir=runs/madry    # Madry: PGD-7, 40 epochs
    python -m robust_vit.main --config=configs/digits.py:standard --workdir=runs/plain       # the same model, no attack
    python -m robust_vit.main --config=configs/digits.py:hat --config.objective.teacher=runs/plain --workdir=runs/hat

After the colon stands any objective of `robust_vit.objectives`, on images as they are. The best recipe spends the same
forward passes otherwise: PGD-2 on images turned, shifted and zoomed by fractions of a pixel, for 100 epochs, and an
average of the weights. Figures and costs: docs/recipes.md.
"""

from robust_vit import config as config_lib
from robust_vit import objectives


def get_config(recipe: str = "best"):
    config = unaugmented("adversarial" if recipe == "best" else recipe)
    if recipe == "best":
        config.data.batch_size = 64
        config.data.train_transforms = ("random_affine(degrees=10, translate=0.4, scale=(0.9, 1.1))",)
        config.attack.steps = 2
        config.attack.step_size = 0.75 * config.attack.get_ref("epsilon")
        config.attack.warmup_epochs = 30.0
        config.optimizer.ema_decay = 0.99
        config.training.epochs = 100.0
        config.training.validate_every_epochs = 20.0
        config.training.save_every_epochs = 10.0
    return config


def unaugmented(objective: str):
    """The images as they are, PGD-7, 40 epochs."""
    config = config_lib.base()
    config.data.name = "digits"
    config.data.batch_size = 128

    config.model.name = "vit"
    config.model.depth = 4
    config.model.width = 64
    config.model.heads = 4
    config.model.patch_size = 2
    config.model.channels = 1
    config.model.pooling = "mean"
    config.model.positions = "sinusoidal"
    config.model.initializer = "lecun"
    config.model.mean = (0.3,)  # of the training pixels, about
    config.model.std = (0.38,)

    config.attack.epsilon = 0.1
    config.attack.steps = 7
    config.attack.warmup_epochs = 12.0

    config.objective.name = objective
    config.objective.beta = objectives.options(objective).get("beta", 6.0)  # as published
    if objective.startswith("score"):
        config.attack.loss = "squared_error"  # what it minimises
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.5
    config.optimizer.warmup_epochs = 2.0

    if objective in ("standard", "deit_hard", "deit_soft"):  # they call no attack
        config.validation.select = "clean_accuracy"  # its robust accuracy is noise to select by
    config.training.epochs = 40.0
    config.training.validate_every_epochs = 4.0
    config.training.save_every_epochs = 4.0
    config.evaluation.batch_size = 360  # the whole test split
    return config
