"""Reads a policy file, and names file, line and field of whatever is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from services.decision.rules import Policy, PolicyDocument, PolicyError

DEFAULT_POLICY = Path(__file__).parent / "policies" / "default.yaml"
LARGEST_FILE = 1 << 20


class PolicyFileError(ValueError):
    """A policy file cannot be used; the message begins with file and line."""


def load_policy(path: Path | str, log_threshold: float) -> Policy:
    """Read and check a policy.

    Args:
        path: of the YAML file.
        log_threshold: the bundle's calibrated threshold, for which `calibrated` stands; natural logarithm of R.

    Raises:
        PolicyFileError: the file cannot be read, is no YAML, or is no policy; the message names line and field.
    """
    path = Path(path)
    try:
        text = path.read_bytes()[: LARGEST_FILE + 1]
    except OSError as error:
        raise PolicyFileError(f"{path}: cannot be read ({error.strerror})") from error
    if len(text) > LARGEST_FILE:
        raise PolicyFileError(f"{path}: is larger than {LARGEST_FILE} bytes")
    root, raw = _parse(path, text)
    try:
        document = PolicyDocument.model_validate(raw)
        policy = Policy(document, log_threshold, hashlib.sha256(text).hexdigest()[:16])
        policy.check_levels()
    except ValidationError as error:
        raise _first_mistake(path, root, error) from None
    except PolicyError as error:
        raise _mistake(path, root, error.path, str(error)) from None
    return policy


def _parse(path: Path, text: bytes) -> tuple[yaml.Node, Any]:
    """The text as nodes, which know their lines, and as what they mean."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise PolicyFileError(f"{path}:1: a policy is a mapping of fields")
        _refuse_doubles(path, root, set())
        return root, yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        raise PolicyFileError(f"{path}:{mark.line + 1 if mark else 1}: not YAML: {said}") from None


def _refuse_doubles(path: Path, node: yaml.Node, seen: set[int]) -> None:
    """YAML's last one wins would hide half of a policy from its reader; an alias may hold itself."""
    if id(node) in seen:
        raise PolicyFileError(f"{path}:{node.start_mark.line + 1}: a policy has no aliases")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_doubles(path, item, seen)
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if str(key.value) in names:
                raise PolicyFileError(f"{path}:{key.start_mark.line + 1}: field {key.value} is there twice")
            names.add(str(key.value))
            _refuse_doubles(path, value, seen)


def _child(node: yaml.Node, part: str | int) -> tuple[yaml.Node, int] | None:
    """What `part` leads to, and the line where it begins."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return item, item.start_mark.line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return value, key.start_mark.line
    return None


def _real_path(root: yaml.Node, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """The location without pydantic's names of union members."""
    node, path = root, []
    for part in location:
        child = _child(node, part)
        if child is not None:
            node = child[0]
            path.append(part)
    return tuple(path)


def _first_mistake(path: Path, root: yaml.Node, error: ValidationError) -> PolicyFileError:
    """The most telling of the errors: a misspelt field before the missing one, the deepest before its parents."""

    def weight(one: ErrorDetails) -> tuple[bool, int]:
        return one["type"] == "extra_forbidden", len(_real_path(root, one["loc"]))

    first = max(error.errors(), key=weight)
    location = _real_path(root, first["loc"])
    missing = first["loc"][-1:] if first["type"] == "missing" else ()
    return _mistake(path, root, (*location, *missing), first["msg"].removeprefix("Value error, "))


def _mistake(path: Path, root: yaml.Node, location: Sequence[str | int], message: str) -> PolicyFileError:
    node, line = root, root.start_mark.line
    for part in location:
        child = _child(node, part)
        if child is None:
            break
        node, line = child
    field = ".".join(str(part) for part in location) or "(top level)"
    return PolicyFileError(f"{path}:{line + 1}: field {field}: {message}")
