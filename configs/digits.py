"""Adversarial training of a small ViT on the handwritten digits that ship with scikit-learn (1,797 real 8x8 images).

    python -m robust_vit.main --config=configs/digits.py --workdir=runs/digits           # adversarial training
    python -m robust_vit.main --config=configs/digits.py:standard --workdir=runs/plain   # the same model, no attack

Cost and figures: README.md.
"""

from robust_vit import config as config_lib


def get_config(objective: str = "adversarial"):
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
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.5
    config.optimizer.warmup_epochs = 2.0

    if objective == "standard":
        config.validation.select = "clean_accuracy"  # its robust accuracy is noise to select by
    config.training.epochs = 40.0
    config.training.validate_every_epochs = 4.0
    config.training.save_every_epochs = 4.0
    config.evaluation.batch_size = 360  # the whole test split
    return config
