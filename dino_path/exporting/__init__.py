"""Export: the teacher becomes a model folder that other tools load."""
