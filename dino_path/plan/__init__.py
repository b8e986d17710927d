"""What a pretraining will take, before it begins: counted, measured on a few of its steps, or estimated."""
