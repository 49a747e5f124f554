"""Measurements of what the cache costs, beside what one would use instead, in the same run."""
