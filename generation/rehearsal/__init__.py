"""The whole pipeline at any size, with stand-ins for the language model and for the encoder, and all else real.

words, scenes   made-up scenes: what a writer would say, ask and answer about them
sources         a file of seeds, dirt and duplicates included, and the recipe of the rehearsal
answers         what the stand-in says to a request: a function of the request
account         what the server did, in a file that outlives its process
server          the stand-in behind HTTP, with faults; a process of its own
load            how much that server can take, asked by a client that does nothing else
children        the project's commands as child processes: time, CPU, memory
reading         what a user does with built data sets
stages          the commands of a rehearsal, and whether their counts add up
table           what was measured, as text, Markdown and JSON
chaos, faults   the same under faults
command         ``python -m generation rehearse``
"""
