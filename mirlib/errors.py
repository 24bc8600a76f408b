"""The exceptions and warnings of mirlib: each message says what is wrong, where, and what to do."""


class MirlibError(ValueError):
    """Bad input or a model that cannot be measured. The message is meant for the person at the keyboard."""


class UndefinedMIRError(MirlibError):
    """The Modality Integration Rate is not defined for this model, because vision never enters its token sequence."""


class MirlibWarning(UserWarning):
    """A result that needs care: few rows, a biased estimate, or an inexact method that was asked for."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says anything; the name of its type where none does."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
