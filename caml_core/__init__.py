"""caml_core: the code behind the book. The methods lie here; data, pictures and runs have rooms of their own.

Data flows one way: data -> backbone -> loader or features -> method -> metrics -> figure.
"""

import os
import sys

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other, for milliseconds: beside another program a training becomes many
# times slower. A few microseconds are as good on an idle machine (benchmarks/threads.py). Read when PyTorch is loaded.
SPIN = {"GOMP_SPINCOUNT": "2000", "KMP_BLOCKTIME": "1"}
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    for name, value in SPIN.items():
        os.environ.setdefault(name, value)
