"""Reporting: run folders become tables, figures and one HTML page."""
