"""``accunet pacs``: jobs, from the worker that runs them to the audit log that tells of them."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accunet_monai.cli.common import console, guarded
from accunet_monai.cli.pacs import JsonOption, SiteArgument, pacs_app
from accunet_monai.errors import PacsError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from accunet_monai.pacs.settings import Site

LEASE_LOST = 75
"""Exit status of a worker that another has replaced: whoever runs it starts it again."""

audit_app = typer.Typer(no_args_is_help=True, help="The log of what was done.")
pacs_app.add_typer(audit_app, name="audit")

JobArgument = Annotated[str, typer.Argument(help="A job's id, or the beginning of it.")]


@pacs_app.command()
def worker(
    site: SiteArgument,
    grace: Annotated[int, typer.Option(help="Seconds that running jobs get when it is stopped.")] = 60,
) -> None:
    """Run jobs until stopped (SIGTERM, Ctrl-C); any number of workers may run."""
    guarded(_worker, site, grace)


@pacs_app.command()
def serve(
    site: SiteArgument,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
) -> None:
    """Receive, run jobs and show the web page, in processes of their own that are started again when they end."""
    guarded(_serve, site, workers)


@pacs_app.command()
def web(site: SiteArgument) -> None:
    """Show the site's page, metrics and health, as its settings say."""
    guarded(_web, site)


@pacs_app.command()
def status(
    site: SiteArgument,
    jobs: Annotated[bool, typer.Option("--jobs", help="List the jobs that changed last.")] = False,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What waits, what runs, what failed and why."""
    guarded(_status, site, jobs or state is not None, state, as_json)


@pacs_app.command()
def retry(site: SiteArgument, job: JobArgument) -> None:
    """Queue a dead or cancelled job again."""
    from accunet_monai.pacs.jobs import retry as queue_again

    guarded(_change, site, job, queue_again)


@pacs_app.command()
def cancel(site: SiteArgument, job: JobArgument) -> None:
    """End a job that has not ended; what was sent stays sent."""
    from accunet_monai.pacs.jobs import cancel as end

    guarded(_change, site, job, end)


@pacs_app.command()
def replay(site: SiteArgument, job: JobArgument, as_json: JsonOption = False) -> None:
    """Compute a job's result again and say whether it is the same."""
    guarded(_replay, site, job, as_json)


@pacs_app.command()
def shadow(
    site: SiteArgument,
    bundle: Annotated[str, typer.Argument(help="Name of a bundle that runs in shadow mode.")],
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle in shadow mode with those that deliver, on the same series."""
    guarded(_shadow, site, bundle, as_json)


@pacs_app.command()
def drain(
    site: SiteArgument,
    seconds: Annotated[float, typer.Option(help="How long to wait for running jobs.")] = 600,
    resume: Annotated[bool, typer.Option("--resume", help="Let workers begin jobs again.")] = False,
) -> None:
    """Begin no further job and wait until none runs, as before an upgrade."""
    guarded(_drain, site, seconds, resume)


@pacs_app.command()
def trace(
    site: SiteArgument,
    what: Annotated[
        str | None,
        typer.Argument(help="A SEG or report, file or SOPInstanceUID; or models:/NAME@ALIAS, where MLflow is."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="The beginning of the weights' sha256.")] = None,
    run: Annotated[str | None, typer.Option(help="The MLflow run that made the weights.")] = None,
    as_json: JsonOption = False,
    runs_dir: Annotated[
        Path, typer.Option("--runs-dir", help="Folder of the database mlflow.db, unless MLFLOW_TRACKING_URI is set.")
    ] = Path("runs"),
) -> None:
    """From a SEG to the job, the bundle, its weights, the run and data behind them; from weights to all they made."""
    if sum(one is not None for one in (what, weights, run)) != 1:
        raise typer.BadParameter("name one of: a SEG, --weights, --run")
    if what is not None and not what.startswith("models:/"):
        guarded(_trace, site, what, as_json)
    else:
        run = run if what is None else guarded(_run_of, what, runs_dir)
        guarded(_trace_weights, site, weights, run, as_json)


@audit_app.command()
def verify(
    site: SiteArgument,
    head: Annotated[str | None, typer.Option(help="A digest that an earlier call printed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Whether no entry of the audit log was changed or removed."""
    guarded(_verify, site, head, as_json)


def _open(file: Path) -> tuple[Site, Engine]:
    from accunet_monai.pacs.inbox import OpenSite
    from accunet_monai.pacs.settings import read_site

    site = read_site(file)
    return site, OpenSite(site).engine


def _worker(file: Path, grace: int) -> None:
    from accunet_monai.pacs.logs import configure_logs
    from accunet_monai.pacs.settings import read_site
    from accunet_monai.pacs.worker import Worker

    configure_logs()
    running = Worker(read_site(file))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: running.stop())
    try:
        running.run(grace)
    except PacsError as error:
        if error.code == "LEASE_LOST":  # threads may hang in a peer's answer, and nothing of them counts any more
            os._exit(LEASE_LOST)
        raise


def _serve(file: Path, workers: int) -> None:
    from accunet_monai.pacs.logs import configure_logs
    from accunet_monai.pacs.serving import Serving
    from accunet_monai.pacs.settings import read_site

    configure_logs()
    serving = Serving(file, read_site(file), workers)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: serving.stop())
    serving.run()


def _web(file: Path) -> None:
    import uvicorn

    from accunet_monai.pacs.logs import configure_logs
    from accunet_monai.pacs.web import make_app, read_token

    site, engine = _open(file)
    if site.web is None:
        raise PacsError("WEB_NOT_CONFIGURED", "the settings have no section `web`.", path=file)
    configure_logs()
    app = make_app(site, engine, read_token(site.web))
    uvicorn.run(app, host=site.web.host, port=site.web.port, log_config=None, access_log=False, server_header=False)


def _status(file: Path, jobs: bool, state: str | None, as_json: bool) -> None:
    from accunet_monai.pacs.status import list_jobs
    from accunet_monai.pacs.status import status as status_of

    site, engine = _open(file)
    if not jobs:
        _print(status_of(site, engine), as_json)
        return
    found = list_jobs(engine, state)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for row in found:
        why = " ".join(str(part) for part in (row["code"], row["detail"] and f"({row['detail']})") if part)
        typer.echo(f"{row['id'][:16]}  {row['state']:10}  {row['attempts']:2}  {row['bundle']}  {why}")


def _change(file: Path, job: str, change: Any) -> None:
    _, engine = _open(file)
    change(engine, job)


def _replay(file: Path, job: str, as_json: bool) -> None:
    from accunet_monai.pacs.jobs import find_job
    from accunet_monai.pacs.replay import replay as compute_again

    site, engine = _open(file)
    found = compute_again(site, engine, find_job(engine, job))
    if as_json:
        typer.echo(json.dumps(vars(found)))
    elif found.identical:
        typer.echo("identical")
    else:
        typer.echo(f"{found.differing} of {found.voxels} voxels differ")


def _shadow(file: Path, bundle: str, as_json: bool) -> None:
    from accunet_monai.pacs.shadow import compare_shadow

    site, engine = _open(file)
    found = compare_shadow(site, engine, bundle)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for row in (row for row in found if "code" not in row):
        dice = ", ".join(f"{label} {'-' if value is None else f'{value:.3f}'}" for label, value in row["dice"].items())
        differing = f"{row['differing']} of {row['voxels']} voxels differ"
        typer.echo(f"{row['shadow_job'][:16]}  against {row['live_bundle']}: {differing}; Dice {dice}")
    for code, count in sorted(Counter(row["code"] for row in found if "code" in row).items()):
        typer.echo(f"not compared: {count} ({code})")


def _drain(file: Path, seconds: float, resume: bool) -> None:
    from accunet_monai.pacs import status as site_status

    site, engine = _open(file)
    if resume:
        site_status.resume(site)
    else:
        site_status.drain(site, engine, seconds)
        typer.echo("drained: no job runs, none begins before accunet pacs drain --resume")


def _trace(file: Path, seg: str, as_json: bool) -> None:
    from accunet_monai.pacs.tracing import trace as trace_of

    site, engine = _open(file)
    _print(trace_of(site, engine, seg), as_json)


def _run_of(uri: str, runs_dir: Path) -> str:
    """The run of a registered model, which only a host with MLflow can tell."""
    from accunet_monai.registry import run_of

    return run_of(uri, runs_dir)


def _trace_weights(file: Path, weights: str | None, run: str | None, as_json: bool) -> None:
    from accunet_monai.pacs.tracing import trace_weights

    site, engine = _open(file)
    found = trace_weights(site, engine, weights=weights, run=run)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for facts in found:
        _print(facts, as_json)


def _verify(file: Path, head: str | None, as_json: bool) -> None:
    from accunet_monai.pacs.audit import verify as follow

    _, engine = _open(file)
    count, digest = follow(engine, head)
    _print({"entries": count, "head": digest}, as_json)


def _print(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        shown = ", ".join(shown) if isinstance(shown, list) else shown
        console.print(
            f"{name:20} {'-' if shown in (None, '') else shown}", highlight=False, soft_wrap=True, markup=False
        )
