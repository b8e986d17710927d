"""What is optimised: one file a term, how targets are made of the teacher's logits, and the weighted sum."""
