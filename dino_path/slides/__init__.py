"""Slides: opening, levels and mpp, tissue, quality, synthetic demo slides."""
