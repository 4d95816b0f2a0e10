"""What makes an answer acceptable: pure functions that return a reason code, or the accepted content.

A caption is one finished paragraph of plain English that keeps to its seed (``dense``). An instruction answer is JSON
with sound items: different questions that the scene answers (``items``). Rules see the form, invented facts and
changed attributes; whether an answer is true is for the judge (``generation/judge.py``). Word lists and patterns are
in ``english.yaml``.
"""
