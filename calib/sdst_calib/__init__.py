"""Trusts numbers: compares two ways of running the same model. Imports every lower room, no torch of its own."""
