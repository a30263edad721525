"""What is said and done where Java, Maven or Python is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "deploy" / "bootstrap.sh"


@pytest.fixture
def bare_machine(tmp_path: Path) -> Path:
    """A PATH with a shell and little more, for a user who is not root."""
    for name in ("bash", "sed"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    program(tmp_path / "id", "echo 1000")
    return tmp_path


def program(path: Path, body: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
    path.chmod(0o755)


def bootstrap(path: Path, what: str) -> subprocess.CompletedProcess[str]:
    bash = shutil.which("bash")
    assert bash
    return subprocess.run(
        [bash, str(SCRIPT), what], env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )


def test_a_missing_java_is_named_in_one_line_that_says_what_to_install(bare_machine: Path) -> None:
    done = bootstrap(bare_machine, "kafka")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Java 17 or later is missing: run `apt-get install" in done.stderr


def test_a_java_that_is_too_old_is_as_good_as_none(bare_machine: Path) -> None:
    program(bare_machine / "java", """echo 'openjdk version "11.0.2" 2019-01-15' >&2""")
    assert "Java 17 or later is missing" in bootstrap(bare_machine, "kafka").stderr


def test_a_missing_maven_is_named(bare_machine: Path) -> None:
    program(bare_machine / "java", """echo 'openjdk version "21" 2023-09-19' >&2""")
    done = bootstrap(bare_machine, "kafka")
    assert done.returncode == 1
    assert "Maven is missing: run `apt-get install maven`" in done.stderr


def test_nothing_is_said_where_nothing_is_missing(bare_machine: Path) -> None:
    program(bare_machine / "java", """echo 'openjdk version "17.0.15" 2025-04-15' >&2""")
    program(bare_machine / "mvn", "exit 0")
    program(bare_machine / "python3", f'exec {sys.executable} "$@"')
    for what in ("kafka", "python"):
        done = bootstrap(bare_machine, what)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_root_on_debian_gets_it_installed(bare_machine: Path) -> None:
    if not Path("/etc/debian_version").exists():
        pytest.skip("not Debian")
    program(bare_machine / "id", "echo 0")
    program(bare_machine / "apt-cache", "exit 0")
    program(bare_machine / "apt-get", f'echo "$@" >> {bare_machine}/calls')
    program(bare_machine / "mvn", "exit 0")
    assert bootstrap(bare_machine, "kafka").returncode == 0
    assert "openjdk-17-jre-headless" in (bare_machine / "calls").read_text().splitlines()[-1]
