"""Experiments on ways to close the gap: one module each, with its ``PROTOCOL`` and its ``judge``.

``PROTOCOL`` is the declaration, see `mirlab.first.protocol`. ``judge(at)`` decides the claims of that protocol; ``at``
is that of `mirlab.first.verdicts`, with ``at.protocol``, ``at.rows``, ``at.table`` and ``at.claim(...)``. A module may
name claims that are no paper's in ``OURS``.
"""

from mirlab.first.closing import eim, features, masks, moca, stages, weighting

MODULES = (moca, eim, features, masks, stages, weighting)
PROTOCOLS = tuple(module.PROTOCOL for module in MODULES)
JUDGES = {module.PROTOCOL.name: module.judge for module in MODULES}
OURS = frozenset().union(*(getattr(module, "OURS", ()) for module in MODULES))
"""Claims that this book adds to those of the papers."""
