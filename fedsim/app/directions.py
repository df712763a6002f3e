"""Random directions: what canary devices send and audits look for."""

import torch

from fedsim.seeds import generator
from fedsim.types import Params


def random_direction(params: Params, seed: int, *names: str | int) -> Params:
    """Return a uniformly random direction of norm 1 over all parameters, in float64."""
    size = sum(p.numel() for p in params.values())
    flat = torch.from_numpy(generator(seed, "direction", *names).standard_normal(size))
    parts = (flat / flat.norm()).split([p.numel() for p in params.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(params.items(), parts, strict=True)}
