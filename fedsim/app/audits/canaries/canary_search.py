"""Exposure: the rank of each canary of a run among all codes that it could have had.

Each canary is compared with codes that were drawn in the same way and never planted. Their
exposure is the null distribution for this model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.app.audits.audited import Audited
from fedsim.app.experiment.loading import changes_of
from fedsim.app.experiment.planting import Cell, Reading, canaries_of, reading_of
from fedsim.audit.canary_patterns import ENUMERABLE, Canary, completions, position, reference_codes
from fedsim.audit.exposure import (
    exposure,
    exposure_by_fit,
    exposure_standard_error,
    joint_p_value,
    null_mean,
    rank,
    rank_among,
)
from fedsim.audit.findings import CanaryThreat, ExposureFigures
from fedsim.audit.scores import Floats
from fedsim.models.evaluation import batches
from fedsim.seeds import generator
from fedsim.types import Params

NULLS = 10
"""Number of codes that were never planted and are ranked beside each canary."""
REFERENCES = 4095
"""Number of codes to rank a canary among if its space is too large to list: at most 12 bits."""
BATCH = 2000
Losses = Callable[[int, NDArray[np.int64]], Floats]
"""A canary's number and codes [n, length] -> losses [n]."""


@dataclass(frozen=True)
class Exposed:
    """The exposure of one canary in one model."""

    exposure: float
    nulls: Floats
    """[NULLS] exposures of codes that were never planted, behind the same words."""
    fitted: float | None = None
    """An estimate by a skew-normal fit, for spaces too large to list."""
    likeliest: tuple[int, ...] = ()
    """The code with the lowest loss of all; empty for those spaces."""


@dataclass(frozen=True)
class CanarySearch:
    """A search for the canaries of a run in a model."""

    audited: Audited
    reading: Reading
    canaries: Sequence[Canary]
    seed: int

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """The codes [n, length] that canaries are ranked among."""
        pattern = self.reading.pattern
        if pattern.space <= ENUMERABLE:
            return completions(pattern)
        return reference_codes(pattern, REFERENCES, generator(self.seed, "canary", "references"))

    def nulls(self, number: int) -> list[Canary]:
        """Return canaries with the same words and codes that were never planted."""
        canary = self.canaries[number]
        rng = generator(self.seed, "canary", "null", number)
        return [
            Canary(canary.pattern, canary.word, c)
            for c in reference_codes(canary.pattern, NULLS, rng)
        ]

    def losses(self, params: Params, number: int, codes: NDArray[np.int64]) -> Floats:
        """Return the loss [n] of a canary's sentence with each code of [n, length] in its gap."""
        audited = self.audited
        examples = self.reading.completed(self.canaries[number].word, codes)
        found = [
            audited.task.losses(outputs, fields).double().cpu()
            for _, outputs, fields in batches(audited.module, audited.task, params, examples, BATCH)
        ]
        return torch.cat(found).numpy()


def make_search(audited: Audited) -> CanarySearch:
    """Return the search for the canaries that a run has planted."""
    config = audited.config
    seed = changes_of(config).seed
    reading = reading_of(audited.holdings.dataset.spec, config.data, config.canary)
    return CanarySearch(audited, reading, canaries_of(config.canary, seed), seed)


def exposures(search: CanarySearch, losses: Losses, numbers: Sequence[int]) -> list[Exposed]:
    """Return the exposure of canaries by a loss for each code; a lower loss is likelier."""
    return [_exposed(search, number, losses) for number in numbers]


def _exposed(search: CanarySearch, number: int, losses: Losses) -> Exposed:
    canary = search.canaries[number]
    nulls = search.nulls(number)
    space = canary.pattern.space
    rng = generator(search.seed, "canary", "ties", search.audited.round, number)
    if space <= ENUMERABLE:
        found = losses(number, search.codes)
        own, *others = (exposure(rank(found, position(c), rng), space) for c in (canary, *nulls))
        return Exposed(
            own, np.array(others), None, tuple(search.codes[int(found.argmin())].tolist())
        )
    planted = np.stack([canary.code, *(null.code for null in nulls)])
    found = losses(number, np.concatenate([planted, search.codes]))
    among = found[len(planted) :]
    own, *others = (
        exposure(rank_among(x, among, rng), len(among) + 1) for x in found[: len(planted)]
    )
    return Exposed(own, np.array(others), exposure_by_fit(float(found[0]), among, space))


def canary_threat(search: CanarySearch, cell: Cell, view: str) -> CanaryThreat:
    """Return the threat model of a canary: its pattern, the view, the unit and its holders."""
    settings = search.audited.config.canary
    unit = "group" if cell.devices > 1 else "device" if cell.copies > 1 else "example"
    return CanaryThreat(
        pattern=settings.pattern,
        view=view,
        unit=unit,
        copies=cell.copies,
        devices=cell.devices,
        holders=cell.holders,
        period=settings.period or 1,
    )


def exposure_figures(search: CanarySearch, found: Sequence[Exposed]) -> ExposureFigures:
    """Return the exposures of canaries and of their nulls, and the canaries' joint p-value."""
    pattern = search.reading.pattern
    own = np.array([f.exposure for f in found])
    nulls = np.concatenate([f.nulls for f in found])
    fitted = [f.fitted for f in found if f.fitted is not None]
    several = len(own) > 1
    return ExposureFigures(
        exposure_mean=float(own.mean()),
        exposure_max=float(own.max()),
        exposure_se=float(own.std(ddof=1) / len(own) ** 0.5)
        if several
        else exposure_standard_error(1),
        null_mean=float(nulls.mean()),
        null_expected=null_mean(min(pattern.space, len(search.codes) + 1)),
        p_value=joint_p_value(own),
        space=float(pattern.space),
        canaries=len(found),
        chance=1 / len(pattern.candidates),
        exposures=tuple(own.tolist()),
        null_exposures=tuple(nulls.tolist()),
        exposure_fitted_mean=float(np.mean(fitted)) if fitted else None,
    )
