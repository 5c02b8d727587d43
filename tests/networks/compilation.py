"""The mark of tests that run PyTorch's compiler, which takes minutes and a C++ compiler."""

import os

import pytest

COMPILE = pytest.mark.skipif(
    "compile" not in os.environ.get("ACCUNET_REQUIRE", "").split(","),
    reason="takes minutes of compilation; ACCUNET_REQUIRE=compile runs it",
)
