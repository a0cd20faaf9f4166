"""What `access` and `bodies` raise before a request reaches its route, and the route of sessions for a wrong token."""

from http import HTTPStatus


class Refusal(Exception):
    """The request is turned away with this status, code and sentence."""

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
