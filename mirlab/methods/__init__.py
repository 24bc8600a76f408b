"""What a run of the laboratory does beside the plain recipe: the methods of `mirlib.align`, put to the test.

A run holds a `mirlab.recipes.Method`, which is data. What it does is a `Technique` in a file of this folder, with
places where it may step in, from the choice of the data to the loss. `mirlab.model.train` calls the places, and no
method is named there.
"""

import pkgutil
from dataclasses import fields
from importlib import import_module

from mirlab import recipes
from mirlab.methods.base import PLAIN, TECHNIQUES, Batch, Technique, Training
from mirlib.errors import MirlibError

__all__ = ["PLAIN", "TECHNIQUES", "Batch", "Technique", "Training", "technique"]


def technique(method: recipes.Method) -> Technique:
    """What a method does.

    Raises:
        MirlibError: There is no such method, it has no such option, or the option has no such value.

    Examples:
        >>> technique(recipes.Method("masks", variant="prefix"))
        AttentionMask(variant='prefix')
    """
    for module in pkgutil.iter_modules(__path__):  # they know the trainer, which knows this package
        import_module(f"{__name__}.{module.name}")
    if method.name not in TECHNIQUES:
        raise MirlibError(f"no method is called {method.name!r}; there is {', '.join(sorted(TECHNIQUES))}")
    made = TECHNIQUES[method.name]
    options = [field.name for field in fields(made)]
    for name, _ in method.options:
        if name not in options:
            known = f"there is {', '.join(options)}" if options else "it has none"
            raise MirlibError(f"the method {method.name} has no option {name!r}; {known}")
    try:
        return made(**dict(method.options))
    except (TypeError, ValueError) as error:
        raise MirlibError(f"the method {method.name}: {error}") from error
