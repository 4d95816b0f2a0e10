"""Stages in many tasks, under datatrove's executors (local processes, Slurm, Ray).

A command such as ``captions`` becomes three jobs, one after the other:

    plan      1 task    begins the stage and shares out the shards that are due; a transfer is fitted here
    work      N tasks   each makes its own shards, and records them in its part (``parts.py``)
    finish    1 task    merges the parts, then runs the ordinary stage, which does what needs the whole run

stages       what each job does, without datatrove
merge        the parts become one record
step         what datatrove runs: a job as a process of its own
executors    datatrove's executors, by a recipe's ``cluster`` section
launch       a command's jobs, handed to an executor

The seeds are one task, since duplicates among them are looked for in all of them: they have a finish alone.
"""
