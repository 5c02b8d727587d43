"""A site's settings: one YAML file, read once, valid once read.

Unknown keys, AE titles that are none, names that lead nowhere and limits that contradict each other are refused with
what to do. Paths are meant from the folder of the file. No secret stands in it: tokens, keys and passwords are files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from accunet_monai.errors import PacsError, did_you_mean
from accunet_monai.pacs.conditions import Condition
from accunet_monai.pacs.sections import AETitle, Port, Section, SiteName, SitePath

MIB = 2**20
GIB = 2**30
_Positive = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(ge=1)]
_Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:_-]{1,255}$")]
_Query = dict[str, Annotated[str, Field(max_length=256)]]


class Peer(Section):
    """Who may open an association with us: an AE title, from one of these addresses."""

    ae_title: AETitle
    addresses: tuple[_Host, ...] = Field(min_length=1)


class Dimse(Section):
    """An application entity that we call."""

    ae_title: AETitle
    host: _Host
    port: Port
    tls: bool = False


class DicomWeb(Section):
    """A DICOMweb service. ``token_file`` has a bearer token; ``password_file`` goes with ``user``.

    With ``tls`` the site's certificate is shown to it and its authority trusted; ``ca`` names another authority.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
    token_file: SitePath | None = None
    user: str | None = None
    password_file: SitePath | None = None
    ca: SitePath | None = None
    tls: bool = False

    @model_validator(mode="after")
    def _https(self) -> DicomWeb:
        if self.tls and not self.url.startswith("https:"):
            raise ValueError("tls is true, but the address is not https")
        return self


class Pacs(Section):
    """A PACS by one or both of its ways in."""

    name: SiteName
    dimse: Dimse | None = None
    dicomweb: DicomWeb | None = None

    @model_validator(mode="after")
    def _some_way(self) -> Pacs:
        if self.dimse is None and self.dicomweb is None:
            raise ValueError(f"the PACS {self.name!r} has neither dimse nor dicomweb")
        return self


class SegProfile(Section):
    """How a destination wants its SEG objects; ``labelmap`` only for those who know it."""

    type: Literal["binary", "labelmap", "fractional"] = "binary"
    omit_empty_frames: bool = True


class Destination(Section):
    """Where results go: a PACS, by one of its ways in, in its profile; with ``report`` also the volumes (TID 1500).

    It is asked for each result by ``query``, or by storage commitment, which needs its ``dimse`` and our receiver.
    """

    name: SiteName
    pacs: SiteName
    kind: Literal["dimse", "dicomweb"]
    seg: SegProfile = SegProfile()
    report: bool = False
    rejection_note: bool = False
    confirm: Literal["query", "commitment"] = "query"


class BundleRule(Section):
    """A bundle, which series it takes, and where its results go.

    Args:
        bundle: name of a shipped bundle, or a bundle's folder.
        when: the condition that every instance of a series must meet.
        min_instances: fewer are not a series for it.
        one_per_study: when several series of a study match, that is ambiguous and none is taken.
        allow_burned_in: take instances whose BurnedInAnnotation is YES.
        planes: also take series that are stacks of planes but no grid.
        shadow: compute and keep, deliver nothing.
        priority: of its jobs; higher goes first.
    """

    bundle: str
    when: Condition
    destinations: tuple[SiteName, ...] = ()
    min_instances: _Count = 1
    one_per_study: bool = False
    allow_burned_in: bool = False
    planes: bool = True
    shadow: bool = False
    priority: int = 0

    @property
    def name(self) -> str:
        """As the database calls it: the last part of the bundle's name or path."""
        return Path(self.bundle).name

    @model_validator(mode="after")
    def _delivers_or_not(self) -> BundleRule:
        if not self.shadow and not self.destinations:
            raise ValueError(f"{self.bundle!r} has no destinations; a bundle that delivers nothing has `shadow: true`")
        return self


class Completeness(Section):
    """When a series is taken for complete.

    Args:
        quiet_seconds: since its last instance, with no open association that brought one.
        count_from: a PACS that is asked for its number of instances; the series waits for that many.
        count_wait_seconds: a series that never gets there is taken after so much quiet, and the decision says so.
        association_wait_seconds: an open association holds a series back for so long after the series' last instance,
            whatever else it brings.
    """

    quiet_seconds: Annotated[float, Field(ge=0)] = 30
    count_from: SiteName | None = None
    count_wait_seconds: _Positive = 600
    association_wait_seconds: _Positive = 900


class Limits(Section):
    """Caps on what others can make us hold. Bytes and seconds."""

    max_pdu: Annotated[int, Field(ge=4096, le=16 * MIB)] = MIB // 4
    max_associations: _Count = 256
    max_associations_per_peer: _Count = 128
    max_instance_bytes: _Count = 2 * GIB
    max_inflated_bytes: _Count = GIB
    max_header_bytes: _Count = 16 * MIB
    idle_seconds: _Positive = 60
    association_seconds: _Positive = 30  # from the connection to its A-ASSOCIATE
    quota_bytes: _Count = 200 * GIB
    keep_free_bytes: Annotated[int, Field(ge=0)] = 2 * GIB
    decode_memory_bytes: _Count = 4 * GIB


class Tls(Section):
    """Mutual TLS: our certificate and key, and the authority that signed the peers' certificates (PEM files)."""

    certificate: SitePath
    key: SitePath
    ca: SitePath


class Retention(Section):
    """Received instances whose jobs all ended are removed after so many days; ``null`` keeps them."""

    received_days: _Positive | None = 30
    results_days: _Positive | None = 90


class Web(Section):
    """The page and ``/healthz``, on loopback unless told otherwise, with a token from a file."""

    host: _Host = "127.0.0.1"
    port: Port = 8080
    token_file: SitePath


class Jobs(Section):
    """How jobs are run: attempts before a dead letter, the wait before the next (doubled each time), leases."""

    attempts: _Count = 10  # with the default wait the last is made 85 minutes after the first
    backoff_seconds: _Positive = 10
    step_seconds: _Positive = 3600  # a step that takes longer has failed
    lease_seconds: _Positive = 30
    renew_seconds: _Positive = 10
    device: str | None = None

    @model_validator(mode="after")
    def _renewed_in_time(self) -> Jobs:
        if self.lease_seconds < 2 * self.renew_seconds:
            raise ValueError("lease_seconds must be at least twice renew_seconds")
        return self


class Pull(Section):
    """A query that fetches what is new, again and again.

    Args:
        name: of this query.
        pacs: who is asked.
        by: C-GET, C-MOVE (to our own AE title) or DICOMweb.
        query: matching keys of the series or study level, by DICOM keyword.
        every_minutes: between two runs.
        days: back from today, by StudyDate; and tomorrow, for clocks differ.
        priority: of the jobs.
        per_minute: instances at most, so that the PACS has time for others.
    """

    name: SiteName
    pacs: SiteName
    by: Literal["get", "move", "dicomweb"] = "get"
    query: _Query = Field(default_factory=dict)
    every_minutes: _Positive = 15
    days: _Count = 1
    priority: int = 0
    per_minute: _Positive | None = None


class Site(Section):
    """Everything a site sets. See ``configs/sites/example.yaml``."""

    ae_title: AETitle
    bind: _Host = "127.0.0.1"
    port: Port = 11112
    storage: SitePath
    database: str | None = None  # by default SQLite in the storage folder
    key_file: SitePath  # of the pseudonyms; `accunet pacs key FILE` makes one
    require_called_ae_title: bool = True
    peers: tuple[Peer, ...] = ()
    pacs: tuple[Pacs, ...] = ()
    bundles: tuple[BundleRule, ...] = ()
    destinations: tuple[Destination, ...] = ()
    completeness: Completeness = Completeness()
    limits: Limits = Limits()
    tls: Tls | None = None
    retention: Retention = Retention()
    web: Web | None = None
    jobs: Jobs = Jobs()
    pulls: tuple[Pull, ...] = ()

    @property
    def database_url(self) -> str:
        """The database's address for SQLAlchemy."""
        return self.database or f"sqlite:///{self.storage / 'state.sqlite3'}"

    def destination(self, name: str) -> Destination:
        """The destination of that name."""
        return next(item for item in self.destinations if item.name == name)

    def pacs_named(self, name: str) -> Pacs:
        """The PACS of that name.

        Raises:
            PacsError: ``PACS_UNKNOWN``.
        """
        found = next((item for item in self.pacs if item.name == name), None)
        if found is None:
            names = [item.name for item in self.pacs]
            hint = did_you_mean(name, names) or f"There is: {', '.join(names) or 'none'}."
            raise PacsError("PACS_UNKNOWN", f"no PACS is called {name!r}.", hint=hint)
        return found

    @field_validator("database")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        from sqlalchemy import make_url

        if value is not None and make_url(value).password:
            raise ValueError("no password belongs here: use a .pgpass file, or PGPASSFILE")
        return value

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> Site:
        for what, names in (
            ("pacs", [item.name for item in self.pacs]),
            ("destinations", [item.name for item in self.destinations]),
            ("pulls", [item.name for item in self.pulls]),
            ("bundles", [item.name for item in self.bundles]),
            ("peers", [item.ae_title for item in self.peers]),
        ):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{what}: {sorted(twice)[0]!r} is there twice")
        ways = {item.name: item for item in self.pacs}
        for destination in self.destinations:
            pacs = _there(ways, destination.pacs, f"destination {destination.name!r}")
            if getattr(pacs, destination.kind) is None:
                raise ValueError(f"destination {destination.name!r}: PACS {pacs.name!r} has no {destination.kind}")
            if destination.confirm == "commitment" and pacs.dimse is None:
                raise ValueError(f"destination {destination.name!r}: commitment needs dimse, {pacs.name!r} has none")
        for pull in self.pulls:
            pacs = _there(ways, pull.pacs, f"pull {pull.name!r}")
            if (pacs.dicomweb if pull.by == "dicomweb" else pacs.dimse) is None:
                raise ValueError(f"pull {pull.name!r}: PACS {pacs.name!r} has no way for {pull.by!r}")
        if self.completeness.count_from is not None:
            _there(ways, self.completeness.count_from, "completeness.count_from")
        ends = {item.name: item for item in self.destinations}
        for rule in self.bundles:
            for name in rule.destinations:
                _there(ends, name, f"bundle {rule.name!r}")
        ways_in = [way for item in self.pacs for way in (item.dimse, item.dicomweb)]
        if self.tls is None and any(way is not None and way.tls for way in ways_in):
            raise ValueError("a PACS is called with tls, but the site has no tls section")
        return self


def read_site(path: str | os.PathLike[str]) -> Site:
    """Reads a site's settings.

    Raises:
        PacsError: ``SITE_MISSING`` or ``SITE_INVALID``, naming the key and what is wrong with it.
    """
    file = Path(path)
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "Start from configs/sites/example.yaml."
        raise PacsError("SITE_MISSING", "no such file.", path=file, hint=hint) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PacsError("SITE_INVALID", f"this is no YAML file ({' '.join(str(error).split())}).", path=file) from error
    try:
        return Site.model_validate(values, context={"folder": file.resolve().parent})
    except ValidationError as error:
        problems = [_said(problem) for problem in error.errors()]
        more = f" And {len(problems) - 3} more." if len(problems) > 3 else ""
        raise PacsError("SITE_INVALID", f"{'; '.join(problems[:3])}{more}", path=file) from error


def _there(items: dict[str, Any], name: str, where: str) -> Any:
    if name not in items:
        near = did_you_mean(name, items) or f"There is: {', '.join(items) or 'none'}"
        raise ValueError(f"{where}: nothing is called {name!r}. {near}")
    return items[name]


def _said(problem: Any) -> str:
    """A problem without the value it was found in: settings are shown to support, values may be secret."""
    place = ".".join(str(part) for part in problem["loc"]) or "settings"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"
