"""Do the work of several commands: batch prediction, submissions to VOC's test server, data import and retraining."""
