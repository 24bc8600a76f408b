"""Experiments on ways to close the gap: one module each, with its ``PROTOCOL`` and its ``judge``.

``PROTOCOL`` is the declaration, see `mirlib.lab.protocol`. ``judge(at)`` decides the claims of that protocol; ``at`` is
that of `mirlib.lab.verdicts`, with ``at.protocol``, ``at.rows``, ``at.table`` and ``at.claim(...)``.
"""

MODULES = ()
PROTOCOLS = tuple(module.PROTOCOL for module in MODULES)
JUDGES = {module.PROTOCOL.name: module.judge for module in MODULES}
