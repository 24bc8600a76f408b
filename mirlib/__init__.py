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
    from mirlib.planning import plan

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
    "plan",
    "score",
    "score_batches",
]


def __getattr__(name: str) -> Any:
    """`MIRCallback` and `plan` when they are asked for: what they need takes seconds to import."""
    if name == "MIRCallback":
        from mirlib.callback import MIRCallback

        return MIRCallback
    if name == "plan":
        from mirlib.planning import plan

        return plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
