"""Faults one by one, then those of the asking stages on real processes; all of them together in a slow test."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.rehearsal.chaos import Chaos
from generation.rehearsal.children import Child, Took
from generation.rehearsal.faults import (
    Strike,
    clearly_refused,
    clock_jump,
    delete,
    files,
    flip_bit,
    full_disk,
    run_under,
)
from generation.rehearsal.ground import Ground, ServerProcess
from generation.rehearsal.server import SLOTS
from generation.rehearsal.steps import Step, steps, take
from tests.conftest import generation, rows

ROWS, FEW_SLOTS = 150, 1
REFUSED = Took(1.0, 1.0, 50.0, 1, "", "error: cannot write a/00001.parquet: full; give the same command again")


def child(code: str, folder: Path, **options: object) -> Took:
    """What a line of Python did in a child process."""
    return Child([sys.executable, "-c", code], folder / "child", **options).wait()  # type: ignore[arg-type]


@given(st.binary(min_size=1, max_size=300), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_one_bit_is_turned_and_the_place_is_told(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, seed: int
) -> None:
    path = tmp_path_factory.mktemp("bits") / "file"
    path.write_bytes(data)
    said = flip_bit(path, Random(seed))
    found = path.read_bytes()
    differ = [place for place, (old, new) in enumerate(zip(data, found, strict=True)) if old != new]
    assert len(differ) == 1
    assert (data[differ[0]] ^ found[differ[0]]).bit_count() == 1
    assert f"of byte {differ[0]} turned in {path.parent.name}/file" in said


def test_a_deleted_file_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert delete(tmp_path / "file", Random(0)) == f"{tmp_path.name}/file deleted"
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("took", "clear"),
    [
        (REFUSED, True),
        (replace(REFUSED, said="error: a/00001.parquet was changed; `python -m generation verify a` lists it"), True),
        (replace(REFUSED, said="error: a/00001.parquet was changed"), False),  # no remedy
        (replace(REFUSED, said="error: a shard was changed; give the same command again"), False),  # which?
        (replace(REFUSED, said=f"Traceback (most recent call last):\n{REFUSED.said}"), False),
        (replace(REFUSED, status=0), False),
        (replace(REFUSED, status=-9), False),
    ],
)
def test_a_refusal_is_clear_when_it_names_file_and_remedy(took: Took, clear: bool) -> None:
    assert clearly_refused(took, "00001.parquet") is clear


def test_a_clock_jumps_in_mid_run_and_the_monotonic_one_does_not(tmp_path: Path) -> None:
    code = (
        "import time; a, m = time.time(), time.monotonic(); time.sleep(0.6);"
        "print(round((time.time() - a) / 3600), round((time.monotonic() - m) / 3600), time.time_ns() // 10**9 == "
        "int(time.time()))"
    )
    for hours in (24, -24):
        took = child(code, tmp_path, environment=clock_jump(0.3, hours * 3600))
        assert took.output == f"{hours} 0 True"


def test_a_full_disk_is_one_for_the_child_alone(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'file')!r}, 'wb', buffering=0).write(bytes(5000))"
    assert child(code, tmp_path, prepare=full_disk(1000)).status == 0  # a short write
    assert (tmp_path / "file").stat().st_size == 1000
    code = f"f = open({str(tmp_path / 'file')!r}, 'ab', buffering=0); f.write(b'1')"
    assert "File too large" in child(code, tmp_path, prepare=full_disk(1000)).said
    (tmp_path / "other").write_bytes(bytes(5000))


def test_memory_and_cpu_of_a_child_and_its_children_are_seen(tmp_path: Path) -> None:
    hog = "import time; a = b'x' * 120_000_000; time.sleep(0.3); sum(range(20_000_000))"
    took = child(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hog!r}])", tmp_path)
    assert 115 < took.peak_mb < 200
    assert took.cpu_s > 0.15
    assert child("pass", tmp_path).peak_mb < 60


def test_strikes_come_when_they_are_due_and_not_after_the_end(tmp_path: Path) -> None:
    ground = Ground(tmp_path, ROWS, 0)
    waits = Step("waits", [sys.executable, "-c", "import time; time.sleep(30)"])
    kill = Strike(lambda: True, lambda child: child.kill())
    took, struck = run_under(ground, waits, [kill, replace(kill, due=lambda: False)])
    assert (took.status, struck) == (-9, 1)
    never = Strike(files(tmp_path / "nothing", 1), lambda child: child.kill())
    took, struck = run_under(ground, replace(waits, command=[sys.executable, "-c", "pass"]), [never])
    assert (took.status, struck) == (0, 0)


# -- on real stages --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Seeds and captions, undisturbed."""
    ground = Ground(tmp_path_factory.mktemp("alone"), ROWS, 5)
    with ServerProcess(ground.folder / "account.counts", ground.logs / "server.err", SLOTS, 4000.0, 5) as server:
        for step in steps(ground, server.url)[:2]:
            take(ground, server, step)
    return ground


def test_kills_clocks_and_a_full_disk_while_captions_are_made_change_no_byte(alone: Ground, tmp_path: Path) -> None:
    ground = Ground(tmp_path, ROWS, 5)
    with ServerProcess(ground.folder / "account.counts", ground.logs / "server.err", FEW_SLOTS, 5000.0, 6) as server:
        chaos = Chaos(ground, alone, server, Random(1))
        struck = [
            chaos.killed("seeds", ground.run / "seeds"),
            chaos.full_disk("captions", 3000),
            *chaos.asking("captions"),
        ]
    assert [one.line() for one in struck if not one.right] == []
    said = "\n".join(one.line() for one in struck)
    for fault in ("seeds killed", "a disk that is full", "clock jumped", "server killed", "client killed"):
        assert fault in said
    assert "No space left on device" in said or "File too large" in said
    for path in (alone.run / "captions").glob("*.parquet"):
        assert path.read_bytes() == (ground.run / "captions" / path.name).read_bytes()
    assert ground.account.answered_again() <= chaos.allowed <= 5 * FEW_SLOTS
    ended = [row["id"] for row in (*rows(ground.run, "captions"), *rows(ground.run, "rejected/captions"))]
    assert sorted(ended) == [row["id"] for row in rows(ground.run, "seeds")]


@pytest.mark.parametrize("act", [flip_bit, delete])
def test_damage_is_found_and_mended_as_the_messages_say(
    act: Callable[[Path, Random], str], alone: Ground, tmp_path: Path
) -> None:
    shutil.copytree(alone.folder, tmp_path / "chaos")
    ground = Ground(tmp_path / "chaos", ROWS, 5)
    with ServerProcess(ground.folder / "account.counts", ground.logs / "server.err", SLOTS, 4000.0, 7) as server:
        chaos = Chaos(ground, alone, server, Random(2))
        struck = chaos.damaged("captions", chaos.shard("captions"), act, ())
    assert struck.right, struck.line()
    assert struck.came == "verify finds nothing more"
    for path in (alone.run / "captions").glob("*.parquet"):
        assert path.read_bytes() == (ground.run / "captions" / path.name).read_bytes()
    assert 0 < ground.account.answered_again() <= chaos.allowed


@pytest.mark.slow
def test_all_faults_together(tmp_path: Path) -> None:
    done = generation("rehearse", "--rows", 300, "--seed", 4, "--chaos", "--folder", tmp_path / "folder")
    assert done.returncode == 0, done.stderr
    struck = json.loads((tmp_path / "folder" / "rehearsal.json").read_text())["struck"]
    assert len(struck) > 25 and all(one["right"] for one in struck)
    assert not (tmp_path / "folder" / "chaos").exists()
    assert "at the end: bytes of both data sets" in done.stdout
