"""Device-level DP as one object: clip, weights, divisor, noise and the event that they make.

What is added here and what is accounted come from the same fields, so that they cannot disagree.
"""

import math
from dataclasses import dataclass

from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.privacy.accounting import Event, joint_multiplier
from fedsim.privacy.banded import column_norm


@dataclass(frozen=True)
class DeviceMechanism:
    """Releases (Σ v_i · clipped delta_i + noise) / divisor each round; v_i is at most `max_weight`.

    Guarantee: one device more or less, or with a zero delta instead of its own, moves the sum by at
    most `sensitivity(clip)` in L2, under both relations. Nothing else in the release changes.
    """

    noise_multiplier: float
    """z of a whole release, over the noise of the delta and of the count.

    banded: z of all participations.
    """
    max_weight: float
    divisor: float
    """Public constant: expected cohort times the largest weight."""
    count_noise: float = 0.0
    """Noise stddev on the count of unclipped devices; 0 where the clip is fixed."""
    quantile: float = 0.5
    clip_lr: float = 0.0
    cohort: int = 1
    """Public constant that the count is divided by."""
    participations: int = 0
    """banded: rounds in which a device takes part at most; 0 where noise is fresh each round."""
    bands: int = 1

    @property
    def adaptive(self) -> bool:
        return self.count_noise > 0

    @property
    def correlated(self) -> bool:
        return self.participations > 0

    @property
    def delta_multiplier(self) -> float:
        """z_Δ, the multiplier of the delta's own noise: (z⁻² - (2σ_b)⁻²)^(-1/2)."""
        if not self.adaptive:
            return self.noise_multiplier
        return float((self.noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5)

    def sensitivity(self, clip: float) -> float:
        """Return the L2 sensitivity of a round's weighted sum."""
        return self.max_weight * clip

    def stddev(self, clip: float) -> float:
        """Return the stddev of the (white) noise that a round draws for the sum."""
        whole = math.sqrt(self.participations) * column_norm(self.bands) if self.correlated else 1.0
        return self.delta_multiplier * whole * self.sensitivity(clip)

    def event(self, probability: float, weight: float = 1.0, count: int = 1) -> Event:
        """Return what `count` rounds cost a device of this inclusion probability and public weight.

        z_i = ((v_i / (v_max z_Δ))² + (1 / (2σ_b))²)^(-1/2); without amplification the probability
        is 1.
        """
        if weight > self.max_weight:
            raise WrongInput(f"a device's public weight is at most {self.max_weight}, got {weight}")
        whole = math.sqrt(self.participations) if self.correlated else 1.0
        blocks = [(weight, self.max_weight * self.delta_multiplier * whole)]
        if self.adaptive:
            blocks.append((0.5, self.count_noise))
        return Event(joint_multiplier(blocks), probability, count)

    def next_clip(self, clip: float, noisy_centred_count: float) -> float:
        """Return the next clip norm from the noisy Σ(b_i - 1/2), b_i = 1 for an unclipped device.

        Andrew et al. (2021): C ← C · exp(-lr · (share - quantile)); the share has a public divisor.
        """
        share = noisy_centred_count / self.cohort + 0.5
        return clip * math.exp(-self.clip_lr * (min(max(share, 0.0), 1.0) - self.quantile))


def device_mechanism(config: Config) -> DeviceMechanism:
    """Return the mechanism of `dp.unit = "device"`, from the config alone. Raises WrongInput."""
    dp = config.dp
    cohort = config.selection.cohort
    weighted = config.aggregation.weights in ("examples", "inverse_probability")
    largest = dp.max_weight if weighted else 1.0
    adaptive = dp.clipping == "adaptive"
    count_noise = (dp.count_noise or cohort / 20) if adaptive else 0.0
    if adaptive and 2 * count_noise <= dp.noise_multiplier:
        raise WrongInput(
            "adaptive clipping needs 2 x dp.count_noise above dp.noise_multiplier = "
            f"{dp.noise_multiplier}, got count noise {count_noise:g}; raise dp.count_noise or "
            "selection.cohort"
        )
    banded = dp.correlation == "banded"
    return DeviceMechanism(
        noise_multiplier=dp.noise_multiplier,
        max_weight=largest,
        divisor=cohort * largest,
        count_noise=count_noise,
        quantile=dp.quantile,
        clip_lr=dp.clip_lr if adaptive else 0.0,
        cohort=cohort,
        participations=most_participations(config) if banded else 0,
        bands=dp.min_separation if banded else 1,
    )


def most_participations(config: Config) -> int:
    """Return the most rounds in which a device can be selected, by separation and limit."""
    by_separation = math.ceil(config.train.rounds / config.dp.min_separation)
    limit = config.dp.max_participations
    return min(by_separation, limit) if limit else by_separation
