"""One tree of errors. A message says what failed, with its value; where; and what to do.

The command line prints a ``UnicornError`` as one line and exits with status 1; any other exception is a bug.
"""


class UnicornError(Exception):
    """Base of every error that the user, her input or her servers can cause."""


class RecipeError(UnicornError):
    """A recipe or prompt file that cannot be used."""


class SeedError(UnicornError):
    """A file of seeds that cannot be read, or that yields nothing."""


class RunError(UnicornError):
    """A run directory that is locked, incomplete or damaged, or was made with other settings."""


class StageFailed(UnicornError):
    """A stage that accepted no row, or whose first rows all failed for the same reason."""


class EmbeddingError(UnicornError):
    """Vectors that cannot be used: not finite, of zero length, or of the wrong dimension."""


class DatasetError(UnicornError):
    """A built data set that cannot be read, published or exported, or whose rows and vectors do not match."""


class ClusterError(UnicornError):
    """Tasks that cannot be handed to an executor, or that failed under it."""


class Interrupted(UnicornError):
    """The user stopped the command with a signal (SIGINT or SIGTERM)."""


class ServerError(UnicornError):
    """Base of what a text-generation server can answer, or fail to answer. The subclass says how to react.

    ``status`` is None if there was no HTTP answer; ``retry_after_s`` comes from a ``Retry-After`` header.
    """

    def __init__(self, message: str, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


class FatalServerError(ServerError):
    """Stop the run: a wrong key, URL or model, an exhausted quota, or no endpoint that answers."""


class RequestRejected(ServerError):
    """Reject the row: the server refuses this one prompt, or fails on it alone."""


class RateLimited(ServerError):
    """Wait and retry: the server has no free slot. The request is good and is never given up."""


class TransientError(ServerError):
    """Retry: a failure that may pass, such as a dropped connection, HTTP 424 or 5xx, or a time-out."""
