"""Training: schedules, optimiser, state, step, checkpoints, and the loop that joins them (begin at `loop.run`)."""

from robust_vit import lazy

__getattr__, __dir__ = lazy.attach(__name__, modules=lazy.submodules(__path__))
