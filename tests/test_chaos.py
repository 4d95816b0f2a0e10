"""Everything under faults: kill -9 of each command, flipped bits, deleted files; both data sets have the same rows."""

import json

import pytest

from tests.conftest import command


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [0, 1])
def test_faults_on_the_way_change_no_row(seed: int) -> None:
    done = command("-m", "benchmarks.rehearsal", "--rows", 300, "--chaos", "--seed", seed, timeout_s=3500)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert all(figures["equal"].values()) and figures["counts_right"] and len(figures["faults"]) > 5
