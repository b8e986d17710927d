"""Outlines that people and tools drew on a slide: one parser for each file format, one value from all of them."""
