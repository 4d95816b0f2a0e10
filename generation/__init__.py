"""Generate the Unicorn data sets: seeds, dense captions, instructions, and synthetic image embeddings from text alone.

Read ``pipeline.py`` first: it is the paper's figure. Imports point in one direction only; ``tests/test_layout.py``
lists the modules in that order and fails on an import that points the other way.
"""

__version__ = "0.2.0"
