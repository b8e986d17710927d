"""Pixels of single encoded images: JPEG decoded strictly, TIFF of any common kind, PNG, BMP and WebP."""
