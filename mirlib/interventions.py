"""Controls by intervention: MIR of one model on the same texts, with something else in the place of the pictures.

A value says little before it is known what an input that means nothing would score.
"""

from __future__ import annotations

import copy
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from mirlib.adapters import DecoderParts, decoder_parts, unwrap
from mirlib.align.norms import CHILD
from mirlib.align.vision_rows import VisionRows
from mirlib.batches import PAIR_OPTIONS, PairBatches, pair_batches
from mirlib.comparison import Difference, compare
from mirlib.data import Items, load_image
from mirlib.distributed import Processes, needs_all_processes
from mirlib.errors import MirlibError, said_by
from mirlib.hidden_states import first_of, hidden_of
from mirlib.result import MIRResult
from mirlib.scoring import score_pairs

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CONTROLS", "Controls", "controls"]

REAL = "real"
CONTROLS = {
    "black": "black pictures",
    "noise": "pictures of noise",
    "shuffled": "pictures beside other texts",
    "zero": "vision rows of zero",
    "gaussian": "random rows of the same lengths",
    "fresh": "fresh projector",
    "fresh_rescaled": "fresh projector at the trained length",
}
"""The controls by name, in the order in which they are measured."""

TITLES = {REAL: "real pictures", **CONTROLS}
CHANGED = 1e-3  # relative difference of norms from which rows were changed, rounding in bfloat16 apart

Change = Callable[[Tensor, Tensor], Tensor]
"""Takes (r, ..., d) vision rows that enter layer 1 and the (r,) samples of the batch that they belong to."""


@dataclass(frozen=True)
class Controls:
    """MIR of a model on real pictures and on inputs that mean less.

    Attributes:
        results: `MIRResult` by name: ``"real"``, then those of `CONTROLS` that were measured.
        unavailable: Why a control could not be measured, by name.
        settings: How the controls were made: seed, the module that was given fresh weights, its mean row lengths.
        warnings: Sentences that a reader of the numbers should see.
    """

    results: Mapping[str, MIRResult]
    unavailable: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def real(self) -> MIRResult:
        """MIR on the real pictures, the value itself."""
        return self.results[REAL]

    def difference(self, name: str) -> Difference | None:
        """How far a control lies from the real pictures, with the interval of that difference; None without intervals.

        Where the influences of the samples are known, the interval is that of the paired difference; else the two
        values count as independent, and it is too wide.
        """
        control, real = self.results[name], self.real
        if control.interval is None or real.interval is None:
            return None
        influence = control.influence
        if name == "shuffled" and influence is not None:  # each picture counts where it stands among the real pairs
            slots: dict[str, list[int]] = {}  # of a picture that is there twice, each counts once
            for place, sample in reversed(list(enumerate(control.samples))):
                slots.setdefault(sample.picture, []).append(place)
            moved = [slots[sample.picture].pop() for sample in real.samples]
            influence = replace(influence, vision=influence.vision[:, moved])
        same = replace(control, influence=influence, samples=real.samples)
        return compare(same, real, confidence=real.interval.confidence).difference

    def standing(self, name: str) -> str | None:
        """``"below"`` or ``"above"`` the real pictures, ``"not told apart"`` from them, or None without intervals."""
        found = self.difference(name)
        if found is None:
            return None
        return "below" if found.high < 0 else "above" if found.low > 0 else "not told apart"

    def reading(self) -> str | None:
        """One sentence on where the real pictures stand among the controls, chosen by the intervals; None without."""
        named: dict[str | None, list[str]] = {}
        for name in [name for name in self.results if name != REAL]:
            named.setdefault(self.standing(name), []).append(TITLES[name])
        listed = {standing: _listed(titles) for standing, titles in named.items()}
        if "below" in listed:
            return f"below the real pictures lie {listed['below']}: a low MIR alone is no evidence of integration"
        if "not told apart" in listed:
            return f"no control lies below the real pictures; not told apart from them: {listed['not told apart']}"
        if "above" in listed:
            return f"all controls with an interval lie above the real pictures: {listed['above']}"
        return None

    def to_frame(self) -> pd.DataFrame:
        """One line an input: its MIR with its interval, and its difference from the real pictures with half of its."""
        import pandas as pd

        lines = []
        for name, result in self.results.items():
            low, high = (math.nan, math.nan) if result.interval is None else result.interval[:2]
            interval = None if name == REAL else self.difference(name)
            difference = math.nan if name == REAL else result.value - self.real.value
            half = math.nan if interval is None else interval.high - difference
            standing = None if name == REAL else self.standing(name)
            lines.append((TITLES[name], result.value, low, high, difference, half, standing or ""))
        columns = ("input", "mir", "low", "high", "minus real", "±", "standing")
        return pd.DataFrame(lines, columns=columns).set_index("input")

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, ready for JSON."""
        return {
            "results": {name: result.to_dict() for name, result in self.results.items()},
            "unavailable": dict(self.unavailable),
            "settings": dict(self.settings),
            "reading": self.reading(),
            "warnings": list(self.warnings),
        }

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {result.value:.3f}" for name, result in self.results.items())
        return f"Controls({values})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def check_names(only: Sequence[str] | str | None) -> list[str]:
    """The controls that are meant, in the order of `CONTROLS`; all for None. An unknown name is refused."""
    if only is None:
        return list(CONTROLS)
    asked = [name.strip() for name in only.split(",")] if isinstance(only, str) else list(only)
    unknown = [name for name in asked if name not in CONTROLS]
    if unknown or not asked:
        raise MirlibError(f"unknown control {(unknown or [''])[0]!r}; choose from {', '.join(CONTROLS)}")
    if "fresh_rescaled" in asked:  # whose factor is known once the other was measured
        asked.append("fresh")
    return [name for name in CONTROLS if name in asked]


def controls(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    only: Sequence[str] | str | None = None,
    seed: int = 0,
    merge_processes: bool = True,
    measured: Callable[[MIRResult, str], None] | None = None,
    progress: bool = True,
    **options: Any,
) -> Controls:
    """MIR of the real pictures, and of inputs that mean less, over one draw of texts and with one model.

    - ``"black"``: each picture black, of its own size.
    - ``"noise"``: each picture uniform noise, pixel by pixel, of its own size.
    - ``"shuffled"``: the same pictures, each beside the text of another pair.
    - ``"zero"``: the vision rows that enter layer 1 are zero, as if the projector put out nothing.
    - ``"gaussian"``: each vision row that enters layer 1 points in a random direction and keeps its length.
    - ``"fresh"``: the projector with weights as before training, drawn by the model's own initialisation with ``seed``.
    - ``"fresh_rescaled"``: the same, its rows multiplied where they enter layer 1 by the one factor that gives them the
      mean length of the trained projector's rows.

    Every control costs as much as the value itself; ``only`` names some of `CONTROLS`, in a list or with commas between
    them; ``fresh_rescaled`` brings ``fresh`` with it. Once the real pictures are measured, ``measured`` is called with
    their result and a sentence on what the controls will take, which else goes to stderr with the progress. What cannot
    be done to a model is left out, with the reason: in particular a projector that goes by none of the usual names
    (`mirlib.adapters.register_adapter` can name it), is stored in few bits or spread over processes.

    All other arguments are those of `mirlib.score`. The model is left as it was, bit for bit, also by an error.

    Raises:
        MirlibError: For unknown names, and all that `mirlib.score` raises for the real pictures.
    """
    names = check_names(only)
    processes = Processes.current(merge_processes)
    drawing = {name: options.pop(name) for name in PAIR_OPTIONS & options.keys()}
    batches = pair_batches(model, processor, images, texts, seed=seed, merge_processes=merge_processes, **drawing)
    parts = decoder_parts(model)
    lengths: dict[str, float] = {}

    def measure(name: str, pairs: PairBatches, change: Change | None = None) -> MIRResult:
        with _entering(model, parts, change) as entered:
            result = score_pairs(model, pairs, merge_processes=merge_processes, progress=progress, **options)
        total, count = map(sum, zip(*processes.gather(tuple(entered)), strict=True))
        lengths[name] = total / count if count else math.nan
        return replace(result, settings={**result.settings, "input": name})

    began = time.perf_counter()
    with _watching(model, parts) as seen:
        results = {REAL: measure(REAL, batches)}
    seconds = time.perf_counter() - began
    sentence = _cost(len(names), len(batches.chosen), results[REAL], seconds)
    if measured is not None:
        measured(results[REAL], sentence)
    elif progress and processes.leads:
        tqdm.write(sentence, file=sys.stderr)

    def run(name: str) -> MIRResult:
        if name in ("black", "noise"):
            return measure(name, replace(batches, images=_pictures_of(name, batches.images, seed)))
        if name == "shuffled":
            return measure(name, _shuffled(batches, seed))
        if name == "zero":
            return measure(name, batches, lambda rows, samples: torch.zeros_like(rows))
        if name == "gaussian":
            with _keys(model, seed) as keys:
                return measure(name, batches, lambda rows, samples: _random_directions(rows, samples, keys))
        if name == "fresh_rescaled" and "fresh" in unavailable:
            raise NotAvailableError(unavailable["fresh"])
        if name == "fresh_rescaled" and not lengths["fresh"] > 0:
            raise NotAvailableError("the fresh projector puts out zero, which no factor gives a length")
        with _fresh(model, parts, seed) as fired:
            factor = 1.0 if name == "fresh" else lengths[REAL] / lengths["fresh"]
            result = measure(name, batches, None if name == "fresh" else lambda rows, samples: rows * factor)
        if not fired:
            raise NotAvailableError(f"{_name_of(model, parts.connector)} did not run in the forward pass")
        return result

    unavailable: dict[str, str] = {}
    bar = tqdm(names, desc="controls", unit="control", disable=not (progress and processes.leads), file=sys.stderr)
    for name in bar:
        bar.set_postfix_str(CONTROLS[name])
        try:
            results[name] = run(name)
        except MirlibError as error:  # the others are worth having; several processes end together
            if processes.size > 1 and not isinstance(error, NotAvailableError):  # which is the same in all of them
                raise
            unavailable[name] = str(error)
    settings = {"seed": seed, "names": names, "rows_changed_at": "the input of layer 1"}
    if "fresh" in results:
        settings["connector"] = _name_of(model, parts.connector)
        settings["mean_length"] = {name: lengths[name] for name in (REAL, "fresh")}
    return Controls(results, unavailable, settings, _warnings(seen, names))


class NotAvailableError(MirlibError):
    """A control that cannot be made for a model."""


def _cost(count: int, pairs: int, real: MIRResult, seconds: float) -> str:
    """What so many controls cost, in a sentence."""
    passes = count * real.passes
    minutes = f"{count * seconds / 60:.0f} minutes" if count * seconds >= 120 else f"{count * seconds:.0f} seconds"
    take = f"{'control takes' if count == 1 else 'controls take'} {passes} more pass{'' if passes == 1 else 'es'}"
    speed = f"about {minutes} at the speed of the first measurement ({seconds:.0f} seconds)"
    return f"MIR is {real.value:.4f}; {count} {take} over {pairs} pairs, {speed}"


def _name_of(model: nn.Module, module: nn.Module | None) -> str:
    return next((name for name, each in unwrap(model).named_modules() if each is module), "the connector")


# ---------------------------------------------------------------------------------------------------------------------
# Other pictures


def _pictures_of(kind: str, images: Sequence[Any], seed: int) -> Items:
    """Pictures of the same sizes, under the same names, that show nothing."""

    def picture(index: int) -> Image.Image:
        source = images[index]
        size = load_image(source).size
        if kind == "black":
            made = Image.new("RGB", size)
        else:
            noise = np.random.default_rng([seed, index]).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
            made = Image.fromarray(noise)
        made.filename = str(source) if isinstance(source, (str, Path)) else getattr(source, "filename", "")
        return made

    return Items(range(len(images)), picture)


def _shuffled(batches: PairBatches, seed: int) -> PairBatches:
    """Each text beside the picture of another pair: the pictures move on by one along a random cycle of all pairs."""
    count = len(batches.chosen)
    if count < 2:
        raise NotAvailableError("there is one pair, and no other text to put its picture beside")
    cycle = np.random.default_rng(seed).permutation(count)
    chosen = list(batches.chosen)
    for here, there in zip(cycle, np.roll(cycle, 1), strict=True):
        chosen[here] = (batches.chosen[there][0], batches.chosen[here][1])
    return replace(batches, chosen=chosen)


# ---------------------------------------------------------------------------------------------------------------------
# Other rows at the entrance of the decoder


@contextmanager
def _entering(model: nn.Module, parts: DecoderParts, change: Change | None) -> Iterator[list[float]]:
    """Put others in the place of the vision rows that enter layer 1; the list: sum of their lengths, their number."""
    rows, lengths = VisionRows.of(model), [0.0, 0]

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = hidden if change is None else hidden.clone()
        view = _positions_first(hidden, rows.mask)
        mask = rows.mask.to(hidden.device)
        if change is not None:
            view[mask] = change(view[mask], mask.nonzero()[:, 0]).to(hidden.dtype)
        norms = hidden_of(parts, hidden)[mask].float().norm(dim=-1)
        lengths[:] = lengths[0] + float(norms.sum()), lengths[1] + len(norms)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    try:
        with parts.layers[0].register_forward_pre_hook(before, with_kwargs=True):
            yield lengths
    finally:
        rows.release(model)


def _positions_first(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """A view (B, T, ..., d) of hidden states of that shape, or of several streams in front, (n, B, T, d)."""
    if mask is not None and hidden.shape[:2] == mask.shape:
        return hidden
    if mask is not None and hidden.ndim == 4 and hidden.shape[1:3] == mask.shape:
        return hidden.movedim(0, 2)
    there = f"for a sequence of shape {None if mask is None else tuple(mask.shape)}"
    raise MirlibError(f"layer 1 reads {tuple(hidden.shape)} {there}; its vision rows cannot be told apart")


@contextmanager
def _keys(model: nn.Module, seed: int) -> Iterator[list[int]]:
    """A number for each sample of the batch that is running, from its tokens: the same in every pass and any batch."""
    keys: list[int] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        samples, attention = kwargs["input_ids"].cpu(), kwargs.get("attention_mask")
        if isinstance(attention, Tensor) and attention.shape == samples.shape:
            samples = [row[kept] for row, kept in zip(samples, attention.cpu().bool(), strict=True)]
        digests = [hashlib.sha256(f"{seed} {row.tolist()}".encode()).digest() for row in samples]
        keys[:] = [int.from_bytes(digest[:7], "big") for digest in digests]

    with unwrap(model).register_forward_pre_hook(before, with_kwargs=True):
        yield keys


def _random_directions(rows: Tensor, samples: Tensor, keys: Sequence[int]) -> Tensor:
    """(r, ..., d) rows in random directions, uniform on the sphere, each as long as the row that it replaces."""
    made = torch.empty(rows.shape, dtype=torch.float32)
    samples = samples.cpu()
    for sample in samples.unique().tolist():
        here = samples == sample
        generator = torch.Generator().manual_seed(keys[sample])
        made[here] = torch.randn(int(here.sum()), *rows.shape[1:], generator=generator)
    made = made / made.norm(dim=-1, keepdim=True)
    return made.to(rows.device) * rows.float().norm(dim=-1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------------
# A fresh projector


@contextmanager
def _fresh(model: nn.Module, parts: DecoderParts, seed: int) -> Iterator[list[bool]]:
    """The connector with fresh weights for the time being; the list holds something once it has run."""
    fired: list[bool] = []
    with ExitStack() as stack:
        for parameter, values in _fresh_weights(model, parts, seed).items():
            stack.callback(setattr, parameter, "data", parameter.data)  # its own storage, neither copied nor rounded
            parameter.data = values.to(parameter.device, parameter.dtype)
        stack.callback(parts.connector.register_forward_hook(lambda *_: fired.append(True)).remove)
        yield fired


def _fresh_weights(model: nn.Module, parts: DecoderParts, seed: int) -> dict[nn.Parameter, Tensor]:
    """What the model's own initialisation makes of each parameter of its connector; float32, drawn on the CPU."""
    connector = parts.connector
    if connector is None:
        advice = "an adapter (register_adapter) can name it as connector"
        raise NotAvailableError(f"no module of this family goes by a usual name of a projector; {advice}")
    name, owner = _name_of(model, connector), _owner(unwrap(model), connector)
    # What mirlib.align put behind the projector is no part of it.
    own = {key: value for key, value in connector.named_parameters() if CHILD not in key.split(".")}
    if owner is None:
        raise NotAvailableError(f"{type(unwrap(model)).__name__} has no _init_weights that could start {name} anew")
    if not own:
        raise NotAvailableError(f"{name} has no weights")
    if needs_all_processes(model) or any(each.is_meta for each in own.values()):
        raise NotAvailableError(f"the weights of {name} are spread over processes, or kept where they are not used")
    if not all(each.is_floating_point() and each.element_size() > 1 for each in own.values()):
        raise NotAvailableError(f"the weights of {name} are stored in few bits")
    if any("lora_" in key for key in own):
        raise NotAvailableError(f"{name} carries low-rank adapters; merge them first")
    blank = copy.deepcopy(connector).to("cpu", torch.float32)
    made = {key: value for key, value in blank.named_parameters() if key in own}
    for parameter in made.values():
        parameter.__dict__.pop("_is_hf_initialized", None)  # transformers would leave it as it is
        parameter.data.fill_(math.nan)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            _initialise(blank, owner)
    except Exception as error:  # code of a family, or of a checkpoint
        raise NotAvailableError(f"the model's own _init_weights fails on {name} ({said_by(error)})") from error
    left = [key for key, value in made.items() if value.isnan().any()]
    if left:
        raise NotAvailableError(f"the model's own _init_weights leaves {name}.{left[0]} as it is")
    return {own[key]: value.data for key, value in made.items()}


def _owner(model: nn.Module, module: nn.Module) -> nn.Module | None:
    """The innermost module around another that knows how to initialise it."""
    around = [each for each in model.modules() if any(inner is module for inner in each.modules())]
    return next((each for each in reversed(around) if hasattr(each, "_init_weights")), None)


def _initialise(module: nn.Module, owner: nn.Module) -> None:
    """As transformers does: the parts before the whole, each by the nearest model around it."""
    owner = module if hasattr(module, "_init_weights") else owner
    for name, child in module.named_children():
        if name != CHILD:
            _initialise(child, owner)
    owner._init_weights(module)


# ---------------------------------------------------------------------------------------------------------------------
# What else a model does with its vision rows


@dataclass
class _Seen:
    """The layers before which something was added to vision rows alone, and if they were changed before layer 1."""

    added: list[int] = field(default_factory=list)
    changed: bool = False


@contextmanager
def _watching(model: nn.Module, parts: DecoderParts) -> Iterator[_Seen]:
    """Watch the first forward pass inside the block."""
    seen, last = _Seen(), {}
    with ExitStack() as stack, ExitStack() as hooks:
        rows = VisionRows.of(model)
        stack.callback(rows.release, model)

        def entering(k: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, before = args[0] if args else kwargs.get("hidden_states"), last.pop("layer", None)
            if not isinstance(hidden, Tensor) or before is None or before.shape != hidden.shape:
                return
            if rows.mask is None or hidden.shape[:2] != rows.mask.shape:
                return
            mask = rows.mask.to(hidden.device)
            if (hidden[mask] != before[mask]).any() and torch.equal(hidden[~mask], before[~mask]):
                seen.added.append(k)

        def left(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            last["layer"] = first_of(output).detach()

        def connected(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(made := first_of(output), Tensor):
                last.setdefault("connector", []).append(made.detach().flatten(0, -2).float().norm(dim=-1))

        def first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, made = args[0] if args else kwargs["hidden_states"], last.pop("connector", None)
            if made is None or rows.mask is None or hidden.shape[:2] != rows.mask.shape or hidden.ndim != 3:
                return
            entering = hidden[rows.mask.to(hidden.device)].float().norm(dim=-1).sort().values
            made = torch.cat([each.to(entering.device) for each in made]).sort().values
            # Families may put the rows in another order, and add some of their own, such as the end of a line.
            seen.changed = len(made) == len(entering) and not torch.allclose(made, entering, rtol=CHANGED)

        hooks.callback(parts.layers[0].register_forward_pre_hook(first, with_kwargs=True).remove)
        for k, (before, after) in enumerate(pairwise(parts.layers), start=2):
            hooks.callback(before.register_forward_hook(left).remove)
            hooks.callback(after.register_forward_pre_hook(partial(entering, k), with_kwargs=True).remove)
        if parts.connector is not None:
            hooks.callback(parts.connector.register_forward_hook(connected).remove)
        hooks.callback(unwrap(model).register_forward_hook(lambda *_: hooks.close()).remove)
        yield seen


def _warnings(seen: _Seen, names: Sequence[str]) -> tuple[str, ...]:
    found = []
    entering = [CONTROLS[name] for name in ("zero", "gaussian", "fresh_rescaled") if name in names]
    added = entering + [CONTROLS["fresh"]] * ("fresh" in names)
    if seen.added and added:
        found.append(
            f"this model adds features of the picture once more before layer {_listed([str(k) for k in seen.added])}: "
            f"these controls leave those as they are, and change only what enters layer 1: {_listed(added)}"
        )
    if seen.changed and entering:
        found.append(
            "between projector and layer 1 this model changes the vision rows (a norm, a scale or positions); these "
            f"controls set them behind that, where they enter layer 1: {_listed(entering)}"
        )
    return tuple(found)
