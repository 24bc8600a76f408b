"""What a run is, as plain data: recipes of the two stages, the method, the seeds, and what is measured.

Nothing here imports torch. A run's configuration is JSON, and `Run.of` reads it back; the key of a row in the ledger is
made of it. A recipe that cannot be carried out is refused when it is made, but for the options of a method, which
`mirlab.methods.technique` knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from mirlab.world import CAPTION_DETAILS
from mirlib.errors import MirlibError

SCHEDULERS = ("cosine", "linear")
CONNECTORS = ("mlp1", "mlp2", "mlp4", "qformer")
"""One linear layer; LLaVA-1.5's two-layer MLP; four layers; a Q-Former with as many queries as patches."""
UNLOCKS = ("none", "lora", "lora_merged", "half", "all")

POOL = 65_536
"""Scenes that belong to a set of parts, its stream, of which a run reads the first ones."""

SEEDS = (0, 1, 2, 3, 4, 5)
PARTS = (10, 12, 18, 14, 15, 16)
"""Seeds of the sets of encoder and language model that passed the gate, one for each of `SEEDS`, in their order.

Sets 11 and 17 failed, and set 13 in the pilot (`mirlab.experiments.pilot`); 18 takes its place.
"""

LATER_PARTS = (26, 21, 22, 23, 24, 25)
"""The same for arms whose turn comes when those sets are gone: six from 20 on, each of which has to pass the gate.

One that fails is replaced by the next seed before any run is made on it, as 20 was by 26.
"""


def _check(recipe: Any, **choices: Iterable[str]) -> None:
    for name, known in choices.items():
        if getattr(recipe, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(recipe, name)!r}")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW, linear warm-up, then a decay to a hundredth of the rate.

    Attributes:
        steps: Number of steps.
        learning_rate: The highest rate.
        warmup, warmup_steps: Share of the steps over which the rate rises, or their number, which overrides it.
        weight_decay: AdamW's.
        clip: Largest norm of the gradient.
        scheduler: How the rate falls, ``cosine`` or ``linear``.
    """

    steps: int
    learning_rate: float
    warmup: float = 0.03
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup_steps: int | None = None
    scheduler: str = "cosine"

    def __post_init__(self) -> None:
        _check(self, scheduler=SCHEDULERS)

    @property
    def rise(self) -> int:
        """Number of warm-up steps, at least 1."""
        return max(1, round(self.warmup * self.steps) if self.warmup_steps is None else self.warmup_steps)

    def factor(self, step: int) -> float:
        """The learning rate of a step (the first is 0) as a share of the highest."""
        if step < self.rise:
            return (step + 1) / self.rise
        progress = (step - self.rise) / max(1, self.steps - self.rise)
        fall = 0.5 * (1 + math.cos(math.pi * progress)) if self.scheduler == "cosine" else 1 - progress
        return 0.01 + 0.99 * fall


@dataclass(frozen=True)
class StageOne:
    """Stage 1 of LLaVA: one pass over picture-caption pairs. The defaults are LLaVA's operating point here.

    Attributes:
        pairs, epochs, batch: Number of picture-caption pairs, times each is seen, and pairs a step.
        learning_rate: The connector's highest rate.
        warmup, warmup_steps, scheduler: As in `Schedule`.
        detail: Kind of caption, see `mirlab.world.caption`.
        connector: One of `CONNECTORS`.
        norm_matched: Rescale every vision token to the mean norm of the text embeddings.
        unlock: What of the language model learns too: ``none``, ``lora`` (rank 8 beside every projection matrix),
            ``lora_merged`` (the same, added to the weights before stage 2), ``half`` (the first half of its layers,
            the "former half" of the paper) or ``all``.
        unlock_encoder: Whether the last half of the encoder's layers learns too.
        unlocked_rate: Highest learning rate of all that is not the connector.
    """

    pairs: int = 16_384
    epochs: int = 1
    batch: int = 32
    learning_rate: float = 8e-3
    warmup: float = 0.03
    warmup_steps: int | None = None
    scheduler: str = "cosine"
    detail: str = "full"
    connector: str = "mlp2"
    norm_matched: bool = False
    unlock: str = "none"
    unlock_encoder: bool = False
    unlocked_rate: float = 3e-4

    def __post_init__(self) -> None:
        _check(self, unlock=UNLOCKS, connector=CONNECTORS, detail=CAPTION_DETAILS, scheduler=SCHEDULERS)
        if self.pairs < self.batch:
            raise ValueError(f"pairs ({self.pairs}) must be at least one batch ({self.batch})")

    @property
    def schedule(self) -> Schedule:
        """Without weight decay, as LLaVA does it."""
        steps = self.epochs * (self.pairs // self.batch)
        options = {name: getattr(self, name) for name in ("learning_rate", "warmup", "warmup_steps", "scheduler")}
        return Schedule(steps, weight_decay=0.0, **options)

    @property
    def configuration(self) -> dict[str, Any]:
        """As JSON. Warm-up is a number of steps, however it was given, so that equal recipes have equal keys."""
        configuration = {**asdict(self), "warmup_steps": self.schedule.rise}
        del configuration["warmup"]
        return configuration


@dataclass(frozen=True)
class StageTwo:
    """Stage 2 of LLaVA, short: a few questions about each picture, in the form of the chat template.

    Attributes:
        images, questions, batch: Number of pictures, each seen once, questions about each, and pictures a step.
        learning_rate: Highest rate of language model and connector.
        warmup: As in `Schedule`.
    """

    images: int = 2048
    questions: int = 3
    batch: int = 32
    learning_rate: float = 3e-4
    warmup: float = 0.03

    @property
    def schedule(self) -> Schedule:
        """Without weight decay, cosine."""
        return Schedule(self.images // self.batch, self.learning_rate, self.warmup, weight_decay=0.0)


@dataclass(frozen=True, init=False)
class Method:
    """What a run does beside the plain recipe: a name, and options where they differ from the method's own.

    Options are numbers, texts, truth values, None, or sequences of them; what they mean `mirlab.methods` says.

    Examples:
        >>> Method("moca", rate=0.002).configuration
        {'name': 'moca', 'rate': 0.002}
        >>> Method.of({"name": "moca", "rate": 0.002}) == Method("moca", rate=0.002)
        True
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __init__(self, name: str, /, **options: Any) -> None:
        given = {key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in options.items()}
        for key, value in given.items():
            for item in value if isinstance(value, tuple) else (value,):
                if item is not None and not isinstance(item, (bool, int, float, str)):
                    raise ValueError(f"the option {key} of {name} must be plain data, not {type(item).__name__}")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", tuple(sorted(given.items())))

    @property
    def configuration(self) -> dict[str, Any]:
        """The name and the options as JSON."""
        return {"name": self.name} | {k: list(v) if isinstance(v, tuple) else v for k, v in self.options}

    @classmethod
    def of(cls, configuration: Mapping[str, Any]) -> Method:
        """The method of a configuration."""
        return cls(configuration["name"], **{k: v for k, v in configuration.items() if k != "name"})


PLAIN = Method("plain")


@dataclass(frozen=True)
class Run:
    """All that the outcome of a run depends on.

    Attributes:
        seed: Of the connector's first weights, the order of the pairs, and stage 2.
        parts: Seed of the encoder, of the language model and of the pool of scenes, see `mirlab.model.parts`.
        stage_one: Recipe of stage 1.
        stage_two: Recipe of stage 2, the same for all runs of an experiment.
        scenes: Held-out scenes of each evaluation.
        method: What is done beside the plain recipe.
        probes: Steps of stage 1 after which everything is measured, beside the end.
        robustness: Measure MIR over kinds of pictures and texts, templates, and numbers of samples, too.
        zoo: Take all measures of the gap, too, see `mirlab.zoo`.
        leaning: Ask for things that are not there, and contradict pictures by words, see `mirlab.model.leaning`;
            at the end only, like the next.
        long_tokens: Drop the longest vision tokens, or rescale them, see `mirlab.model.long_tokens`.
    """

    done_by: ClassVar[str] = "mirlab.runs"
    """Module whose ``execute`` does it."""

    seed: int = 0
    parts: int = PARTS[0]
    stage_one: StageOne = StageOne()
    stage_two: StageTwo = StageTwo(images=1024)
    scenes: int = 240
    method: Method = PLAIN
    probes: tuple[int, ...] = ()
    robustness: bool = False
    zoo: bool = False
    leaning: bool = False
    long_tokens: bool = False

    def __post_init__(self) -> None:
        if self.stage_one.pairs > POOL:
            raise ValueError(f"a run has at most {POOL} pairs, not {self.stage_one.pairs}")
        steps = self.stage_one.schedule.steps
        if list(self.probes) != sorted({step for step in self.probes if 0 < step <= steps}):
            raise ValueError(f"probes must be rising steps from 1 to {steps}, not {self.probes}")

    @property
    def configuration(self) -> dict[str, Any]:
        """The run as JSON. What is not done has no entry, so that a key outlives the options that are added."""
        parts = {"stage_one": self.stage_one.configuration, "method": self.method.configuration}
        configuration = {**asdict(self), **parts, "probes": list(self.probes)}
        for name in ("method", "probes", "robustness", "zoo", "leaning", "long_tokens"):
            if getattr(self, name) == getattr(Run, name):
                del configuration[name]
        return configuration

    @classmethod
    def of(cls, configuration: Mapping[str, Any]) -> Run:
        """The run of a row's configuration; one that is not of a run as runs are now is refused."""
        try:
            given = dict(configuration)
            given["stage_one"], given["stage_two"] = StageOne(**given["stage_one"]), StageTwo(**given["stage_two"])
            given["probes"] = tuple(given.get("probes", ()))
            given["method"] = Method.of(given["method"]) if "method" in given else PLAIN
            return cls(**given)
        except (KeyError, TypeError, ValueError) as error:
            raise MirlibError(f"this is no configuration of a run: {error}") from error

    @property
    def cost(self) -> float:
        """About how many seconds it takes on one core, for the order of a sweep and the time left."""
        recipe = self.stage_one
        unlocked = recipe.unlock != "none" or recipe.unlock_encoder
        trained = recipe.schedule.steps * recipe.batch * (0.009 if unlocked else 0.006)
        added = 150 * self.robustness + 15 * self.zoo + 22 * self.leaning + 40 * self.long_tokens
        return trained + 20 * (1 + len(self.probes)) + added


def arm(*, seeds: Iterable[int] = SEEDS, parts: Sequence[int] = PARTS, **options: Any) -> tuple[Run, ...]:
    """Runs that differ in the seed alone, and with it in the parts; seeds beyond these take the parts in turn.

    The options are those of `StageOne` and of `Run`, told apart by their names.

    Examples:
        >>> runs = arm(pairs=2048, learning_rate=0.02, zoo=True)
        >>> [run.seed for run in runs], runs[3].parts == PARTS[3], runs[3].stage_one.pairs, runs[3].zoo
        ([0, 1, 2, 3, 4, 5], True, 2048, True)
    """
    recipe = {field.name: options.pop(field.name) for field in fields(StageOne) if field.name in options}
    run = Run(stage_one=StageOne(**recipe), **options)
    return tuple(replace(run, seed=seed, parts=parts[seed % len(parts)]) for seed in seeds)


PROBES = (64, 128, 256, 384)
"""Steps of the 512 of the plain recipe after which its runs are measured, beside the end."""


def plain() -> tuple[Run, ...]:
    """The plain recipe, measured with everything, once a seed: experiments share it."""
    return arm(probes=PROBES, robustness=True, zoo=True, leaning=True, long_tokens=True)
