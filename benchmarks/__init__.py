"""Measurements side by side with a baseline; each prints a table and, last, one line of JSON."""
