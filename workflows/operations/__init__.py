"""Do the work of commands: prediction, submissions to VOC's test server, data import and retraining."""
