"""mirlib measures whether a large vision-language model has brought its two modalities together.

The public names below are what a reader needs first; each module documents the rest.
"""

from mirlib.errors import MirlibError, MirlibWarning, UndefinedMIRError
from mirlib.frechet import FrechetDistance, frechet_distance
from mirlib.hidden_states import capture
from mirlib.mir import modality_integration_rate
from mirlib.result import MIRResult
from mirlib.scoring import score, score_batches
from mirlib.streaming import ModalityIntegrationRate

__version__ = "0.1.0"
__all__ = [
    "FrechetDistance",
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
