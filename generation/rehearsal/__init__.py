"""The whole pipeline at any size, with stand-ins for the language model and for the encoder, and all else real.

    words, scenes   made-up scenes: what a writer would say, ask and answer about them
    sources         a file of seeds, dirt and duplicates included, and the recipe of the rehearsal
    answers         what the stand-in says to a request: a function of the request
    account         what the server did, in files that outlive its process
    server          the stand-in behind HTTP, with faults; a process of its own
    load            how much that server can take, asked by clients that do nothing else
    children        commands as child processes: time, CPU, memory
    ground          the folder of a rehearsal, and the server's process
    reading         what a user does with built data sets
    steps           the project's commands, one after the other
    counts          whether their counts add up
    table           what was measured, as Markdown and JSON
    faults, clock   what is done to a run under ``--chaos``
    chaos           a disturbed run beside an undisturbed one
    command         ``python -m generation rehearse``

The stand-in for the encoder is ``generation/encoders/stand_in.py``.
"""
