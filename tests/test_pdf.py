"""The book on paper: all pages in the order of the contents, formulas drawn, solutions open, code of figures folded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pypdf import PdfReader
from sample_book import ROOT

from book import pdf
from caml_core.errors import CamlError

pytest_plugins = ["book_fixtures"]


def test_contents_are_all_pages_in_order() -> None:
    pages = pdf.contents(ROOT / "_toc.yml")
    assert pages[0] == "book/index"
    assert len(set(pages)) == len(pages)
    chapters = [page for page in pages if page.startswith("notebooks/")]
    assert chapters == [f"notebooks/{file.stem}" for file in sorted((ROOT / "notebooks").glob("*.py"))]


def test_pages_are_printed_into_one_file(sample: Path, tmp_path: Path) -> None:
    target, toc = tmp_path / "book.pdf", sample.parents[1] / "_toc.yml"
    # In a process of its own: the tests' browser holds this one's event loop.
    code = "import sys; from pathlib import Path; from book.pdf import print_book; print_book(*map(Path, sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, sample, target, toc], cwd=ROOT, check=True)
    printed = PdfReader(target)
    assert len(printed.outline) == len(pdf.contents(toc))
    text = "\n".join(page.extract_text() for page in printed.pages)
    assert "Solution" in text
    with pytest.raises(CamlError, match="make book"):
        pdf.print_book(tmp_path, target, toc)
