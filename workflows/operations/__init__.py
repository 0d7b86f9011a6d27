"""What the commands do that is not a pipeline of stages: prediction, submissions, data import, and one run of retraining."""
