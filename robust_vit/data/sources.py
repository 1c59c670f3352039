"""The data sources by name.

A source is a random-access sequence: `source[i]` is {"image": uint8 [H,W,C] or encoded bytes, "label": int}.
"""

import inspect
from typing import Any

from robust_vit.data import arrays, folder, huggingface, splits, synthetic, tfds
from robust_vit.errors import check, lookup, nearest
from robust_vit.typing import Source

SOURCES = {
    "digits": arrays.digits,
    "synthetic": synthetic.synthetic,
    "tfds": tfds.tfds,
    "huggingface": huggingface.huggingface,
    "folder": folder.folder,
    "npz": arrays.npz,
}


def names() -> list[str]:
    """Returns the names that `build` knows."""
    return sorted(SOURCES)


def build(name: str, split: str, **options: Any) -> Source:
    """Opens one split of a data set.

    Args:
      name: one of `names()`.
      split: "train", "validation" or "test".
      **options: the keywords of that source's factory, such as `path` of a folder.

    Returns:
      A picklable source with `num_classes`, `len` and `[i]`.

    Raises:
      ValueError: unknown name, split or option, with the nearest that exists.
    """
    check_options(name, options)
    check("split", split, split in splits.SPLITS, f"one of {', '.join(splits.SPLITS)}")
    return SOURCES[name](split, **options)


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raises ValueError unless `name` is a source and `options` are its keywords, with none missing."""
    lookup("data.name", name, SOURCES)
    known = keywords(name)
    for option in options:
        if option not in known:
            raise ValueError(
                f"data.options.{option}: {name} takes {', '.join(known) or 'no options'}{nearest(option, known)}"
            )
    missing = [option for option, needed in known.items() if needed and option not in options]
    check(f"data.options.{', '.join(missing)}", None, not missing, f"given for {name}")


def keywords(name: str) -> dict[str, bool]:
    """Returns the options of a source: keyword -> whether it must be given."""
    known: dict[str, bool] = {}
    for function in (SOURCES[name], splits.open_split):
        parameters = inspect.signature(function).parameters.values()
        known |= {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break  # takes no options of open_split
    return known
