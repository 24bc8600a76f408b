"""Which measure of the gap ranks models as their accuracy does? Reviewers asked why a Fréchet distance."""

from mirlab.claims import Follows
from mirlab.experiments import Experiment
from mirlab.experiments.data_scale import EXPERIMENT as DATA_SCALE
from mirlab.experiments.recipes import EXPERIMENT as RECIPES

FOLLOWERS = {
    "mir": ("MIR", -0.5, "paper"),
    "norm_only": ("MIR's norm-only baseline", -0.5, "ours"),
    "log_norm_ratio": ("The log norm ratio of layer 1", -0.5, "ours"),
    "gap_symmetric_kl": ("A symmetric Kullback-Leibler divergence of Gaussians", -0.5, "ours"),
    "gap_mmd": ("The maximum mean discrepancy", -0.5, "ours"),
    "gap_modality_gap": ("The distance of the mean directions", -0.5, "ours"),
    "gap_ima": ("The cosine of the mean tokens", 0.5, "ours"),
    "gap_rmg": ("The relative modality gap of pairs", -0.5, "ours"),
    "gap_mutual_knn_calibrated": ("Mutual neighbours of pairs, above random pairs", 0.5, "ours"),
    "discrimination": ("Soft discrimination", 0.5, "ours"),
}

ARMS = DATA_SCALE.arms | RECIPES.arms

EXPERIMENT = Experiment(
    name="zoo",
    figure="reviewers' questions",
    summary="Measures of the gap on the same models: which ranks them as accuracy does?",
    question="Over five amounts of data and seven recipes, which measure ranks models as their accuracy after stage 2 "
    "does? Measures of clouds: 100 pictures of scenes and 100 news; of pairs: 100 held-out scenes and their own "
    "captions, each read alone.",
    paper="MIR follows performance. Why a Fréchet distance rather than another measure is a question that reviewers "
    "asked and the paper leaves open.",
    arms=ARMS,
    claims=tuple(
        Follows(f"{name} follows the accuracy", source, tuple(ARMS), column, "accuracy", limit)
        for column, (name, limit, source) in FOLLOWERS.items()
    ),
)
