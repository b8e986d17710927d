"""Slides or patients with one label, or one survival time, each: bags of tile features -> answers and their worth."""
