# %% tags=["hide-input"]
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # on Colab, install the book's package; elsewhere there is nothing to do
    source = os.environ.get("CAML_REPOSITORY", "git+REPOSITORY")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", source], check=True)
    from caml_core.colab import setup

    setup()
