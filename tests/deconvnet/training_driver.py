"""A driver of one training, for tests that kill it or its workers.

Arguments: FOLDER WORKERS EPOCHS [MIN_WORKERS [CHECKPOINT_EVERY]]. Exits with 75 when it was interrupted. Joins the Ray cluster in
RAY_ADDRESS, if that is set.
"""

import os
import sys

import ray

from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
from deconvnet.training.job import TrainingJob
from deconvnet.training.ray_trainer import train_on_ray
from infra.errors import Interrupted
from tests.deconvnet.training_tables import SIZE
from workflows.cli import configure_logging

if __name__ == "__main__":
    folder, (workers, epochs, *more) = sys.argv[1], map(int, sys.argv[2:])
    configure_logging()
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level="warning")
    else:  # "local": a cluster that `ray start` left on this machine must not be joined instead
        ray.init(
            "local",
            num_cpus=2,
            object_store_memory=128 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
        )
    try:
        job = TrainingJob(
            stage="stage1",
            model=ModelSettings(width=0.05, input_size=SIZE),
            settings=StageSettings(
                batch=8,
                epochs=epochs,
                lr=0.002,
                log_every=1,
                checkpoint_every=more[1] if len(more) > 1 else 5,
                schedule="constant",
                bn_batches=0,
            ),
            compute=ComputeSettings(workers=workers, min_workers=more[0] if more else None),
            examples_uri=f"{folder}/examples",
            dev_uri=f"{folder}/examples",
            classes=("background", "red", "green"),
            checkpoints_uri=f"{folder}/runs",
            run_name="run",
            out_uri=f"{folder}/model",
        )
        found = train_on_ray(job)
        print(f"finished {found}", flush=True)
    except Interrupted as stopped:
        print(stopped, flush=True)
        sys.exit(75)
