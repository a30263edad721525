"""Why a request is not answered, in the words that its client may hear."""

from __future__ import annotations

import grpc


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
