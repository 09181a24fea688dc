"""Keeping the work: a run is written on this machine first, then copied whole to a drive's folder or the Hub, and back."""

from cai_helpers.keeping.keeper import Keeper, keep

__all__ = ["Keeper", "keep"]
