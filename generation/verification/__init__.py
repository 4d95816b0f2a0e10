"""Whether everything that a run or a built data set holds is whole and belongs together, and its mending.

    faults      what can be wrong, where, and what mends it
    layout      which stages and files a run should have
    texts       a shard of seeds, captions, conversations or verdicts
    vectors     a shard of embeddings, and a transfer's statistics
    shards      one shard through all stages
    counts      what the manifest says of whole stages
    of_run      all of a run
    of_built    all of a built data set
    command     ``python -m generation verify``
    plan        what a run's faults ask for
    opening     broken shards back among the unfinished ones
    repair      the mending of a run: ``python -m generation repair RUN``
    rebuild     the mending of a built data set: ``python -m generation repair BUILT --run-dir RUN``

Shards are looked at one by one, all stages of one number together, since nothing refers to a shard of another number:
memory holds two shards at a time, and each byte is read once.
"""
