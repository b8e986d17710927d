"""The files that outlive a command: for each its schema, its format version, its one writer and its one reader."""
