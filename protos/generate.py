"""Generate the Python stubs of `protos/` into `shared/pb` (or below another folder: the test compares the two)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MESSAGES = ["open_inference/open_inference_grpc.proto", "portcullis/v1/events.proto"]
SERVICES = ["open_inference/open_inference_grpc.proto"]


def generate(output: Path) -> None:
    """Write the stubs below `output`; they import each other as `shared.pb...`, wherever they are written.

    Raises:
        subprocess.CalledProcessError: a proto file does not compile.
    """
    # The virtual path makes protoc write the imports that the packages really have.
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-Ishared/pb={ROOT / 'protos'}"]
    subprocess.run(
        [*protoc, f"--python_out={output}", f"--pyi_out={output}", *(f"shared/pb/{name}" for name in MESSAGES)],
        check=True,
    )
    subprocess.run([*protoc, f"--grpc_python_out={output}", *(f"shared/pb/{name}" for name in SERVICES)], check=True)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
