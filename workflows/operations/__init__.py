"""Work of the commands other than running a pipeline: prediction, submissions to VOC's server, data import and retraining."""
