"""The one exception of the book: it says what was wrong, what was expected and what to do."""


class CamlError(Exception):
    """Raised for every input, file or setting that cannot be used.

    Args:
        what: what was found, with its value or path.
        expected: what would have been accepted.
        remedy: the next thing to do.
    """

    def __init__(self, what: str, expected: str, remedy: str) -> None:
        super().__init__(what, expected, remedy)
        self.what, self.expected, self.remedy = what, expected, remedy

    def __str__(self) -> str:
        return f"{self.what}\n  expected: {self.expected}\n  remedy:   {self.remedy}"
