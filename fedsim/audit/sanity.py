"""The sanity battery: attacks and bounds on cases with a known answer; `fedsim audit --sanity`.

It needs no run. Null cases must stay null. Planted leaks and broken builds must be seen. A fixed
seed gives a fixed outcome. Each row says its chance of a false alarm over seeds.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.audit import broken_mechanisms as builds
from fedsim.audit.attacks import lira, loss
from fedsim.audit.blind_baseline import blind_auc
from fedsim.audit.bounds import Bound, gaussian_worlds, two_worlds
from fedsim.audit.broken_mechanisms import DELTA, EPSILON, Build
from fedsim.audit.centralised_proxy import CentralisedProxy
from fedsim.audit.findings import SanityCheck
from fedsim.audit.one_run import one_run
from fedsim.audit.one_shot import one_shot_bound
from fedsim.audit.region import excess, gaussian, gaussian_mu
from fedsim.audit.roc import auc, null_standard_error
from fedsim.audit.samplers import poisson_p_value
from fedsim.audit.scores import Bools, Floats, Scores, fair_coins
from fedsim.audit.shadow_scores import score_shadows
from fedsim.models.layers import Linear
from fedsim.seeds import generator

RECORDS = 400
FEATURES = 40
LABELS = 4
MISLABELLED = 0.1
MODELS = 24
TARGETS = 8
TRIALS = 1000
CANARIES = 1000
RUNS = {two_worlds: 1000, gaussian_worlds: 10_000}
"""Runs in each world for the audits of builds: enough for the stated power."""
ALARM = 1e-4
"""p-values below this raise an alarm in the sampler's rows."""


def sanity(seed: int = 0) -> list[SanityCheck]:
    """Return the rows of the whole battery, in about 20 seconds."""
    return [
        *membership_rows(seed),
        *dp_rows(seed),
        *null_rows(seed),
        *broken_rows(seed),
        *sampler_rows(seed),
    ]


def membership_rows(seed: int) -> Iterator[SanityCheck]:
    """Yield rows of attacks that have nothing to find, and of attacks on models that memorised."""
    proxy, mislabelled = _memoriser(seed)
    keep = fair_coins(MODELS, RECORDS, seed)
    fresh = score_shadows(keep, proxy.labels, replace(proxy, steps=0))
    trained = score_shadows(keep, proxy.labels, proxy)
    others = Scores(fair_coins(MODELS, RECORDS, seed + 1), trained.predictions)
    for name, attack in (("loss", loss), ("LiRA", lira)):
        target = fresh.target(0)
        yield null_row(f"untrained model, {name}", attack(target), target.member)
        target = others.target(0)
        yield null_row(f"swapped coins, {name}", attack(target), target.member)
    yield blind_row(proxy.inputs.numpy(), keep[0], seed)
    everyone = np.ones(RECORDS, dtype=bool)
    yield at_least("memorising model, loss", 0.75, _mean_auc(trained, loss, everyone))
    yield at_least("memorising model, LiRA", 0.9, _mean_auc(trained, lira, everyone))
    yield at_least(
        "memorising model, LiRA on mislabelled", 0.95, _mean_auc(trained, lira, mislabelled)
    )


def dp_rows(seed: int) -> Iterator[SanityCheck]:
    """Yield rows of the best attack on a right mechanism and on a broken one.

    On the right mechanism the attack stays within what epsilon allows; on the broken one it does
    not.
    """
    mu = gaussian_mu(EPSILON, DELTA)
    for name, strength, allowed in (("right build", mu, True), ("thrice the leak", 3 * mu, False)):
        rng = generator(seed, "sanity", "curve", name)
        member = rng.random(20_000) < 0.5
        over = excess(rng.normal(size=len(member)) + strength * member, member, gaussian(mu), rng)
        wanted = "under the curve (false alarm 5 %)" if allowed else "over the curve"
        yield SanityCheck(
            f"ROC of the best attack, {name}", wanted, f"excess {over:+.3f}", (over <= 0) == allowed
        )
    for name, method in _METHODS.items():
        yield rate_row(f"{name}: bound over the truth", partial(method, mu), EPSILON, seed)


def null_rows(seed: int) -> Iterator[SanityCheck]:
    """Yield a row for every bound on pure noise."""
    for name, method in _METHODS.items():
        yield rate_row(f"{name}: bound over 0 on noise", partial(method, 0.0), 0.0, seed)


def broken_rows(seed: int) -> Iterator[SanityCheck]:
    """Yield rows of audits of a right build and of broken ones that claim the same epsilon."""
    for name, build, audit in (
        ("noise x 0", builds.without_noise, two_worlds),
        ("clip after the sum", builds.clipped_sum, gaussian_worlds),
        ("noise on one part only", builds.noise_on_one_part, two_worlds),
        ("data-dependent normaliser", builds.divided_by_realised_count, two_worlds),
    ):
        yield broken_row(name, build, audit, seed)
    for name, audit in (("two worlds", two_worlds), ("gaussian", gaussian_worlds)):
        low = audited(builds.right, audit, seed).epsilon_low
        yield SanityCheck(
            f"right build, {name}",
            f"at most {EPSILON:g} (false alarm 5 %)",
            f"{low:.2f}",
            low <= EPSILON,
        )


def sampler_rows(
    seed: int, records: int = 2000, steps: int = 200, rate: float = 0.05
) -> Iterator[SanityCheck]:
    """Yield rows of the sampler test on Poisson batches and on shuffled ones."""
    for name, sample, poisson in (
        ("Poisson batches", builds.poisson_batches, True),
        ("shuffling accounted as Poisson", builds.shuffled_batches, False),
    ):
        rng = generator(seed, "sanity", name)
        p = poisson_p_value(sample(records, steps, rate, rng), rate)
        wanted = f"p >= {ALARM:g} (false alarm {ALARM:.2%})" if poisson else f"p < {ALARM:g}"
        yield SanityCheck(name, wanted, f"p = {p:.2g}", (p >= ALARM) == poisson)


def null_row(name: str, scores: Floats, member: Bools) -> SanityCheck:
    """Check random scores: AUC .5 within 3 standard errors, a false alarm in .3 %."""
    error = null_standard_error(int(member.sum()), int((~member).sum()))
    area = auc(scores, member)
    expected = f"AUC .5 ± {3 * error:.3f} (false alarm .3 %)"
    return SanityCheck(name, expected, f"{area:.3f}", abs(area - 0.5) <= 3 * error)


def blind_row(features: Floats, member: Bools, seed: int) -> SanityCheck:
    """Check the blind baseline of a game by fair coins: AUC .5 within 3 standard errors."""
    area = blind_auc(features, member, generator(seed, "sanity", "blind"))
    wide = 3 * null_standard_error(int(member.sum()) // 2, int((~member).sum()) // 2)
    expected = f"AUC .5 ± {wide:.3f} (false alarm .3 %)"
    return SanityCheck("blind baseline", expected, f"{area:.3f}", abs(area - 0.5) <= wide)


def at_least(name: str, floor: float, area: float) -> SanityCheck:
    """Check that a planted leak is seen."""
    return SanityCheck(name, f"AUC at least {floor:g}", f"{area:.3f}", area >= floor)


def rate_row(
    name: str, method: Callable[[int, int], Bound], limit: float, seed: int
) -> SanityCheck:
    """Check that a bound exceeds the truth in at most 5 % + 2 standard errors of the trials."""
    allowed = 0.05 + 2 * np.sqrt(0.05 * 0.95 / TRIALS)
    share = float(np.mean([method(seed, trial).epsilon_low > limit for trial in range(TRIALS)]))
    return SanityCheck(
        name, f"at most {allowed:.1%} of {TRIALS} (nominal 5 %)", f"{share:.1%}", share <= allowed
    )


def broken_row(name: str, build: Build, audit: Callable[..., Bound], seed: int) -> SanityCheck:
    """Check that a broken build is caught; each set-up has a power over .99."""
    bound = audited(build, audit, seed)
    return SanityCheck(
        f"broken: {name}",
        f"over {EPSILON:g} (power > .99, {bound.method})",
        f"{bound.epsilon_low:.2f}, ceiling {bound.ceiling:.2f}",
        bound.epsilon_low > EPSILON,
    )


def audited(build: Build, audit: Callable[..., Bound], seed: int) -> Bound:
    """Return the audit's bound on a build from RUNS runs in each world."""
    rng = generator(seed, "sanity", "build", build.__name__)
    return audit(build(False, RUNS[audit], rng), build(True, RUNS[audit], rng), DELTA, rng)


def _two_worlds(mu: float, seed: int, trial: int) -> Bound:
    rng = generator(seed, "sanity", "two worlds", trial)
    return two_worlds(rng.normal(size=200), rng.normal(mu, size=200), DELTA, rng)


def _gaussian(mu: float, seed: int, trial: int) -> Bound:
    rng = generator(seed, "sanity", "gaussian", trial)
    return gaussian_worlds(rng.normal(size=200), rng.normal(mu, size=200), DELTA, rng)


def _one_run(mu: float, seed: int, trial: int) -> Bound:
    rng = generator(seed, "sanity", "one run", trial)
    included = rng.random(CANARIES) < 0.5
    return one_run(rng.normal(size=CANARIES) + mu * included, included, DELTA, rng)


def _one_shot(mu: float, seed: int, trial: int) -> Bound:
    rng = generator(seed, "sanity", "one shot", trial)
    return one_shot_bound(rng.normal(mu, size=100) / 100, 10_000, DELTA)


_METHODS = {
    "two worlds": _two_worlds,
    "gaussian": _gaussian,
    "one run": _one_run,
    "one shot": _one_shot,
}


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Linear(FEATURES, 64), Linear(64, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def _memoriser(seed: int) -> tuple[CentralisedProxy, Bools]:
    """Return a trainer that overfits noisy records, and the records with a random label."""
    rng = generator(seed, "sanity", "records")
    x = rng.normal(size=(RECORDS, FEATURES))
    labels = (x @ rng.normal(size=(FEATURES, LABELS))).argmax(1)
    mislabelled = rng.random(RECORDS) < MISLABELLED
    labels[mislabelled] = rng.integers(LABELS, size=int(mislabelled.sum()))

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _Mlp()

    inputs = torch.from_numpy(x).float()
    proxy = CentralisedProxy(make, inputs, torch.from_numpy(labels), steps=150, batch=32, seed=seed)
    return proxy, mislabelled


def _mean_auc(scores: Scores, attack: Callable[..., Floats], judged: Bools) -> float:
    targets = [scores.target(model) for model in range(TARGETS)]
    return float(
        np.mean([auc(attack(target)[judged], target.member[judged]) for target in targets])
    )
