"""Runs: settings, one run, many runs, their records and tables."""
