"""What the faults of a run ask for: which files are made again, and what is made from those, too."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import RunError
from ..files import file_sha256
from ..rundir import RunDir
from ..tensors import open_shard
from .faults import ASIDE, Fault, Findings, file_fault, record_fault
from .layout import is_finished, kind_of, place_of

EMBEDDINGS = ("text_embeddings", "image_embeddings", "unpaired_images")


@dataclass(frozen=True)
class Opening:
    """A shard of text of which rows must be asked about again.

    Attributes:
        stage, shard: which.
        accepted, rejected: whether these rows of it stay.
        asked: how many rows are to be asked about; those of a task whose captions change may be a few more or fewer.
        why: what happened to it.
    """

    stage: str
    shard: int
    accepted: bool
    rejected: bool
    asked: int
    why: str


@dataclass
class Plan:
    """What a repair does, in this order.

    Attributes:
        aside: unknown files that are moved away.
        obsolete: journals that are moved away, since what they are about becomes another text.
        records: values of the manifest that are corrected.
        journals: of unfinished shards, that lose their damaged lines.
        seeds: shards that are read again.
        opened: shards of text that are asked about again, by (stage, shard).
        remade: embedding files that are made again, by name, each with its stage.
        expected: sha256 of what must come out as it was, by name.
        stages: that are then run to their end; the others of which something is due were unfinished before.
    """

    aside: list[str] = field(default_factory=list)
    obsolete: list[str] = field(default_factory=list)
    records: list[Fault] = field(default_factory=list)
    journals: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    opened: dict[tuple[str, int], Opening] = field(default_factory=dict)
    remade: dict[str, str] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.aside or self.records or self.journals or self.seeds or self.opened or self.remade)

    def words(self) -> Iterator[str]:
        """What will be done, line by line."""
        for name in self.aside:
            yield f"{name}: moved to {ASIDE}/, since the manifest does not know it"
        for name in self.obsolete:
            yield f"{name}: moved to {ASIDE}/, since it is about texts that become others"
        for fault in self.records:
            yield f"{fault.what}: corrected"
        for name in self.journals:
            yield f"{name}: loses its damaged lines, whose rows are asked about again; a copy goes to {ASIDE}/"
        for shard in self.seeds:
            yield f"seeds/{shard:05d}.parquet: read again from the recipe's sources; it must come out as it was"
        for one in self.opened.values():
            yield f"{one.stage}, shard {one.shard}: {one.asked} rows are asked of a server again, {one.why}"
        for name in self.remade:
            same = "it must come out as it was" if name in self.expected else "from other texts than before"
            yield f"{name}: made again; {same}"
        if self.texts_change and any(kind_of(stage) == "image_embeddings" for stage in self.stages):
            yield "image_embeddings: all shards are made again, since their mean moves with the new texts"

    @property
    def texts_change(self) -> bool:
        """Whether captions become others, and with them the embeddings."""
        return any(stage == "captions" for stage, _ in self.opened)


def plan_repair(run: RunDir, found: Findings) -> Plan:
    """Makes a plan out of what was found.

    Raises:
        RunError: something that is broken cannot be made again; names all of it.
    """
    plan = Plan()
    broken: defaultdict[tuple[str, int], set[bool]] = defaultdict(set)  # {rejected rows?} by (stage, shard)
    for fault in found.faults:
        if fault.kind == "unknown":
            plan.aside.append(fault.file)
        elif fault.kind == "record":
            plan.records.append(fault)
        elif fault.kind == "journal":
            plan.journals = list(dict.fromkeys([*plan.journals, fault.file]))
        elif fault.file.startswith("transfer/"):
            plan.remade[fault.file] = f"image_embeddings/{fault.file.split('/')[1].removesuffix('.safetensors')}"
        elif right := _vouched(run, fault.file):
            plan.records += [one for one in right if one not in plan.records]
        else:
            stage, shard, rejected = place_of(fault.file)
            broken[stage, shard].add(rejected)
    _refuse_imported(run, broken)
    for (stage, shard), parts in sorted(broken.items()):
        if stage == "seeds":
            plan.seeds.append(shard)
        elif kind_of(stage) in EMBEDDINGS:
            plan.remade[_name(run, stage, shard)] = stage
        else:
            why = "since their file is broken" if False in parts else "since the file of the rejected rows is broken"
            _open(run, plan, stage, shard, Opening(stage, shard, False not in parts, True not in parts, 0, why))
    _follow(run, plan)
    return plan


def _name(run: RunDir, stage: str, shard: int) -> str:
    return str(run.shard_path(stage, shard).relative_to(run.path))


def _refuse_imported(run: RunDir, broken: dict[tuple[str, int], set[bool]]) -> None:
    lost = [f"{stage}, shard {shard}" for stage, shard in broken if run.imported(stage) is not None]
    if lost:
        raise RunError(
            f"{run.path}: {'; '.join(lost)}: imported from the original's files, so no server can be asked for these "
            "rows. Restore the files from a copy, or import the original again into another run directory; nothing "
            "was changed"
        )


def _vouched(run: RunDir, name: str) -> list[Fault]:
    """Where a file differs from its record, and is yet what others say they were made from: the record is wrong."""
    stage, shard, rejected = place_of(name)
    path = run.path / name
    if rejected or not path.is_file() or stage not in ("captions", "text_embeddings"):
        return []
    found, record = file_sha256(path), run.record(stage, shard)
    if stage == "captions":
        texts = run.manifest["stages"].get("text_embeddings", {"files": {}})["files"]
        other = _name(run, "text_embeddings", shard)
        if other not in texts or file_fault(run.path, other, texts[other], ()):
            return []
        vouched = open_shard(run.path / other).facts.get("captions_sha256") == found
    else:
        moved = [r["fingerprint"] for s, r in run.manifest["stages"].items() if kind_of(s) == "image_embeddings"]
        vouched = any(fingerprint["inputs"].get(str(shard)) == found for fingerprint in moved)
    if not vouched or found == record["sha256"]:
        return []
    at = ("stages", stage, "files", name)
    size = path.stat().st_size
    faults = [record_fault((*at, "sha256"), record["sha256"], found, "others were made from")]
    return faults + [record_fault((*at, "bytes"), record["bytes"], size, "the file has")] * (size != record["bytes"])


def _open(run: RunDir, plan: Plan, stage: str, shard: int, opening: Opening) -> None:
    """Adds a shard that is asked about again, and how many of its rows are."""
    record = run.record(stage, shard)
    rejected = sum(record["rejected_by_reason"].values())
    asked = (0 if opening.accepted else record["rows"]) + (0 if opening.rejected else rejected)
    plan.opened[stage, shard] = Opening(stage, shard, opening.accepted, opening.rejected, asked, opening.why)


def _follow(run: RunDir, plan: Plan) -> None:
    """Adds what is made from that which changes, and the stages that have something to make."""
    stages = run.manifest["stages"]
    for stage, shard in [key for key in plan.opened if key[0] == "captions"]:
        if not plan.opened[stage, shard].accepted:
            for task in [name for name in stages if kind_of(name) == "instructions"]:
                if shard in run.sealed(task):
                    why = "since their captions become other texts"
                    _open(run, plan, task, shard, Opening(task, shard, False, False, 0, why))
                plan.obsolete += _journal(run, task, shard)
        if shard in run.sealed("text_embeddings"):
            plan.remade[_name(run, "text_embeddings", shard)] = "text_embeddings"
    for stage, shard in [key for key in plan.opened if kind_of(key[0]) == "instructions"]:
        if not plan.opened[stage, shard].accepted:
            plan.obsolete += _journal(run, f"judgements/{stage.split('/')[1]}", shard)
    for name, stage in plan.remade.items():
        if not plan.texts_change:
            plan.expected[name] = stages[stage]["files"][name]["sha256"]
    concerned = {stage for stage, _ in plan.opened} | set(plan.remade.values())
    if "text_embeddings" in concerned or "unpaired_images" in concerned:
        concerned |= {stage for stage in stages if kind_of(stage) == "image_embeddings"}
    concerned.discard("unpaired_images")
    if any(not one.accepted for one in plan.opened.values() if one.stage == "captions"):
        concerned |= {stage for stage in stages if kind_of(stage) == "instructions"}
    plan.stages = [stage for stage in stages if stage in concerned and is_finished(run, stage)]


def _journal(run: RunDir, stage: str, shard: int) -> list[str]:
    path = run.journal_path(stage, shard)
    return [str(path.relative_to(run.path))] if path.is_file() else []
