"""Pictures that explain a run: curves, adversarial examples, accuracy against epsilon."""

from robust_vit import lazy

__getattr__, __dir__ = lazy.attach(__name__, modules=lazy.submodules(__path__))
