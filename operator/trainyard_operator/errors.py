"""What can go wrong between the operator and the API server."""


class ExpectedError(Exception):
    """An error that its one line explains: a traceback would add nothing."""


class ApiError(ExpectedError):
    """The API server refused a request.

    Attributes:
        status: HTTP status.
        reason: Kubernetes' word for it (NotFound, AlreadyExists, Conflict, Forbidden, ...).
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Rejected(ExpectedError):
    """An object of the run can't be made as asked; the message is one line for its status."""
