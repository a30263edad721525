"""Why a request is not answered, in the words that its client may hear."""

from __future__ import annotations

import grpc

RETRY_SECONDS = 1.0
"""What a client is told to wait where nobody knows better."""


class RefusedError(Exception):
    """A request is refused. The message goes to the client: no score, no detector, no reason of a verdict."""

    def __init__(self, code: grpc.StatusCode, message: str, retry_after: float | None = None) -> None:
        """
        Args:
            code: of gRPC.
            message: for the client.
            retry_after: seconds, sent as the trailing metadata `retry-after`.
        """
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after


def server_is_busy() -> RefusedError:
    """There is no room for more; which of the rooms is full is nothing that a client should learn."""
    return RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is busy, try again later", RETRY_SECONDS)
