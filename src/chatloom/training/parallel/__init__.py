"""Training on several processes: who they are, what each one does of a step, what each one holds of a model."""
