"""Stores: where positions, markers and in-store effects live."""
