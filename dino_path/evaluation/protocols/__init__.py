"""Frozen features of labelled images, and their classifiers."""
