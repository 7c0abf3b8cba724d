"""Finds the rank that hangs."""
