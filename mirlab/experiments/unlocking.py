"""How much of the language model learns in stage 1 (Table 3)?"""

from mirlab.claims import Follows, better, lower_mir
from mirlab.experiments import Experiment
from mirlab.recipes import arm, plain

ARMS = {"plain": "none", "lora": "lora", "lora merged": "lora_merged", "half": "half", "all": "all"}
OPENED = {"lora": -0.266, "half": -0.296, "all": -0.345}
"""By how much each lowers MIR in the paper."""

EXPERIMENT = Experiment(
    name="unlocking",
    figure="Table 3",
    summary="How much of the language model learns in stage 1 (Table 3).",
    question="Does unlocking the language model in stage 1 lower MIR and raise accuracy?",
    paper="None 3.001, LoRA 2.735 (not merged) and 2.734 (merged), former half 2.705, all 2.656; averages 64.0 to "
    "65.9.",
    arms={name: plain() if unlock == "none" else arm(unlock=unlock) for name, unlock in ARMS.items()},
    claims=(
        *(
            lower_mir(f"Unlocking lowers MIR: {name}", "paper, Table 3", name, "plain", effect)
            for name, effect in OPENED.items()
        ),
        *(better(f"Unlocking raises accuracy: {name}", "paper, Table 3", name, "plain") for name in OPENED),
        Follows("MIR ranks them as accuracy does", "paper, Table 3", tuple(ARMS), "mir", "accuracy"),
    ),
)
