"""The sections of the report: what each shows of a run, beside what the paper has."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..checks import LETTERS
from ..config import TASKS
from . import charts
from .charts import label
from .parts import NONE, Picture, Section, Table, compared, count, duration, number, share, size
from .stages import FINISHED, GENERATED, Stage, seconds_covered
from .texts import Captions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER_ROWS = {  # Unicorn v2: table 6, and the section on Unicorn-471K-Instruction
    "seeds": "about 1.2 million",
    "captions": "1,243,195",
    "instructions/multiple_choice": "171 thousand",
    "instructions/question_answering": "199 thousand",
    "instructions/complex_reasoning": "100 thousand",
}
PAPER_WORDS = {"min": 51, "mean": 129, "max": 483}  # Unicorn v2, appendix D, as the next two
PAPER_RATIO, PAPER_ENTROPY = 0.68, 6.07  # per caption, averaged; bits
PAPER_USD, PAPER_DAYS = 0.0003, 12  # a sample; for 1.2 million captions
_SESSIONS = 12  # in the table; the figure shows all


def funnel(
    stages: Mapping[str, Stage], captions: Captions | None, sources: Mapping[str, Mapping[str, Any]]
) -> Section:
    """Rows of each stage, those that were lost by reason, and the sources."""
    asked = [stages[name] for name in GENERATED if stages[name].items]
    rows = [
        (label(name), count(stage.rows), PAPER_ROWS[name], count(stage.lost), count(stage.pending))
        for name, stage in stages.items()
        if name in PAPER_ROWS
    ]
    tables = [Table("Rows", ("stage", "rows here", "paper", "rejected", "pending"), rows)]
    reasons = [
        (label(stage.name), reason, count(rejected), share(rejected, stage.items))
        for stage in stages.values()
        for reason, rejected in stage.rejected.items()
    ]
    if reasons:
        tables.append(Table("Why rows were rejected", ("stage", "reason", "rows", "share"), reasons))
    if sources:
        counts = captions.sources if captions else {}
        listed = [
            (name, str(facts.get("license", NONE)), count(counts.get(name, 0)))
            for name, facts in sorted(sources.items())
        ]
        tables.append(Table("Seed sources", ("source", "licence", "captions"), listed, folded=len(listed) > 12))
    lead = (
        "A row that fails a check is asked again; what fails to the end is kept apart with its reason and raw answer."
    )
    text = "Shares of rows accepted, rejected and pending in each stage"
    pictures = [Picture("funnel", charts.funnel(asked), text)] if asked else []
    return Section("funnel", "From seeds to rows", [lead], pictures, tables)


def lengths(captions: Captions) -> Section:
    """Words of the captions."""
    found = (captions.mean_words, min(captions.words), max(captions.words))
    rows = [
        (f"words, {name}", number(value), str(paper))
        for name, value, paper in zip(
            ("mean", "fewest", "most"), found, (PAPER_WORDS[key] for key in ("mean", "min", "max")), strict=True
        )
    ]
    text = f"Lengths of {count(captions.rows)} captions, {number(found[0])} words on average"
    return Section(
        "lengths",
        "Length of the captions",
        ["White-space separated words, of all captions."],
        [Picture("lengths", charts.lengths(captions, PAPER_WORDS), text)],
        [compared(rows)],
    )


def diversity(captions: Captions) -> Section:
    """Type-token ratio and entropy, per caption."""
    ratio, entropy = fmean(captions.ratios), fmean(captions.entropies)
    rows = [
        ("type-token ratio", number(ratio), str(PAPER_RATIO)),
        ("token entropy, bits", number(entropy), str(PAPER_ENTROPY)),
    ]
    of = f"over {count(len(captions.ratios))} captions, spread evenly"
    pictures = [
        Picture(
            "type_token_ratio",
            charts.variety(captions.ratios, "type-token ratio", PAPER_RATIO),
            f"Distinct tokens over tokens, {number(ratio)} on average",
        ),
        Picture(
            "entropy",
            charts.variety(captions.entropies, "entropy, bits", PAPER_ENTROPY),
            f"Shannon entropy of a caption's tokens, {number(entropy)} bits on average",
        ),
    ]
    lead = f"Computed per caption and averaged {of}: the paper's figures fit no other reading."
    return Section("diversity", "Diversity", [lead], pictures, [compared(rows)])


def letters(statistics: Mapping[str, Any]) -> Section:
    """Balance of the right letters of multiple choice."""
    found = statistics["letters"]
    total = sum(found.values())
    expected = total / len(LETTERS)
    square = sum((found[letter] - expected) ** 2 for letter in LETTERS) / expected if total else 0.0
    rows = [
        (f"{letter} is right", f"{count(found[letter])} ({share(found[letter], total)})", NONE) for letter in LETTERS
    ]
    rows += [
        ("chi-square, 3 degrees of freedom", number(square), NONE),
        ("p", number(statistics["letters_p"]), NONE),
        ("longest option is right", f"{100 * statistics['longest_right']:.1f} %", NONE),
    ]
    lead = (
        "A small p means that right answers crowd on some letters. Chance is 25 %, for the longest option too. "
        "The paper prints no such figure."
    )
    text = f"Right answers of {count(total)} multiple-choice items by letter"
    picture = Picture("letters", charts.letters(found), text)
    return Section("letters", "Balance of the letters", [lead], [picture], [compared(rows)])


def kinds(by_task: Mapping[str, Mapping[str, Any]]) -> Section:
    """Kinds of questions of each task."""
    counts = {task: statistics["question_kinds"] for task, statistics in by_task.items()}
    names = sorted({name for found in counts.values() for name in found})
    rows = [
        (name.replace("_", "/"), *(count(found.get(name, 0)) for found in counts.values()), NONE)
        for name in sorted(names, key=lambda name: -sum(found.get(name, 0) for found in counts.values()))
    ]
    lead = (
        "By the first question word; yes/no questions begin with a verb. The paper asks for varied question words and "
        "prints no counts."
    )
    text = f"Kinds of {count(sum(s['items'] for s in by_task.values()))} questions, by task"
    head = ("items that ask", *(label(task) for task in counts), "paper")
    return Section(
        "questions",
        "Kinds of questions",
        [lead],
        [Picture("question_kinds", charts.kinds(counts), text)],
        [Table("Items", head, rows)],
    )


def throughput(sessions: Sequence[Mapping[str, Any]], stages: Mapping[str, Stage]) -> Section:
    """Rows and tokens a second of the sessions."""
    rows = []
    for name in GENERATED:
        of_stage = [session for session in sessions if session["stage"] == name]
        if seconds := seconds_covered(of_stage):
            rate = sum(session["rows"] for session in of_stage) / seconds
            paper = number(1_243_195 / (PAPER_DAYS * 86_400)) if name == "captions" else NONE
            rows.append((f"{label(name)} a second", number(rate), paper))
    shown = [
        (
            str(session["begun"]).replace("T", " ").removesuffix("+00:00"),
            label(session["stage"]),
            count(session["rows"]),
            duration(session["seconds"]),
            number(session["rows_per_s"]),
            number(session["completion_tokens_per_s"]),
            count(sum(session["retries"].values())),
        )
        for session in sessions[-_SESSIONS:]
    ]
    head = ("began (UTC)", "stage", "rows", "took", "rows/s", "tokens/s", "asked again")
    title = f"The last {_SESSIONS} of {len(sessions)} sessions" if len(sessions) > _SESSIONS else "Sessions"
    lead = f"A session is one start of a stage, to its end or its stop. The paper's captions took {PAPER_DAYS} days."
    text = f"Rows a second of {len(sessions)} sessions over time"
    retried = [
        (label(stage.name), cause, count(times)) for stage in stages.values() for cause, times in stage.retries.items()
    ]
    tables = [compared(rows), Table(title, head, shown)]
    if retried:
        tables.append(Table("Requests asked again", ("stage", "cause", "times"), retried))
    return Section(
        "throughput",
        "Throughput",
        [lead],
        [Picture("throughput", charts.throughput(sessions), text)],
        tables,
    )


def tokens(stages: Mapping[str, Stage], prices: tuple[float, float] | None) -> Section:
    """Tokens of each stage and, by ``prices`` in USD a million prompt and answer tokens, what they cost."""
    asked = [stages[name] for name in GENERATED if stages[name].requests or stages[name].completion_tokens]
    rows = [
        (
            label(stage.name),
            count(stage.requests),
            count(stage.prompt_tokens),
            count(stage.completion_tokens),
            number((stage.prompt_tokens + stage.completion_tokens) / max(1, stage.rows)),
        )
        for stage in asked
    ]
    head = ("stage", "requests", "prompt tokens", "answer tokens", "tokens an accepted row")
    costs = [
        (
            f"USD {what}, {label(stage.name)}",
            number(usd),
            str(PAPER_USD) if each and stage.name == "captions" else NONE,
        )
        for stage in asked
        for what, each in (("an accepted row", True), ("in all", False))
        for usd in [cost(stage, prices) / (max(1, stage.rows) if each else 1)]
    ]
    if not prices:
        costs = [("USD a caption", "give --usd-per-million IN OUT", str(PAPER_USD))]
    lead = "All that was asked and answered, rejected attempts included."
    text = "Prompt and answer tokens for each accepted row"
    picture = [Picture("tokens", charts.tokens(asked), text)]
    return Section("tokens", "Tokens and cost", [lead], picture, [compared(costs), Table("Tokens", head, rows)])


def gap(diagnostics: Mapping[str, Any], pictures: Mapping[str, tuple["Figure", str]]) -> Section:
    """The diagnostics of the modality gap, as ``diagnose`` has them."""
    tables, absent = list[Table](), dict[str, list[str]]()
    for section in diagnostics["sections"]:
        rows = [
            (figure["name"], number(figure["here"]), figure["paper"] or NONE, figure["note"])
            for figure in section["figures"]
            if figure["here"] is not None
        ]
        if rows:
            tables.append(Table(section["title"], ("figure", "here", "paper", "note"), rows, True, bool(tables)))
        else:
            absent.setdefault(section["figures"][0]["needs"], []).append(section["title"])
    lead = list(diagnostics["remarks"])
    lead += [f"Not measured: {', '.join(titles).lower()}. That needs {needs}." for needs, titles in absent.items()]
    shown = [Picture(name.removesuffix(".png"), figure, text) for name, (figure, text) in pictures.items()]
    return Section("gap", "The modality gap", lead, shown, tables)


def overview(stages: Mapping[str, Stage]) -> Table:
    """How far each stage is."""
    rows = [
        (label(name), stage.state, f"{stage.shards} of {stage.due}" if stage.due else str(stage.shards))
        + (count(stage.rows), size(stage.bytes))
        for name, stage in stages.items()
    ]
    return Table("How far each stage is", ("stage", "state", "shards", "rows", "size"), rows)


def missing(stages: Mapping[str, Stage]) -> Iterator[tuple[str, str]]:
    """What there is not yet, and the sub-command that makes it, in the order in which they are to be given."""
    for name, stage in stages.items():
        if stage.state != FINISHED:
            how = f"{stage.shards} of {stage.due} shards" if stage.shards else stage.state
            yield f"{label(name)}, {how}", stage.command


def statistics(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The counts over the conversations of each task that has ended, out of the manifest's stages."""
    records = {task: run.get(f"instructions/{task}", {}) for task in TASKS}
    return {
        task: record["statistics"] for task, record in records.items() if record.get("statistics", {}).get("items")
    }


def cost(stage: Stage, prices: tuple[float, float] | None) -> float:
    """USD of a stage's tokens."""
    price_in, price_out = prices or (0.0, 0.0)
    return (stage.prompt_tokens * price_in + stage.completion_tokens * price_out) / 1e6
