"""What can go wrong in training, evaluation and conversion by the user's own doing, as a small tree."""


class TrainingError(ValueError):
    """The root; the message says what was wrong, what was expected and what to do."""


class BadExamples(TrainingError):
    """A file of examples that cannot be read as the format says."""


class BadSettings(TrainingError):
    """A setting that is unknown or out of its range."""


class BadBackbone(TrainingError):
    """A model that is no GPT-2, or lacks weights."""


class OtherRun(TrainingError):
    """A checkpoint to resume from that is damaged, or was made with other settings, data or weights."""


class Diverged(TrainingError):
    """Training whose loss, or whose prefix, is no finite number any more."""


class NotConvertible(TrainingError):
    """A file that is none of the kinds that can be read, or a form that it cannot be written in."""
