"""Saying what is wrong with a document, in one line; and showing what somebody else wrote."""

from __future__ import annotations

from pydantic import ValidationError


def first_mistake(error: ValidationError) -> str:
    """`field NAME: what is wrong`, of the first mistake."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "(top level)"
    return f"field {field}: {first['msg']}"


def printable(text: str) -> str:
    """A text of somebody else's without control characters, for a person's terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
