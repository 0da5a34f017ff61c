"""Your own model: find its shortcut, ask for the labels that count, repair its last layer."""
