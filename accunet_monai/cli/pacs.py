"""``accunet pacs``: taking series in, and telling what became of them."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from accunet_monai.cli.common import app, console, errors, guarded

if TYPE_CHECKING:
    from accunet_monai.pacs.settings import Site

pacs_app = typer.Typer(no_args_is_help=True, help="Batch inference against a PACS: in, jobs, out.")
app.add_typer(pacs_app, name="pacs")

SiteArgument = Annotated[Path, typer.Argument(metavar="SITE", help="The site's settings, see configs/sites.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts: JSON on standard output.")]


def site_of(path: Path) -> Site:
    """A site's settings."""
    from accunet_monai.pacs.settings import read_site

    return read_site(path)


@pacs_app.command()
def key(file: Annotated[Path, typer.Argument(help="The new key's file.")]) -> None:
    """Make the random key of a site's pseudonyms."""
    from accunet_monai.pacs.pseudonyms import make_key

    guarded(make_key, file)


@pacs_app.command()
def check(
    site: SiteArgument,
    series: Annotated[
        Path | None, typer.Option("--series", help="Also judge the series in this folder by the site's rules.")
    ] = None,
) -> None:
    """Prove that a site's settings hold: storage, database, peers, bundles, every PACS and pull."""
    guarded(_check, site, series)


@pacs_app.command()
def migrate(
    site: SiteArgument,
    to: Annotated[
        int | None, typer.Option(min=1, help="Version to go to, forward or back; by default the newest.")
    ] = None,
) -> None:
    """Bring the database to a version of its tables, e.g. before an older release is installed again."""
    console.print(f"schema version: {guarded(_migrate, site, to)}", highlight=False)


@pacs_app.command()
def receive(site: SiteArgument) -> None:
    """Receive, close complete series and run the site's pulls, until ended by SIGTERM or Ctrl-C."""
    guarded(_receive, site)


@pacs_app.command("import")
def import_(
    site: SiteArgument,
    folder: Annotated[Path, typer.Argument(help="A folder tree of DICOM files, or one file.")],
    priority: Annotated[int, typer.Option(help="Of the jobs; higher goes first.")] = 0,
) -> None:
    """Take in the DICOM files of a folder, as if they had been sent, and close what is complete."""
    guarded(_import, site, folder, priority)


@pacs_app.command()
def batch(
    site: SiteArgument,
    pacs: Annotated[str, typer.Option(help="Name of the PACS.")],
    query: Annotated[
        list[str] | None, typer.Option("--query", metavar="KEY=VALUE", help="What must match; may be repeated.")
    ] = None,
    by: Annotated[str, typer.Option(help="get, move or dicomweb.")] = "get",
    days: Annotated[int, typer.Option(min=1, help="Back from today by StudyDate, if no date is asked for.")] = 1,
    priority: Annotated[int, typer.Option(help="Of the jobs; higher goes first.")] = 0,
    per_minute: Annotated[float | None, typer.Option("--per-minute", help="Instances at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be fetched, and fetch nothing.")] = False,
) -> None:
    """Fetch the series that a query of a PACS finds and that are not here yet."""
    values = {"name": "batch", "pacs": pacs, "by": by, "days": days, "priority": priority, "per_minute": per_minute}
    guarded(_batch, site, {**values, "query": dict(_pair(one) for one in query or ())}, dry_run)


@pacs_app.command()
def why(
    site: SiteArgument,
    uid: Annotated[str, typer.Argument(metavar="STUDY|SERIES|FILE", help="A study's or series' UID, or a file of it.")],
    as_json: JsonOption = False,
) -> None:
    """Tell what is known of a study or series, with every rule's decision and every code."""
    guarded(_why, site, uid, as_json)


def _check(path: Path, series: Path | None) -> None:
    from accunet_monai.pacs.check import check_series, check_site

    site = site_of(path)
    good = True
    for finding in check_site(site):
        mark = "[green]✓[/green]" if finding.good else "[bold red]✗[/bold red]"
        console.print(f"{mark} {escape(finding.what)}: {escape(finding.words)}", highlight=False, soft_wrap=True)
        good = good and finding.good
    if series is not None:
        for decision in check_series(site, series):
            _print_decision(
                {"bundle": decision.bundle, "outcome": decision.outcome, "code": decision.code, **decision.detail}
            )
    if not good:
        raise typer.Exit(1)


def _receive(path: Path) -> None:
    from accunet_monai.pacs.inbox import Inbox, OpenSite
    from accunet_monai.pacs.logs import configure_logs

    configure_logs()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with OpenSite(site_of(path)) as opened:
        inbox = Inbox(opened)
        inbox.start()
        ended.wait()
        inbox.stop()


def _import(path: Path, folder: Path, priority: int) -> None:
    from accunet_monai.pacs.completeness import close_complete
    from accunet_monai.pacs.folder import import_folder
    from accunet_monai.pacs.inbox import OpenSite
    from accunet_monai.pacs.judging import Judge

    with OpenSite(site_of(path)) as opened:
        registrar = opened.registrar("import")
        counts = import_folder(folder, opened.storage, registrar, priority=priority)
        _print_counts(counts)
        judge = Judge(opened.site.limits.decode_memory_bytes)
        made = close_complete(opened.site, opened.engine, opened.storage, judge)
        judge.close()
        waiting = (
            ""
            if opened.site.completeness.quiet_seconds == 0
            else "; a running receiver closes the others when they are quiet"
        )
        console.print(f"{len(made)} series closed{waiting}.", highlight=False)


def _batch(path: Path, values: dict[str, Any], dry_run: bool) -> None:
    from pydantic import ValidationError

    from accunet_monai.pacs.inbox import OpenSite
    from accunet_monai.pacs.pull import Puller
    from accunet_monai.pacs.settings import Pull

    try:
        pull = Pull.model_validate(values)
    except ValidationError as error:
        raise typer.BadParameter(str(error.errors()[0]["msg"])) from error
    with OpenSite(site_of(path)) as opened:
        registrar = opened.registrar("batch")
        puller = Puller(opened.site, opened.engine, opened.storage, registrar, pull)
        wanted = puller.missing()
        total = sum(one.instances or 0 for one in wanted)
        console.print(f"{len(wanted)} series of {total} instances are not here yet.", highlight=False)
        if not dry_run:
            _print_counts(puller.run(wanted))


def _why(path: Path, uid: str, as_json: bool) -> None:
    from accunet_monai.pacs import why as reasons
    from accunet_monai.pacs.inbox import OpenSite

    with OpenSite(site_of(path)) as opened:
        found = reasons.why(opened.engine, uid)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for one in found:
        code = f" {one['code']}" if one["code"] else ""
        _print(f"series {one['series_uid']}: {one['instances']} instances, {one['state']}{code}")
        for name in ("expected", "open_associations", "set_aside"):
            if one[name]:
                _print(f"  {name.replace('_', ' ')}: {one[name]}")
        for revision in one["revisions"]:
            _print(f"  revision {revision['number']} ({revision['id'][:12]})")
            for decision in revision["decisions"]:
                _print_decision(decision, "    ")
            for job in revision["jobs"]:
                delivered = "".join(f", {item['destination']} {item['state']}" for item in job["deliveries"])
                code = f" {job['code']}" if job["code"] else ""
                _print(f"    job {job['id'][:12]} {job['bundle']}: {job['state']}{code}{delivered}")


def _print_decision(decision: dict[str, Any], indent: str = "") -> None:
    code = f" {decision['code']}" if decision["code"] else ""
    _print(f"{indent}{decision['bundle']}: {decision['outcome']}{code}")
    for test in decision.get("tests", ()):
        of = f"{test['met']} of {decision['instances']}"
        _print(f"{indent}  {'  ' * test['depth']}{test['test']}: met by {of}")
    rest = {
        name: value
        for name, value in decision.items()
        if name not in ("bundle", "outcome", "code", "tests", "instances")
    }
    for name, value in rest.items():
        _print(f"{indent}  {name}: {value}")


def _print_counts(counts: dict[str, int]) -> None:
    _print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "nothing")


def _print(line: str) -> None:
    console.print(escape(line), highlight=False, soft_wrap=True)


def _pair(text: str) -> tuple[str, str]:
    key_, equals, value = text.partition("=")
    if not equals:
        errors.print(f"expected KEY=VALUE, got {text!r}")
        raise typer.Exit(2)
    return key_, value


def _migrate(path: Path, version: int | None) -> int:
    from accunet_monai.pacs.database import make_engine
    from accunet_monai.pacs.migrations import migrate as to_version
    from accunet_monai.pacs.migrations import schema_version

    with make_engine(site_of(path).database_url).begin() as connection:
        to_version(connection, version)
        return schema_version(connection)
