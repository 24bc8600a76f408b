"""How noisy are runs of the real parts? The pilot of pre-registration B, on seeds that it does not use.

Its 1024 pairs stand for 4096 too, which would cost four times as much.
"""

from mirlab.experiments import Experiment, real

SEEDS = range(100, 105)

EXPERIMENT = Experiment(
    name="real_pilot",
    figure="",
    summary="Noise of runs of the real parts, for the power of pre-registration B; seeds from 100 on.",
    question="By how much do runs of one recipe differ, between seeds and within?",
    paper="One run of each.",
    arms={real.name(real.FEW, steps): real.runs(real.FEW, steps, SEEDS) for steps in real.WARMUP_STEPS},
    claims=(),
)
