"""Tables of models side by side, of few labels and of few shots, and the files that hold them."""
