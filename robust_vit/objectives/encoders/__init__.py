"""Objectives that train an encoder and leave its head as it is; most need no labels.

They are `robust_vit.typing.Objective`s whose `forward` and `adversary` yield the features [B,D] that the head would be
given (of a masked autoencoder: what it paints). `training.encoding` says how a run is made of them.
"""

from collections.abc import Callable

from robust_vit.objectives.encoders.fare import fare
from robust_vit.objectives.encoders.mimir import mimir
from robust_vit.objectives.encoders.sim_clip import sim_clip
from robust_vit.objectives.encoders.tecoa import tecoa
from robust_vit.typing import Objective

ENCODERS: dict[str, Callable[..., Objective]] = {"fare": fare, "mimir": mimir, "sim_clip": sim_clip, "tecoa": tecoa}
TEACHERS = frozenset({"fare", "tecoa"})  # those that learn from a frozen model
CLIMBING = frozenset({"fare", "mimir", "sim_clip"})  # those that show their attack a classifier of two classes
STILL = frozenset({"fare", "sim_clip"})  # those whose attack has no gradient at the image itself
