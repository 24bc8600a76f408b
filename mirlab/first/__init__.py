"""The first edition of the laboratory: its protocols, claims and figures, which read ``results/0.1``."""
