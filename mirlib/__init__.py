"""mirlib measures whether a large vision-language model has brought its two modalities together.

The public names below are what a reader needs first; each module documents the rest.
"""

from typing import TYPE_CHECKING, Any

from mirlib.errors import MirlibError, MirlibWarning, UndefinedMIRError
from mirlib.frechet import FrechetDistance, frechet_distance
from mirlib.hidden_states import capture
from mirlib.mir import modality_integration_rate
from mirlib.result import MIRResult
from mirlib.scoring import score, score_batches
from mirlib.streaming import ModalityIntegrationRate

if TYPE_CHECKING:
    from mirlib.callback import MIRCallback

__version__ = "0.1.0"
__all__ = [
    "FrechetDistance",
    "MIRCallback",
    "MIRResult",
    "MirlibError",
    "MirlibWarning",
    "ModalityIntegrationRate",
    "UndefinedMIRError",
    "capture",
    "frechet_distance",
    "modality_integration_rate",
    "score",
    "score_batches",
]


def __getattr__(name: str) -> Any:
    """`MIRCallback` when it is asked for: it needs the training part of transformers, which takes seconds to import."""
    if name == "MIRCallback":
        from mirlib.callback import MIRCallback

        return MIRCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
