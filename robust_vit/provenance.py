"""Where a figure comes from, and files that hold figures: versions, devices, revision, command line; JSON lines and
atomic writing.

The one home of these for training, evaluation and the commands; needs jax and nothing else.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import jax

Path = str | os.PathLike[str]

# Everything that takes part in a run; those that are not installed are left out of `versions`.
PACKAGES = (
    *("robust-vit", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml-collections", "chex"),
)


# ------------------------------------------------------------------------------------------- where a figure comes from


def environment() -> dict[str, Any]:
    """Returns command, versions, devices, git revision and platform: what a reader needs to run the same again."""
    return {
        "command": command(),
        "versions": versions(),
        "devices": devices(),
        "git": revision(),
        "platform": platform.platform(),
    }


def command() -> str:
    """Returns the command line as it was typed: `python -m package.module --flag` where Python was started so."""
    python = pathlib.Path(sys.executable or "python").name
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = [python, "-m", spec.name.removesuffix(".__main__")] if spec else [python, *sys.argv[:1]]
    if not spec and sys.argv[0] and not sys.argv[0].startswith("-") and not sys.argv[0].endswith(".py"):
        program = [pathlib.Path(sys.argv[0]).name]  # a console script
    return " ".join([*program, *sys.argv[1:]])


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Returns the versions of Python and of the packages, in their order; those that are not installed are absent."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name == "robust-vit":  # a source tree on the path, not installed
                found[name] = "source"
    return found


def devices() -> dict[str, Any]:
    """Returns kind, number and hosts of the devices: {"kind": "gpu:NVIDIA H200", "count": 8, "hosts": 1}."""
    first = jax.devices()[0]
    kind = f"{first.platform}:{first.device_kind}"
    return {"kind": kind, "count": jax.device_count(), "hosts": jax.process_count()}


def revision() -> str:
    """Returns the git revision of the package's source, with `+` where files differ from it; "" outside a checkout."""
    here = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    try:
        if not git("ls-files", "--", pathlib.Path(__file__).name):
            return ""  # installed into an environment that lies inside somebody else's checkout
        head = git("rev-parse", "HEAD")
        return head + ("+" if head and git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""


# --------------------------------------------------------------------------------------------------------------- files


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file in one step: a reader, or a kill, sees the old file or the new one and nothing between.

    Args:
      path: the file; its folder is made if needed.
      content: text (written as UTF-8) or bytes.

    Raises:
      OSError: as the system says it, for instance when the disk is full; the old file is then as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Writes a value as JSON, in one step. NaN and infinity, which JSON does not have, are errors."""
    write_atomically(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      ValueError: one line that names the file, if it is empty, torn, or holds anything but an object.
    """
    text = pathlib.Path(path).read_text()
    try:
        value = json.loads(text)
    except ValueError as error:
        cause = "is empty" if not text.strip() else f"is no JSON ({error})"
        raise ValueError(f"{path}: {cause}; restore it or move it away") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, must be a JSON object; restore it or move it away")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a JSON-lines file; a last line that a kill has torn is left out.

    Raises:
      ValueError: naming the first damaged line before the last.
    """
    rows = []
    lines = pathlib.Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError
            rows.append(row)
        except ValueError:  # of JSON and of UTF-8 alike
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is damaged; must be a JSON object") from None
    return rows


def cut_torn_line(path: Path) -> None:
    """Cuts off what follows the last line break, so that the next append starts a line of its own."""
    path = pathlib.Path(path)
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
