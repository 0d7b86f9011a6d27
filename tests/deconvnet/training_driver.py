"""A driver of one training, for tests that kill it or its workers: FOLDER WORKERS EPOCHS [MIN_WORKERS]. Exits 75 when it was interrupted."""

import sys

import ray

from deconvnet.settings import ComputeSettings, ModelSettings, StageSettings
from deconvnet.training.ray_trainer import run_training
from infra.errors import Interrupted
from tests.deconvnet.training_tables import SIZE

if __name__ == "__main__":
    folder, (workers, epochs, *fewest) = sys.argv[1], map(int, sys.argv[2:])
    ray.init(num_cpus=2, object_store_memory=128 * 2**20, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        found = run_training(
            stage="stage1",
            architecture="deconvnet",
            model_settings=ModelSettings(width=0.05, input_size=SIZE),
            stage_settings=StageSettings(
                batch=8, epochs=epochs, lr=0.002, log_every=1, checkpoint_every=5, schedule="constant", bn_batches=0
            ),
            compute=ComputeSettings(workers=workers, min_workers=fewest[0] if fewest else None),
            examples_uri=f"{folder}/examples",
            dev_uri=f"{folder}/examples",
            classes=("background", "red", "green"),
            storage_uri=f"{folder}/runs",
            run_name="run",
            out_uri=f"{folder}/model",
            seed=0,
            say=lambda line: print(line, flush=True),
        )
        print(f"finished {found}", flush=True)
    except Interrupted as stopped:
        print(stopped, flush=True)
        sys.exit(75)
