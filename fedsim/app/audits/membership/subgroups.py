"""An attack's areas by activity, label, random labels, period and deletion."""

from collections.abc import Iterator, Sequence

import numpy as np

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.game import Game
from fedsim.audit.findings import Membership, MembershipSlice
from fedsim.audit.result import Trial, sliced
from fedsim.audit.scores import Bools
from fedsim.data.activity import deciles, public_activity
from fedsim.data.pool import pooled
from fedsim.data.stream import period_of_round


def slices_of(
    audited: Audited,
    game: Game,
    whole: Membership,
    trials: Sequence[Trial],
    rng: np.random.Generator,
) -> Iterator[MembershipSlice]:
    """Yield the areas of the attack `whole` by activity, label, random label, period, deletion."""
    for name, groups in _groups(audited, game):
        for group in sliced(trials, groups, rng):
            yield MembershipSlice(
                name, group.value, whole.attack, whole.threat, group.area, records=group.records
            )


def _groups(
    audited: Audited, game: Game
) -> Iterator[tuple[str, list[tuple[int | str | bool, Bools]]]]:
    activity = public_activity(
        audited.holdings.dataset.activity, audited.config.data.activity_public
    )
    owner = game.owner if game.unit == "example" else np.unique(game.owner)
    inside = owner >= 0
    if not inside.all():
        return
    decile = deciles(activity)[owner]
    yield "activity_decile", [(int(d), decile == d) for d in np.unique(decile)]
    if game.unit == "device":
        return
    fields = game.records.fields
    pool = pooled(audited.holdings.dataset)
    if "label" in fields:
        labels = fields["label"].numpy()
        names = audited.holdings.dataset.spec.labels
        yield (
            "label",
            [(names[i], labels == i) for i in np.unique(labels).tolist() if i < len(names)],
        )
    wrong = pool.mislabelled[game.rows]
    if wrong.any():
        yield "mislabelled", [(True, wrong), (False, ~wrong)]
    arrivals = audited.holdings.arrivals
    if arrivals is not None:
        period = arrivals.period[game.rows]
        now = period_of_round(audited.config.stream, audited.config.train.rounds, audited.round)
        gone = arrivals.deleted[game.rows] <= now
        yield "period", [(int(p), period == p) for p in np.unique(period)]
        yield "kept", [(True, ~gone & (period <= now)), (False, gone)]
