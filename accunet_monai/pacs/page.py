"""The site's page as HTML: plain markup and styles, no script, light and dark as the reader's system is."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
:root{color-scheme:light dark;--ink:#1b2330;--faint:#5c6675;--line:#d9dee6;--back:#f5f7fa;--card:#fff;--good:#12734a;
--bad:#b3261e;--warn:#8a5a00;--bar:#3b6fb6}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--faint:#98a3b3;--line:#2c3542;--back:#11161d;--card:#1a212b;
--good:#5cc596;--bad:#ff8a80;--warn:#e5b454;--bar:#6ea3e8}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:0 auto;padding:1.5rem;
max-width:68rem}
h1{font-size:1.35rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .6rem}
header{display:flex;gap:1rem;align-items:baseline}
p,small{color:var(--faint)}.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
.row{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));margin-top:1.2rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem}
.card b{display:block;font-size:1.5rem;font-weight:600;font-variant-numeric:tabular-nums}
.results{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr))}
.results figure{margin:0;overflow:hidden;padding:0}
.results img{display:block;width:100%;height:9.5rem;object-fit:contain;background:#000;color:#98a3b3}
figcaption{padding:.5rem .7rem;font-size:.85rem;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--line);border-radius:.6rem}
td,th{padding:.4rem .8rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}th{font-weight:600;color:var(--faint);font-size:.85rem}
code{font:.9em ui-monospace,monospace}svg{display:block;width:100%;height:7rem;border-bottom:1px solid var(--line)}
rect{fill:var(--bar)}footer{margin-top:2.5rem}
"""

REASONS = {
    "BUNDLE_NOT_CONFIGURED": "the settings have no such bundle any more",
    "BUNDLE_UNVERIFIED": "the bundle is not what its manifest says",
    "BURNED_IN": "the images say that text is burned into them",
    "DECODER_DIED": "decoding took more memory or time than it may",
    "INPUT_CONTRACT": "not the kind of image that the bundle is made for",
    "INSTANCE_DAMAGED": "a stored file is not what was received; send it again",
    "INSTANCE_MISSING": "a stored file is not there",
    "JOB_INTERRUPTED": "workers ended while they were at it",
    "JOB_TIMEOUT": "a step took longer than it may",
    "JUDGE_DIED": "reading the series took more memory or time than it may",
    "NOT_CONFIRMED": "the destination said that it stored the object, and does not have it",
    "OUT_OF_MEMORY": "the worker has too little memory",
    "PACS_REFUSED": "the destination does not know our AE title",
    "PACS_UNREACHABLE": "the destination does not answer",
    "RESULT_UNREADABLE": "the storage does not answer",
    "RULE_MIXED": "the rule holds for some of the images only",
    "RULE_SEVERAL_SERIES": "several series of the study are meant",
    "SEG_CHANGED": "a stored result is missing or not what was stored",
    "SEG_LOST": "a result that was sent is not stored any more; put it back from a back-up",
    "SEND_REFUSED": "the destination did not take the object",
    "SERIES_AMBIGUOUS": "the series holds several volumes",
    "SHADOW": "the bundle delivers nothing by now; its results are kept",
    "UNEXPECTED": "a fault of the program or the machine; the worker's log has its type",
}
"""Code → what it means, for those who look at the page; the others begin with one of ``_KINDS``."""

_KINDS = {
    "GEOM_": "the slices make no volume",
    "PIXEL_": "the pixels cannot be read",
    "DICOM_": "the files cannot be read",
    "SEG_": "no right SEG could be written",
}


def page(
    title: str,
    facts: dict[str, Any],
    throughput: Sequence[int],
    results: Iterable[dict[str, Any]],
    troubles: Iterable[dict[str, Any]],
    jobs: Iterable[dict[str, Any]],
) -> str:
    """The whole page.

    Args:
        title: of the site.
        facts: of :func:`accunet_monai.pacs.status.status`.
        throughput: of :func:`accunet_monai.pacs.overview.hourly`.
        results: of :func:`accunet_monai.pacs.overview.results`.
        troubles: of :func:`accunet_monai.pacs.overview.troubles`.
        jobs: of :func:`accunet_monai.pacs.status.list_jobs`.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>accunet pacs</title>'
        '<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="10">'
        f"<style>{STYLE}</style></head><body>"
        f"<header><h1>accunet pacs, {html.escape(title)}</h1>{_health(facts)}</header>"
        f"{_numbers(facts)}<h2>Jobs done per hour</h2>{_bars(throughput)}"
        f"<h2>Results of late</h2>{_results(list(results))}"
        f"<h2>What went wrong</h2>{_troubles(list(troubles))}"
        f"<h2>Jobs that changed last</h2>{_jobs(list(jobs))}"
        "<footer><p>Patients are pseudonyms; <code>accunet pacs status</code> and <code>why</code> tell more. "
        "Not a medical device.</p></footer></body></html>"
    )


def duration(seconds: float | None) -> str:
    """``90 s``, ``12 min``, ``5 h`` or ``3 d``.

    Example:
        >>> [duration(seconds) for seconds in (8.2, 900, 4000, 200000, None)]
        ['8 s', '15 min', '67 min', '56 h', '–']
    """
    if seconds is None:
        return "–"
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 100)):
        if seconds / size < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _health(facts: dict[str, Any]) -> str:
    count = len(facts["workers"])
    if facts["draining"]:
        return '<strong class="warn">draining: no job begins</strong>'
    if not count:
        return '<strong class="bad">no worker lives</strong>'
    return f'<strong class="good">{count} worker{"s" if count > 1 else ""}</strong>'


def _numbers(facts: dict[str, Any]) -> str:
    jobs = facts["jobs"]
    dead = jobs.get("dead", 0)
    shown = (
        ("waiting", jobs.get("queued", 0), ""),
        ("running", jobs.get("running", 0) + jobs.get("delivering", 0), ""),
        ("done, last hour", facts["last_hour"], ""),
        ("done, ever", jobs.get("done", 0), ""),
        ("given up", dead, "bad" if dead else ""),
        ("oldest open job", duration(facts["oldest_open_seconds"]), ""),
    )
    cards = (f'<div class="card"><b class="{kind}">{value}</b>{name}</div>' for name, value, kind in shown)
    return f'<div class="row">{"".join(cards)}</div>'


def _bars(throughput: Sequence[int]) -> str:
    most = max(*throughput, 1)
    bars = "".join(
        f'<rect x="{10 * hour + 1}" y="{100 - 100 * count / most:.1f}" width="8" height="{100 * count / most:.1f}">'
        f"<title>{count}, {len(throughput) - hour} h ago</title></rect>"
        for hour, count in enumerate(throughput)
    )
    return (
        f'<div class="card"><svg viewBox="0 0 {10 * len(throughput)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="jobs done per hour">{bars}</svg><small>{len(throughput)} hours up to now; '
        f"{sum(throughput)} jobs, {max(throughput)} in the busiest hour</small></div>"
    )


def _results(results: list[dict[str, Any]]) -> str:
    if not results:
        return "<p>None yet.</p>"
    figures = (
        f'<figure class="card"><img src="/thumbnails/{one["job"]}.png" alt="no picture">'
        f"<figcaption>patient <code>{html.escape(one['patient'][:8])}</code><br>{html.escape(one['bundle'])}"
        f"{', shadow' if one['shadow'] else ''}<br><small>{duration(one['seconds_ago'])} ago, "
        f"job {one['job'][:8]}</small></figcaption></figure>"
        for one in results
    )
    return f'<div class="results">{"".join(figures)}</div>'


def _troubles(troubles: list[dict[str, Any]]) -> str:
    if not troubles:
        return "<p>Nothing.</p>"
    rows = [
        (
            one["what"],
            one["where"],
            one["code"],
            reason(one["code"]),
            one["count"],
            f"{duration(one['seconds_ago'])} ago",
        )
        for one in troubles
    ]
    return _table(("what", "where", "code", "why", "times", "last"), rows)


def reason(code: str | None) -> str:
    """What a code means, in words."""
    kind = next((words for start, words in _KINDS.items() if str(code).startswith(start)), "–")
    return REASONS.get(str(code), kind)


def _jobs(jobs: list[dict[str, Any]]) -> str:
    if not jobs:
        return "<p>None yet.</p>"
    rows = [
        (one["id"][:8], one["bundle"], one["state"], one["code"], one["detail"], one["attempts"],
         f"{duration(one['seconds_ago'])} ago")
        for one in jobs
    ]  # fmt: skip
    return _table(("job", "bundle", "state", "code", "step", "attempts", "changed"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _cell(value: Any) -> str:
    return "–" if value is None else html.escape(str(value))
