"""Simulated exposures with truth."""
