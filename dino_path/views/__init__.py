"""Views: one tile becomes global and local views."""
