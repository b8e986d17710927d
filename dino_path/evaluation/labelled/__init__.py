"""Labelled images: how they lie on disk, and their parts that share no patient, no slide and no image."""
