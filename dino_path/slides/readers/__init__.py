"""Who reads a slide file: one protocol, a reader for each library, and the choice between them (`opening`)."""
