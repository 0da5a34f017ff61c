"""Command line: `python -m caml_core run METHOD --dataset NAME ... --out FILE.json`, and `sweep`, `tables`, `data`.

The same code as the notebooks. Ctrl-C (or a kill) leaves a checkpoint beside the output file; the same command goes
on from there. A wrong setting, file or dataset is one message on one line, and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from caml_core.errors import CamlError

HELP = """usage: python -m caml_core COMMAND ...

  run METHOD --dataset NAME --out FILE.json   train, and write one record a seed
  sweep FILE.toml                             make the runs that a file lists, each once
  tables [NAME]                               stored results, as Markdown
  data list | fetch NAME                      datasets: what is where, under which licence; fetch one
  audit PATH --model SPEC --out DIR           your own model: what does it lean on?
  ask PATH --out DIR                          which pictures to look at
  repair PATH --answers FILE.csv --out DIR    the last layer that does best with your answers

Each has a --help of its own.

methods:  {methods}
datasets: {datasets}"""


def main(argv: Sequence[str] | None = None) -> int:
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", dict)(errors="backslashreplace")  # a name that the terminal cannot print
    try:
        if "".join(rest[:1] if command == "run" else [command]) in ("-h", "--help"):
            from caml_core.runs.identity import DATASETS, METHODS  # without PyTorch

            print(HELP.format(methods=", ".join(METHODS), datasets=", ".join(DATASETS)))
            return 0
        from caml_core.own.commands import OWN
        from caml_core.runs.commands import COMMANDS

        commands = {**COMMANDS, **OWN}
        if command not in commands:
            raise CamlError(f"command {command!r}", "run, sweep, tables, data, audit, ask or repair", "see --help")
        commands[command](rest)
        return 0
    except CamlError as error:
        what, code = f"{error.what}; expected {error.expected}; {error.remedy}", 2
    except OSError as error:  # of a path that was given
        what, code = str(error), 2
    except KeyboardInterrupt:
        what, code = "stopped; the same command goes on from where it stopped", 130
    print(f"caml_core: {' '.join(what.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
