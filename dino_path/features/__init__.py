"""Features: a frozen backbone turns images into feature files."""
