"""Stage 0: seeds, open-domain captions and domain labels put into templates (paper, section on Unicorn-1.2M-Seed).
Every choice is a stable hash of (random seed, source, text), so that another source or a higher limit moves none."""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..config import CaptionFile, Filters, HubCaptions, Recipe
from ..dedup import NGRAM, find_repeats
from ..errors import RunError, SeedError, StageFailed
from ..files import read_lines, sha256, write_json
from ..logs import Progress, counted, say
from ..recipe import read_yaml
from ..stages import MAX_SHARDS, SEED_SCHEMA, SEEDS, row_id, stable_hash
from ..store import Run, parquet
from .sources import BadRow, read_domains, read_rows, row_captions

logger = logging.getLogger(__name__)
_WORDS = read_yaml(Path(__file__).with_name("filters.yaml"), "word lists")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LATIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ]+")
_PATTERNS = {str(reason): re.compile("|".join(parts), re.I) for reason, parts in _WORDS["patterns"].items()}
_PATTERNS["boilerplate"] = re.compile(rf"\b(?:{'|'.join(_WORDS['boilerplate'])})\b|©|®|™|\|", re.I)
_ENGLISH, _OTHER, _NAMES = (frozenset(_WORDS[key].split()) for key in ("english", "foreign", "foreign_or_names"))
_LISTING = re.compile(r"[,;|/•·]|\s[-–—]\s")


def make_seeds(run: Run, extend: bool = False) -> None:
    """Read all sources of the recipe and write them as shards of seeds, in an order drawn at random.

    A finished stage is left as it is, an unfinished one made again; ``extend`` adds the seeds that the run does not
    have yet, as new shards. Errors: SeedError, a source cannot be used; StageFailed, no caption became a seed;
    RunError, the stage was begun with other settings or files and ``extend`` is off, or another process makes it.
    """
    with run.claim(SEEDS) as held:
        if not held:
            raise RunError(f"{run.path}: another process is making the seeds; wait for its end")
        recipe, facts, present = run.recipe, run.facts(SEEDS), run.shards(SEEDS)
        finished = bool(facts.get("finished")) and present == list(range(facts["shards"]))
        if finished and not extend:
            run.begin(SEEDS, {"sha256": _hashes(recipe, facts["identity"]["sha256"])})
            return
        kept = len(present) if finished else facts.get("kept", 0)  # shards of the run before its extension
        if gone := [run.file(SEEDS, shard) for shard in range(kept) if shard not in present]:
            raise RunError(f"{gone[0]} is missing, and cannot be made again: the run was extended since. Restore it")
        tables = [run.table(SEEDS, shard, ["source", "seed"]) for shard in range(kept)]
        old = [(row["source"], row["seed"]) for table in tables for row in table.to_pylist()]
        sources: tuple[Any, ...] = (*recipe.seeds.captions, *recipe.seeds.hub)
        samples = [read_source(source, recipe) for source in sources]
        for name, files, origin, texts in read_domains(recipe):
            samples.append(sample := Sample(name, recipe.random_seed, files, **origin))
            sample.read = len(texts)
            for text in texts:
                sample.add(text)
        seeds = _choose(recipe, samples, old)
        names = [*(name for sample in samples for name in sample.files), recipe.seeds.drop_contaminated]
        identity = {"sha256": _hashes(recipe, {name: "" for name in names if name})}
        # Nothing was written until here, so that whatever is wrong with the sources leaves the run as it was.
        if not (facts and extend):
            run.begin(SEEDS, identity)
        facts = run.facts(SEEDS) | {"settings": recipe.settings(SEEDS.name), "identity": identity, "kept": kept}
        size = recipe.seeds.shard_rows
        facts["shards"] = kept - (-len(seeds) // size)
        made = Counter(name for name, _ in old) + Counter(sample.name for sample, _ in seeds)
        facts["sources"] = facts.get("sources", {}) | {
            one.name: one.facts | {"read": one.read, "seeds": made[one.name], "dropped": +one.dropped}
            for one in samples
        }
        write_json(run.directory(SEEDS) / "stage.json", facts | {"finished": False})
        for shard in counted(range(kept, facts["shards"]), SEEDS.name, "shard"):
            part = seeds[(shard - kept) * size : (shard - kept + 1) * size]
            ids = [row_id(shard, row) for row in range(len(part))]
            columns = zip(*((text, sample.name, sample.facts["license"]) for sample, text in part), strict=True)
            run.commit(SEEDS, shard, len(part), parquet(pa.table([ids, *columns], SEED_SCHEMA)))
        for shard in run.shards(SEEDS)[facts["shards"] :]:  # left by an interrupted call
            run.reopen(SEEDS, shard)
            run.file(SEEDS, shard).unlink(missing_ok=True)
        write_json(run.directory(SEEDS) / "stage.json", facts | {"finished": True})
        say(f"{'source':<28} {'captions':>10} {'seeds':>10}  dropped")
        for sample in samples:
            say(f"{sample.name:<28} {sample.read:>10,} {made[sample.name]:>10,}  {reasons(sample.dropped)}")


def _hashes(recipe: Recipe, known: dict[str, str]) -> dict[str, str]:
    """Return the sha256 of files by their names in the recipe; of those that are gone, the known one."""
    paths = {name: recipe.directory / name for name in known}
    return {name: sha256(path) if path.is_file() else known[name] for name, path in paths.items()}


def _choose(recipe: Recipe, samples: list["Sample"], old: list[tuple[str, str]]) -> list[tuple["Sample", str]]:
    """Return the new seeds in their order; those that are dropped are counted in their samples. The seeds that the run
    has already (``old``, source and text) stay, and nothing may repeat them."""
    names = Counter(sample.name for sample in samples)
    if twice := [name for name, count in names.items() if count > 1]:
        raise SeedError(f"several sources of seeds are named {', '.join(twice)}; give each its own name")
    held, settings = set(old), recipe.seeds
    seeds = [(sample, text) for sample in samples for text in sample.texts() if (sample.name, text) not in held]
    seeds.sort(key=lambda seed: stable_hash(recipe.random_seed, "order", seed[0].name, seed[1]))
    texts = [text for _, text in (*old, *seeds)]
    questions = recipe.path(settings.drop_contaminated) if settings.drop_contaminated else None
    dropped = dict[int, str]()
    if settings.drop_duplicates or questions:
        found = find_repeats(texts, NGRAM[SEEDS.name], settings.drop_duplicates, questions, len(old))
        dropped = dict.fromkeys(found[0], "duplicate") | dict.fromkeys(found[1], "contaminated")
    for row, reason in dropped.items():
        seeds[row - len(old)][0].dropped[reason] += 1
    seeds = [seed for row, seed in enumerate(seeds, len(old)) if row not in dropped]
    if not seeds and not old:
        why = "; ".join(f"{sample.name}: {reasons(sample.dropped)}" for sample in samples) or "there is no source"
        raise StageFailed(f"no caption became a seed. Dropped: {why}. Change the filters or the sources")
    if len(seeds) > (MAX_SHARDS - 1) * settings.shard_rows - len(old):
        raise SeedError(f"{len(seeds):,} seeds do not fit into {MAX_SHARDS:,} shards; raise seeds.shard_rows")
    return seeds


def reasons(dropped: Counter[str]) -> str:
    """Return counts by reason in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted((+dropped).items())) or "none"


class Sample:
    """The captions that are drawn from one source: up to ``limit``, chosen by the source's name and their texts alone.
    ``facts`` (license, origin) go to ``stage.json``; ``files`` are those that were read, as the recipe names them.
    ``read`` counts all captions: the seeds, and those in ``dropped``, by reason."""

    def __init__(self, name: str, random_seed: int, files: list[str], limit: int | None = None, **facts: Any) -> None:
        self.name, self.files, self.limit, self.facts = name, files, limit, facts
        self.key, self.read, self.dropped = (random_seed, name), 0, Counter[str]()
        self._found, self._highest = dict[int, str](), 2**63  # by hash: the lowest are drawn, none above the highest

    def add(self, text: str, group: str | None = None) -> None:
        """Take a caption in; of the captions of one group (image) one is drawn. Up to twice the limit are held."""
        draw = stable_hash(*self.key, *(("text", text) if group is None else ("group", group)))
        if draw > self._highest:
            self.dropped["over_limit"] += 1
            return
        if (other := self._found.get(draw)) is not None:
            self.dropped["repeated" if other == text else "same_image"] += 1
            text = min(text, other, key=lambda caption: stable_hash(*self.key, caption))
        self._found[draw] = text
        if self.limit and len(self._found) > 2 * self.limit:
            self._cut()

    def _cut(self) -> None:
        kept = dict(sorted(self._found.items())[: self.limit])
        self.dropped["over_limit"] += len(self._found) - len(kept)
        self._found, self._highest = kept, max(kept, default=0)

    def texts(self) -> list[str]:
        """Return the captions that are drawn, and count the others in ``dropped``; call it once."""
        self._cut()
        texts = list(dict.fromkeys(self._found.values()))  # two images may have the same caption
        self.dropped["repeated"] += len(self._found) - len(texts)
        return texts


def read_source(source: CaptionFile | HubCaptions, recipe: Recipe) -> Sample:
    """Read, filter and draw the captions of one source. A SeedError says that it cannot be read, lacks a column, or
    has a broken row: any without filters, else most."""
    filters, blocked, broken, first = source.filters, list[str](), 0, ""
    files = [source.path] if isinstance(source, CaptionFile) else []
    if filters and filters.blocked_words:
        files.append(filters.blocked_words)
        path = recipe.directory / filters.blocked_words
        lines = read_lines(path, f"blocked_words of '{source.name}'")
        if not (blocked := [plain_words(line) for line in lines if not line.startswith("#")]):
            raise SeedError(f"{path} holds no word; leave blocked_words out")
    facts = source.model_dump(include={"license", "dataset", "config", "split", "revision"})
    sample = Sample(source.name, recipe.random_seed, files, source.limit, **facts)
    try:
        with Progress(f"seeds of {source.name}", None) as bar:
            for place, cells in read_rows(source, recipe.directory):
                bar.update()
                captions, group = row_captions(cells, source.column)
                sample.read += len(captions)
                for caption in captions:
                    reason = filters and isinstance(caption, str) and reject(caption, filters, blocked)
                    if isinstance(caption, BadRow):
                        reason, fault = caption.reason, f"{place}: {caption.detail}"
                        if filters is None:
                            raise SeedError(f"{fault}. Correct it, or give the source filters, which drop such rows")
                        if reason != "empty":
                            broken, first = broken + 1, first or fault
                            if reason not in sample.dropped:
                                logger.warning("seed source '%s': dropped as %s: %s", source.name, reason, fault)
                    elif not reason:
                        sample.add(caption, group)
                    if reason:
                        sample.dropped[reason] += 1
        if broken > sample.read / 2:
            raise SeedError(f"{broken:,} of {sample.read:,} captions are dropped ({reasons(sample.dropped)}): {first}")
    except SeedError as error:
        raise SeedError(f"seed source '{source.name}': {error}") from error
    return sample


def reject(text: str, settings: Filters, blocked: Iterable[str] = ()) -> str | None:
    """Return the first reason why a caption (its white space single blanks) cannot be a seed, or None.

    ``blocked`` are words and phrases that it must not hold, as ``plain_words`` makes them. Language is decided by
    function words of seven languages, a heuristic of ours: a caption without any ("red sports car") counts as English,
    and further languages in Latin letters may pass.
    """
    if not settings.words[0] <= (count := text.count(" ") + 1) <= settings.words[1]:
        return "too_short" if count < settings.words[0] else "too_long"
    for reason, pattern in _PATTERNS.items():
        if pattern.search(text):
            return reason
    plain = plain_words(text)
    if any(entry in plain for entry in blocked):
        return "blocked_word"
    if sum(map(len, _LATIN.findall(text))) < 0.75 * (len(text) - text.count(" ")):
        return "alphabet"
    words = plain.split()
    if settings.language == "en":
        other = sum(word in _OTHER for word in words) + sum(word in _NAMES for word in words) // 2
        if other > sum(word in _ENGLISH for word in words):
            return "language"
    count = max(1, len(words))
    signs = (  # of a caption
        0.1 <= sum(word in _ENGLISH for word in words) / count <= 0.75,  # function words
        len(_LISTING.findall(text)) / count <= 0.25,  # else it is a list
        sum(word[0].isupper() for word in _WORD.findall(text)[1:]) / max(1, count - 1) <= 0.5,
        len(set(words)) / count >= 0.7,
        sum(any(map(str.isdigit, word)) for word in words) / count <= 0.2,
    )
    return "unlike_caption" if sum(signs) < 3 else None


def plain_words(text: str) -> str:
    """Return the case-folded words of a text between single blanks, one at each end: whole words are found in it."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "
