"""The one error of our own: the question has an answer, and the answer is no."""


class InfeasibleError(Exception):
    """No plan or fleet satisfies the constraints; the message names the one that binds."""
