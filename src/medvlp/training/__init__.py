"""Training code shared by pre-training methods and tasks."""
