"""A Hugging Face Hub on loopback, for tests: as much of it as `huggingface_hub` and `datasets` ask for.

In a test: `with FakeHub() as hub: ... hub.url`. The libraries read where the Hub is when they are imported, so what is
to talk to this one runs in a process of its own: `hub.run(script, home)`, or any command with
`env=hub.environment(home)`. Its parts: repositories in `fake_hub_store`, routes in `fake_hub_requests`,
`fake_hub_routes`, `fake_hub_files` and `fake_hub_push`, HTTP and faults in `fake_hub_server`. All is held in memory.

Left out: Xet (the environment turns it off), pull requests, ``.gitignore``, gated repositories, deleting, renaming and
settings of repositories, rate limits, and the redirect of downloads to another host.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from tests.fake_hub_server import Fault, HubServer, Seen
from tests.fake_hub_store import Repo

__all__ = ["FakeHub", "Fault", "Seen"]
_LIBRARIES = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_")  # how the names of their environment variables begin


class FakeHub:
    """The hub in threads of its own: `with FakeHub() as hub:` serves on `hub.url` until the block ends.

    Args:
        token: the one that is good; any other is a 401. Without one, public repositories can be read.
        user: whose token it is, and the one namespace that it may write.
        faults: what goes wrong at which requests.
        part_bytes: larger LFS objects are uploaded in parts of this size.
    """

    def __init__(
        self,
        token: str = "hf_test",
        user: str = "user",
        faults: Iterable[Fault] = (),
        part_bytes: int = 64 * 1024**2,
    ) -> None:
        self.token, self.user = token, user
        self._server = HubServer(token, user, part_bytes, faults)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = self._server.url

    def __enter__(self) -> FakeHub:
        """Start to serve."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go what hangs, close the port, and stop."""
        self._server.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=30)

    def seen(self, *routes: str) -> list[Seen]:
        """The requests so far, in order of arrival; those of some routes (`fake_hub_requests.ROUTES`) or all."""
        return [one for one in self._server.seen() if not routes or one.route in routes]

    def script(self, *faults: Fault) -> None:
        """Replace what goes wrong while the hub runs; ordinals count from here."""
        self._server.script(faults)

    def repo(self, name: str, kind: str = "dataset") -> Repo:
        """A repository as it stands, to look at.

        Raises:
            KeyError: there is none.
        """
        return self._server.routes.repos[kind, name]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process that is to take this hub for the Hub.

        Args:
            home: where the libraries keep their caches.
            token: what they send; None sends none.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_LIBRARIES)}
        kept |= {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        kept |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | ({"HF_TOKEN": token} if token is not None else {})

    def run(
        self, script: str, home: Path, *arguments: object, token: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs Python text in a process that takes this hub for the Hub, in the directory ``home``, to its end.

        Args:
            script: with ``arguments`` in ``sys.argv[1:]``.
            home, token: as for `environment`.
        """
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            cwd=home,
            env=self.environment(home, token),
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
