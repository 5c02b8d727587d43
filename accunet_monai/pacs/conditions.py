"""Conditions over the tags of an instance: plain data, evaluated without regular expressions and without ``eval``.

Texts are compared without regard to case and to spaces at their ends. A tag with several values (``ImageType``) meets
a test when one of its values does, and never meets one when it is absent, except ``exists: false``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from accunet_monai.errors import did_you_mean
from accunet_monai.pacs.sections import Section

MAX_DEPTH = 8
MAX_CONDITIONS = 200
_COMMON = "Modality ImageType BodyPartExamined SeriesDescription ProtocolName StudyDescription SliceThickness".split()  # noqa: SIM905
_NO_TEXT = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UN", "OB or OW"})

Tags = Mapping[str, Sequence[str]]
"""Keyword → the tag's values as text; absent and empty tags are missing or have none."""

Value = StrictStr | StrictBool | StrictInt | StrictFloat


def _known_keyword(keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    if tag is None or keyword_for_tag(tag) != keyword:
        near = did_you_mean(keyword, _COMMON)
        raise ValueError(f"{keyword!r} is no DICOM keyword. {near or 'Keywords are written as in PS3.6: Modality'}")
    if dictionary_VR(tag) in _NO_TEXT:
        raise ValueError(f"{keyword!r} holds no text or number that could be compared")
    return keyword


class Condition(Section):
    """One of ``all``, ``any``, ``not`` over further conditions, or one test of a ``tag``.

    Example:
        >>> condition = Condition.model_validate({"all": [
        ...     {"tag": "Modality", "equals": "MR"},
        ...     {"not": {"tag": "ImageType", "in": ["DERIVED", "LOCALIZER"]}},
        ...     {"tag": "SliceThickness", "at_most": 3}]})
        >>> condition.holds({"Modality": ["MR"], "ImageType": ["ORIGINAL", "PRIMARY"], "SliceThickness": ["1.0"]})
        True
        >>> condition.holds({"Modality": ["MR"], "ImageType": ["DERIVED"], "SliceThickness": ["1.0"]})
        False
    """

    every: tuple[Condition, ...] | None = Field(default=None, alias="all", min_length=1)
    some: tuple[Condition, ...] | None = Field(default=None, alias="any", min_length=1)
    negated: Condition | None = Field(default=None, alias="not")
    tag: Annotated[str, AfterValidator(_known_keyword)] | None = None
    equals: Value | None = None
    one_of: tuple[Value, ...] | None = Field(default=None, alias="in", min_length=1)
    starts_with: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    contains: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    exists: StrictBool | None = None
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_meaning(self) -> Condition:
        kinds = [kind for kind in (self.every, self.some, self.negated, self.tag) if kind is not None]
        if len(kinds) != 1:
            raise ValueError("a condition is exactly one of all, any, not, tag")
        tests = [self.equals, self.one_of, self.starts_with, self.contains, self.exists]
        ranged = self.at_least is not None or self.at_most is not None
        count = sum(test is not None for test in tests) + ranged
        if count != (self.tag is not None):
            raise ValueError("a tag has exactly one of equals, in, starts_with, contains, exists, at_least/at_most")
        if self.depth() > MAX_DEPTH or sum(1 for _ in self.parts()) > MAX_CONDITIONS:
            raise ValueError(f"more than {MAX_DEPTH} levels or {MAX_CONDITIONS} conditions")
        return self

    def inner(self) -> tuple[Condition, ...]:
        """The conditions that this one is made of."""
        return self.every or self.some or ((self.negated,) if self.negated else ())

    def parts(self) -> Iterator[Condition]:
        """This one and all below it."""
        yield self
        for condition in self.inner():
            yield from condition.parts()

    def depth(self) -> int:
        """Levels, 1 for a test of a tag."""
        return 1 + max((condition.depth() for condition in self.inner()), default=0)

    def holds(self, tags: Tags) -> bool:
        """Whether an instance with these tags meets the condition."""
        if self.every is not None:
            return all(condition.holds(tags) for condition in self.every)
        if self.some is not None:
            return any(condition.holds(tags) for condition in self.some)
        if self.negated is not None:
            return not self.negated.holds(tags)
        values = [value for value in tags.get(self.tag or "", ()) if value.strip()]
        if self.exists is not None:
            return bool(values) == self.exists
        return any(self._met(value) for value in values)

    def describe(self) -> str:
        """The test in words, for people; the values are the settings', never an instance's."""
        if self.every is not None or self.some is not None or self.negated is not None:
            return "all of" if self.every is not None else "any of" if self.some is not None else "not"
        given = self.model_dump(by_alias=True, exclude_none=True, exclude={"tag"})
        words = [f"{name.replace('_', ' ')} {value!r}" for name, value in given.items()]
        return f"{self.tag} {' and '.join(words)}"

    def _met(self, value: str) -> bool:
        if self.at_least is not None or self.at_most is not None:
            number = _number(value)
            low = -float("inf") if self.at_least is None else self.at_least
            high = float("inf") if self.at_most is None else self.at_most
            return number is not None and low <= number <= high
        if self.starts_with is not None:
            return _plain(value).startswith(_plain(self.starts_with))
        if self.contains is not None:
            return _plain(self.contains) in _plain(value)
        wanted = self.one_of if self.one_of is not None else (self.equals,)
        return any(_same(value, one) for one in wanted)


def _plain(text: str) -> str:
    return text.strip(" \0").casefold()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _same(value: str, wanted: object) -> bool:
    if isinstance(wanted, bool):  # YAML reads a bare YES as true
        return _plain(value) in (("yes", "y", "true") if wanted else ("no", "n", "false"))
    if isinstance(wanted, int | float):
        return _number(value) == wanted
    return _plain(value) == _plain(str(wanted))
