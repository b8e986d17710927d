"""Evaluation: what features are worth on labelled images, in folders that stand in the order of the data.

`measures` (numbers with their intervals), `labelled` (images and splits), `protocols` (frozen features -> scores of the
test images), `baseline` (the supervised network), `results` (tables and their files), `cohorts` (slides and patients
with one label each).
"""
