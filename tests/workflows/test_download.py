"""download.py against a server on this machine."""

import functools
import hashlib
import io
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from deconvnet.datasets.voc import VocDataset, read_split
from proposals.image_codec import encode_mask
from workflows import cli, download

ROOT = Path(__file__).resolve().parents[2]
MASK = np.zeros((40, 60), np.uint8)
MASK[5:20, 5:30] = 12


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def jpeg():
    sink = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def mat(name):
    sink = io.BytesIO()
    savemat(sink, {name: {"Segmentation": (MASK > 0).astype(np.uint8) if name == "GTinst" else MASK, "Categories": [[12]]}})
    return sink.getvalue()


def pack(path, members, mode):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server with a tiny VOC 2012, SBD and weight file, and the options that point to them."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = tmp_path / "served"
    served.mkdir()
    voc, sbd = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
    voc_members = {f"{voc}/JPEGImages/{i}.jpg": jpeg() for i in ("a", "b", "v", "s")}
    voc_members |= {f"{voc}/SegmentationClass/{i}.png": encode_mask(MASK) for i in ("a", "b", "v")}
    voc_members |= {f"{voc}/ImageSets/Segmentation/{n}.txt": t for n, t in (("train", b"a\nb\n"), ("val", b"v\n"))}
    sbd_members = {f"{sbd}/train.txt": b"a\ns\n", f"{sbd}/val.txt": b"v\n", f"{sbd}/img/s.jpg": jpeg()}
    sbd_members |= {f"{sbd}/{kind}/{i}.mat": mat(f"GT{kind}") for kind in ("cls", "inst") for i in ("a", "s", "v")}
    pack(served / "voc.tar", voc_members, "w")
    pack(served / "sbd.tgz", sbd_members, "w:gz")
    (served / "vgg.pth").write_bytes(b"weights" * 100)
    pack(served / "evil.tar", {f"{voc}/x": b"x", "../../evil": b"e"}, "w")
    options = []
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        for name, file in (("voc2012", "voc.tar"), ("sbd", "sbd.tgz"), ("vgg16", "vgg.pth")):
            options += [f"--{name}-url", f"{base}/{file}"]
            options += [f"--{name}-checksum", "md5:" + hashlib.md5((served / file).read_bytes()).hexdigest()]
        yield served, base, options
        server.shutdown()
        thread.join()


def test_everything_is_downloaded_and_a_second_run_does_nothing(mirror, tmp_path, capsys):
    served, _, options = mirror
    to = tmp_path / "data"
    download.main(["all", "--to", str(to), *options])
    root = to / "VOCdevkit/VOC2012"
    assert str(root) in capsys.readouterr().out
    assert read_split(str(root), "train_aug") == ["a", "b", "s"]
    images, rejects = VocDataset(str(root)).split("train_aug")
    assert len(images) == 3 and not rejects
    assert sorted(p.name for p in to.iterdir()) == ["VOCdevkit", "benchmark_RELEASE", "vgg16-397923af.pth"]
    for file in served.iterdir():
        file.unlink()
    download.main(["all", "--to", str(to), *options])


def test_errors_are_one_sentence_and_leave_no_partial_files(mirror, tmp_path, capsys):
    _, base, options = mirror
    to = tmp_path / "data"

    def refused(*arguments):
        assert cli.run(lambda: download.main([*arguments])) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line and "%" not in line and "file/s" not in line]
        assert "Traceback" not in "".join(lines)
        return lines[-1]

    assert "download voc2012 first" in refused("sbd", "--to", str(to), *options)
    assert "404" in refused("vgg16", "--to", str(to), "--vgg16-url", f"{base}/none")
    assert "does not have the checksum" in refused("vgg16", "--to", str(to), "--vgg16-url", f"{base}/vgg.pth")
    evil = ["--voc2012-url", f"{base}/evil.tar", "--voc2012-checksum"]
    sum_ = "md5:" + hashlib.md5((tmp_path / "served/evil.tar").read_bytes()).hexdigest()
    assert "not safe to unpack" in refused("voc2012", "--to", str(to), *evil, sum_)
    assert not (to / "VOCdevkit/VOC2012").exists() and not (tmp_path / "evil").exists()
    (tmp_path / "file").write_text("")
    assert "can't be a folder" in refused("vgg16", "--to", str(tmp_path / "file"), *options)


def test_ctrl_c_exits_with_the_code_of_an_interruption(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(download.DOWNLOADERS, "vgg16", stop)
    assert cli.run(lambda: download.main(["vgg16", "--to", str(tmp_path)]), download.INTERRUPTED) == 75
    assert "resumes" in capsys.readouterr().err


def test_the_official_addresses_and_the_script_itself():
    assert {name: (source.url, source.checksum) for name, source in download.SOURCES.items()} == {
        "voc2012": (
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "md5:6cd6e144f989b92b3379bac3b3de84fd",
        ),
        "sbd": (
            "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            "md5:82b4d87ceb2ed10f6038a1cba92111cb",
        ),
        "vgg16": (
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            "sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        ),
    }
    done = subprocess.run([sys.executable, "workflows/download.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "voc2012" in done.stdout
    done = subprocess.run([sys.executable, "workflows/download.py", "coco"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice" in done.stderr
