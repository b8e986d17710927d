"""Slides: opening, levels and mpp, tissue, quality, synthetic demo slides."""

import logging

# What these libraries log of a damaged file, thousands of lines or a traceback, our refusal says in one sentence.
for _library in ("tifffile", "wsidicom", "pydicom", "imagecodecs"):
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)
