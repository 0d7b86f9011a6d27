"""The door that packs for a bare machine, as a person runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deconvnet.packed import SLICE_BYTES, unpack
from infra import tables
from infra.errors import UserError
from infra.images import decode_image
from tests.conftest import ROOT
from workflows.pack import main

TINY = [
    "--data.generated.train", "6", "--data.generated.val", "2", "--data.generated.height", "64", "--data.generated.width", "80",
    "--data.dev_fraction", "0.2", "--proposals.max_boxes", "20", "--segment.proposals", "4", "--model.width", "1",
    "--model.fcn_width", "", "--compute.gpu", "true", "--compute.cpus_per_worker", "64",
]  # fmt: skip


@pytest.mark.ray
def test_a_pack_is_whole_small_in_its_parts_and_made_again_without_ray(tmp_path: Path, capsys):
    weights = np.random.default_rng(0).bytes(SLICE_BYTES + 1000)
    (tmp_path / "vgg.npz").write_bytes(weights)
    pack = tmp_path / "pack"
    arguments = [*TINY, "--workspace", str(tmp_path / "w"), "--pack", str(pack), "--model.vgg16", str(tmp_path / "vgg.npz")]
    clean = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    door = [sys.executable, str(ROOT / "workflows" / "pack.py")]
    done = subprocess.run([*door, *arguments], capture_output=True, text=True, timeout=200, env=clean, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr  # no GPU, no 64 CPUs: they are wanted where it is trained
    assert "examples" not in done.stdout and [p.name for p in tmp_path.glob(".pack*")] == []

    files = [p for p in pack.rglob("*") if p.is_file()]
    assert max(p.stat().st_size for p in files) <= SLICE_BYTES
    key = unpack(pack, tmp_path / "there")
    assert (tmp_path / "there" / "vgg16.npz").read_bytes() == weights
    settings = json.loads((tmp_path / "there" / "settings.json").read_text())
    assert settings.keys() == {"dataset", "classes", "seed", "examples", "model", "compute", "train", "segment"}
    assert settings["model"]["vgg16"] == "vgg16.npz" and settings["compute"]["gpu"] is True
    rows = list(tables.iter_rows(str(tmp_path / "there" / "images")))
    assert len(rows) == 8 and {row["split"] for row in rows} == {"train", "dev", "val"}
    assert decode_image(rows[0]["image"]).shape == (64, 80, 3)
    assert tables.require_commit(str(tmp_path / "there" / "proposals")).rows == 8

    assert main(arguments) == 0 and "[1/" not in capsys.readouterr().out
    assert unpack(pack, tmp_path / "there") == key
    with pytest.raises(UserError, match="is there and is no pack"):
        main([*arguments, "--pack", str(tmp_path)])
    assert (tmp_path / "vgg.npz").exists()
    narrow = tmp_path / "narrow"
    assert main([*arguments, "--model.width", "0.5", "--pack", str(narrow)]) == 0
    model = json.loads((narrow / "settings.json").read_text())["model"]
    assert (model["width"], model["vgg16"]) == (0.5, "vgg16.npz")
    with pytest.raises(UserError, match=r"init\.from .* can't be packed"):
        main([*arguments, "--init.from", str(tmp_path / "model")])
