"""Labelled images: their layouts on disk, and splits that share no patient, slide or image."""
