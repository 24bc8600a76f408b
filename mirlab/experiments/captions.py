"""Do longer captions give a lower MIR and a better model (Table 1)?"""

from mirlab.claims import better, lower_mir
from mirlab.experiments import Experiment
from mirlab.recipes import arm, plain

EXPERIMENT = Experiment(
    name="captions",
    figure="Table 1",
    summary="Longer captions: lower MIR, better model? (Table 1)",
    question="Does MIR fall with the detail of the captions, and does accuracy rise? Three kinds of caption allow no"
    " fair test of a rank correlation, so the ends are compared.",
    paper="Captions of 15, 49, 127 and 181 tokens give MIR 3.588, 3.442, 3.279, 3.218 and averages 63.8 to 64.4.",
    arms={"brief": arm(detail="brief"), "mid": arm(detail="mid"), "plain": plain()},
    claims=(
        lower_mir("Full captions give a lower MIR than brief ones", "paper, Table 1", "plain", "brief", -0.37),
        lower_mir("Full captions give a lower MIR than short lists", "paper, Table 1", "plain", "mid", -0.224),
        better("Full captions give a better model than brief ones", "paper, Table 1", "plain", "brief", 0.12),
        better("Full captions give a better model than short lists", "paper, Table 1", "plain", "mid"),
    ),
)
