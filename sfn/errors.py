"""Every error that SfN raises on purpose. Imports nothing, so that every module can import it.

Each message is a sentence for the person who meets it: what happened, with which input, what to do. Pages show an
`SfnError` as that sentence; any other exception is a defect and surfaces as one.
"""


class SfnError(Exception):
    """Base of all errors that a user can cause or meet."""


class CheckpointError(SfnError):
    """A checkpoint cannot be read as it is: the message names the file and, where there is one, the tensor."""


class HubError(CheckpointError):
    """A model on the Hub cannot be found, read or fetched: the message says why and what to do.

    `kind` is one of: address, missing, not a model, gated, forbidden, disabled, token, revision, file, rate limit,
    server, network, offline, certificate, changed, disk. `link`: a page that helps, "" where there is none.
    """

    def __init__(self, message: str, kind: str = "server", link: str = "") -> None:
        super().__init__(message)
        self.kind, self.link = kind, link


class PairError(SfnError):
    """Two checkpoints cannot be looked at side by side, or not in the way that was asked for."""


class RecipeError(SfnError):
    """A recipe cannot be parsed, or does not fit the pair: the message names the word at fault and the legal ones."""


class SweepError(SfnError):
    """A sweep cannot be made as it is asked for, or cannot go on: the message says what is legal or what to do."""


class SurgeryError(SfnError):
    """A merged checkpoint could not be written: the message names the folder and the reason."""


class EngineError(SfnError):
    """An engine could not start, died, or was asked for something that it cannot do."""


class StoreError(SfnError):
    """The results database cannot be used: held by another process, written by a newer SfN, or damaged."""


class JobError(SfnError):
    """A background job does not exist, or belongs to somebody else."""


class InstallError(SfnError):
    """The installed packages do not fit each other: the message carries the command that mends it."""


class Cancelled(SfnError):
    """The work was cancelled by its owner; what was finished before is kept."""
