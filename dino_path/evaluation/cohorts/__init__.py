"""Slides or patients that have one label, or one survival time, each: bags of tile features -> answers and their worth."""
