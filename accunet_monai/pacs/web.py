"""A site's web page, ``/metrics`` and ``/healthz``: on loopback unless the settings say otherwise, behind a token.

``/healthz`` alone needs no token; it tells whether the database answers and a worker lives. The page shows queue,
throughput, failures with their reasons, and small pictures of results; it changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from accunet_monai.errors import PacsError
from accunet_monai.pacs.metrics import exposition
from accunet_monai.pacs.overview import hourly, result_file, results, troubles
from accunet_monai.pacs.page import page
from accunet_monai.pacs.settings import Site, Web
from accunet_monai.pacs.status import list_jobs, status
from accunet_monai.pacs.thumbnails import thumbnail_of

MIN_TOKEN = 16
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def read_token(web: Web) -> str:
    """The token of the web page.

    Raises:
        PacsError: ``WEB_TOKEN`` when the file is missing or its token short.
    """
    hint = f"Make one: openssl rand -hex 24 > {web.token_file}; chmod 600 {web.token_file}"
    try:
        token = web.token_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PacsError("WEB_TOKEN", "there is no readable token.", path=web.token_file, hint=hint) from error
    if len(token) < MIN_TOKEN:
        message = f"the token has fewer than {MIN_TOKEN} characters."
        raise PacsError("WEB_TOKEN", message, path=web.token_file, hint=hint)
    return token


def make_app(site: Site, engine: Engine, token: str) -> Starlette:
    """The site's web application."""

    def allowed(request: Request) -> bool:
        return hmac.compare_digest(_given_token(request.headers.get("Authorization", "")).encode(), token.encode())

    def guarded(content: Any) -> Any:
        async def answer(request: Request) -> Response:
            if not allowed(request):
                challenge = {"WWW-Authenticate": 'Basic realm="accunet pacs: any user, the token as password"'}
                return PlainTextResponse("a token is needed", 401, {**SECURITY_HEADERS, **challenge})
            response: Response = await run_in_threadpool(content, request)
            response.headers.update(SECURITY_HEADERS)
            return response

        return answer

    def overview(request: Request) -> Response:
        of_late = hourly(engine), results(engine), troubles(engine), list_jobs(engine)
        return HTMLResponse(page(site.ae_title, status(site, engine), *of_late))

    def thumbnail(request: Request) -> Response:
        file = result_file(engine, request.path_params["job"])
        picture = None if file is None else thumbnail_of(site.storage / file)
        if picture is None or not picture.is_file():
            return PlainTextResponse("no picture", 404)
        return Response(picture.read_bytes(), media_type="image/png")

    def health() -> Response:
        try:
            facts = status(site, engine)
        except SQLAlchemyError:
            return JSONResponse({"healthy": False, "reason": "the database does not answer"}, 503)
        healthy = bool(facts["workers"])
        return JSONResponse({"healthy": healthy, "workers": len(facts["workers"])}, 200 if healthy else 503)

    async def healthz(request: Request) -> Response:
        return await run_in_threadpool(health)

    return Starlette(
        routes=[
            Route("/", guarded(overview)),
            Route("/thumbnails/{job}.png", guarded(thumbnail)),
            Route("/metrics", guarded(lambda _: Response(exposition(site, engine), media_type="text/plain"))),
            Route("/status.json", guarded(lambda _: JSONResponse(status(site, engine)))),
            Route("/healthz", healthz),
        ]
    )


def _given_token(header: str) -> str:
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
