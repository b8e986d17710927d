"""The slide viewer: a page that only this machine can open, and the same overlays as files."""
