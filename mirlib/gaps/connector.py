"""What the connector keeps of the pictures: the encoder's features, held against the vision rows that come of them.

A small gap can be bought by losing the pictures: rows that lie where words lie and say nothing are integrated by every
measure that does not look back at the encoder. These do.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mirlib.adapters import decoder_parts, unwrap
from mirlib.errors import MirlibError
from mirlib.forward import ReadBatch, Reader, evaluating
from mirlib.gaps import base
from mirlib.gaps.base import CONFIDENCE, HIGHER, MODEL, GapResult, mean_interval, of_samples, register, result
from mirlib.gaps.paired import NEIGHBOURS, mutual_knn
from mirlib.gaps.reading import in_order
from mirlib.hidden_states import from_layer_zero
from mirlib.result import Sample

FOLDS, RIDGE = 5, 1e-3


@dataclass(frozen=True)
class ConnectorRows:
    """Features of the encoder and the vision rows that the connector made of them, for N pictures, float64.

    ``features`` (N, f) are the mean feature of each picture, ``layers``, K + 1 tensors (N, d), the means of its vision
    rows where they enter layer 1 and after each layer. Where the connector makes one row of one feature, ``patches``
    are (n, f) some features, (n,) the picture of each, and K + 1 tensors (n, d), their rows; else None.
    """

    features: Tensor
    layers: list[Tensor]
    patches: tuple[Tensor, Tensor, list[Tensor]] | None
    samples: tuple[Sample, ...]


def connector_rows(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    max_rows: int = base.QUADRATIC_ROWS,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> ConnectorRows:
    """Read what goes into the connector and what becomes of it, one pair a forward pass.

    Arguments and errors are those of `mirlib.score`, and a connector that is not found, or hears nothing of a picture,
    is refused. About ``max_rows`` patches are kept, equally many of each picture, drawn at random by ``seed``.
    """
    inner = unwrap(model)
    parts = decoder_parts(inner)
    if parts.connector is None:
        raise MirlibError(f"{type(inner).__name__}: no connector found; register_adapter() tells mirlib which it is")
    batches = in_order(model, processor, images, texts, batch_size=1, **options)
    reader, count = Reader(model, batches), len(texts)
    heard: list[Tensor] = []  # features of the picture that is being read
    features: list[Tensor] = []  # this and what follows has an entry a picture
    places: list[Tensor] = []  # of the patches that are kept; none where rows are not made one of one feature
    of_features: list[Tensor] = []
    means: list[list[Tensor]] = [[] for _ in range(len(parts.layers) + 1)]  # by layer
    of_rows: list[list[Tensor]] = [[] for _ in means]

    def hear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
        heard.append(given.detach().flatten(0, -2).float().cpu().double())

    def on_layer(k: int, vision: Tensor, text: Tensor, batch: ReadBatch) -> None:
        if k == 0:
            if not heard:
                raise MirlibError(f"{type(parts.connector).__name__}, the connector, is not called in a forward pass")
            whole = torch.cat(heard)
            heard.clear()
            quota = max(1, max_rows // count) if len(whole) == len(vision) else 0
            drawn = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))  # alike in all pictures
            places.append(drawn[:quota].sort().values)
            features.append(whole.mean(0))
            of_features.append(whole[places[-1]])
        rows = vision.float().cpu().double()
        means[k].append(rows.mean(0))
        of_rows[k].append(rows[places[-1]])

    with evaluating(model), from_layer_zero(parts, on_layer) as on_every_layer, ExitStack() as stack:
        stack.callback(parts.connector.register_forward_pre_hook(hear, with_kwargs=True).remove)
        reader.run(on_every_layer, "pictures", progress)
    patches = None
    if all(map(len, places)):
        owners = torch.repeat_interleave(torch.arange(count), torch.tensor(list(map(len, places))))
        patches = torch.cat(of_features), owners, list(map(torch.cat, of_rows))
    return ConnectorRows(torch.stack(features), list(map(torch.stack, means)), patches, tuple(reader.samples))


def shared_neighbours(features: Tensor, layers: Sequence[Tensor], neighbours: int = NEIGHBOURS, **options: Any) -> Any:
    """`mirlib.gaps.mutual_knn` of (n, f) features and each of K arrays (n, d) of rows, without random pairings.

    Columns of zero make both of one width; they change no cosine.
    """
    width = max(features.shape[1], layers[0].shape[1])
    features, *layers = (pad(side, (0, width - side.shape[1])) for side in (features, *layers))
    return mutual_knn([features] * len(layers), layers, neighbours=neighbours, permutations=0, **options)


@register("neighbours_kept", title="neighbours kept", needs=MODEL, direction=HIGHER)
def neighbours_kept(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
    **options: Any,
) -> GapResult:
    """Share of a picture's nearest neighbours among the encoder's features that it still has as vision rows.

    Are pictures that are alike to the encoder still alike behind the connector? When to use it: beside any gap that
    became smaller, to see that it did not do so by making all pictures alike. It can only warn: a connector with fresh
    weights keeps neighbours, too, though no word comes of them.

    A picture is the mean of its features, or of its rows; neighbours go by cosine, without the picture itself. The
    null is the share of random neighbours, exactly ``k / (N − 1)``. Source: after the overlap ratio of arXiv 2509.11986
    (whose code takes Euclidean distances and counts the picture itself among its neighbours), by the neighbours of Huh
    et al. (2024), arXiv 2405.07987.

    Arguments are those of `connector_rows`, and ``neighbours``, k; texts do not matter with causal attention. Fewer
    than k + 1 pictures are refused. In [0, 1]: the value where rows enter layer 1, with an interval from leaving each
    picture out (on the wide side), and ``per_layer`` after each layer. Where the connector makes one row of one
    feature, ``settings["patches"]`` holds the same for single patches among those of all pictures, at most 1000.
    """
    rows = connector_rows(model, processor, images, texts, seed=seed, **options)
    entering = shared_neighbours(rows.features, rows.layers[:1], neighbours)
    after = shared_neighbours(rows.features, rows.layers[1:], neighbours, confidence=None)
    null = neighbours / (len(images) - 1)
    patches = None
    if rows.patches is not None:
        features, _, layers = rows.patches
        found = shared_neighbours(features, layers, neighbours, confidence=None, seed=seed)
        patches = {"entering": found.per_layer[0], "per_layer": found.per_layer[1:].tolist(), **found.rows}
        patches["null"] = neighbours / (found.rows["pairs"] - 1)
    options = {"value": entering.value, "influence": entering.influence, "confidence": CONFIDENCE}
    options |= {"no_interval": entering.settings.get("no_interval")}
    settings = {"null": null, "above_null": entering.value - null, "patches": patches, "neighbours": neighbours}
    kept = result("neighbours_kept", after.per_layer, {"pictures": len(images)}, **options, **settings)
    return replace(kept, samples=rows.samples)


def ridge_errors(
    x: Tensor, y: Tensor, owners: Tensor, *, folds: int = FOLDS, ridge: float = RIDGE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors of a ridge regression of y on x in pictures that it has not seen, and of the mean of y.

    Of x (n, d) and y (n, f), float64; both are (N,), sums over the rows of each picture, and the mean is that over the
    other folds. ``owners``, (n,), are the picture of each row, 0..N−1; a picture is in one of the ``folds``, drawn by
    ``seed``, with all its rows. ``ridge`` is the penalty as a share of the mean variance of the columns of x; the
    intercept has none.
    """
    count = int(owners.max()) + 1
    fold_of = torch.arange(count)[torch.randperm(count, generator=torch.Generator().manual_seed(seed))] % folds
    errors, spread = torch.zeros(len(x), dtype=x.dtype), torch.zeros(len(x), dtype=x.dtype)
    for fold in range(folds):
        out = fold_of[owners] == fold
        centre_x, centre_y = x[~out].mean(0), y[~out].mean(0)
        seen, target = x[~out] - centre_x, y[~out] - centre_y
        gram = seen.T @ seen
        gram.diagonal().add_(ridge * float(gram.diagonal().mean()) + torch.finfo(x.dtype).tiny)
        guess = (x[out] - centre_x) @ torch.linalg.solve(gram, seen.T @ target)
        errors[out] = (y[out] - centre_y - guess).square().sum(1)
        spread[out] = (y[out] - centre_y).square().sum(1)
    return tuple(torch.zeros(count, dtype=x.dtype).index_add_(0, owners, each).numpy() for each in (errors, spread))


def _shares(errors: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(N,) with mean R² = 1 − Σ errors / Σ spread, whose spread over pictures is that of R² to first order."""
    explained = 1 - errors.sum() / spread.sum()
    return explained + ((1 - explained) * spread - errors) / spread.mean()


@register("feature_probe", title="probe of the features", needs=MODEL, direction=HIGHER)
def feature_probe(
    model: nn.Module,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    folds: int = FOLDS,
    ridge: float = RIDGE,
    max_rows: int = 4 * base.QUADRATIC_ROWS,
    seed: int = 0,
    **options: Any,
) -> GapResult:
    """Share of the variance of the encoder's features that a ridge regression reads off the vision rows, R².

    How much of the encoder's features can be read linearly off the vision rows? When to use it: to find the layer after
    which the model has forgotten its picture, or whether the connector let it through at all; as with
    `neighbours_kept`, random weights forget little.

    Of single patches where the connector makes one row of one feature, else of the means of pictures. Always in
    pictures that the regression has not seen. The null gives each picture the features of the next one, patch by patch:
    what the place in the picture alone says. Reconstruction as such is in arXiv 2509.11986.

    Arguments are those of `connector_rows`, where rows should be several times as many as dimensions, and of
    `ridge_errors`, with the errors of the first. Each of the ``folds`` parts of the pictures is left out once; fewer
    pictures than folds, and an impossible penalty, are refused. At most 1, and below 0 where the mean of the features
    would do better; ``per_layer`` after each layer, the value their mean, ``settings["entering"]`` where the rows enter
    layer 1. See `mirlib.gaps.base.of_samples`; intervals take R² for the ratio of means that it is.
    """
    if not 2 <= folds <= len(images) or ridge < 0:
        raise MirlibError(f"expected 2 to {len(images)} folds, one a picture, and a penalty ≥ 0: {folds}, {ridge:g}")
    rows = connector_rows(model, processor, images, texts, max_rows=max_rows, seed=seed, **options)
    features, owners, layers = rows.features, torch.arange(len(images)), rows.layers
    if rows.patches is not None and len(rows.patches[1].bincount().unique()) == 1:
        features, owners, layers = rows.patches
    others = features.roll(-(len(features) // len(images)), dims=0)

    def explained(targets: Tensor) -> np.ndarray:
        found = [ridge_errors(layer, targets, owners, folds=folds, ridge=ridge, seed=seed) for layer in layers]
        return np.stack([_shares(*each) for each in found])

    shares, null = explained(features), explained(others)
    counts = {"pictures": len(images), "rows": len(features)}
    by_layer = {"layers": shares[1:], "null": null[1:].mean(0), "samples": rows.samples}
    settings = {"entering": float(shares[0].mean()), "entering_interval": list(mean_interval(shares[0])[:2])}
    settings |= {"folds": folds, "ridge": ridge, "seed": seed}
    return of_samples("feature_probe", shares[1:].mean(0), counts, **by_layer, **settings)
