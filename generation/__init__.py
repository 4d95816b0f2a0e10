"""Text-only synthesis of vision-language training data (Unicorn, arXiv 2503.22655).

The stages, each a module and a sub-command of ``python -m generation``:
seeds -> captions -> instructions, and captions -> embed -> transfer.
"""

__version__ = "0.1.0"
