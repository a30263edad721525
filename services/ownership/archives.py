"""Reads the weights out of a TorchScript archive, or of a state that torch saved, and runs nothing that it carries.

Both are zip files whose `data.pkl` is a pickle: a program that may call anything. Here it is read by an unpickler that
knows tensors and plain containers and refuses all else, after a look at its operations. A TorchScript archive's code
is never opened. Classes of it (`__torch__...`) become inert bags of attributes, which suffices to name the tensors as
`state_dict` does.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_PICKLE_BYTES = 16 * 2**20
MOST_ENTRIES = 100_000
DEEPEST = 64
"""Of modules in modules."""

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_OPERATIONS = frozenset({
    "PROTO", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
})  # fmt: skip


class ArchiveError(ValueError):
    """The file is no archive that may be read; the message says why."""


class _Inert:
    """Whatever an archive says is an object of a class of its own code."""

    def __init__(self) -> None:
        self.attributes: Mapping[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Callable:
    """What a pickle may call; nothing can be set on it."""

    __slots__ = ("_function",)

    _function: Any

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"sets {name} of a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("sets the state of a function")


def read_archive(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of an archive, named as `state_dict` names it: read-only views; bfloat16 becomes float32.

    Raises:
        ArchiveError: it is no such archive, is damaged, or asks for anything but tensors and plain containers.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(archive, path.stat().st_size)
        except ArchiveError:
            raise
        except Exception as error:  # a damaged or hostile file may fail in any way
            raise ArchiveError(f"cannot be read ({type(error).__name__}: {error})") from error


def _read(archive: zipfile.ZipFile, size: int) -> dict[str, NDArray[Any]]:
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise ArchiveError(f"{len(entries)} entries, at most {MOST_ENTRIES} are read")
    # Torch compresses code alone, which is not read: what is read cannot be more than what is there.
    entries = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
    if sum(entry.file_size for entry in entries) > size:
        raise ArchiveError("entries that overlap")
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl") and entry.filename.count("/") == 1]
    if len(pickles) != 1:
        raise ArchiveError("no uncompressed data.pkl: neither a TorchScript archive nor a state that torch saved")
    if pickles[0].file_size > MOST_PICKLE_BYTES:
        raise ArchiveError(f"data.pkl of {pickles[0].file_size} bytes, at most {MOST_PICKLE_BYTES} are read")
    program = archive.read(pickles[0])
    _inspect(program)
    content = _TensorUnpickler(program, archive, pickles[0].filename.removesuffix("data.pkl")).load()
    return dict(_tensors(content, "", 0))


def _inspect(program: bytes) -> None:
    """Look at every operation before any is carried out."""
    for operation, argument, _ in pickletools.genops(program):
        if operation.name not in _OPERATIONS:
            raise ArchiveError(f"data.pkl has the operation {operation.name}, which torch does not write")
        # The memo is an array: a huge index makes a huge one.
        if operation.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > len(program):
            raise ArchiveError("data.pkl has a memo that is larger than itself")


class _TensorUnpickler(pickle.Unpickler):
    """Makes arrays and plain containers, and nothing else."""

    def __init__(self, program: bytes, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(program))
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, NDArray[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for.

        Raises:
            ArchiveError: for nothing that weights need.
        """
        if module == "__torch__" or module.startswith("__torch__."):
            return _Inert
        if module == "torch" and name in _STORAGES:
            return name
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
            ("torch._utils", "_rebuild_parameter"): _first,
            ("torch.jit._pickle", "restore_type_tag"): _first,
            **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")},
        }
        if (module, name) not in known:
            raise ArchiveError(f"data.pkl asks for {module}.{name}, which no weights need; nothing of it was run")
        return known[module, name]

    def persistent_load(self, identity: Any) -> NDArray[Any]:
        """A tensor's memory, from the archive.

        Raises:
            ArchiveError: there is none such.
        """
        match identity:
            case ("storage", str(kind), str(key), _, int(count)) if kind in _STORAGES:
                if key not in self._storages:
                    self._storages[key] = self._storage(kind, key)
                if len(self._storages[key]) != count:
                    raise ArchiveError(f"storage {key} holds {len(self._storages[key])} values, data.pkl says {count}")
                return self._storages[key]
        raise ArchiveError("data.pkl has a reference that is no tensor's memory")

    def _storage(self, kind: str, key: str) -> NDArray[Any]:
        try:
            entry = self._archive.getinfo(f"{self._folder}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ArchiveError(f"storage {key} is compressed; torch compresses none")
            values = np.frombuffer(self._archive.read(entry), dtype=_STORAGES[kind])
        except (KeyError, ValueError) as error:
            raise ArchiveError(f"storage {key}: {error}") from error
        if kind == "BFloat16Storage":
            return (values.astype("<u4") << 16).view("<f4")
        return values


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, np.ndarray) or len(size) != len(stride) or not all(type(n) is int for n in numbers):
        raise ArchiveError("a tensor without memory, size or stride")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    count = int(np.prod(size, dtype=object)) if size else 1
    if min(numbers) < 0 or (count and last >= len(storage)) or count > len(storage):
        raise ArchiveError(f"a tensor of size {list(size)} that is larger than its memory")
    steps = [step * storage.itemsize for step in stride]
    # A view: many tensors may share one memory, and copies of all would be more than what is there.
    view: NDArray[Any] = np.lib.stride_tricks.as_strided(
        storage[offset:] if count else storage[:0], size, steps, writeable=False
    )
    return view


_rebuilt = _Callable(_rebuild)
_first = _Callable(lambda value, *_: value)


def _tensors(content: Any, name: str, depth: int) -> Iterator[tuple[str, NDArray[Any]]]:
    if depth > DEEPEST:
        raise ArchiveError(f"modules in modules, over {DEEPEST} deep")
    if isinstance(content, np.ndarray):
        yield name, content
    elif isinstance(content, _Inert | dict):
        for key, value in (content.attributes if isinstance(content, _Inert) else content).items():
            if isinstance(key, str):
                yield from _tensors(value, f"{name}.{key}" if name else key, depth + 1)
