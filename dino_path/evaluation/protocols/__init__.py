"""Frozen features of labelled images, and what classifies them."""
