"""Example-level DP on a device: its local steps, from the config and public quantities alone."""

import math
from dataclasses import dataclass

from fedsim.config import Dp, Train
from fedsim.errors import WrongInput


@dataclass(frozen=True)
class LocalPlan:
    """A device's local steps of a round: each releases (clipped sum + N(0, stddev²)) / divisor.

    Guarantee: one example added or removed moves the clipped sum of a step by at most `sensitivity`
    in L2. Nothing here is a function of the device's examples beyond its public activity.
    """

    sampling_rate: float
    """Every example is in a step's batch by a coin of this chance."""
    steps: int
    """Local steps of a round."""
    epoch_steps: int
    """Local steps that make an epoch; the noise decays after each."""
    divisor: float
    """What a step's noisy sum is divided by, whatever the batch."""
    sensitivity: float
    """L2 sensitivity of a step's sum: C for exact clipping, 2C for micro-batches."""
    noise_multiplier: float
    """Noise stddev over sensitivity in the first epoch."""
    noise_decay: float
    survivors: int = 1
    """Noise shares that make up the noise: 1 where the device adds all of it."""

    def multiplier(self, step: int) -> float:
        """Return the noise multiplier of a local step, from 0.

        Each round starts the epochs anew.
        """
        return float(self.noise_multiplier * self.noise_decay ** (step // self.epoch_steps))

    def stddev(self, step: int = 0) -> float:
        """Return the stddev of the noise that this device adds to a local step's sum."""
        return self.multiplier(step) * self.sensitivity / math.sqrt(self.survivors)

    def multipliers(self) -> dict[float, int]:
        """Return the noise multipliers of a round's local steps with how often each is used."""
        found: dict[float, int] = {}
        for first in range(0, self.steps, self.epoch_steps):
            z = self.multiplier(first)
            found[z] = found.get(z, 0) + min(self.epoch_steps, self.steps - first)
        return found


def local_plan(dp: Dp, train: Train, public_activity: int, survivors: int = 1) -> LocalPlan:
    """Return the local steps of a device with so many examples in public.

    `survivors` is the fewest honest devices that answer a secure sum, without the protected one; it
    is 1 where each device adds the whole noise. Micro-batches (`edp`) have the sensitivity 2C: an
    example can move the mean of its slot from one end of the ball to the other. Raises WrongInput.
    """
    if public_activity < 1:
        raise WrongInput(
            f"a device needs at least one example in public to train, got {public_activity}"
        )
    rate = dp.sampling_rate or min(1.0, train.batch_size / public_activity)
    epoch = (
        math.ceil(1 / rate - 1e-9)
        if dp.sampling_rate
        else math.ceil(public_activity / train.batch_size)
    )
    expected = rate * public_activity
    summed = dp.trust == "secure_sum"
    # in a sum, weight over divisor must be the same for all devices
    divisor = expected if summed else max(1.0, expected)
    if dp.method == "edp":
        divisor = min(float(dp.micro_batches), divisor)
    return LocalPlan(
        sampling_rate=rate,
        steps=train.local_steps or train.local_epochs * epoch,
        epoch_steps=epoch,
        divisor=divisor,
        sensitivity=2 * dp.clip_norm if dp.method == "edp" else dp.clip_norm,
        noise_multiplier=dp.noise_multiplier,
        noise_decay=dp.noise_decay if dp.method == "edp" else 1.0,
        survivors=survivors,
    )
