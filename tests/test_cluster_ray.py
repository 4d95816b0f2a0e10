"""Tasks on a real Ray cluster of this machine, on loopback: two workers, one of them killed in mid-task."""

from pathlib import Path

import psutil

from tests.cluster_runs import SLOWLY, asked_again, asked_rows, descendants, sealed, seeded_copy, started, wait_until
from tests.conftest import manifest, write_recipe
from tests.fake_tgi import FakeTGI


def test_a_worker_of_ray_that_is_killed_in_mid_task_is_made_good(tmp_path: Path, finished_run: Path) -> None:
    run = seeded_copy(finished_run, tmp_path)
    recipe = write_recipe(tmp_path, cluster={"memory_per_cpu_gb": 1}, server=SLOWLY)
    place = ("--config", recipe, "--run-dir", run)
    with FakeTGI(latency_s=1.0) as server:
        many = ("--executor", "ray", "--tasks", 2, "--workers", 2)
        with started("captions", *place, "--endpoint", server.url, *many) as process:
            wait_until(lambda: len(descendants(process.pid, "work")) == 2 and len(asked_rows(server)) > 6)
            tasks = descendants(process.pid, "work")
            actor = tasks[0].parents()[1]  # its parent is the actor's child, which datatrove makes to run it
            assert actor.name().startswith("ray::")
            actor.kill()
            psutil.wait_procs(tasks[:1], timeout=60)
            assert len(asked_rows(server)) < 18  # it has not gone on to its end
            _, said = process.communicate(timeout=150)
        assert process.returncode == 0, said
        assert not any(task.is_running() for task in tasks)
        assert asked_again(server) <= server.max_in_flight
    assert sealed(run, ("captions",)) == sealed(finished_run, ("captions",))
    accounts = manifest(run)["stages"]["captions"]["tasks"]["00000"]
    assert [account["rows"] for account in accounts] == [10, 8]
