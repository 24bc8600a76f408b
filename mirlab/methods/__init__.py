"""What a run of the laboratory does beside the plain recipe: the methods of `mirlib.align`, put to the test.

A `Method` is a frozen dataclass, so that a run's configuration holds it, with places where it may step in, from the
choice of the data to the loss. What it leaves alone stays as in the plain recipe. `mirlab.model.train` calls the
places, and no method is named there.
"""

from mirlab.methods.base import METHODS, PLAIN, Batch, Method, Training, configuration_of, register

__all__ = ["METHODS", "PLAIN", "Batch", "Method", "Training", "configuration_of", "register"]
