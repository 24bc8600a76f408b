"""mirlib measures whether a large vision-language model has brought its two modalities together.

The public names below are what a reader needs first; each module documents the rest. They are imported when they are
first asked for: transformers and torchmetrics take seconds, and ``mir compare`` needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mirlib.errors import MirlibError, MirlibWarning, UndefinedMIRError

if TYPE_CHECKING:
    from mirlib.callback import MIRCallback
    from mirlib.frechet import FrechetDistance, frechet_distance
    from mirlib.hidden_states import capture
    from mirlib.interventions import controls
    from mirlib.mir import modality_integration_rate
    from mirlib.planning import plan
    from mirlib.result import MIRResult
    from mirlib.scoring import score, score_batches
    from mirlib.streaming import ModalityIntegrationRate

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
    "controls",
    "frechet_distance",
    "modality_integration_rate",
    "plan",
    "score",
    "score_batches",
]


_MODULE_OF = {
    "FrechetDistance": "frechet",
    "MIRCallback": "callback",
    "MIRResult": "result",
    "ModalityIntegrationRate": "streaming",
    "capture": "hidden_states",
    "controls": "interventions",
    "frechet_distance": "frechet",
    "modality_integration_rate": "mir",
    "plan": "planning",
    "score": "scoring",
    "score_batches": "scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
