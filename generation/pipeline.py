"""The pipeline from top to bottom: the paper's figure (arXiv 2503.22655) as one function.

sources ──> seeds ──> captions ──> instructions/<task> ──> judgements/<task>
                         │
                         └──> text_embeddings ──> image_embeddings/<method>
"""

from .logs import say
from .store import Run


def run_pipeline(run: Run, extend: bool = False) -> None:
    """Make what is due of every stage from the stage before it; ``extend`` adds the seeds that the run does not have.
    A UnicornError says that a stage cannot be made; the same call then goes on from there."""
    from .captions import make_captions
    from .embed import make_text_embeddings
    from .instructions import make_instructions
    from .judge import make_judgements
    from .seeds import make_seeds
    from .transfer.stage import make_image_embeddings

    # Stage 0. Caption files, Hub data sets and domain labels -> seeds: id, seed, source, license.
    make_seeds(run, extend)

    # Stage 1. One request a seed, c = LLM(s) -> captions: one dense paragraph for each seed, same id.
    make_captions(run)

    # Stage 2. A sample of the captions for each task -> conversations of several questions, as JSON by grammar.
    make_instructions(run)

    # A second model checks every question against its caption; what it does not confirm is dropped (if asked for).
    make_judgements(run)

    # Stage 3a. u = encoder(c), unit rows, float16 -> text embeddings, row for row the captions of the same shard.
    make_text_embeddings(run)

    # Stage 3b. v = Norm(u - mean(U)) or another method -> synthetic image embeddings, and the statistics to apply to
    # real images when the trained model sees them.
    make_image_embeddings(run)

    say(f"{run.path} is finished. Build a data set of it: python unicorn_1_2m.py --run-dir {run.path} --output DIR")
