"""Bundles that try something: each case spoils a good bundle and says with which code it must be refused.

``CANARY`` in a case's text stands for a file that its payload would make. ``tests/test_malicious.py`` runs them all,
and shows of the payloads that they do fire where nobody refuses them.
"""

from tests.malicious import arguments, expressions, files
from tests.malicious.case import Case

CASES: dict[str, Case] = expressions.CASES | arguments.CASES | files.CASES

__all__ = ["CASES", "Case"]
