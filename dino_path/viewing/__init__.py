"""The slide viewer: a page that this machine alone can open, and the same overlays as files."""
