"""What every part of a site's settings is made of: frozen, and without keys that nothing reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from accunet_monai.errors import did_you_mean


class Section(BaseModel):
    """A part of the settings. A key that it does not know is an error that names the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                near = did_you_mean(str(key), known) or f"Known: {', '.join(known)}"
                raise ValueError(f"unknown key {key!r}. {near}")
        return values


def _printable_title(title: str) -> str:
    if not title.isascii() or not title.isprintable() or "\\" in title or title != title.strip():
        raise ValueError("an AE title has up to 16 ASCII characters, no backslash and no space at its ends")
    return title


def _beside_settings(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path if folder is None or path.is_absolute() else Path(folder) / path


AETitle = Annotated[str, Field(min_length=1, max_length=16), AfterValidator(_printable_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
SitePath = Annotated[Path, AfterValidator(_beside_settings)]
"""Relative paths are meant from the folder of the settings' file."""
