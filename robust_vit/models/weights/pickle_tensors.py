"""Reads the tensors of a PyTorch file (`.pt`, `.pth`, `.pth.tar`) without PyTorch and without running what it pickled.

A pickle is a program: reading one with `pickle.load` may run anything. This reader lets it call nothing but what
rebuilds tensors and plain containers. Classes that training scripts commonly put beside the weights (their arguments,
scalars, dates) become inert `Opaque` objects, whose code is never imported; anything else is refused by name, and
nothing of it is run.

Both of PyTorch's containers are read: the zip archive (since 1.6) and the stream before it.
"""

import collections
import dataclasses
import functools
import io
import math
import pathlib
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

DTYPES = {  # the storage classes of torch, and their elements
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "UntypedStorage": np.uint8,  # of newer types, which a tensor names itself
}

# Elements that a tensor names itself (`_rebuild_tensor_v3`): torch's name -> NumPy's
ELEMENTS = {
    **{name: np.dtype(name) for name in ("uint16", "uint32", "uint64")},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ("float8_e4m3fn", "float8_e4m3fnuz")},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")},
}

# Data that training scripts keep beside the weights; read as `Opaque`. Add a class here if it only holds data.
INERT = {
    "argparse.Namespace",  # timm, DeiT, XCiT, CaiT: the command line
    "yacs.config.CfgNode",  # Swin
    "torch.device",
    "torch.Size",
    "torch.serialization._get_layout",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "_codecs.encode",  # how old pickles spell bytes inside NumPy scalars
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "collections.Counter",
    "collections.defaultdict",
    "datetime.datetime",
    *(f"builtins.{name}" for name in ("int", "float", "bool", "str", "list", "dict", "tuple", "complex", "bytearray")),
    *(f"__builtin__.{name}" for name in ("int", "float", "bool", "str", "list", "dict", "tuple", "complex", "long")),
    *(f"torch.{kind}" for kind in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")),
}

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Opaque:
    """Stands for an object whose class is not loaded: takes whatever the pickle gives it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Opaque":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A flat buffer of the file, read when a tensor of it is wanted."""

    dtype: Any
    length: int
    read: Callable[[], bytes]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """Returns a contiguous copy.

        Raises:
          ValueError: the view reaches outside its storage, or the storage is truncated.
        """
        size = np.dtype(self.storage.dtype).itemsize
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        empty = math.prod(self.shape) == 0
        if self.offset < 0 or min(self.stride, default=0) < 0 or (not empty and last >= self.storage.length):
            raise ValueError(f"a tensor of shape {self.shape} reaches outside its storage of {self.storage.length}")
        if empty:
            return np.zeros(self.shape, self.storage.dtype)
        data = self.storage.read()
        if len(data) < (last + 1) * size:
            raise ValueError(f"a storage holds {len(data)} bytes where {(last + 1) * size} are needed: truncated file")
        flat = np.frombuffer(data, self.storage.dtype, count=last + 1 - self.offset, offset=self.offset * size)
        strides = tuple(step * size for step in self.stride)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, strides)).reshape(self.shape)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    numbers = [offset, *shape, *stride]
    if not isinstance(storage, Storage) or len(shape) != len(stride) or not all(type(n) is int for n in numbers):
        raise pickle.UnpicklingError("a tensor is not built from a storage, an offset, a shape and strides")
    return Tensor(storage, offset, tuple(shape), tuple(stride))


def _rebuild_typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    if not (isinstance(storage, Storage) and isinstance(dtype, _Element)):
        raise pickle.UnpicklingError("a tensor has a type of element that is not supported")
    length = storage.length * np.dtype(storage.dtype).itemsize // dtype.dtype.itemsize
    return _rebuild_tensor(Storage(dtype.dtype, length, storage.read), offset, shape, stride)


def _rebuild_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise pickle.UnpicklingError("a parameter is not built from a tensor")
    return tensor


# Everything that a pickle may call by name, beside the inert classes
CALLABLES: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_typed_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "collections.OrderedDict": collections.OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
}


@dataclasses.dataclass(frozen=True)
class _StorageClass:
    """What the name of a storage class reads as; not callable."""

    dtype: Any


@dataclasses.dataclass(frozen=True)
class _Element:
    """What the name of a type of element reads as."""

    dtype: np.dtype


class _Unpickler(pickle.Unpickler):
    """Knows tensors, plain containers and inert data; refuses every other name before anything of it is run."""

    def __init__(self, file: BinaryIO, open_storage: Callable[[Any, str, int], Storage]):
        super().__init__(file, encoding="latin1")
        self._open_storage = open_storage

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in CALLABLES:
            return CALLABLES[full]
        if module in ("torch", "torch.storage") and name in DTYPES:
            return _StorageClass(DTYPES[name])
        if module == "torch" and name in ELEMENTS:
            return _Element(ELEMENTS[name])
        if full in INERT:
            return Opaque
        raise pickle.UnpicklingError(
            f"holds a {full}, which is neither a tensor nor known plain data; refused, nothing of it was run "
            "(in PyTorch, save model.state_dict() alone)"
        )

    def persistent_load(self, pid: Any) -> Storage:
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and type(pid[4]) is int):
            raise pickle.UnpicklingError(f"refers to {str(pid)[:80]!r}, which is no storage of tensors")
        kind, key, length = pid[1], str(pid[2]), pid[4]
        if not isinstance(kind, _StorageClass):
            raise pickle.UnpicklingError(f"storage {key} has a type of element that is not supported")
        return self._open_storage(kind.dtype, key, length)


def read(path: str | pathlib.Path) -> Any:
    """Reads a PyTorch file.

    Args:
      path: what `torch.save` wrote.

    Returns:
      The saved object: plain containers and numbers, with `Tensor` for tensors (call `.numpy()`) and `Opaque` for inert
      data.

    Raises:
      ValueError: the file is no PyTorch file, is damaged, or holds something else than tensors and plain data.
    """
    path = pathlib.Path(path)
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with path.open("rb") as file:
            return _read_stream(file)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{str(path)!r}: {' '.join(str(error).split()) or 'damaged or truncated'}") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{str(path)!r}: damaged archive ({error})") from None
    except Exception as error:  # a flipped byte makes of a pickle, or of an archive, a program that may raise anything
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"{str(path)!r}: damaged or truncated ({why})") from None


def _load(file: BinaryIO, open_storage: Callable[[Any, str, int], Storage]) -> Any:
    """Runs one pickle, after a look at its opcodes: at a damaged memo index the unpickler would allocate up to it."""
    start = file.tell()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > number:
            raise pickle.UnpicklingError("damaged: its memo has gaps")
    file.seek(start)
    return _Unpickler(file, open_storage).load()


def _read_zip(path: pathlib.Path) -> Any:
    archive = zipfile.ZipFile(path)
    pickles = [name for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise pickle.UnpicklingError("is a zip archive, but not one that torch.save wrote (no data.pkl)")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise pickle.UnpicklingError("was written on a big-endian machine, which is not supported")
    if any(name.startswith(f"{root}code/") for name in archive.namelist()):
        raise pickle.UnpicklingError("is a TorchScript program; save model.state_dict() instead")

    @functools.cache
    def open_storage(dtype: Any, key: str, length: int) -> Storage:
        return Storage(dtype, length, functools.partial(archive.read, f"{root}data/{key}"))

    return _load(io.BytesIO(archive.read(pickles[0])), open_storage)


def _read_stream(file: BinaryIO) -> Any:
    """The format before 1.6: three pickles about the file, the object, the storages' keys, then their contents."""
    storages: dict[str, Storage] = {}
    contents: dict[str, bytes] = {}

    def open_storage(dtype: Any, key: str, length: int) -> Storage:
        return storages.setdefault(key, Storage(dtype, length, lambda: contents[key]))

    def load() -> Any:
        return _load(file, open_storage)

    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(1) != b"\x80":
        raise pickle.UnpicklingError("is no file that torch.save wrote")
    file.seek(0)
    if load() != LEGACY_MAGIC:
        raise pickle.UnpicklingError("is a pickle, but not one that torch.save wrote")
    load()  # version of the protocol
    if not load().get("little_endian", True):
        raise pickle.UnpicklingError("was written on a big-endian machine, which is not supported")
    found = load()
    for key in load():
        (length,) = struct.unpack("<q", file.read(8))
        storage = storages[str(key)]
        if not 0 <= length * np.dtype(storage.dtype).itemsize <= size - file.tell():
            raise pickle.UnpicklingError("damaged or truncated: a storage is longer than what is left of the file")
        contents[str(key)] = file.read(length * np.dtype(storage.dtype).itemsize)
    return found
