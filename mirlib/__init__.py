"""mirlib measures whether a large vision-language model has brought its two modalities together.

The public names below are what a reader needs first; each module documents the rest. They are imported when they are
first asked for: transformers and torchmetrics take seconds, and ``mir compare`` needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mirlib.errors import MirlibError, MirlibWarning, UndefinedMIRError

if TYPE_CHECKING:
    from mirlib.callback import MIRCallback as MIRCallback
    from mirlib.comparison import Comparison as Comparison
    from mirlib.comparison import compare as compare
    from mirlib.costs import TransportMap as TransportMap
    from mirlib.costs import transport_map as transport_map
    from mirlib.frechet import FrechetDistance as FrechetDistance
    from mirlib.frechet import frechet_distance as frechet_distance
    from mirlib.hidden_states import capture as capture
    from mirlib.interventions import controls as controls
    from mirlib.layer_pairs import layer_map as layer_map
    from mirlib.mir import modality_integration_rate as modality_integration_rate
    from mirlib.planning import plan as plan
    from mirlib.result import MIRResult as MIRResult
    from mirlib.scoring import score as score
    from mirlib.scoring import score_batches as score_batches
    from mirlib.streaming import ModalityIntegrationRate as ModalityIntegrationRate
    from mirlib.words import lens as lens

__version__ = "1.0.0"
_MODULE_OF = {
    "Comparison": "comparison",
    "FrechetDistance": "frechet",
    "MIRCallback": "callback",
    "MIRResult": "result",
    "ModalityIntegrationRate": "streaming",
    "TransportMap": "costs",
    "capture": "hidden_states",
    "compare": "comparison",
    "controls": "interventions",
    "frechet_distance": "frechet",
    "layer_map": "layer_pairs",
    "lens": "words",
    "modality_integration_rate": "mir",
    "plan": "planning",
    "score": "scoring",
    "score_batches": "scoring",
    "transport_map": "costs",
}
__all__ = ["MirlibError", "MirlibWarning", "UndefinedMIRError", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
