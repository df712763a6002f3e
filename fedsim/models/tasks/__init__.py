"""What is learned: the loss of an example, and the sums from which metrics are made.

A task is the seam between data and models. It knows which fields a model reads, what an example's
loss is and how to score outputs; the trainer and the evaluator know nothing of labels, tags or
words.
"""

from collections.abc import Callable

from fedsim.models.tasks.classification import Classification
from fedsim.models.tasks.intent_slots import IntentSlots
from fedsim.models.tasks.language import Language
from fedsim.models.tasks.tagging import Tagging
from fedsim.models.tasks.task import Fields, Task
from fedsim.types import Spec

__all__ = [
    "TASKS",
    "Classification",
    "Fields",
    "IntentSlots",
    "Language",
    "Tagging",
    "Task",
    "make_task",
]


def _image(spec: Spec) -> Task:
    return Classification(spec, input="image")


TASKS: dict[str, Callable[[Spec], Task]] = {
    "classification": Classification,
    "image": _image,
    "intent_slots": IntentSlots,
    "language": Language,
    "tagging": Tagging,
}


def make_task(spec: Spec) -> Task:
    """Return the task that the spec names."""
    return TASKS[spec.task](spec)
