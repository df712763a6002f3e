"""A model for differential privacy: one trained linear layer over bounded, fixed features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedsim.config import Model
from fedsim.errors import WrongInput
from fedsim.models.layers import Linear
from fedsim.seeds import torch_generator
from fedsim.types import PAD, Spec

KEY = 0
"""The key of the frozen table.

It is a constant of the program, not the run's seed, so the table is the same for everybody.
"""


class Projection(nn.Module):
    """A linear head over frozen random signs, summed over the text and scaled to norm 1.

    The table has a sign for each token and dimension. With noise on a linear head, the noise at the
    logits does not grow with the width, so width costs arithmetic only. Features of norm 1 bound an
    example's gradient by √2, so clipping loses little. With `model.label_names` a label's first
    weights are the features of its name's words, times that factor. Names of labels are part of the
    task, so this start is public and costs no privacy.
    """

    table: Tensor

    def __init__(self, spec: Spec, model: Model) -> None:
        super().__init__()
        signs = torch.randint(
            0, 2, (spec.vocabulary, model.embedding), generator=torch_generator(KEY, "projection")
        )
        self.register_buffer("table", signs.float() * 2 - 1, persistent=False)
        self.label = Linear(model.embedding, len(spec.labels), bias=False)
        with torch.no_grad():
            self.label.weight.copy_(self._start(spec, model.label_names))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens: [..., B, T] -> label logits [..., B, labels]."""
        return {"label": self.label(self.features(tokens).to(self.label.weight.dtype))}

    def features(self, tokens: Tensor) -> Tensor:
        """tokens: [..., T] -> [..., width], of norm 1, or 0 where there is no token."""
        bags = tokens.reshape(-1, tokens.shape[-1])
        sums = nn.functional.embedding_bag(bags, self.table, mode="sum", padding_idx=PAD)
        return nn.functional.normalize(sums, dim=-1).view(*tokens.shape[:-1], -1)

    def activations(self, tokens: Sequence[int]) -> int:
        """Return the floats of the features, and of the logits with their softmax and gradient."""
        return self.label.in_features + 3 * self.label.out_features

    def _start(self, spec: Spec, scale: float) -> Tensor:
        start = torch.zeros(self.label.weight.shape)
        if not scale:
            return start
        if not spec.label_tokens:
            raise WrongInput(
                f"model.label_names = {scale:g} needs the names of labels as hashed words; set "
                'data.vocabulary = "hashed"'
            )
        for row, ids in enumerate(spec.label_tokens):
            if ids:
                start[row] = scale * self.features(torch.tensor(ids))
        return start
