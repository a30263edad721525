"""Archives of torch are read as data: every tensor of an honest one, nothing of a hostile one."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.network import ARCHITECTURES, Classifier
from services.ownership.archives import ArchiveError, read_archive

SHAPE = (1, 28, 28)


def scripted(network: torch.nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(path))


def traced(network: torch.nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network.eval(), torch.zeros(1, *SHAPE)).save(str(path))


def state(network: torch.nn.Module, path: Path) -> None:
    torch.save(network.state_dict(), path)


@pytest.mark.parametrize("save", [scripted, traced, state])
@pytest.mark.parametrize("architecture", ["convnet", "lenet5", "resnet18"])
def test_weights_come_out_as_they_went_in(
    save: Callable[[torch.nn.Module, Path], None], architecture: str, tmp_path: Path
) -> None:
    network = ARCHITECTURES[architecture](SHAPE, 10)
    save(network, tmp_path / "model.pt")
    found = read_archive(tmp_path / "model.pt")
    wanted = network.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


def test_other_types_and_views_come_out_as_they_went_in(tmp_path: Path) -> None:
    wanted = {
        "half": torch.randn(3, 4).half(),
        "brain": torch.randn(3, 4).bfloat16(),
        "double": torch.randn(2).double(),
        "transposed": torch.randn(3, 4).T,
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }
    torch.save(wanted, tmp_path / "model.pt")
    found = read_archive(tmp_path / "model.pt")
    for name, tensor in wanted.items():
        expected = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
        np.testing.assert_array_equal(found[name], expected.numpy())


class Hostile:
    """Pickled, it asks whoever reads it to run a command."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def archive(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **others: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as written:
        written.writestr("model/data.pkl", program, compression)
        for name, data in others.items():
            written.writestr(f"model/data/{name.removeprefix('storage_')}", data, compression)
    return path


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, __import__, getattr, open, torch.load, torch.hub.load, os.remove]
)
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(
    function: Any, protocol: int, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    witness.write_text("untouched")
    command = {os.system: f"echo run > {witness}", os.remove: str(witness), open: str(tmp_path / "made")}.get(
        function, f"open({str(tmp_path / 'made')!r}, 'w')"
    )
    program = pickle.dumps({"weight": Hostile(function, command)}, protocol)
    with pytest.raises(ArchiveError, match=r"asks for|has the operation"):
        read_archive(archive(tmp_path / "model.pt", program))
    assert witness.read_text() == "untouched"
    assert not (tmp_path / "made").exists()


def test_a_hostile_pickle_saved_by_torch_itself_is_refused(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"weight": torch.zeros(2), "more": Hostile(os.system, f"touch {witness}")}, tmp_path / "model.pt")
    with pytest.raises(ArchiveError, match=r"asks for posix\.system, .*nothing of it was run"):
        read_archive(tmp_path / "model.pt")
    assert not witness.exists()


def test_the_code_of_a_torchscript_archive_is_not_even_read(tmp_path: Path) -> None:
    scripted(Classifier(SHAPE, 10), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as honest, zipfile.ZipFile(tmp_path / "other.pt", "w") as other:
        for entry in honest.infolist():
            code = "/code/" in entry.filename
            other.writestr(entry.filename, b"import os; os.abort()" if code else honest.read(entry))
    assert read_archive(tmp_path / "other.pt").keys() == Classifier(SHAPE, 10).state_dict().keys()


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...], values: int = 4, key: str = "0") -> bytes:
    """A pickle of one tensor over a storage of float32."""

    class _Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> Any:
            return found.identity if isinstance(found, _Storage) else None

    class _Storage:
        identity = ("storage", torch.FloatStorage, key, "cpu", values)

    written = io.BytesIO()
    call = Hostile(torch._utils._rebuild_tensor_v2, _Storage(), offset, size, stride, False, collections.OrderedDict())
    _Pickler(written, 2).dump({"weight": call})
    return written.getvalue()


FOUR = np.arange(4, dtype="<f4").tobytes()


def test_a_tensor_within_its_memory_is_read(tmp_path: Path) -> None:
    found = read_archive(archive(tmp_path / "model.pt", tensor(1, (3,), (1,)), storage_0=FOUR))
    assert found["weight"].tolist() == [1.0, 2.0, 3.0]


@settings(max_examples=60, deadline=None)
@given(
    offset=st.integers(-3, 6),
    size=st.lists(st.integers(-2, 2**40), max_size=4),
    stride=st.lists(st.integers(-2, 2**40), max_size=4),
)
def test_no_tensor_sees_beyond_its_memory(
    offset: int, size: list[int], stride: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    archive(path, tensor(offset, tuple(size), tuple(stride)), storage_0=FOUR)
    try:
        found = read_archive(path)["weight"]
    except ArchiveError:
        return
    assert found.size <= 4
    assert set(found.ravel().tolist()) <= {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize(
    ("program", "others", "reason"),
    [
        (tensor(0, (2**31, 2**31), (0, 0)), {"storage_0": FOUR}, "larger than its memory"),
        (tensor(0, (4,), (1,), values=5), {"storage_0": FOUR}, "holds 4 values, data.pkl says 5"),
        (tensor(0, (4,), (1,), key="../../secret"), {"storage_0": FOUR}, "storage ../../secret"),
        (tensor(0, (4,), (1,)), {}, "storage 0"),
        (tensor(0, (4,), (1,)), {"storage_0": b"abc"}, "storage 0"),
        (opcodes(b"K\x01r\xff\xff\xff\x7f"), {}, "a memo that is larger"),
        (opcodes(REBUILD, b"}b"), {}, "cannot be read"),
        (opcodes(b"c__torch__\nX\n", b"}X\x01\x00\x00\x00aK\x01sb"), {}, "cannot be read"),
        (opcodes(b"c__torch__\nX\n", b")\x81}X\x01\x00\x00\x00aK\x01sb"), {}, ""),
        (b"", {}, "cannot be read"),
        (b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".", {}, ""),
        (b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 200 + b"}" + b"s" * 200 + b".", {}, "deep"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", {}, "operation SHORT_BINUNICODE"),
        (b"\x80\x02\x82\x01.", {}, "operation EXT1"),
        (b"cos\nsystem\n.", {}, r"asks for os\.system"),
        (b"ccollections\nOrderedDict.fromkeys\n.", {}, "asks for collections"),
    ],
)
def test_a_malformed_archive_is_refused_with_a_reason(
    program: bytes, others: dict[str, bytes], reason: str, tmp_path: Path
) -> None:
    path = archive(tmp_path / "model.pt", program, **others)
    if not reason:
        assert read_archive(path) == {}
        return
    with pytest.raises(ArchiveError, match=reason):
        read_archive(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    program = tensor(0, (2**26,), (1,), values=2**26)
    bomb = archive(tmp_path / "model.pt", program, zipfile.ZIP_DEFLATED, storage_0=bytes(2**28))
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ArchiveError, match=r"no uncompressed data\.pkl"):
        read_archive(bomb)
    with zipfile.ZipFile(bomb, "w") as written:
        written.writestr("model/data.pkl", program)
        written.writestr("model/data/0", bytes(2**28), zipfile.ZIP_DEFLATED)
    with pytest.raises(ArchiveError, match="storage 0 is compressed"):
        read_archive(bomb)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_read_and_nothing_else_happens(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = archive(tmp_path_factory.mktemp("archive") / "model.pt", tensor(1, (3,), (1,)), storage_0=FOUR)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(ArchiveError):
        read_archive(path)
