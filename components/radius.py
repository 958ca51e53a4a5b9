"""Old address of the radius functions; they are in `components.threats`."""

from __future__ import annotations

from components.threats import NORMS, Radius, check_radius, parse_radius, radius_text

LARGEST: dict[str, float] = {norm: info.largest_radius for norm, info in NORMS.items()}

__all__ = ["LARGEST", "Radius", "check_radius", "parse_radius", "radius_text"]
