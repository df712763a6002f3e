"""A metric of your own: a value for each example, whose mean is reported under the function's name.

[evaluation]
metrics = "experiments.own.metric:true_probability"
"""

from collections.abc import Mapping

from torch import Tensor


def true_probability(outputs: Mapping[str, Tensor], fields: Mapping[str, Tensor]) -> Tensor:
    """How likely the model finds the true label: what it returns and the examples of a batch ->
    [N].
    """
    chances = outputs["label"].softmax(-1)
    return chances.gather(-1, fields["label"].unsqueeze(-1)).squeeze(-1)
