"""The field: eight systems of the same spring, each small; nothing else in the package imports them."""
