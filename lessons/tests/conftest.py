"""Sets Triton to interpret before any test imports it."""

import lessons.kit  # noqa: F401
