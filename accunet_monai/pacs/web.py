"""A site's web page, ``/metrics`` and ``/healthz``: on loopback unless the settings say otherwise, behind a token.

``/healthz`` alone needs no token; it tells whether the database answers and a worker lives. The page shows queue,
throughput and failures by their codes; it changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import html
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
from accunet_monai.pacs.settings import Site, Web
from accunet_monai.pacs.status import list_jobs, status

MIN_TOKEN = 16
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
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
            response: Response = await run_in_threadpool(content)
            response.headers.update(SECURITY_HEADERS)
            return response

        return answer

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
            Route("/", guarded(lambda: HTMLResponse(page(status(site, engine), list_jobs(engine))))),
            Route("/metrics", guarded(lambda: Response(exposition(site, engine), media_type="text/plain"))),
            Route("/status.json", guarded(lambda: JSONResponse(status(site, engine)))),
            Route("/healthz", healthz),
        ]
    )


def page(facts: dict[str, Any], jobs: list[dict[str, Any]]) -> str:
    """The page: numbers of the site and its jobs of late."""
    numbers = [
        *((f"jobs {state}", count) for state, count in sorted(facts["jobs"].items())),
        ("done in the last hour", facts["last_hour"]),
        ("oldest open job, seconds", facts["oldest_open_seconds"]),
        ("workers", len(facts["workers"])),
        *((f"given up: {code}", count) for code, count in sorted(facts["dead"].items())),
    ]
    shown = ("id", "bundle", "state", "code", "detail", "attempts", "seconds_ago")
    rows = [[str(job[name])[:16] if name == "id" else job[name] for name in shown] for job in jobs]
    state = "<p><strong>Draining: no job begins.</strong></p>" if facts["draining"] else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>accunet pacs</title>'
        '<meta http-equiv="refresh" content="10"><style>body{font:15px system-ui;margin:2em;max-width:70em}'
        "table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;border-bottom:1px solid #ccc;"
        "text-align:left}th{font-weight:600}</style></head><body><h1>accunet pacs</h1>"
        f"{state}{_table(('what', 'now'), numbers)}<h2>Jobs that changed last</h2>{_table(shown, rows)}"
        "<p>Not a medical device.</p></body></html>"
    )


def _table(head: Any, rows: Any) -> str:
    cells = "".join(f"<th>{html.escape(str(name).replace('_', ' '))}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _cell(value: Any) -> str:
    return "–" if value is None else html.escape(str(value))


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
