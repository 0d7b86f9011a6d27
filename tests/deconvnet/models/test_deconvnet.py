"""DeconvNet is the paper's, in other sizes as well; and it puts pixels back where they came from."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deconvnet import DeconvNet
from deconvnet.models.fusion import for_inference
from deconvnet.models.layers import channels

# Channels and side after each layer of DeconvNet() on 224×224: the paper's table.
TABLE = """
conv1.1 64 224, conv1.2 64 224
conv2.1 128 112, conv2.2 128 112
conv3.1 256 56, conv3.2 256 56, conv3.3 256 56
conv4.1 512 28, conv4.2 512 28, conv4.3 512 28
conv5.1 512 14, conv5.2 512 14, conv5.3 512 14
fc6 4096 1, fc7 4096 1, fc6_deconv 512 7
unpool5 512 14, deconv5.1 512 14, deconv5.2 512 14, deconv5.3 512 14
unpool4 512 28, deconv4.1 512 28, deconv4.2 512 28, deconv4.3 256 28
unpool3 256 56, deconv3.1 256 56, deconv3.2 256 56, deconv3.3 128 56
unpool2 128 112, deconv2.1 128 112, deconv2.2 64 112
unpool1 64 224, deconv1.1 64 224, deconv1.2 64 224
score 21 224
"""
LAYERS = [(name, int(width), int(side)) for name, width, side in (row.split() for row in re.split(r"[,\n]", TABLE.strip()))]


def small(**options):
    torch.manual_seed(0)
    return DeconvNet(**{"num_classes": 5, "width": 0.125, "input_size": 64, **options})


@pytest.fixture(scope="module")
def paper():
    with torch.device("meta"):
        return DeconvNet()


def test_deconvnet_has_as_many_parameters_as_the_paper_s(paper):
    assert round(sum(p.numel() for p in paper.parameters()) / 1e6, 1) == 251.8


def test_deconvnet_has_the_paper_s_layers(paper):
    seen = []
    names = {name for name, _, _ in LAYERS}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.append((name, out.shape[1], out.shape[2])))
        for name, module in paper.named_modules()
        if name in names
    ]
    paper(torch.empty(2, 3, 224, 224, device="meta"))
    for hook in hooks:
        hook.remove()
    assert seen == LAYERS
    for name, _, _ in LAYERS:
        if not name.startswith("unpool"):
            kinds = [type(m) for m in paper.get_submodule(name).modules() if not isinstance(m, nn.Sequential)]
            layer = nn.ConvTranspose2d if "deconv" in name else nn.Conv2d
            assert issubclass(kinds[0], layer) and kinds[1:] == ([] if name == "score" else [nn.BatchNorm2d, nn.ReLU]), name
    assert paper.fc6.conv.kernel_size == paper.fc6_deconv.conv.kernel_size == (7, 7)
    assert not any(isinstance(m, nn.Dropout) for m in paper.modules())


def test_initial_weights_are_he_s_or_the_paper_s_gaussian():
    net = small(width=0.5)
    for conv in (net.deconv5.get_submodule("1.conv"), net.fc6_deconv.conv, net.score):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.15)
        assert conv.bias.count_nonzero() == 0
    conv = net.conv4.get_submodule("2.conv")
    assert conv.weight.std().item() == pytest.approx((2 / (conv.in_channels * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("paper_width", "width", "expected"), [(64, 1, 64), (64, 0.1, 8), (256, 0.3, 80), (64, 0.01, 8)])
def test_channels_are_rounded_to_multiples_of_8(paper_width, width, expected):
    assert channels(paper_width, width) == expected


def test_deconv3x3_computes_pytorch_s_transposed_convolution():
    layer, x = small().get_submodule("deconv4.2.conv"), torch.randn(2, 64, 7, 5)
    torch.testing.assert_close(layer(x), F.conv_transpose2d(x, layer.weight, layer.bias, padding=1))


@pytest.mark.parametrize("size", [32, 96])
def test_deconvnet_works_at_other_input_sizes(size):
    net = small(input_size=size, num_classes=2)
    assert net.fc6.conv.kernel_size == (size // 32, size // 32)
    assert net(torch.randn(2, 3, size, size)).shape == (2, 2, size, size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 225}, "input_size is 225"),
        ({"input_size": 0}, "input_size is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"width": 0}, "width is 0"),
        ({"convention": "keras"}, "convention.*keras"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_encoder_decoder_and_fc_layers_have_widths_of_their_own():
    net = small(width=0.25, encoder_width=0.5, decoder_width=0.125, fc_channels=24)
    shapes = {name: tuple(net.get_submodule(f"{name}.conv").weight.shape[:2]) for name in ("conv5.3", "fc6", "fc7", "fc6_deconv")}
    assert shapes == {"conv5.3": (256, 256), "fc6": (24, 256), "fc7": (24, 24), "fc6_deconv": (24, 64)}
    assert [net.get_submodule(f"deconv{b}.2.conv").weight.shape[1] for b in (5, 4, 3, 2, 1)] == [64, 64, 32, 8, 8]
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 5, 64, 64)
    same = small(width=0.25, encoder_width=0.25, decoder_width=0.25, fc_channels=1024)
    assert {n: p.shape for n, p in same.named_parameters()} == {n: p.shape for n, p in small(width=0.25).named_parameters()}


@pytest.mark.parametrize(("encoder", "decoder"), [(0.5, 0.125), (0.375, 0.25), (0.125, 0.25), (0.25, 0.25)])
def test_a_decoder_of_another_width_unpools_by_evenly_spaced_channels_of_the_encoder(encoder, decoder):
    net, seen = small(encoder_width=encoder, decoder_width=decoder, fc_channels=16).eval(), {}
    net.pool.register_forward_hook(lambda m, i, out: seen.setdefault("pooled", []).append(out[1]))
    net.unpool1.register_forward_hook(lambda m, i, out: seen.update(given=i[1]))
    net(torch.randn(1, 3, 64, 64))
    first, given = seen["pooled"][0], seen["given"]
    wanted = [channel * first.shape[1] // given.shape[1] for channel in range(given.shape[1])]
    assert given.shape[1] == channels(64, decoder)
    assert torch.equal(given, first[:, wanted])


def test_frozen_blocks_stay_as_they_are():
    net = small(width=0.125)
    net.freeze(["conv1", "conv3"])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    frozen = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert frozen == [name for name, _ in net.named_parameters() if name.startswith(("conv1.", "conv3."))]
    changed = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert not changed & {"conv1", "conv3"} and {"conv2", "conv4", "deconv1"} <= changed  # statistics of batch norm
    assert net.eval() is net and not net.conv2.training


def test_deconvnet_refuses_images_of_another_size():
    with pytest.raises(ValueError, match="input size 64"):
        small()(torch.zeros(1, 3, 96, 96))


def test_channels_last_gives_the_same_scores_and_is_kept():
    net = small().eval()
    images = torch.randn(2, 3, 64, 64)
    expected = net(images)
    net = net.to(memory_format=torch.channels_last)
    kept = []
    net.deconv1.register_forward_hook(lambda _m, _i, out: kept.append(out.is_contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(net(images.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    assert kept == [True]


def passing_network(side):
    """A DeconvNet that passes the first channel on unchanged; fc6 has a channel for each of the pixels of pool5."""
    net = DeconvNet(2, width=0.01, input_size=side).eval()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.zeros_(layer.weight)
            middle = (layer.kernel_size[0] // 2,) * 2 if layer.kernel_size[0] == 3 else (0, 0)
            layer.weight.data[0, 0, *middle] = 1
        elif isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
    for number in range((side // 32) ** 2):
        place = divmod(number, side // 32)
        net.fc6.conv.weight.data[number, 0, *place] = 1
        net.fc7.conv.weight.data[number, number] = 1
        net.fc6_deconv.conv.weight.data[number, 0, *place] = 1
    return net


@pytest.mark.parametrize(
    "prepared", [lambda net: net, lambda net: for_inference(net, bf16=False)], ids=["network", "for inference"]
)
@pytest.mark.parametrize("side", [32, 64])
def test_marked_pixels_return_to_where_they_came_from_through_the_whole_network(side, prepared):
    """One in each field of 32×32 pixels, which becomes one pixel at the top of the encoder."""
    net, generator = prepared(passing_network(side)), torch.Generator().manual_seed(side)
    for _ in range(5):
        images = torch.zeros(1, 3, side, side)
        for y in range(0, side, 32):
            for x in range(0, side, 32):
                dy, dx = torch.randint(32, (2,), generator=generator).tolist()
                images[0, 0, y + dy, x + dx] = 1 + torch.rand((), generator=generator)
        with torch.no_grad():
            torch.testing.assert_close(net(images)[:, 0], images[:, 0])
