"""One device's DP-SGD by Opacus: per-example gradients by hooks, clip, noise, SGD.

The batches are those of the non-private client rather than Poisson's, which would cost the peer
more.
"""

from dataclasses import dataclass

from opacus import GradSampleModule
from opacus.layers import DPLSTM
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from experiments.benchmarks.peers.plain import Block, batches, build
from experiments.benchmarks.peers.settings import Setting

KINDS = {"bilstm": {"lstm": DPLSTM}, "transformer": {"block": Block}}
"""What stands for the layers of torch that Opacus has no rule for."""


@dataclass(frozen=True)
class PrivateModel:
    """A model with Opacus' hooks, and the optimiser that reads them."""

    model: nn.Module
    optimizer: DPOptimizer


def wrap(setting: Setting) -> PrivateModel:
    model = GradSampleModule(build(setting, **KINDS.get(setting.model, {})))
    optimizer = DPOptimizer(
        SGD(model.parameters(), lr=setting.lr),
        noise_multiplier=setting.noise,
        max_grad_norm=setting.clip,
        expected_batch_size=setting.batch,
    )
    return PrivateModel(model, optimizer)


def train_device(
    private: PrivateModel, setting: Setting, fields: dict[str, Tensor], seed: int
) -> int:
    """Take as many DP-SGD steps as an epoch has batches; return the number of examples."""
    for batch in batches(setting, fields, seed):
        private.optimizer.zero_grad()
        cross_entropy(private.model(batch[setting.input]), batch["label"]).backward()
        private.optimizer.step()
    return len(fields["label"])
