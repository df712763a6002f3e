"""The two ways in which a run can end early, each told in one sentence."""


class WrongInput(Exception):
    """What the user asked for cannot be done; the message says what to try. Exit code 2."""


class RunFailed(Exception):
    """A run that started could not go on; its files stay as they were. Exit code 1."""
