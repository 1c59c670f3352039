"""What an adversary may do: a norm and a radius, which travel together.

    threat = Threat("linf", 8 / 255)
    Threat.parse("linf-8/255") == threat and str(threat) == "linf-8/255"
    attacks.pgd(**threat.keywords, steps=20)

Needs neither JAX nor NumPy.
"""

import dataclasses
import math
import numbers

from robust_vit.errors import lookup

NORMS = ("linf", "l2", "l1")  # those of `attacks.norms.BALLS`, said here so that reading a threat starts no JAX
ALLOWED = "a norm, a dash and a radius, such as linf-8/255, l2-0.5 or l1-12"


@dataclasses.dataclass(frozen=True)
class Threat:
    """A ball around every image: hashable, so that it can be a key or a static argument of a compiled function.

    Attributes:
      norm: "linf", "l2" or "l1"; capitals are understood.
      epsilon: radius in units of the [0,1] pixel range: the largest change of a value (linf), the Euclidean length (l2)
        or the sum of changes (l1) over all H*W*C values.

    Raises:
      ValueError: for an unknown norm, or a radius that is negative, not finite, or above 1 for linf.
    """

    norm: str
    epsilon: float

    def __post_init__(self) -> None:
        norm = str(self.norm).lower()
        lookup("norm", norm, dict.fromkeys(NORMS))
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "epsilon", _radius(self.epsilon, norm))

    @classmethod
    def parse(cls, text: "str | Threat") -> "Threat":
        """Reads `linf-8/255`, what `str` writes; a threat is returned as it is.

        Raises:
          ValueError: if the text is none.
        """
        if isinstance(text, cls):
            return text
        norm, dash, radius = str(text).partition("-")
        try:
            if not dash:
                raise ValueError
            epsilon = fraction(radius)
        except ValueError:
            raise ValueError(f"threat = {text!r}: must be {ALLOWED}") from None
        return cls(norm.strip(), epsilon)

    @property
    def keywords(self) -> dict[str, str | float]:
        """`norm` and `epsilon` as every attack and evaluation takes them."""
        return {"norm": self.norm, "epsilon": self.epsilon}

    @property
    def label(self) -> str:
        """For tables and pictures: `Linf 8/255`."""
        return f"{self.norm.capitalize()} {shortest(self.epsilon)}"

    def __str__(self) -> str:
        return f"{self.norm}-{shortest(self.epsilon)}"


def resolve(threat: "Threat | str | None", norm: str | None, epsilon: float | None) -> tuple[str | None, float | None]:
    """Norm and epsilon of a function that takes either both of them or a threat; not checked further.

    Raises:
      ValueError: if both are given, or neither.
    """
    if threat is None:
        for field, value in (("norm", norm), ("epsilon", epsilon)):
            if value is None:
                raise ValueError(f"{field} = None: must be given, or threat='linf-8/255' in place of norm and epsilon")
        return norm, epsilon
    if norm is not None or epsilon is not None:
        raise ValueError(f"threat = {str(threat)!r}: must be left out where norm and epsilon are given")
    threat = Threat.parse(threat)
    return threat.norm, threat.epsilon


def fraction(text: str) -> float:
    """Reads `0.1` or `8/255`.

    Raises:
      ValueError: if it is neither.
    """
    above, slash, below = text.partition("/")
    if slash and float(below) == 0:
        raise ValueError(f"{text!r}: divides by 0")
    return float(above) / float(below) if slash else float(above)


def shortest(epsilon: float) -> str:
    """The shortest text that `fraction` reads back exactly: 8/255, 0.1, 0.2 (and not 51/255)."""
    levels = f"{255 * epsilon:.6g}"
    texts = [f"{levels}/255", f"{epsilon:g}", repr(epsilon)]
    return min((text for text in texts if fraction(text) == epsilon), key=len)


def _radius(epsilon: float, norm: str) -> float:
    """Returns a radius as a Python float; says `8/255, not 8` to the commonest mistake."""
    real = isinstance(epsilon, numbers.Real) and not isinstance(epsilon, bool)
    if not real or not math.isfinite(epsilon) or epsilon < 0:
        raise ValueError(f"epsilon = {epsilon!r}: must be a number, at least 0 (in units of the [0,1] pixel range)")
    if norm == "linf" and epsilon > 1:
        unit = "in units of the [0,1] pixel range: 8/255, not 8"
        raise ValueError(f"epsilon = {epsilon!r}: must be at most 1 for norm linf ({unit})")
    return float(epsilon)
