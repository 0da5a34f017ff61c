"""caml_core: the code behind the book, small enough to read in an evening.

Data flows one way: data -> backbone -> loader or features -> method -> metrics -> figure.
"""

__version__ = "0.1.0"
