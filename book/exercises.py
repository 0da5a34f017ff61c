"""The exercises of a chapter: plain Markdown in the notebook, numbered boxes with hidden solutions on its page.

GitHub, Colab and Jupyter show no directives. A notebook therefore writes an exercise as a paragraph that begins with
``**Exercise 2: its name.**`` and after it the solution: ``<details><summary>Solution 2</summary>``, or a code cell
with the tags "hide-cell" and "solution" whose first line is ``# @title Solution 2``, or both. In the copy of the
notebook from which the page is made, this becomes directives of sphinx-exercise.
"""

from __future__ import annotations

import re

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from caml_core.errors import CamlError

_PART = re.compile(
    r"^\*\*Exercise (?P<number>\d+): (?P<name>[^*]+?)\.?\*\*(?P<task>.*?)(?=^\*\*Exercise |^<details>|\Z)"
    r"|^<details>\s*<summary>Solution (?P<solved>\d+)</summary>(?P<answer>.*?)^</details>",
    re.MULTILINE | re.DOTALL,
)
_TITLE = re.compile(r"# @title Solution (\d+)\b.*(\n|\Z)")


def to_directives(notebook: NotebookNode, chapter: str) -> None:
    """Rewrite the exercises of a notebook for its page, in place.

    Raises:
        CamlError: when they do not follow the convention above.
    """
    exercises, inside = _Exercises(chapter), False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if inside and cell.source.strip():
                exercises.code(cell)
            continue
        sections = re.split(r"^(?=## )", cell.source, flags=re.MULTILINE)
        for i, section in enumerate(sections):
            if section.startswith("## "):
                inside = section.startswith("## Exercises")
            if inside:
                sections[i] = exercises.text(section)
        cell.source = "".join(sections)
    exercises.finish()


def without_solutions(notebook: NotebookNode) -> None:
    """What a class gets: nothing was run, and below each exercise is an empty cell in the place of its solution."""
    kept: list[NotebookNode] = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if "solution" in cell.metadata.get("tags", []):
                continue  # its text, if it has one, stands above
            cell.outputs, cell.execution_count = [], None
            kept.append(cell)
            continue
        pieces = re.split(r"(?=^\*\*Exercise \d+: )", _PART.sub(_task, cell.source), flags=re.MULTILINE)
        for piece in pieces:
            kept.append(new_markdown_cell(piece.rstrip()))
            if piece.startswith("**Exercise "):
                kept.append(new_code_cell(""))
    notebook.cells = [cell for cell in kept if cell.source or cell.cell_type == "code"]


def _task(part: re.Match[str]) -> str:
    return part[0] if part["number"] else ""


class _Exercises:
    """Reads the cells in order; knows the exercise it is at and whether its solution has come."""

    def __init__(self, chapter: str) -> None:
        self.chapter, self.number, self.solved = chapter, 0, True

    def text(self, markdown: str) -> str:
        """Markdown with its exercises and solutions as directives."""
        written, position = [], 0
        for part in _PART.finditer(markdown):
            written += [self._between(markdown[position : part.start()]), self._directive(part)]
            position = part.end()
        return "".join([*written, self._between(markdown[position:])])

    def code(self, cell: NotebookNode) -> None:
        """A solution that runs: it keeps its cell, folded under a title of its own."""
        title = _TITLE.match(cell.source)
        if not title or not {"hide-cell", "solution"} <= set(cell.metadata.get("tags", [])):
            raise self._fault(f"this code cell is not a solution: {_start(cell.source)}")
        self._solve(int(title[1]))
        cell.source = cell.source[title.end() :]
        cell.metadata["mystnb"] = {
            "code_prompt_show": f"Solution {self.number}, with code",
            "code_prompt_hide": f"Hide solution {self.number}",
        }

    def finish(self) -> None:
        if not self.number:
            raise self._fault("there is no exercise")
        if not self.solved:
            raise self._fault(f"exercise {self.number} has no solution")

    def _directive(self, part: re.Match[str]) -> str:
        if part["number"]:
            if not self.solved:
                raise self._fault(f"exercise {self.number} has no solution")
            if int(part["number"]) != self.number + 1:
                raise self._fault(f"exercise {part['number']} stands where exercise {self.number + 1} is due")
            self.number, self.solved = self.number + 1, False
            head = f"{{exercise}} {' '.join(part['name'].split())}\n:label: {self._label()}"
        else:
            self._solve(int(part["solved"]))
            head = f"{{solution}} {self._label()}\n:label: solution-to-{self._label()}\n:class: dropdown"
        return f":::::{head}\n\n{(part['task'] or part['answer'] or '').strip()}\n:::::\n\n"

    def _solve(self, number: int) -> None:
        if number != self.number:
            raise self._fault(f"solution {number} does not stand below exercise {number}")
        self.solved = True

    def _between(self, text: str) -> str:
        """Only the heading and words of introduction may stand outside of exercises and solutions."""
        if self.number and text.strip():
            raise self._fault(f"this belongs neither to an exercise nor to a solution: {_start(text)}")
        return text if not self.number else ""

    def _label(self) -> str:
        return f"exercise-{self.chapter.split('_')[0]}-{self.number}"

    def _fault(self, what: str) -> CamlError:
        return CamlError(
            what=f'{self.chapter}, part "## Exercises": {what}',
            expected='paragraphs that begin with "**Exercise 1: its name.**", numbered from 1, each followed by '
            '"<details><summary>Solution 1</summary> ... </details>" or by a code cell with the tags hide-cell and '
            "solution that begins with '# @title Solution 1 { display-mode: \"form\" }'",
            remedy=f"mend notebooks/{self.chapter}.py; CONTRIBUTING.md shows an example",
        )


def _start(text: str) -> str:
    return text.strip().splitlines()[0][:80]
