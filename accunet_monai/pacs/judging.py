"""Series are judged by a site's rules in a child process of limited memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accunet_monai.pacs.children import LimitedChild, answer_questions
from accunet_monai.pacs.rules import Decision, decide_all
from accunet_monai.pacs.settings import BundleRule


class Judge(LimitedChild):
    """Judges series in a child process."""

    def __call__(self, rules: Sequence[BundleRule], folder: Path) -> list[Decision]:
        """As :func:`~accunet_monai.pacs.rules.decide_all`; refused as ``JUDGE_DIED`` where reading ends the child."""
        given = [rule.model_dump(mode="json", by_alias=True, exclude_unset=True) for rule in rules]
        answer = self.ask(rules=given, folder=str(folder))
        if answer is None:
            return [Decision(rule.name, "refused", "JUDGE_DIED", {}) for rule in rules]
        return [Decision(**decision) for decision in answer[0]]


def _decisions(rules: list[Any], folder: str) -> list[dict[str, Any]]:
    known = [BundleRule.model_validate(rule) for rule in rules]
    return [asdict(decision) for decision in decide_all(known, Path(folder))]


if __name__ == "__main__":
    answer_questions(int(sys.argv[1]), _decisions)
