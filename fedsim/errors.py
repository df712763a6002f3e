"""The two ways in which a run can end early, each told in one sentence.

    Exception
    ├── WrongInput    nothing was done; the user changes something (exit code 2)
    └── RunFailed     a run that had started could not go on (exit code 1)

Any other exception is a defect of this code.
"""


class WrongInput(Exception):
    """What the user asked for cannot be done; the message says what to try. Exit code 2.

    `key` names the setting to change, as "audit.evaluators", for programs. It is "" where no single
    setting is to be changed.

    >>> from fedsim import WrongInput, run
    >>> try:
    ...     run({"train.rounds": -1})
    ... except WrongInput as error:
    ...     print(error.key)
    train.rounds
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class RunFailed(Exception):
    """A run that started could not go on; its files stay as they were. Exit code 1.

    Here it is raised from outside; the same call goes on from the last round:

    >>> from fedsim import RunFailed, run
    >>> def interrupt(row):
    ...     raise RunFailed(f"no time for more after round {row['round']}")
    >>> small = {"data.devices": 20, "data.examples": 200, "model.embedding": 8, "train.rounds": 2}
    >>> run(small, watch=interrupt)
    Traceback (most recent call last):
    fedsim.errors.RunFailed: no time for more after round 1
    >>> [row["round"] for row in run(small).rows()]
    [1, 2]
    """


def first_line(error: BaseException) -> str:
    """Return the first line of what a library said, or the error's type where it said nothing."""
    said = str(error.__cause__ or error).strip().splitlines()
    return said[0] if said else type(error.__cause__ or error).__name__
