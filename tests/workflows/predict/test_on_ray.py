"""predict.py on Ray."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet.inference.saved_ensemble import SavedEnsemble
from deconvnet.tracking import registry
from infra import storage
from infra.storage import tables
from tests.deconvnet.ensembles import CLASSES, EDGES, SEGMENT, random_image, save_networks
from tests.workflows.commands import LOCAL
from tests.workflows.predict.predicting import arguments, parts_of, rows, start, written
from workflows import predict
from workflows.operations import prediction


@pytest.mark.ray
def test_actors_of_ray_predict_the_masks_of_the_saved_ensemble(on_session_ray, tmp_path: Path, monkeypatch) -> None:
    folder, source, out = (tmp_path / name for name in ("model", "in", "out"))
    save_networks(folder)
    options = {"classes": CLASSES, "proposals": EDGES, "segment": SEGMENT, "max_pixels": 10**6}
    storage.write_json(str(folder / "options.json"), options)
    version = registry.Version("edeconvnet", "4", "id", str(folder))
    monkeypatch.setattr(prediction, "model_store", lambda *_: "sqlite:///nowhere")
    monkeypatch.setattr(registry, "find", lambda *_: version)
    monkeypatch.setattr(registry, "fetch", lambda found, store, to: shutil.copytree(folder, to, dirs_exist_ok=True))
    source.mkdir()
    Image.fromarray(random_image(0, 60, 80)).save(source / "a.png")
    Image.fromarray(random_image(2, 64, 48)[..., 0]).save(source / "grey.png")
    predict.main([*arguments(tmp_path / "w", source, out), "--compute.actors", "1"])
    masks = {name: np.asarray(Image.open(out / row["mask"])) for name, row in rows(out).items()}
    assert masks.keys() == {"a.png", "grey.png"} and len(np.unique(masks["a.png"])) > 1
    ensemble = SavedEnsemble(str(folder))
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, ensemble.predict((source / name).read_bytes()).mask, err_msg=name)


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_or_terminated_run_resumes(workspace, tmp_path, capsys, monkeypatch) -> None:
    source, out = tmp_path / "many", tmp_path / "out"
    source.mkdir()
    for i in range(40):
        Image.fromarray(random_image(i, 160, 200)).save(source / f"{i:02}.png")
    for how, code in ((signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)):
        had = set(parts_of(out))
        process = start(*arguments(workspace, source, out), "--compute.actors", "1")
        deadline = time.monotonic() + 100
        # The parts of the first run are copied before others are made.
        while len(set(parts_of(out)) - had) < len(had) + 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(how)
        said, _ = process.communicate()
        assert process.returncode == code, said
        assert code != 75 or ("interrupted" in said and "Traceback" not in said and not (out / "_model").exists())
    (out / "_lock").unlink()  # the killed run's, which would have been waited out
    finished = {
        row["mask"] for part in parts_of(out) for row in tables.iter_rows(f"{out}/predictions", part=tables.Part(part, []))
    }
    assert 4 <= len(finished) < 40 and not (out / "predictions" / tables.LOG).exists()
    before = written(out)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    predict.main(arguments(workspace, source, out, *LOCAL, "--overlays", "true"))
    plan = re.search(r"40 images: (\d+) to predict by edeconvnet version 1, (\d+) up to date", capsys.readouterr().out)
    # A dead driver's actor may have ended a part more.
    assert plan and len(finished) <= int(plan[2]) < 40 and int(plan[1]) + int(plan[2]) == 40
    after = written(out)
    assert len(rows(out)) == len(list((out / "overlays").iterdir())) == 40
    assert all(after[mask] == before[mask] for mask in finished)
    assert not (out / "_model").exists() and json.loads((out / "_lock").read_text())["expires"] == 0
