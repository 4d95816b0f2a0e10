"""Where a rehearsal takes place: its folder, and the stand-in server as a process."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import RehearsalError
from ..manifest import read_manifest
from .account import Account
from .children import ROOT, module
from .reading import SETS
from .server import SLOTS, TOKENS_PER_S
from .sources import SOURCE, write_recipe, write_source

SPARE = 0.012  # seeds beyond the rows that are wanted: for those that are rejected
LEAST_SPARE = 8


class Ground:
    """A folder with a source of seeds, a recipe, and room for the run and the data sets.

    Args:
        folder: made if need be; empty, or of an earlier rehearsal of the same rows and seed.
        rows: captions that are wanted.
        seed: of all that is made up.
    """

    def __init__(self, folder: Path, rows: int, seed: int) -> None:
        self.folder, self.rows, self.seed = folder, rows, seed
        self.run, self.sets, self.logs = folder / "run", folder / "sets", folder / "logs"
        for made in (self.sets, self.logs):
            made.mkdir(parents=True, exist_ok=True)
        self.lines = write_source(folder / SOURCE, rows + max(LEAST_SPARE, round(SPARE * rows)), seed)
        self.recipe = write_recipe(folder, rows, seed)
        self.account = Account(folder / "account.counts")

    @property
    def built(self) -> list[Path]:
        """The directories of both data sets."""
        return [self.sets / name for name in SETS]

    def serve(self) -> "ServerProcess":
        """Starts the stand-in server, at its own pace.

        Raises:
            RehearsalError: it did not come up.
        """
        return ServerProcess(self.account.path, self.logs / "server.err", SLOTS, TOKENS_PER_S, self.seed)

    def manifest(self) -> dict[str, Any]:
        """The run's manifest.

        Raises:
            RunError: there is none yet.
        """
        return read_manifest(self.run / "manifest.json")


class ServerProcess:
    """The stand-in server; started again it has the same port.

    Args:
        account: its file of counts.
        log: where its stderr goes.
        slots, tokens_per_s: see ``server``.
        fault_seed: of its faults.

    Raises:
        RehearsalError: it did not come up.
    """

    def __init__(
        self,
        account: Path,
        log: Path,
        slots: int,
        tokens_per_s: float,
        fault_seed: int,
    ) -> None:
        self._options = ["--account", account, "--slots", slots, "--tokens-per-s", tokens_per_s]
        self._log, self._fault_seed, self.slots = log, fault_seed, slots
        self._port = 0
        self.starts = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._port}"

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Starts it, with other faults than before; ``environment`` holds variables besides those of this process."""
        seed = self._fault_seed + self.starts
        command = module("server", *self._options, "--port", self._port, "--fault-seed", seed)
        with self._log.open("ab") as log:
            pipe, own = subprocess.PIPE, {**os.environ, **(environment or {})}
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=log, env=own)
        assert self.process.stdout is not None
        said = self.process.stdout.readline().decode().strip()
        if not said:
            raise RehearsalError(f"the stand-in server did not start; see {self._log}")
        self._port = int(said.rsplit(":", 1)[1])
        self.starts += 1

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.communicate()
