"""Names that are imported when they are first asked for (PEP 562), so that importing a package costs nothing.

__getattr__, __dir__ = lazy.attach(__name__, modules=("attacks", "models"), objects={"Threat": "threat"})
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from robust_vit.errors import nearest


def submodules(path: Iterable[str]) -> list[str]:
    """The names of a package's public modules, from its `__path__`."""
    return [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]


def attach(
    package: str, *, modules: Iterable[str] = (), objects: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the `__getattr__` and `__dir__` of a package.

    Args:
      package: its `__name__`.
      modules: its modules to be had as attributes.
      objects: name -> the module of the package that holds it.

    Returns:
      (__getattr__, __dir__). An unknown name is an AttributeError that suggests the nearest.
    """
    places = dict.fromkeys(modules, "") | dict(objects or {})

    def get(name: str) -> Any:
        if name not in places:
            hint = "" if name.startswith("_") else nearest(name, places)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        module = importlib.import_module(f"{package}.{places[name] or name}")
        value = getattr(module, name) if places[name] else module
        setattr(sys.modules[package], name, value)  # the next look-up finds it without coming here
        return value

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, listing
