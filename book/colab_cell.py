# %% tags=["hide-input"]
import os
import subprocess
import sys

# On Colab, install the book's package; elsewhere there is nothing to do.
if "google.colab" in sys.modules:
    source = "git+REPOSITORY"
    source = os.environ.get("CAML_REPOSITORY", source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", source]
    subprocess.run(pip, check=True)
    from caml_core.colab import setup

    setup()
