"""Can a model that saw text only answer questions about pictures? A made world, measured on two cores.

python -m benchmarks.miniature --seeds 3
"""
