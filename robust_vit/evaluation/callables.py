"""Any classifier as an argument of a compiled program, and a look at its logits before anything compiles.

People bring flax and Equinox modules, lambdas over their weights, bound methods, `functools.partial`s, NumPy functions.
`as_logits_fn` makes each a `LogitsFn`; `check_logits` says in one line what is wrong with what it returns; `on_host`
takes functions that JAX cannot trace, for measurements that need no gradient.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robust_vit.errors import check
from robust_vit.host_call import host_call
from robust_vit.typing import Array, LogitsFn

LOGITS = "one float array of logits [B,K]"
HOST = "gradient-free suites (clean; autoattack with autoattack_version=square) take any NumPy callable"


def as_logits_fn(function: Callable[..., Any]) -> LogitsFn:
    """Makes any callable an argument that `jax.jit` accepts: a pytree whose leaves are its arrays.

    * A registered pytree whose leaves are all arrays (`jax.tree_util.Partial`, `models.logits_fn`, flax.struct, many
      Equinox modules) is returned as it is.
    * One with other leaves (an activation function, a number) keeps its arrays as arguments; the others are static. So
      does a plain `functools.partial`.
    * Functions, lambdas, bound methods and other objects are wrapped. Their arrays become constants of the compiled
      program: other arrays in a closure or an attribute compile anew (an array overwritten in place is not noticed, as
      under `jax.jit`), and large ones are better given as a `Partial`.

    Equal callables with arrays of equal shapes share compilations; twice is once.

    Args:
      function: images [B,H,W,C] in [0,1] -> logits [B,K].

    Raises:
      ValueError: if it cannot be called.
    """
    if not callable(function):
        raise ValueError(f"logits_fn = {_brief(function)}: must be callable, images [B,H,W,C] in [0,1] -> logits [B,K]")
    if isinstance(function, functools.partial) and not isinstance(function, Partial):
        function = Partial(function.func, *function.args, **function.keywords)
    leaves, structure = jax.tree_util.tree_flatten(function)
    if jax.tree_util.all_leaves([function]) or not _hashable(structure):
        return Partial(_Opaque(function, _held(function)))
    if all(map(_is_array, leaves)):
        return function
    static = tuple(None if _is_array(leaf) else _Static(leaf) for leaf in leaves)
    return Partial(_Rebuilt(structure, static), [leaf for leaf in leaves if _is_array(leaf)])


def check_logits(
    logits_fn: Callable[..., Any],
    image_shape: Sequence[int],
    batch: int = 2,
    num_classes: int | None = None,
    extra: Sequence[Any] = (),
) -> int:
    """Looks at what a classifier returns, by its shapes alone: nothing is compiled or computed.

    Args:
      logits_fn: any callable.
      image_shape: (H, W, C).
      batch: examples in the batch that it is shown; at 1, logits that forget the batch cannot be told.
      num_classes: of the data; more logits are allowed.
      extra: further arguments of the call, arrays or shapes ([B] keys of a stochastic model).

    Returns:
      K, the number of classes.

    Raises:
      ValueError: in one line, if JAX cannot trace the function, or if it returns anything but real float logits [B,K]
        with K at least 2 and at least `num_classes`.
    """
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    shown = f"images float32{list(images.shape)}"
    try:
        logits = jax.eval_shape(lambda function, *inputs: function(*inputs), as_logits_fn(logits_fn), images, *extra)
    except jax.errors.JAXTypeError as error:  # a tracer was made a NumPy array, a number, a bool or an index
        raise ValueError(f"logits_fn = {_brief(logits_fn)}: is not traceable by JAX ({_told(error)}); {HOST}") from None
    except Exception as error:  # the function is the user's: it may raise anything
        hint = "" if isinstance(error, ValueError) else f"; if it is no JAX function: {HOST}"
        raise ValueError(f"logits_fn({shown}): fails with {_told(error)}{hint}") from error
    if not _is_shaped(logits):
        raise ValueError(f"logits_fn({shown}) = {_described(logits)}: must be {LOGITS}")
    real = jnp.issubdtype(logits.dtype, jnp.floating)
    check("logits.dtype", str(logits.dtype), real, "a real float, as the gradient is 0 or undefined otherwise")
    fits = logits.ndim == 2 and logits.shape[0] == batch
    check("logits.shape", logits.shape, fits, f"({batch}, K) for {shown}, one row an image")
    least = max(2, num_classes or 2)
    why = f", the classes of the data ({batch}, {least})" if num_classes else ""
    check("logits.shape", logits.shape, logits.shape[1] >= least, f"({batch}, K) with K at least {least}{why}")
    return logits.shape[1]


def is_traceable(logits_fn: Callable[..., Any], image_shape: Sequence[int], batch: int = 2) -> bool:
    """False if JAX cannot trace the function because it needs numbers (NumPy, PyTorch, Python control flow)."""
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    try:
        jax.eval_shape(lambda function, images: function(images), as_logits_fn(logits_fn), images)
    except jax.errors.JAXTypeError:
        return False
    except Exception:  # another library meets a tracer in its own words: what it cannot trace may still run
        return False
    return True


def on_host(function: Callable[[np.ndarray], Any], num_classes: int) -> LogitsFn:
    """Lets a compiled program call a NumPy function; there is no gradient through it.

    Args:
      function: images float32 [B,H,W,C] in [0,1] -> logits [B,K], NumPy arrays; B is the caller's (the last batch is
        padded).
      num_classes: K.

    Raises:
      ValueError: inside the compiled call, if it returns another shape or no real numbers.
    """
    return Partial(_OnHost(function, num_classes))


@dataclasses.dataclass(frozen=True, eq=False)
class _OnHost:
    """A call of a NumPy function from inside a compiled program."""

    function: Callable[[np.ndarray], Any]
    num_classes: int

    def __call__(self, images: Array) -> Array:
        logits = jax.ShapeDtypeStruct((images.shape[0], self.num_classes), jnp.float32)
        return host_call(self._call, logits, images.astype(jnp.float32))

    def _call(self, images: np.ndarray) -> np.ndarray:
        logits = np.asarray(self.function(images))
        check_array(logits, (len(images), self.num_classes))
        return logits.astype(np.float32)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _OnHost):
            return False
        return (_Identity(self.function), self.num_classes) == (_Identity(other.function), other.num_classes)

    def __hash__(self) -> int:
        return hash((_Identity(self.function), self.num_classes))


def check_array(logits: np.ndarray, shape: tuple[int, int]) -> None:
    """Raises ValueError unless logits that were computed are real numbers of this shape."""
    check("logits.dtype", str(logits.dtype), np.issubdtype(logits.dtype, np.floating), "a real float")
    check("logits.shape", logits.shape, logits.shape == shape, f"{shape}, one row an image")


# --------------------------------------------------------------------------------- what makes two callables the same


@dataclasses.dataclass(frozen=True, eq=False)
class _Opaque:
    """A callable that is no pytree, equal to itself for as long as it holds the same arrays."""

    function: Callable[..., Any]
    held: tuple["_Identity", ...]

    def __call__(self, *inputs: Any) -> Any:
        return self.function(*inputs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Opaque):
            return False
        return self.held == other.held and _Identity(self.function) == _Identity(other.function)

    def __hash__(self) -> int:
        return hash((_Identity(self.function), self.held))


@dataclasses.dataclass(frozen=True)
class _Rebuilt:
    """A pytree callable, put together again from its arrays and its static leaves."""

    structure: Any
    static: tuple["_Static | None", ...]  # None where an array belongs

    def __call__(self, arrays: Sequence[Array], *inputs: Any) -> Any:
        rest = iter(arrays)
        leaves = [next(rest) if leaf is None else leaf.value for leaf in self.static]
        return jax.tree_util.tree_unflatten(self.structure, leaves)(*inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class _Identity:
    """An object compared by identity, and kept alive so that no other gets its identity. A bound method is compared by
    its object and its function, as every reading of it is a new one.
    """

    value: Any

    def _key(self) -> tuple[int, ...]:
        if isinstance(self.value, types.MethodType):
            return id(self.value.__self__), id(self.value.__func__)
        return (id(self.value),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclasses.dataclass(frozen=True, eq=False)
class _Static:
    """A leaf that is no array: compared by type and value (1, 1.0 and True differ), by identity if it has no hash."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Static) or type(self.value) is not type(other.value):
            return False
        return self.value is other.value or (_hashable(self.value) and bool(self.value == other.value))

    def __hash__(self) -> int:
        return hash(self.value) if _hashable(self.value) else id(self.value)


def _held(function: Callable[..., Any]) -> tuple[_Identity, ...]:
    """The arrays in a closure's cells and in an object's attributes, as they are now."""
    owner = getattr(function, "__self__", function)
    contents = [getattr(cell, "cell_contents", None) for cell in getattr(function, "__closure__", None) or ()]
    contents += getattr(owner, "__dict__", {}).values()
    try:
        leaves = jax.tree_util.tree_leaves(contents)
    except (TypeError, ValueError):  # a dictionary somewhere has keys that cannot be sorted
        leaves = contents
    return tuple(_Identity(leaf) for leaf in leaves if _is_shaped(leaf))


def _is_shaped(value: Any) -> bool:
    """True for arrays, tracers and shapes of any library."""
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _is_array(leaf: Any) -> bool:
    """True for what JAX takes as an array argument: not for NumPy arrays of objects, text or dates."""
    if isinstance(leaf, np.ndarray | np.generic):
        return jnp.issubdtype(leaf.dtype, jnp.number) or jnp.issubdtype(leaf.dtype, jnp.bool_)
    return _is_shaped(leaf)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------- in words


def _described(value: Any) -> str:
    """`a tuple of 2 (float32[2,10], float32[2,64])`, for what should have been one array."""
    if _is_shaped(value):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(map(_described, value))})"
    return "None" if value is None else f"a {type(value).__name__}"


def _told(error: Exception) -> str:
    """The first line of an error, cut short, with its type."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {_cut(lines[0], 160)}"


def _brief(function: Callable[..., Any]) -> str:
    return _cut(getattr(function, "__qualname__", None) or repr(function), 80)


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
