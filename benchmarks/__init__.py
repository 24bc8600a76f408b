"""Speed and memory of mirlib beside the usual ways of computing the same: ``make bench``, or ``python -m benchmarks``.

Ratios on one machine, never seconds against a limit: a slower machine gives the same table.
"""
