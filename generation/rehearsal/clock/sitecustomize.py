"""Read by Python at its start when this folder is on PYTHONPATH: the wall clock jumps some seconds later.

``REHEARSAL_CLOCK_JUMP`` is ``<after>:<by>``, both in seconds. The monotonic clock goes on, as clocks of that kind do;
so does ``datetime.now``, a type that compiled modules know by its layout and that cannot be replaced.
"""

import os
import time

_after, _by = map(float, os.environ["REHEARSAL_CLOCK_JUMP"].split(":"))
_begun, _time = time.monotonic(), time.time


def _jumped() -> float:
    """The time, wrong from some moment on."""
    return _time() + (_by if time.monotonic() - _begun > _after else 0.0)


time.time = _jumped
time.time_ns = lambda: int(_jumped() * 1e9)
