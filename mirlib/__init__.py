"""mirlib measures whether a large vision-language model has brought its two modalities together.

The public names below are what a reader needs first; each module documents the rest. They are imported when they are
first asked for: transformers and torchmetrics take seconds, and ``mir compare`` needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mirlib.errors import MirlibError, MirlibWarning, UndefinedMIRError

if TYPE_CHECKING:
    from mirlib.callback import MIRCallback
    from mirlib.comparison import Comparison, compare
    from mirlib.costs import TransportMap, transport_map
    from mirlib.frechet import FrechetDistance, frechet_distance
    from mirlib.hidden_states import capture
    from mirlib.interventions import controls
    from mirlib.layer_pairs import layer_map
    from mirlib.mir import modality_integration_rate
    from mirlib.planning import plan
    from mirlib.result import MIRResult
    from mirlib.scoring import score, score_batches
    from mirlib.streaming import ModalityIntegrationRate
    from mirlib.words import lens

__version__ = "1.0.0"
__all__ = [
    "Comparison",
    "FrechetDistance",
    "MIRCallback",
    "MIRResult",
    "MirlibError",
    "MirlibWarning",
    "ModalityIntegrationRate",
    "TransportMap",
    "UndefinedMIRError",
    "capture",
    "compare",
    "controls",
    "frechet_distance",
    "layer_map",
    "lens",
    "modality_integration_rate",
    "plan",
    "score",
    "score_batches",
    "transport_map",
]


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


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
