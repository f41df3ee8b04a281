"""The one error that ends a round. Raised anywhere in the trainer, told by trainer.round as the round's reason."""

from server.errors import MulliganError


class RoundFailed(MulliganError):
    """The round cannot go on. The message is a sentence for whoever asked for the round: what happened, what to do."""

    status, type, code = 500, "server_error", "round_failed"
