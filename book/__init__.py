"""The text pages of the book and the program that builds it (``python book/build.py``)."""
