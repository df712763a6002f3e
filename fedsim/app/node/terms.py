"""The terms of a node's owner: limits on every instruction, from the node's own node-config.

They hold against *instructions to this app*. Only `flower-supernode --trusted-entities` stops a
server that ships another app to a node.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from fedsim.app.experiment.loading import Changes, changes_of
from fedsim.config import Config, Data, Stream
from fedsim.data.stream import DAY, cut, period_of_round
from fedsim.errors import WrongInput
from fedsim.privacy.local_plan import local_plan
from fedsim.privacy.secure_sum import fewest_survivors
from fedsim.types import Cohort
from fedsim.wire import EVER


@dataclass(frozen=True)
class Terms:
    """The bounds of one node; 0 stands for "no bound".

    Guarantee: a node never answers an instruction that is beyond its terms. It refuses with a
    sentence before it trains.
    """

    real: bool = False
    """Whether the node holds data of its own (node-config `data-path`)."""
    max_epsilon: float = 0.0
    max_delta: float = 1e-5
    """Largest delta at which an epsilon is compared with `max_epsilon`."""
    max_clip_norm: float = 0.0
    min_noise_multiplier: float = 0.0
    min_cohort: int = 0
    """Fewest devices in a released sum, the node's own devices included."""
    min_period_days: float = 0.0
    """Shortest period whose activity is told; a shorter one reveals when a record came."""
    insecure_noise: bool = False
    """Whether simulations are allowed on the node's own data."""

    @property
    def private(self) -> bool:
        """Whether the owner wants DP. If so, nothing exact leaves the node."""
        return bool(self.max_epsilon or self.max_clip_norm or self.min_noise_multiplier)

    def check(self, config: Config) -> None:
        """Refuse a run that the terms rule out. Raises WrongInput."""
        if self.real:
            _check_real(config, self.insecure_noise)
        if self.private and config.dp.unit == "none":
            raise WrongInput(
                'this node answers only under differential privacy, got dp.unit = "none"; set '
                '"example" or "device"'
            )
        if self.private and config.data.activity_public == "exact":
            raise WrongInput(
                'this node tells no exact sizes; set data.activity_public = "power2", got "exact"'
            )
        if self.min_noise_multiplier and (least := least_noise(config)) < self.min_noise_multiplier:
            raise WrongInput(
                f"this node wants min-noise-multiplier = {self.min_noise_multiplier:g}, got "
                f"{least:g}; raise dp.noise_multiplier"
            )
        self._check_clip(config.dp.clip_norm)
        if self.min_period_days and config.stream.mode == "continual":
            self._check_length(config.stream)

    def check_period(self, config: Config, period: int) -> None:
        """Refuse a question about real data in an unknown period. Raises WrongInput."""
        if self.real and not EVER <= period <= config.stream.periods:
            raise WrongInput(
                f"this node answers for periods 1 to {config.stream.periods} (0 = all of them), "
                f"got {period}"
            )

    def check_instruction(self, config: Config, cohort: Cohort) -> None:
        """Refuse a task that the terms rule out. Raises WrongInput.

        Real data train only in the period of the round. Another period would bring deleted records
        back.
        """
        if self.real and not _in_its_period(config, cohort):
            raise WrongInput(
                f"round {cohort.round} of {config.train.rounds} does not lie in period "
                f"{cohort.period}; this node trains on what its devices hold in the period of the "
                "round"
            )
        if config.dp.unit == "device":
            self._check_clip(cohort.clip_norm)
        if self.min_cohort and config.dp.unit != "none" and config.dp.trust == "secure_sum":
            fewest = min(
                cohort.survivors, fewest_survivors(config.dp.min_survivors, config.selection.cohort)
            )
            if fewest + 1 < self.min_cohort:
                raise WrongInput(
                    f"this node wants min-cohort = {self.min_cohort} in a secure sum, and one of "
                    f"{fewest + 1} could be released; raise selection.cohort or dp.min_survivors"
                )

    def check_epsilon(self, epsilon: float, device: str) -> None:
        """Refuse a release that takes a device above `max_epsilon`. Raises WrongInput."""
        if self.max_epsilon and epsilon > self.max_epsilon:
            raise WrongInput(
                f"this node wants max-epsilon = {self.max_epsilon:g}, and this release would "
                f"bring device {device!r} to {epsilon:.4g}; it takes no more part"
            )

    def _check_length(self, stream: Stream) -> None:
        begin, end, *_ = cut(stream)
        if (days := (end - begin) / DAY) < self.min_period_days:
            raise WrongInput(
                f"this node wants min-period-days = {self.min_period_days:g}, got {days:.3g}; use "
                "fewer stream.periods"
            )

    def _check_clip(self, norm: float) -> None:
        if self.max_clip_norm and norm > self.max_clip_norm:
            raise WrongInput(
                f"this node wants max-clip-norm = {self.max_clip_norm:g}, got {norm:g}; lower "
                "dp.clip_norm"
            )


def terms_of(node_config: Mapping[str, Any]) -> Terms:
    """Return the terms in a node-config. Raises WrongInput for a value that is no bound."""
    return Terms(
        real="data-path" in node_config,
        max_epsilon=_bound(node_config, "max-epsilon", 0.0),
        max_delta=_bound(node_config, "max-delta", Terms.max_delta),
        max_clip_norm=_bound(node_config, "max-clip-norm", 0.0),
        min_noise_multiplier=_bound(node_config, "min-noise-multiplier", 0.0),
        min_cohort=int(_bound(node_config, "min-cohort", 0)),
        min_period_days=_bound(node_config, "min-period-days", 0.0),
        insecure_noise=node_config.get("insecure-noise", False) is True,
    )


def least_noise(config: Config) -> float:
    """Return the smallest noise multiplier that any release of a run has."""
    if config.dp.unit != "example":
        return config.dp.noise_multiplier
    largest = local_plan(
        config.dp, config.train, 2**30 if config.dp.sampling_rate else config.train.batch_size
    )
    return min(largest.multipliers())


def _bound(node_config: Mapping[str, Any], key: str, default: float) -> float:
    value = node_config.get(key, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < float("inf")
    ):
        raise WrongInput(f"node-config {key} wants a number of at least 0, got {value!r}")
    return float(value)


def _in_its_period(config: Config, cohort: Cohort) -> bool:
    rounds = config.train.rounds
    known = 1 <= cohort.round <= rounds
    return known and cohort.period == period_of_round(config.stream, rounds, cohort.round)


def _check_real(config: Config, insecure: bool) -> None:
    """Refuse simulations, and files outside the node's own folder. Raises WrongInput."""
    dp = config.dp
    if dp.noise_source == "seeded" and not insecure:
        raise WrongInput(
            'dp.noise_source = "seeded" lets who has the seed take the noise off real data; leave '
            'it at "auto", or set insecure-noise=true in the node\'s own config'
        )
    if dp.unit != "none" and dp.trust == "secure_sum" and not insecure:
        raise WrongInput(
            'dp.trust = "secure_sum" is simulated: nothing is masked, and the server would see '
            'what real devices send with a share of the noise only; set dp.trust = "local" or '
            '"central", or insecure-noise=true in the node\'s own config'
        )
    if changes_of(config) != Changes() and not insecure:
        raise WrongInput(
            "coins, random labels and canaries change what a device trains on, and a real node "
            'trains on its own examples as they are; set audit.coins = "none", audit.mislabelled '
            "= 0, canary.count = 0 and audit.canary_devices = 0, or insecure-noise=true in the "
            "node's own config"
        )
    if config.stream.mode == "continual":
        _check_stream(config.stream)
    _check_inside(config.data)


def _check_stream(stream: Stream) -> None:
    """Refuse periods whose edges depend on a node's records, and made-up deletions."""
    by_edges = stream.arrivals == "time" and stream.cut == "duration"
    if not (by_edges and stream.begin and stream.end):
        raise WrongInput(
            'real nodes want periods that no records decide: stream.arrivals = "time", stream.cut '
            f'= "duration", stream.begin and stream.end; got "{stream.arrivals}", "{stream.cut}", '
            f'"{stream.begin}" and "{stream.end}"'
        )
    if stream.deletions:
        raise WrongInput(
            f"stream.deletions = {stream.deletions:g} makes requests up, and a real node honours "
            'those of its own data (data.columns = "deleted=COLUMN"); set it to 0'
        )


def _check_inside(data: Data) -> None:
    for key in ("path", "train", "dev", "test"):
        for part in str(getattr(data, key)).split(","):
            path = PurePath(part.strip())
            if path.is_absolute() or ".." in path.parts:
                raise WrongInput(
                    f"data.{key} = {part.strip()!r} leads out of the node's data-path; name files "
                    "below it"
                )
