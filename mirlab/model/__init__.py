"""The models: the miniature and its parts, the real parts, how they are trained, and what they can do."""
