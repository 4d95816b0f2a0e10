"""One tree of errors. Each message says what failed, with its value; where; and what to do.

The command line prints a ``UnicornError`` as one clean message; any other exception is a bug and keeps its traceback.
"""


class UnicornError(Exception):
    """Base of every error that the user, her input or her servers can cause."""


class RecipeError(UnicornError):
    """A recipe or prompt file that cannot be used as it stands."""


class SeedError(UnicornError):
    """A file of seeds or of benchmark questions that cannot be read, or that yields nothing."""


class OriginalError(UnicornError):
    """A released file of the original that cannot be read as what it should be."""


class RunError(UnicornError):
    """A run directory that is locked, incomplete, damaged, or was made with other settings."""


class DamageError(UnicornError):
    """A run or a built data set in which something is wrong, all of which has been told."""


class EmbeddingError(UnicornError):
    """Vectors that cannot be used: not finite, of zero length, or of the wrong dimension."""


class DatasetError(UnicornError):
    """A built data set that cannot be read, or whose rows and vectors do not belong together."""


class PublishError(UnicornError):
    """A built data set that the Hub does not take."""


class ExportError(UnicornError):
    """An export that cannot be made as it was asked for."""


class ClusterError(UnicornError):
    """Tasks that cannot be handed to an executor, or that failed under it."""


class RehearsalError(UnicornError):
    """A rehearsal that cannot be held, or in which a command failed."""


class Stopped(UnicornError):
    """The user stopped the run, by a signal."""


class ServerError(UnicornError):
    """Base of what a text-generation server can answer, or fail to answer. Its subclasses say what is to be done.

    Attributes:
        endpoint: the server's URL, or None where no single one is meant.
        status: HTTP's, where it answered.
        error_type: the server's own name for the error, such as TGI's ``overloaded``, where it gave one.
    """

    def __init__(
        self, message: str, status: int | None = None, error_type: str | None = None, endpoint: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.error_type, self.endpoint = status, error_type, endpoint


class StopRun(ServerError):
    """Stop the run: wrong key, URL or model, or no endpoint that answers any more."""


class RequestRefused(ServerError):
    """Reject the item: the server refuses this one prompt (HTTP 400, 413, 422), or fails on it alone."""


class Overloaded(ServerError):
    """Retry: the server has no free place (HTTP 429); the request is good and is never given up."""


class Transient(ServerError):
    """Retry: a failure that asking again may cure: a dropped connection, HTTP 5xx, a time-out."""


class BatchFailed(Transient):
    """Retry, then isolate: HTTP 424 fails a whole batch for what may be one item's fault; that item is found by
    asking it alone."""
