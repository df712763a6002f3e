"""Device-level DP on the server: noise on the sum, a constant divisor, then the server rule."""

from dataclasses import replace

import torch
from torch import Tensor

from fedsim.config import Config
from fedsim.privacy.banded import correlated
from fedsim.privacy.mechanism import DeviceMechanism, device_mechanism
from fedsim.privacy.noise import NoiseSource
from fedsim.privacy.secure_sum import SecureSum, fewest_survivors, secure_sum
from fedsim.types import Params, Update
from strategies.aggregation import Aggregator, State

PREFIX = "dp/"


class Private:
    """An aggregation rule that sees the total only through a device-level mechanism.

    Every round adds noise and takes a step, also where no device answered. The round names its
    noise, so a repeated round with the same inputs is the same release.

    Guarantee: every round's step is a function of the noised sum and public constants alone, for
    one device under the mechanism's relation.
    """

    def __init__(
        self,
        inner: Aggregator,
        mechanism: DeviceMechanism,
        clip: float,
        noise: NoiseSource,
        summed: SecureSum | None = None,
    ) -> None:
        self.inner = inner
        self.mechanism = mechanism
        self.first_clip = clip
        self.noise = noise
        self.summed = summed

    def init(self, params: Params) -> State:
        """Return the inner rule's state, the round, the clip norm and with bands earlier noise."""
        earlier = {
            f"{PREFIX}noise/{age}/{name}": torch.zeros(p.shape, dtype=torch.float64)
            for age in range(1, self.mechanism.bands)
            for name, p in params.items()
        }
        own = {f"{PREFIX}round": _scalar(0), f"{PREFIX}clip": _scalar(self.first_clip)}
        own |= {f"{PREFIX}released": _scalar(0), f"{PREFIX}headroom": _scalar(0)}
        return self.inner.init(params) | earlier | own

    def clip_norm(self, state: State) -> float:
        """Return the clip norm of the next round: a function of earlier releases only."""
        return float(state[f"{PREFIX}clip"])

    def step(self, params: Params, total: Update, state: State) -> tuple[Params, State]:
        round = int(state[f"{PREFIX}round"]) + 1
        clip = self.clip_norm(state)
        own = {name: value for name, value in state.items() if name.startswith(PREFIX)}
        own[f"{PREFIX}round"] = _scalar(round)
        inner = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
        if self.summed is not None:
            released = self.summed.may_release(total.devices)
            own[f"{PREFIX}released"] = _scalar(released)
            if not released:
                return params, inner | own
            noised = {name: self.summed.decode(d) for name, d in total.delta.items()}
            own[f"{PREFIX}headroom"] = _scalar(max(map(self.summed.headroom, noised.values())))
        else:
            noised = self._noised(total, clip, round, own)
        own[f"{PREFIX}clip"] = _scalar(self._next_clip(total, clip, round))
        public = replace(total, delta=noised, weight=self.mechanism.divisor)
        moved, after = self.inner.step(params, public, inner)
        return moved, after | own

    def _noised(self, total: Update, clip: float, round: int, own: State) -> Params:
        """Return the sum with this round's noise; `own` keeps it for later rounds to subtract."""
        stddev = self.mechanism.stddev(clip)
        bands = self.mechanism.bands
        noised: Params = {}
        for name, delta in total.delta.items():
            white = self.noise.normal(torch.empty(delta.numel()), "server", round, name)
            keys = [f"{PREFIX}noise/{age}/{name}" for age in range(1, bands)]
            fresh = correlated(white.double().view(delta.shape), [own[key] for key in keys], bands)
            for newer, older in zip(
                reversed([fresh, *(own[k] for k in keys[:-1])]), reversed(keys), strict=False
            ):
                own[older] = newer
            noised[name] = delta + stddev * fresh
        return noised

    def _next_clip(self, total: Update, clip: float, round: int) -> float:
        if not self.mechanism.adaptive:
            return clip
        draw = float(self.noise.normal(torch.empty(1), "count", round))
        centred = total.metrics.get("unclipped", 0.0) - total.devices / 2
        return self.mechanism.next_clip(clip, centred + self.mechanism.count_noise * draw)


def _scalar(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


class EnoughAnswers:
    """An aggregation rule that takes no step on a secure sum with too few noise shares."""

    def __init__(self, inner: Aggregator, survivors: int) -> None:
        self.inner = inner
        self.survivors = survivors

    def init(self, params: Params) -> State:
        return self.inner.init(params)

    def step(self, params: Params, total: Update, state: State) -> tuple[Params, State]:
        if total.devices - 1 < self.survivors:
            return params, state
        return self.inner.step(params, total, state)


def with_privacy(inner: Aggregator, config: Config, devices: int, noise: NoiseSource) -> Aggregator:
    """Return the rule with what `[dp]` asks of the server.

    `devices` counts the devices whose public activity is above 0.
    """
    dp = config.dp
    survivors = noise_survivors(config, devices)
    if dp.unit == "example" and dp.trust == "secure_sum":
        return EnoughAnswers(inner, survivors)
    if dp.unit != "device":
        return inner
    mechanism = device_mechanism(config)
    clip = dp.clip_norm
    summed = None
    if dp.trust == "secure_sum":
        summed = secure_sum(dp, mechanism.sensitivity(clip), mechanism.stddev(clip), survivors)
    return Private(inner, mechanism, clip, noise, summed)


def noise_survivors(config: Config, devices: int) -> int:
    """Return how many honest answers the noise shares assume; 1 without a secure sum."""
    invited = min(config.selection.cohort, devices)
    return (
        fewest_survivors(config.dp.min_survivors, invited) if config.dp.trust == "secure_sum" else 1
    )
