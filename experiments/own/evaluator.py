"""An evaluator of your own: a function of a run as its auditors see it, findings out.

[audit]
evaluators = "experiments.own.evaluator:since_the_start"

The types of findings are in `fedsim.audit.findings`; tables, pages and the summary show them.
"""

from fedsim.app.audits.audited import Audited
from fedsim.app.audits.membership.game import in_units, membership_game, of_unit
from fedsim.audit.findings import Finding, Membership, Threat
from fedsim.audit.predict import predict
from fedsim.audit.result import Trial, attack_figures
from fedsim.models import build_model, parameters_of
from fedsim.seeds import generator


def since_the_start(audited: Audited) -> list[Finding]:
    """A membership attack by how much training has raised the probability of a record's label.

    An attack of `audit.attacks` sees the last model only; an evaluator sees the whole run.
    """
    config = audited.config
    game = membership_game(audited)
    first = parameters_of(build_model(audited.holdings.dataset.spec, config.model, config.seed))
    before, after = (
        of_unit(predict(audited.module, audited.task, params, game.records), game)
        for params in (first, audited.params)
    )
    trial = Trial(after.logp - before.logp, in_units(game.member, game))
    rng = generator(config.seed, "since the start", audited.round)  # for intervals by resampling
    threat = Threat(game.name, "first and last model", game.unit, references=0)
    return [Membership("since_the_start", threat, attack_figures([trial], rng))]
