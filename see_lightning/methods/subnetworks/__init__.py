"""Masked parts of one shared adapter, which moses and exssnet train."""
