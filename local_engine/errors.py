"""What can go wrong with a request. Rendered by the app, in SGLang's shapes."""


class Refused(Exception):
    """The request cannot be served as it stands: a 400 with this message."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class DecodingFailed(Exception):
    """The step that this request took part in broke (500), or the engine ends (503)."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
