"""Proof that a site's settings hold: each thing tried once, with what to do where it fails."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from accunet_monai.errors import AccunetError, PacsError
from accunet_monai.pacs.acceptor import Peers
from accunet_monai.pacs.completeness import bundle_digest
from accunet_monai.pacs.inbox import OpenSite
from accunet_monai.pacs.judging import Judge
from accunet_monai.pacs.query import date_range, echo, find_remote
from accunet_monai.pacs.receive import server_tls
from accunet_monai.pacs.rules import Decision
from accunet_monai.pacs.settings import Pacs, Pull, Site


@dataclass(frozen=True)
class Finding:
    """What was tried, whether it went well, and what was found or what to do."""

    what: str
    good: bool
    words: str


def check_site(site: Site) -> Iterator[Finding]:
    """Try everything that the site's settings name; nothing is sent to a PACS but queries and echoes."""
    yield _tried("key, database and storage", lambda: _storage(site))
    for peer in site.peers:
        found = Peers([peer])
        known = [address for address in peer.addresses if found.resolves(address)]
        words = f"{len(known)} of {len(peer.addresses)} addresses are known here"
        yield Finding(f"peer {peer.ae_title}", len(known) == len(peer.addresses), words)
    tls = site.tls
    if tls is not None:
        yield _tried("TLS", lambda: str(server_tls(tls).minimum_version.name))
    for rule in site.bundles:
        yield _tried(f"bundle {rule.name}", lambda rule=rule: f"manifest {bundle_digest(rule.bundle)[:12]}")  # type: ignore[misc]
    for pacs in site.pacs:
        yield from _pacs(site, pacs)
    for pull in site.pulls:
        yield _tried(f"pull {pull.name}", lambda pull=pull: _dry_run(site, pull))  # type: ignore[misc]


def check_series(site: Site, folder: Path) -> list[Decision]:
    """What the rules would decide for the series in a folder, which is not taken in."""
    judge = Judge(site.limits.decode_memory_bytes)
    try:
        return judge(site.bundles, folder)
    finally:
        judge.close()


def _storage(site: Site) -> str:
    with OpenSite(site) as opened:
        probe = site.storage / f".probe-{uuid.uuid4().hex}"
        try:
            probe.write_bytes(b"accunet")
            probe.unlink()
        except OSError as error:
            message = f"cannot be written ({error.strerror})."
            raise PacsError("STORAGE_WRITE", message, path=site.storage) from error
        used, quota = opened.storage.used / 2**30, site.limits.quota_bytes / 2**30
        root = " Runs as root: use an ordinary user." if os.geteuid() == 0 else ""
        return f"{used:.1f} of {quota:.1f} GiB are used; {opened.engine.dialect.name}.{root}"


def _pacs(site: Site, pacs: Pacs) -> Iterator[Finding]:
    dimse = pacs.dimse
    if dimse is not None:
        yield _tried(f"PACS {pacs.name}, C-ECHO", lambda: f"{1000 * echo(site, dimse):.0f} ms")
        yield _tried(f"PACS {pacs.name}, C-FIND", lambda: _recent(site, pacs, by_web=False))
    if pacs.dicomweb is not None:
        yield _tried(f"PACS {pacs.name}, QIDO", lambda: _recent(site, pacs, by_web=True))


def _recent(site: Site, pacs: Pacs, *, by_web: bool) -> str:
    found = find_remote(site, pacs, {"StudyDate": date_range(1), "Modality": "MR"}, by_web=by_web)
    return f"{len(found)} MR series since yesterday"


def _dry_run(site: Site, pull: Pull) -> str:
    query = {"StudyDate": date_range(pull.days), **pull.query}
    found = find_remote(site, site.pacs_named(pull.pacs), query, by_web=pull.by == "dicomweb")
    return f"{len(found)} series would be looked at, {sum(one.instances or 0 for one in found)} instances"


def _tried(what: str, trial: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, trial())
    except AccunetError as error:
        return Finding(what, False, str(error))
