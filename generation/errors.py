"""One tree of errors. Each message says what failed, with its value; where; and what to do.

The command line prints a ``UnicornError`` as one clean message; any other exception is a bug and keeps its traceback.
"""


class UnicornError(Exception):
    """Base of every error that the user, her input or her servers can cause."""


class RecipeError(UnicornError):
    """A recipe or prompt file that cannot be used as it stands."""


class SeedError(UnicornError):
    """A file of seeds or of benchmark questions that cannot be read, or that yields nothing."""


class RunError(UnicornError):
    """A run directory that is locked, incomplete, damaged, or was made with other settings."""


class EmbeddingError(UnicornError):
    """Vectors that cannot be used: not finite, of zero length, or of the wrong dimension."""


class ServerError(UnicornError):
    """Base of what a text-generation server can answer, or fail to answer; ``status`` is HTTP's, where it answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class StopRun(ServerError):
    """The run cannot go on: wrong key, URL or model, or an endpoint that is gone for good."""


class RequestRefused(ServerError):
    """The server refuses this one prompt (HTTP 400, 413, 422); asking it again changes nothing."""


class Overloaded(ServerError):
    """The server has no free place (HTTP 429); the request is good and is to be asked again."""


class Transient(ServerError):
    """A failure that asking again may cure: a dropped connection, HTTP 424 or 5xx, a time-out."""
