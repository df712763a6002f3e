"""Device-level DP in the real server and client code: sensitivity, noise, clip rule, limits, secure
sum.

Seen to fail: factors left out of `Lane._train_chunk`, a clip of 2C, example weights let through
(`weights` without its DP branch), divisor = the realised weight, `Private.step` returning early for
an empty cohort, no noise, an uncentred count, `may_release` without the -1, shares of stddev /
survivors, `column_norm` of 1, `correlated` with the wrong sign, `Limits` joined by or, a cap that
is not applied, retirement by a mask before the draw, the largest weight in every event.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from clients.device_clip import DeviceClip, clip_factors, device_clip
from clients.training import Assignment, Trainer
from fedsim.config import Config, Selection, from_flat
from fedsim.models import build_model, parameters_of
from fedsim.models.tasks import make_task
from fedsim.privacy.banded import coefficients, column_norm, correlated
from fedsim.privacy.mechanism import device_mechanism
from fedsim.privacy.noise import NoiseSource, Seeded
from fedsim.privacy.secure_sum import SecureSum, fewest_survivors
from fedsim.types import Cohort, Examples, Params, Spec, Update, View, no_update
from strategies.aggregation import averages, make_aggregator
from strategies.federated import Federated
from strategies.inclusion import inclusion
from strategies.noised_sum import Private, with_privacy
from strategies.participation_limits import Limits
from strategies.roster import Roster
from strategies.weights import weights

SPEC = Spec("classification", vocabulary=12, labels=("a", "b", "c"), length=5)
NAMES = np.array([f"d{i}" for i in range(8)])


class NoNoise(NoiseSource):
    """What a release would be without its noise: only tests may know it."""

    kind = "none"

    def __init__(self) -> None:
        super().__init__(b"")

    def normal(self, out: torch.Tensor, *names: str | int) -> torch.Tensor:
        return out.zero_()


def config(**changes: object) -> Config:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    base = {
        "dp.unit": "device",
        "dp.clip_norm": 0.5,
        "data.task": "classification",
        "model.embedding": 4,
        "model.hidden": 4,
        "selection.cohort": 4,
        "aggregation.rule": "fedavg",
        "aggregation.lr": 1.0,
        "train.lr": 2.0,
        "train.batch_size": 4,
    }
    return from_flat(base | named)


def trainer_of(settings: Config) -> Trainer:
    module = build_model(SPEC, settings.model, settings.seed)
    return Trainer(module, make_task(SPEC), settings.train, memory=2**14)


def examples(rng: np.random.Generator, n: int) -> Examples:
    tokens = torch.from_numpy(rng.integers(2, 12, (n, 5)))
    return Examples({"tokens": tokens, "label": torch.from_numpy(rng.integers(0, 3, n))})


def flat(params: Params) -> torch.Tensor:
    return torch.cat([p.double().flatten() for p in params.values()])


def the_sum(
    settings: Config,
    data: dict[str, Examples],
    clip: DeviceClip | None,
    weight: Callable[[str], float],
) -> Update:
    trainer = trainer_of(settings)
    assigned = [Assignment(d, x, weight(d)) for d, x in data.items()]
    return trainer.train(parameters_of(trainer.module), assigned, settings.seed, 1, clip)


def worst_move(settings: Config, faults: str = "") -> float:
    """Return the largest move of the step's input over neighbours, in units of its stated
    sensitivity.

    The adversary picks learning rates, sizes (one device, none at all, uneven) and who has a zero
    delta; the neighbour takes part with nothing (zero-out) or not at all (add-or-remove).
    """
    mechanism = device_mechanism(settings)
    worst = 0.0
    for trial in range(12):
        rng = np.random.default_rng(trial)
        people = [f"d{i}" for i in range(int(rng.integers(1, 5)))]
        sizes = {d: int(rng.choice([1, 2, 9, 30])) for d in people}
        hot = settings.model_copy(
            update={
                "train": settings.train.model_copy(
                    update={"lr": float(rng.choice([0.01, 2.0, 300.0]))}
                )
            }
        )
        data = {d: examples(rng, n) for d, n in sizes.items()}
        public = np.array([sizes[d] for d in people], dtype=np.int64)
        view = View(
            1, np.array(people), public, np.ones(len(people), bool), np.zeros(len(people), np.int64)
        )
        cohort = Cohort(1, np.array(people), None)
        dp = settings.dp if faults != "example weights" else Config().dp
        chosen = settings.model_copy(update={"dp": dp})
        given = dict(zip(people, weights(cohort, view, chosen), strict=True))
        clip = (
            None
            if faults == "no clip"
            else DeviceClip(settings.dp.clip_norm * (2 if faults == "2C" else 1))
        )
        whole = the_sum(hot, data, clip, given.__getitem__)
        for gone in people:
            rest = {d: x for d, x in data.items() if d != gone}
            without = the_sum(hot, rest, clip, given.__getitem__)
            moved = (flat(whole.delta) - flat(without.delta)).norm()
            if faults == "realised divisor":
                mean = [
                    flat(u.delta) / max(u.weight, 1.0) * mechanism.divisor for u in (whole, without)
                ]
                moved = torch.maximum((mean[0] - mean[1]).norm(), moved)
            worst = max(worst, float(moved) / mechanism.sensitivity(settings.dp.clip_norm))
    return worst


def test_no_neighbour_moves_the_sum_by_more_than_the_stated_sensitivity() -> None:
    """Guarantee of DeviceMechanism and clip_factors, over the real training and weighting code."""
    for changes in ({}, {"aggregation__weights": "examples", "dp__max_weight": 4.0}):
        assert 0.9 < worst_move(config(**changes)) <= 1.0 + 1e-12


@pytest.mark.parametrize("fault", ["2C", "example weights", "realised divisor", "no clip"])
def test_the_same_search_finds_planted_faults(fault: str) -> None:
    weighted = {"aggregation__weights": "examples"} if fault == "example weights" else {}
    assert worst_move(config(**weighted), fault) > 1.5


def test_clipped_norms_are_at_most_c_zero_and_broken_changes_included() -> None:
    changes = {
        "a": torch.randn(5, 3, 2, dtype=torch.float64),
        "b": torch.randn(5, 4, dtype=torch.float64),
    }
    changes["a"][1] = 0.0
    changes["b"][1] = 0.0
    changes["b"][2, 0] = math.nan
    changes["a"][3, 0, 0] = math.inf
    changes["a"][4], changes["b"][4] = changes["a"][4] * 1e-3, changes["b"][4] * 1e-3
    factors, unclipped = clip_factors(changes, 0.5)
    assert factors.tolist()[1:] == [1.0, 0.0, 0.0, 1.0]
    assert unclipped == 2
    assert (
        0.4999 < factors[0] * torch.cat([changes["a"][0].flatten(), changes["b"][0]]).norm() <= 0.5
    )


def made(settings: Config, noise: NoiseSource | None = None) -> Private:
    aggregator = with_privacy(
        make_aggregator(settings.aggregation), settings, 8, noise or Seeded(1)
    )
    assert isinstance(aggregator, Private)
    return aggregator


def some(value: float, n: int = 20_000, devices: int = 1, **metrics: float) -> Update:
    return Update(
        {"w": torch.full((n,), value, dtype=torch.float64)}, float(devices), devices, metrics
    )


def test_noise_has_the_stated_stddev_and_the_divisor_is_a_constant() -> None:
    """False alarms: 1e-6 each side of a chi-square."""
    settings = config(dp__noise_multiplier=3.0)
    private = made(settings)
    params = {"w": torch.zeros(20_000)}
    for total in (some(0.0), no_update(params), some(8.0, devices=7)):
        moved, _ = private.step(params, total, private.init(params))
        x = moved["w"].double() * 4.0 - total.delta["w"]  # the divisor is the cohort, whoever came
        low, high = stats.chi2.interval(1 - 2e-6, 20_000)
        assert low < float((x**2).sum()) / (3.0 * 0.5) ** 2 < high


def test_a_round_without_any_device_still_gets_noise_and_a_step() -> None:
    private = made(config())
    params = {"w": torch.zeros(9)}
    moved, state = private.step(params, no_update(params), private.init(params))
    assert (moved["w"] != 0).all()
    assert float(state["dp/round"]) == 1


def test_two_rounds_get_different_noise_and_a_repeated_round_the_same() -> None:
    private = made(config())
    params = {"w": torch.zeros(9)}
    first, state = private.step(params, no_update(params), private.init(params))
    again, _ = private.step(params, no_update(params), private.init(params))
    second, _ = private.step(params, no_update(params), state)
    assert torch.equal(first["w"], again["w"])
    assert not torch.equal(first["w"], second["w"])


@pytest.mark.parametrize("rule", sorted(averages()))
def test_every_rule_sees_the_noised_mean_only(rule: str) -> None:
    """Guarantee of Private: with noise off, the inner rule's step on the mean by the constant
    divisor.
    """
    settings = config(aggregation__rule=rule)
    private = made(settings, NoNoise())
    params = {"w": torch.ones(20_000)}
    moved, _ = private.step(params, some(2.0, devices=3), private.init(params))
    inner = make_aggregator(settings.aggregation)
    expected, _ = inner.step(params, some(0.5, devices=1), inner.init(params))
    assert torch.allclose(moved["w"], expected["w"])


def test_the_clip_norm_goes_to_the_quantile_of_the_devices_norms() -> None:
    """Andrew et al.'s rule, centred; 40 devices with norms 0.1 ... 4, three quarters shall stay
    unclipped.
    """
    settings = config(
        dp__clipping="adaptive",
        dp__quantile=0.75,
        dp__count_noise=1.0,
        selection__cohort=40,
        dp__clip_lr=0.3,
    )
    private = made(settings)
    params = {"w": torch.zeros(3)}
    state = private.init(params)
    norms = np.arange(1, 41) / 10
    clips = []
    for _ in range(150):
        clip = private.clip_norm(state)
        total = some(0.0, 3, devices=40, unclipped=float((norms <= clip).sum()))
        params, state = private.step(params, total, state)
        clips.append(private.clip_norm(state))
    assert np.mean(clips[50:]) == pytest.approx(3.0, abs=0.2)


def test_an_empty_round_tells_the_clip_rule_that_half_were_unclipped() -> None:
    """The count is centred: an empty round counts as one half, so a device moves it by 1/2."""
    mechanism = device_mechanism(config(dp__clipping="adaptive", dp__count_noise=1.0))
    assert mechanism.next_clip(2.0, 0.0) == 2.0
    assert mechanism.next_clip(2.0, 1.0) < 2.0 < mechanism.next_clip(2.0, -1.0)


def test_noise_split_between_delta_and_count_has_the_multiplier_of_the_whole() -> None:
    mechanism = device_mechanism(
        config(dp__clipping="adaptive", dp__count_noise=0.8, dp__noise_multiplier=1.2)
    )
    event = mechanism.event(0.1)
    assert event.noise_multiplier == pytest.approx(1.2)
    assert mechanism.delta_multiplier == pytest.approx((1.2**-2 - 1.6**-2) ** -0.5)
    weighted = device_mechanism(config(aggregation__weights="examples", dp__max_weight=4.0))
    assert weighted.event(0.1, 1.0).noise_multiplier == pytest.approx(4.0)


def test_inclusion_is_what_the_draws_have() -> None:
    """Frequency against stated probability; false alarms 1e-6 over all devices."""
    activity = np.array([1, 1, 2, 3, 5, 8, 13, 100])
    view = View(1, NAMES, activity, np.ones(8, bool), np.zeros(8, np.int64))
    for rule in ("uniform", "activity", "mixture", "threshold", "schedule"):
        settings = Selection(rule=rule, cohort=3, cap=0.9)
        p = inclusion(view, settings)
        from strategies.selection import select

        hits = np.zeros(8)
        rounds = 4000
        for seed in range(rounds):
            chosen = select(view, settings, np.random.default_rng(seed)).devices
            hits[np.searchsorted(NAMES, chosen)] += 1
        pvalues = [
            stats.binomtest(int(h), rounds, q).pvalue
            for h, q in zip(hits, p, strict=True)
            if 0 < q < 1
        ]
        assert min(pvalues, default=1) > 1e-6 / 8
        assert ((p > 0) | (hits == 0)).all()
        assert p.max() <= 0.9


def test_a_public_total_of_scores_makes_inclusion_independent_of_the_others() -> None:
    settings = Selection(cohort=2, total_score=50.0)
    ones = np.ones(8, bool)
    none = np.zeros(8, np.int64)
    few = inclusion(View(1, NAMES, np.array([1, 2, 3, 4, 5, 6, 0, 0]), ones, none), settings)
    many = inclusion(View(1, NAMES, np.array([1, 2, 3, 4, 5, 6, 90, 90]), ones, none), settings)
    assert (few[:6] == many[:6]).all()
    assert few[3] == pytest.approx(2 * 4 / 50)


def test_a_device_is_selected_at_most_so_often_and_never_sooner() -> None:
    """Guarantee of Limits, over whole runs of the real selection."""
    settings = config(
        dp__min_separation=3, dp__max_participations=2, train__rounds=20, selection__cohort=8
    )
    roster = Roster(NAMES, np.arange(1, 9), np.ones(8, np.uint64))
    strategy = Federated(settings, roster, {"w": torch.zeros(3)})
    seen: dict[str, list[int]] = {}
    for round in range(1, 21):
        cohort = strategy.select(round)
        for device in cohort.devices.tolist():
            seen.setdefault(device, []).append(round)
        participation = strategy.state.participation.copy()
        participation[np.searchsorted(NAMES, cohort.devices)] += 1
        strategy.state = replace(strategy.state, round=round, participation=participation)
    assert max(map(len, seen.values())) == 2
    assert min(np.diff(rounds).min() for rounds in seen.values() if len(rounds) > 1) >= 3
    assert (Limits(config(), NAMES).open(5, np.full(8, 99))).all()


def test_retired_devices_stay_out_and_change_nothing_for_others() -> None:
    roster = Roster(NAMES, np.arange(1, 9), np.ones(8, np.uint64))
    strategy = Federated(config(), roster, {"w": torch.zeros(3)})
    before = [set(strategy.select(r).devices.tolist()) for r in range(1, 60)]
    strategy.retired[[2, 5]] = True
    after = [set(strategy.select(r).devices.tolist()) for r in range(1, 60)]
    assert after == [chosen - {"d2", "d5"} for chosen in before]
    assert after != before


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_correlated_noise_is_that_of_the_factorisation(bands: int) -> None:
    """Rows of C⁻¹z by the stream equal a dense solve."""
    rounds = 12
    c = coefficients(bands)
    matrix = sum(np.diag(np.full(rounds - j, v), -j) for j, v in enumerate(c))
    z = np.random.default_rng(0).standard_normal((rounds, 3))
    rows: list[torch.Tensor] = []
    for t in range(rounds):
        rows.append(correlated(torch.from_numpy(z[t]), rows[::-1], bands))
    assert np.allclose(np.stack([r.numpy() for r in rows]), np.linalg.solve(matrix, z))


def test_no_schedule_of_separated_rounds_has_more_than_the_stated_sensitivity() -> None:
    """Guarantee of column_norm: every schedule with k rounds at least b apart, signs included."""
    from itertools import combinations, product

    rounds = 9
    bands = 3
    k = 3
    matrix = sum(np.diag(np.full(rounds - j, v), -j) for j, v in enumerate(coefficients(bands)))
    worst = 0.0
    for chosen in combinations(range(rounds), k):
        if min(np.diff(chosen)) >= bands:
            for signs in product([-1, 1], repeat=k):
                x = np.zeros(rounds)
                x[list(chosen)] = signs
                worst = max(worst, float(np.linalg.norm(matrix @ x)))
    assert worst <= math.sqrt(k) * column_norm(bands) + 1e-12
    assert worst > 0.95 * math.sqrt(k) * column_norm(bands)
    closer = np.zeros(rounds)
    closer[:3] = 1  # what the selector must never allow
    assert np.linalg.norm(matrix @ closer) > math.sqrt(k) * column_norm(bands) * 1.3


def test_bands_lower_the_error_of_prefix_sums_at_equal_privacy() -> None:
    rounds = 64
    b = 8

    def error(bands: int) -> float:
        matrix = sum(np.diag(np.full(rounds - j, v), -j) for j, v in enumerate(coefficients(bands)))
        noise = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(matrix)
        return float(np.linalg.norm(noise)) * column_norm(bands)  # k is the same

    assert error(b) < 0.75 * error(1)


def test_the_server_s_banded_noise_is_the_stream_of_the_mechanism() -> None:
    settings = config(dp__correlation="banded", dp__min_separation=3, train__rounds=12)
    private = made(settings)
    mechanism = device_mechanism(settings)
    params = {"w": torch.zeros(50)}
    state = private.init(params)
    moves = []
    for _ in range(6):
        after, state = private.step({"w": torch.zeros(50)}, some(0.0, 50), state)
        moves.append(after["w"].double() * mechanism.divisor / mechanism.stddev(0.5))
    rows: list[torch.Tensor] = []
    for t in range(6):
        white = Seeded(1).normal(torch.empty(50), "server", t + 1, "w").double()
        rows.append(correlated(white, rows[::-1], 3))
        assert torch.allclose(moves[t], rows[t], atol=1e-5)
    assert mechanism.stddev(0.5) == pytest.approx(0.5 * math.sqrt(4) * column_norm(3))
    assert mechanism.event(1.0, count=4).noise_multiplier == pytest.approx(
        2.0
    )  # z = 1 over four rounds


def test_a_secure_sum_is_the_plain_sum_up_to_its_cells() -> None:
    summed = SecureSum(bits=40, cell=2.0**-16, stddev=0.0, survivors=3)
    values = torch.randn(10, 1000, dtype=torch.float64)
    total = torch.zeros(1000, dtype=torch.float64)
    for value in values:
        total = summed.reduce(total + summed.encode(value, torch.zeros(1000)))
    assert (summed.decode(total) - values.sum(0)).abs().max() <= 10 * 2.0**-17
    assert summed.headroom(summed.decode(total)) < 1e-5
    small = SecureSum(bits=16, cell=2.0**-16, stddev=0.0, survivors=3)
    assert (
        small.decode(small.encode(values[0], torch.zeros(1000))) - values[0]
    ).abs().max() > 0.5  # overflow


@pytest.mark.parametrize("dropped", [0.0, 0.2, 0.5])
def test_shares_hold_the_whole_noise_whoever_drops_out_or_nothing_is_released(
    dropped: float,
) -> None:
    """Noise stddev of the survivors' sum without the protected device; false alarms 1e-6."""
    invited = 40
    n = 20_000
    for share in (0.5, 0.8, 1.0):
        summed = SecureSum(40, 2.0**-16, 1.0, fewest_survivors(share, invited))
        answered = int(invited * (1 - dropped))
        assert summed.may_release(answered) == (answered - 1 >= summed.survivors)
        assert summed.may_release(answered) == (1 - dropped >= share)
        if not summed.may_release(answered):
            continue
        total = torch.zeros(n, dtype=torch.float64)
        for device in range(answered - 1):
            noise = Seeded(1).normal(torch.empty(n), "share", device)
            total = summed.reduce(total + summed.encode(torch.zeros(n, dtype=torch.float64), noise))
        variance = float(summed.decode(total).var())
        assert variance >= stats.chi2.ppf(1e-6, n - 1) / (n - 1)
        expected = (answered - 1) / summed.survivors
        assert variance == pytest.approx(expected, rel=0.06)


def test_rounded_shares_have_the_law_of_a_rounded_gaussian() -> None:
    """The sum of t rounded shares of 4 cells against a Gaussian of its variance: log ratio below
    1e-9.
    """
    s = 4.0
    t = 8
    x = np.arange(-60, 61)
    one = stats.norm.cdf((x + 0.5) / s) - stats.norm.cdf((x - 0.5) / s)
    total = one
    for _ in range(t - 1):
        total = np.convolve(total, one)
    k = np.arange(len(total)) - len(total) // 2
    stddev = math.sqrt(t * (s**2 + 1 / 12))
    near = np.abs(k) < 3 * stddev
    ratio = np.log(total[near] / stats.norm.pdf(k[near], scale=stddev))
    assert np.abs(ratio).max() < 1e-3
    assert stddev >= math.sqrt(t) * s  # never less noise than the Gaussian that is accounted


def test_a_whole_secure_round_gives_the_clipped_mean_plus_noise() -> None:
    settings = config(dp__trust="secure_sum", dp__noise_multiplier=0.5, selection__cohort=5)
    trainer = trainer_of(settings)
    params = parameters_of(trainer.module)
    rng = np.random.default_rng(0)
    assigned = [Assignment(f"d{i}", examples(rng, 3 + i), 1.0) for i in range(5)]
    cohort = Cohort(1, NAMES[:5], None, clip_norm=0.5, survivors=fewest_survivors(0.5, 5))
    noisy = device_clip(settings, params, cohort, Seeded(1))
    silent = device_clip(settings, params, cohort, NoNoise())
    private = made(settings)
    state = private.init(params)
    with_noise, _ = private.step(params, trainer.train(params, assigned, 1, 1, noisy), state)
    without, _ = private.step(params, trainer.train(params, assigned, 1, 1, silent), state)
    assert silent is not None
    plain = trainer.train(params, assigned, 1, 1, DeviceClip(silent.norm))
    expected = flat(params) + flat(plain.delta) / 5
    assert (flat(without) - expected).abs().max() < 1e-4
    x = (flat(with_noise) - flat(without)) * 5
    variance = (0.5 * 0.5) ** 2 * 5 / cohort.survivors
    low, high = stats.chi2.interval(1 - 2e-6, len(x))
    assert low < float((x**2).sum()) / variance < high
    assert silent.norm < 0.5


def test_too_few_answers_release_nothing() -> None:
    settings = config(dp__trust="secure_sum", selection__cohort=6)
    private = made(settings)
    params = {"w": torch.ones(50)}
    total = Update({"w": torch.full((50,), 7.0, dtype=torch.float64)}, 2.0, 2, {})
    moved, state = private.step(params, total, private.init(params))
    assert torch.equal(moved["w"], params["w"])
    assert float(state["dp/round"]) == 1
