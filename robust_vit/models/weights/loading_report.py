"""What became of every tensor of a checkpoint, and whether all of it is explained."""

import dataclasses

from robust_vit.errors import nearest


@dataclasses.dataclass
class LoadingReport:
    """What became of every tensor; names are timm's, or the file's where they have no other.

    Fields:
      loaded: taken as they are.
      reshaped: (name, shape in the file, shape in the model, what was done), all of them asked for.
      ignored: (name, why) of tensors that are no weights.
      missing, unexpected: in the model only, in the file only.
      mismatched: (name, shape in the file, shape in the model) of tensors of another shape.
      notes: what was recognised, and where the normalisation is from.
    """

    loaded: list[str] = dataclasses.field(default_factory=list)
    reshaped: list[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None, str]] = dataclasses.field(
        default_factory=list
    )
    ignored: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    unexpected: list[str] = dataclasses.field(default_factory=list)
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded", *self.notes]
        lines += [f"reshaped {name}: {_shape(old)} -> {_shape(new)}, {how}" for name, old, new, how in self.reshaped]
        for why in dict.fromkeys(why for _, why in self.ignored):
            names = [name for name, reason in self.ignored if reason == why]
            lines.append(f"left out {some(names)}: {why}")
        problem = self.problem()
        return "\n".join(lines + ([problem] if problem else []))

    def problem(self) -> str:
        """Returns what is unexplained, in one line; empty where nothing is."""
        parts = []
        if self.mismatched:
            shapes = [f"{name} is {_shape(old)}, must be {_shape(new)}" for name, old, new in self.mismatched]
            parts.append(f"{len(shapes)} of another shape ({some(shapes)})")
        if self.missing:
            parts.append(f"{len(self.missing)} missing ({some(self.missing)})")
        if self.unexpected:
            guess = nearest(self.unexpected[0], self.missing) if self.missing else ""
            parts.append(f"{len(self.unexpected)} unexpected ({some(self.unexpected)}{guess})")
        return f"{len(self.loaded)} tensors fit, " + ", ".join(parts) if parts else ""


def _shape(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "nothing"
    return "x".join(map(str, shape)) or "scalar"


def some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f", ... {len(names)} in all" if len(names) > most else "")
