"""What the server asks of nodes beyond a sum. A secure sum refuses it."""

from fedsim.config import Config
from fedsim.errors import WrongInput
from fedsim.types import Asked
from strategies import aggregation, selection


def asked_of(config: Config) -> Asked:
    """Return what the rules of the settings need to see.

    Raises WrongInput where that contradicts `dp.trust` or the weights.
    """
    form = Asked(
        single=aggregation.rule_of(config.aggregation).combine is not None,
        figures=selection.rule_of(config.selection).reads_losses,
    )
    if config.dp.trust == "secure_sum" and (form.single or form.figures):
        raise WrongInput(
            f'dp.trust = "secure_sum" shows the server only sums, and {_who(config, form)} needs '
            f'{_what(form)}; choose another rule, or dp.trust = "central"'
        )
    if form.figures and config.dp.unit != "none" and config.dp.trust != "central":
        raise WrongInput(
            f"selection.rule = {config.selection.rule!r} needs exact losses, which dp.trust = "
            f"{config.dp.trust!r} never sends; "
            "choose another rule"
        )
    if form.single and config.aggregation.weights not in ("auto", "equal"):
        raise WrongInput(
            f"aggregation.rule = {config.aggregation.rule!r} counts every device alike, got "
            f'aggregation.weights = {config.aggregation.weights!r}; set "equal", or a rule that '
            "sums"
        )
    return form


def disclosure_sentences(config: Config) -> list[str]:
    """Return sentences that say what nodes send beyond sums, and what that means."""
    form = asked_of(config)
    settings = config.aggregation
    lines = ["Nodes answer with sums over their devices; no device's update leaves its node alone."]
    if form.single or form.figures:
        lines = [f"The server sees {_what(form)}: {_who(config, form)} needs that."]
    if settings.max_norm:
        what = "scaled down to it" if settings.over_norm == "clip" else "left out"
        lines.append(
            f"A device's update over the norm {settings.max_norm:g} is {what} on its node."
        )
    if settings.min_updates:
        lines.append(
            f"A round with fewer than {settings.min_updates} valid updates leaves the model as it "
            "is; with that no amplification by sampling can be claimed."
        )
    return lines


def _who(config: Config, form: Asked) -> str:
    if form.single:
        return f"aggregation.rule = {config.aggregation.rule!r}"
    return f"selection.rule = {config.selection.rule!r}"


def _what(form: Asked) -> str:
    return "each device's update" if form.single else "each device's training loss"
