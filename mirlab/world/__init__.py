"""The world that the miniature sees and reads: scenes, their pictures, and the language about them."""

from mirlab.world.scenes import *  # noqa: F403
from mirlab.world.scenes import __all__  # noqa: F401
