"""A rehearsal under faults: a run that is left alone, and one that is killed, damaged, starved of disk and misled
about the time. In the end both must have built the same bytes.

Moments and places are drawn by the seed. Answers are a function of their requests, so that nothing but a row that was
lost or mixed up can make a difference.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from ..config import TASKS
from ..errors import RehearsalError
from ..files import file_sha256
from ..rundir import RunDir
from . import counts
from .children import Took, generation
from .faults import (
    DAY_S,
    Strike,
    Struck,
    answers,
    clearly_refused,
    clock_jump,
    delete,
    files,
    flip_bit,
    full_disk,
    run_under,
    server_restart,
)
from .ground import Ground, ServerProcess
from .reading import SETS
from .steps import Step, last_words, steps, take, verify

LEFT_OUT = ("load", "stream", "train", "report", "verify")  # steps that change nothing
JUMP_AFTER_S = 1.0  # from the start of a process on
JOURNAL_ROW, VECTOR = 1_000, 2_560  # bytes of a row, roughly: in a journal, and in a shard of vectors
DAMAGED = ("seeds", "captions", "instructions", "text_embeddings", "image_embeddings/unicorn")  # stages
Damage = Callable[[Path, Random], str]  # does something to a file, and says what
UNREAD = ("seeds", "text_embeddings")  # of these: by no builder
BUILDS = tuple(f"build {name}" for name in SETS)


def chaos(folder: Path, rows: int, seed: int) -> list[Struck]:
    """Makes the same data sets twice, once undisturbed; prints a line a fault as it comes.

    Args:
        folder: an empty one.
        rows: captions that are wanted.
        seed: of the faults, and of all that is made up.

    Returns:
        All faults; the last ones tell of the end: what verify says, ids, answers given twice, and bytes.

    Raises:
        RehearsalError: the undisturbed run failed, or a command could not be brought to its end.
    """
    alone, ground = Ground(folder / "alone", rows, seed), Ground(folder / "chaos", rows, seed)
    with alone.serve() as server:
        for step in steps(alone, server.url):
            if step.name.split()[0] not in LEFT_OUT:
                take(alone, server, step)
    print(f"an undisturbed run of {rows:,} rows is done; now the same under faults", flush=True)
    struck = []
    with ground.serve() as server:
        for one in Chaos(ground, alone, server, Random(f"chaos {seed}")).run():
            print(one.line(), flush=True)
            struck.append(one)
    return struck


class Chaos:
    """The disturbed run.

    Args:
        ground: where it takes place.
        alone: the undisturbed one.
        server: of ``ground``.
        rng: of moments and places.
    """

    def __init__(self, ground: Ground, alone: Ground, server: ServerProcess, rng: Random) -> None:
        self.ground, self.alone, self.server, self.rng = ground, alone, server, rng
        self.steps = {step.name: step for step in steps(ground, server.url)}
        self.shard_rows = len(RunDir(alone.run).table("seeds", 0))
        self.shards = len(RunDir(alone.run).sealed("seeds"))
        self.allowed = 0  # answers that may be given twice: what was in flight at a kill, and what repair asks again

    def run(self) -> Iterator[Struck]:
        """All faults, stage by stage, and then the end."""
        run, sets = self.ground.run, self.ground.sets
        yield self.killed("seeds", run / "seeds")
        yield self.full_disk("captions", self.shard_rows * JOURNAL_ROW // 2)
        yield from self.asking("captions")
        yield from self.asking("instructions")
        yield self.full_disk("embed", self.shard_rows * VECTOR // 2)
        yield self.killed("embed", run / "text_embeddings")
        yield self.killed("transfer", run / "image_embeddings" / "unicorn")
        acts = [flip_bit, delete, flip_bit, delete, flip_bit]
        self.rng.shuffle(acts)
        for stage, act in zip(DAMAGED, acts, strict=True):
            yield self.damaged(stage, self.shard(stage), act)
        yield self.full_disk(BUILDS[0], self.shard_rows * VECTOR // 2)
        for name, build in zip(SETS, BUILDS, strict=True):
            yield self.killed(build, sets / f".{name}.new" / "data")
        for path, act in zip(self.ground.built, (flip_bit, delete), strict=True):
            yield self._damaged_set(path, self.rng.choice(sorted(path.rglob("*.parquet"))), act)
        yield from self._end()

    # -- while a command runs ----------------------------------------------------------------------------------

    def killed(self, name: str, folder: Path) -> Struck:
        """Killed once some of its files are there; then the same command."""
        count = self.rng.randint(1, max(1, self.shards - 1))
        strike = Strike(files(folder, count), lambda child: child.kill())
        _, struck = run_under(self.ground, self.steps[name], [strike])
        where = f"with {count} files of {folder.name} there" if struck else "(it had ended before)"
        return self.again(f"{name} killed {where}", "nothing: kill -9", name, right=True)

    def full_disk(self, name: str, free: int) -> Struck:
        """No file can grow beyond ``free`` bytes; then the same command, with room."""
        took, _ = run_under(self.ground, self.steps[name], prepare=full_disk(free))
        self.allowed += self.server.slots * bool(self.steps[name].asks)
        right, said = clearly_refused(took, str(self.ground.folder)), last_words(took)
        fault = f"{name} with a disk that is full at {free:,} bytes a file"
        if self.steps[name].asks:
            return Struck(fault, said, "the same command", "it went on, to the faults that follow", right)
        return self.again(fault, said, name, right)

    def again(self, fault: str, said: str, name: str, right: bool) -> Struck:
        """Gives the same command again, which must now come to its end."""
        took, _ = run_under(self.ground, self.steps[name])
        came = "it went on to its end" if not took.status else f"it ended with {took.status}: {last_words(took)}"
        return Struck(fault, said, "the same command", came, right and not took.status)

    def asking(self, name: str) -> Iterator[Struck]:
        """Kills of the server and of the client in turns, while the clocks of both jump; then the same command."""
        before, expected = self.ground.account.answers(), sum(self._answers_alone(name))
        moments = sorted(before + int(expected * self.rng.uniform(0.05, 0.95)) for _ in range(4))
        days = [DAY_S, -DAY_S]
        self.rng.shuffle(days)
        done: list[tuple[str, str]] = []
        for first, day in zip((0, 2), days, strict=True):
            jump = clock_jump(JUMP_AFTER_S, day)
            strikes = [
                Strike(
                    answers(self.ground, moments[first]),
                    lambda child, other=-day: server_restart(  # type: ignore[misc]
                        self.server, self.rng, clock_jump(JUMP_AFTER_S, other)
                    ),
                ),
                Strike(answers(self.ground, moments[first + 1]), lambda child: child.kill()),
            ]
            took, struck = run_under(self.ground, self.steps[name], strikes, jump)
            self.allowed += self.server.slots * struck
            done.append((f"{name}: the client's clock jumped by {day / DAY_S:+.0f} day, the server's against it", ""))
            done += [
                (f"{name}: server killed after {moments[first]:,} answers and started again", "the client ran on"),
                (f"{name}: client killed after {moments[first + 1]:,} answers", "nothing: kill -9"),
            ][:struck]
            if took.status not in (0, -9):
                raise RehearsalError(f"{name} ended with {took.status} under faults: {last_words(took)}")
        last = self.again("", "", name, right=True)
        for fault, said in done:
            yield Struck(fault, said or "nothing, and needed not", last.remedy, last.came, last.right)

    def _answers_alone(self, name: str) -> Iterator[int]:
        counted = self.alone.account.counts()
        return (counted[kind] for kind in self.steps[name].asks)

    # -- between commands --------------------------------------------------------------------------------------

    def shard(self, stage: str) -> Path:
        """A sealed shard of a stage."""
        run = RunDir(self.ground.run)
        stage = f"{stage}/{self.rng.choice(TASKS)}" if stage == "instructions" else stage
        return run.shard_path(stage, self.rng.choice(run.sealed(stage)))

    def damaged(self, stage: str, path: Path, act: Damage, readers: Sequence[str] = BUILDS) -> Struck:
        """One of the steps that read the damaged file must refuse it, verify must find it, and repair must mend it."""
        fault, refused = f"{stage}: {act(path, self.rng)}", list[str]()
        for name in readers:
            took, _ = run_under(self.ground, self.steps[name])
            if took.status and not clearly_refused(took, path.name):
                return Struck(fault, last_words(took), "none was told", "left damaged", False)
            refused += [last_words(took)] * bool(took.status)
        if not refused and readers and stage not in UNREAD:
            return Struck(fault, "nothing", "none was told", "it was built from all the same", False)
        run = self.ground.run
        repair = generation("repair", run, "--config", self.ground.recipe, "--endpoint", self.server.url)
        return self._repaired(fault, path.name, refused, verify(self.ground, run), repair)

    def _damaged_set(self, built: Path, path: Path, act: Damage) -> Struck:
        fault = f"{built.name}: {act(path, self.rng)}"
        repair = generation("repair", built, "--run-dir", self.ground.run)
        return self._repaired(fault, path.name, [], verify(self.ground, built), repair)

    def _repaired(self, fault: str, name: str, refused: list[str], verifying: list[str], repair: list[str]) -> Struck:
        found, _ = run_under(self.ground, Step("verify", verifying))
        before = self.ground.account.answers()
        mended, _ = run_under(self.ground, Step("repair", repair))
        self.allowed += self.ground.account.answers() - before
        whole, _ = run_under(self.ground, Step("verify", verifying))
        right = found.status == 1 and name in found.output and not mended.status and not whole.status
        came = "verify finds nothing more"
        if not right:
            came = f"verify ended with {found.status}, repair with {mended.status}, verify with {whole.status}: "
            came += last_words(mended if mended.status else whole)
        return Struck(fault, refused[0] if refused else "verify found it", "verify, repair", came, right)

    # -- the end -----------------------------------------------------------------------------------------------

    def _end(self) -> Iterator[Struck]:
        for path in (self.ground.run, *self.ground.built):
            took, _ = run_under(self.ground, Step("verify", verify(self.ground, path)))
            yield _told(f"verify {path.name}", f"exit status {took.status}", not took.status, took)
        wrong = counts.unequal_ids(RunDir(self.ground.run))
        yield _told("ids", "; ".join(wrong) or "every seed is once in captions or rejected", not wrong)
        again = self.ground.account.answered_again()
        said = f"{again:,}; at most {self.allowed:,} were in flight at kills or asked again by repair"
        yield _told("answers given twice", said, again <= self.allowed)
        differ = [
            str(path.relative_to(self.alone.sets))
            for path in sorted(self.alone.sets.rglob("*"))
            if path.suffix in (".parquet", ".safetensors")
            and not _same(path, self.ground.sets / path.relative_to(self.alone.sets))
        ]
        said = f"differ from the undisturbed run's: {', '.join(differ)}" if differ else "those of the undisturbed run"
        yield _told("bytes of both data sets", said, not differ)


def _told(what: str, came: str, right: bool, took: Took | None = None) -> Struck:
    return Struck(f"at the end: {what}", last_words(took) if took and took.status else "", "", came, right)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and file_sha256(one) == file_sha256(other)
