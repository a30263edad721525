"""What all errors of this service are."""

from __future__ import annotations


class OwnershipError(Exception):
    """Evidence, registry or suspect cannot be used; the message says why and what to do."""
