"""Sets Triton to interpret, on a machine with a GPU too, before any test imports it: forks cannot share a GPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"
