"""Tiles: grid geometry, the tile store, reading tiles."""
