"""A browser exchanges the token for a cookie here, once. Programs send the token with each request instead."""

from typing import Any

from litestar import Request, Response, delete, post
from litestar.datastructures import Cookie

from jobs.settings import Settings
from service import access, sessions
from service.answers import Done
from service.problems import documented
from service.sessions import SessionRequest

_TAGS = ["session"]


@post("/session", status_code=200, tags=_TAGS, responses=documented(401, 422))
async def begin(data: SessionRequest, request: Request[Any, Any, Any], settings: Settings) -> Response[Done]:
    """Begin a session: the answer sets a cookie that counts as the token for thirty days. Free of the token itself."""
    if settings.token is None:
        return Response(Done(success=True, message="This service wants no token."))
    if not access.is_token(data.token, settings.token):
        raise access.unauthenticated()
    cookie = _cookie(request, sessions.issue(settings.token), sessions.LIFETIME_S)
    return Response(Done(success=True, message="The session has begun."), cookies=[cookie])


@delete("/session", status_code=200, tags=_TAGS)
async def end(request: Request[Any, Any, Any]) -> Response[Done]:
    """End the session in this browser."""
    return Response(Done(success=True, message="The session has ended."), cookies=[_cookie(request, "", 0)])


def _cookie(request: Request[Any, Any, Any], value: str, lifetime_s: int) -> Cookie:
    """No script reads it and no other site makes the browser send it; behind TLS it never travels without."""
    return Cookie(
        key=sessions.COOKIE,
        value=value,
        max_age=lifetime_s,
        httponly=True,
        samesite="strict",
        secure=request.headers.get("origin", "").startswith("https://"),
    )
