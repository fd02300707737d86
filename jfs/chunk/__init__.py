"""Slices as blocks: names, codec, cache and the block store."""
