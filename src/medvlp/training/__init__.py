"""Training of pre-training methods and of tasks alike: optimisation, guards, stopping, checkpoints."""
