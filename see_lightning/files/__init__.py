"""Files on disk: read within limits, decoded, written whole or not at all, and of the shape that a run writes."""
