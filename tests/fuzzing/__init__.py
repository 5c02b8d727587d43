"""Damaged files in large numbers: made ones are mutated, and the readers must read or refuse them, within bounds."""
