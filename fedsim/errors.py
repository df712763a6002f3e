"""The two ways in which a run can end early, each told in one sentence."""


class WrongInput(Exception):
    """What the user asked for cannot be done; the message says what to try. Exit code 2."""


class RunFailed(Exception):
    """A run that started could not go on; its files stay as they were. Exit code 1."""


def first_line(error: BaseException) -> str:
    """Return the first line of what a library said, or the error's type where it said nothing."""
    said = str(error.__cause__ or error).strip().splitlines()
    return said[0] if said else type(error.__cause__ or error).__name__
