"""VGG-16 files of each kind, and foreign files."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.init_weights.vgg16 import load_vgg16
from deconvnet.models.layers import VGG16_CHANNELS
from infra.errors import UserError

NPZ = "vgg16-imagenet-conv-bgr.npz"


@pytest.fixture(scope="module")
def fcn():
    with torch.device("meta"):
        net = FCN8s(3, convention="torchvision")
    return net.to_empty(device="cpu")


def torchvision_file(norm=False, classifier=False):
    """Make a state dict with the names and shapes of torchvision's vgg16 or vgg16_bn.

    A layer's weights are a ramp over the inputs and the places of the kernel, steeper from output to output, so that no other
    order is the same.
    """
    tensors, index, inputs = {}, 0, 3
    for layers in VGG16_CHANNELS:
        for outputs in layers:
            ramp = 0.001 * (index + 1) * torch.linspace(-1, 1, 9 * inputs).view(inputs, 3, 3)
            tensors[f"features.{index}.weight"] = torch.linspace(0.5, 1, outputs).view(-1, 1, 1, 1) * ramp
            tensors[f"features.{index}.bias"] = torch.arange(outputs).float()
            if norm:
                for entry, low, high in (("weight", 0.5, 3), ("bias", -1, 1), ("running_mean", -5, 5), ("running_var", 0.1, 9)):
                    tensors[f"features.{index + 1}.{entry}"] = torch.empty(outputs).uniform_(low, high)
                tensors[f"features.{index + 1}.num_batches_tracked"] = torch.tensor(7)
            inputs, index = outputs, index + 2 + norm
        index += 1
    if classifier:
        tensors["classifier.0.weight"] = torch.arange(25088).half().repeat(4096, 1)
        tensors["classifier.0.weight"][5] *= 2
        tensors["classifier.0.bias"] = torch.arange(4096).float()
        tensors["classifier.3.weight"] = torch.zeros(4096, 4096).half()
        tensors["classifier.3.bias"] = torch.ones(4096)
    return tensors


def full_encoder(**options):
    """A DeconvNet with an encoder of width 1. The rest is narrow, as drawing its weights takes seconds."""
    return DeconvNet(2, input_size=32, decoder_width=0.125, fc_channels=8, **options)


def test_the_real_file_fills_deconvnets_convolutions(shared):
    net = full_encoder()
    before = net.fc6.conv.weight.clone()
    loaded = load_vgg16(net, str(shared / NPZ))
    assert len(loaded) == 13
    assert not {"fc6", "fc7"} & set(loaded)
    with np.load(shared / NPZ) as file:
        for name in ("conv1_1", "conv3_2", "conv5_3"):
            conv = net.get_submodule(name.replace("_", ".")).conv
            assert np.array_equal(conv.weight.detach().numpy(), file[f"{name}.weight"].astype(np.float32))
            assert np.array_equal(conv.bias.detach().numpy(), file[f"{name}.bias"].astype(np.float32))
    norm = net.conv1.get_submodule("1.norm")
    assert (norm.weight == 1).all()
    assert (norm.running_var == 1).all()
    assert torch.equal(net.fc6.conv.weight, before)


def test_the_real_weights_respond_to_their_own_input_convention(shared):
    """With the right convention and channel order, activations at conv5_3 have VGG's known scale."""
    from proposals.image_codec import decode_image

    with torch.device("meta"):
        net = FCN8s(2)
    net = net.to_empty(device="cpu").eval()  # only the convolutions are used, which the file fills
    load_vgg16(net, str(shared / NPZ))
    path = sorted((shared / "voc-sample" / "JPEGImages").glob("*.jpg"))[0]
    image = torch.from_numpy(np.ascontiguousarray(decode_image(path.read_bytes())[:96, :96])).permute(2, 0, 1)[None]
    with torch.no_grad():
        x = net.prepare(image)
        for block in (net.conv1, net.conv2, net.conv3, net.conv4, net.conv5):
            x = block(x)
            assert 0.05 < (x > 0).float().mean() < 0.95
            x = net.pool(x)
    assert 0.1 < x.mean() < 20


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_names_are_read(tmp_path, fcn, suffix):
    path = tmp_path / f"vgg16{suffix}"
    tensors = torchvision_file()
    torch.save(tensors, path) if suffix == ".pth" else safetensors.torch.save_file(tensors, path)
    load_vgg16(fcn, str(path))
    assert torch.equal(fcn.conv1.get_submodule("1.conv").weight, tensors["features.0.weight"])
    assert torch.equal(fcn.conv3.get_submodule("2.conv").weight, tensors["features.12.weight"])  # torchvision's conv3_2
    assert torch.equal(fcn.conv5.get_submodule("3.conv").bias, tensors["features.28.bias"])


def test_fully_connected_layers_become_convolutions(tmp_path, fcn):
    path = tmp_path / "vgg16.safetensors"
    safetensors.torch.save_file(torchvision_file(classifier=True), path)
    assert set(load_vgg16(fcn, str(path))) >= {"fc6", "fc7"}
    # the inputs of classifier.0 are pool5 flattened channel by channel
    ramp = torch.arange(25088).half().view(512, 7, 7)
    assert torch.equal(fcn.fc6.conv.weight[4], ramp.float()) and torch.equal(fcn.fc6.conv.weight[5], (2 * ramp).float())
    small = DeconvNet(2, input_size=32, decoder_width=0.125, convention="torchvision")
    assert "fc6" not in load_vgg16(small, str(path))
    assert (small.fc7.conv.bias == 1).all()


def test_vgg16_bn_fills_batch_norm_or_is_folded(tmp_path, fcn):
    path = tmp_path / "vgg16_bn.pth"
    tensors = torchvision_file(norm=True)
    torch.save(tensors, path)
    net = full_encoder(convention="torchvision").eval()
    load_vgg16(net, str(path))
    load_vgg16(fcn, str(path))
    assert torch.equal(net.conv4.get_submodule("1.norm").running_mean, tensors["features.25.running_mean"])
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(fcn.conv1(x), net.conv1(x), rtol=1e-4, atol=1e-3)


def test_another_convention_is_refused_and_the_setting_is_named(shared):
    net = full_encoder(convention="torchvision")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(UserError, match=r"set model\.convention to caffe"):
        load_vgg16(net, str(shared / NPZ))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_narrower_network_is_refused(shared):
    with torch.device("meta"):
        net = DeconvNet(2, width=0.5, input_size=32)
    with pytest.raises(UserError, match=r"VGG-16 at width 1 .* the model is of width 0\.5"):
        load_vgg16(net, str(shared / NPZ))


def _npz(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


FOREIGN = {
    "absent.pth": None,
    "text.pth": lambda p: p.write_text("not weights"),
    "text.npz": lambda p: p.write_text("not weights"),
    "text.safetensors": lambda p: p.write_text("not weights"),
    "empty.pth": lambda p: p.touch(),
    "empty.npz": lambda p: p.touch(),
    "empty.safetensors": lambda p: p.touch(),
    "list.pth": lambda p: torch.save([1, 2], p),
    "other.pth": lambda p: torch.save({"layer1.0.conv1.weight": torch.zeros(2)}, p),
    "other.npz": lambda p: _npz(p, a=np.zeros(3)),
    "objects.npz": lambda p: _npz(p, a=np.array([{}], dtype=object)),
    "module.pth": lambda p: torch.save(nn.Linear(2, 2), p),
    "vgg11.pth": lambda p: torch.save({f"features.{i}.weight": torch.zeros(2, 2, 3, 3) for i in range(8)}, p),
    "nobias.pth": lambda p: torch.save({k: v for k, v in torchvision_file().items() if k != "features.0.bias"}, p),
    "shape.pth": lambda p: torch.save(torchvision_file() | {"features.0.weight": torch.zeros(64, 1, 3, 3)}, p),
    "weights.h5": lambda p: p.write_text("x"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_user_errors(tmp_path, fcn, name):
    path = tmp_path / name
    if make := FOREIGN[name]:
        make(path)
    with pytest.raises(UserError) as error:
        load_vgg16(fcn, str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
def test_truncated_files_are_refused(tmp_path, fcn, shared, suffix):
    path = tmp_path / f"vgg16{suffix}"
    if suffix == ".npz":
        path.write_bytes((shared / NPZ).read_bytes()[:1_000_000])
    else:
        tensors = torchvision_file()
        torch.save(tensors, path) if suffix == ".pth" else safetensors.torch.save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="not a whole"):
        load_vgg16(fcn, str(path))


def test_weights_can_be_read_over_http(shared):
    handler = partial(SimpleHTTPRequestHandler, directory=str(shared))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        net = full_encoder()
        assert len(load_vgg16(net, f"{url}/{NPZ}")) == 13
        with pytest.raises(UserError, match="can't be downloaded"):
            load_vgg16(net, f"{url}/absent.npz")
    finally:
        server.shutdown()
        server.server_close()
