"""The stubs in shared/pb are what protos/ says."""

from __future__ import annotations

from pathlib import Path

from protos.generate import ROOT, generate


def stubs(folder: Path) -> dict[str, str]:
    found = [path for pattern in ("*_pb2*.py", "*_pb2*.pyi") for path in (folder / "shared" / "pb").rglob(pattern)]
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def test_generating_the_stubs_again_changes_nothing(tmp_path: Path) -> None:
    generate(tmp_path)
    fresh, committed = stubs(tmp_path), stubs(ROOT)
    assert len(fresh) == 5
    assert fresh.keys() == committed.keys()
    for name, text in fresh.items():
        assert committed[name] == text, f"{name} is not what protos/ says: run `make protos`"
