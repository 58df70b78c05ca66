"""U-Net#'s architecture: parameter sums, shapes, gradients, and every node against an independent restatement."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetsharp_engines.errors import InputError
from unetsharp_trainer import UNetSharp
from unetsharp_trainer.network.unetsharp import SILENT

# A bias just before a batch norm is subtracted again with the mean in training: in the gates, Conv → BatchNorm.
CANCELLED = ("signal.0.bias", "branch.0.bias", "attention.0.bias")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def paper() -> UNetSharp:
    torch.manual_seed(0)
    return UNetSharp().eval()


@pytest.fixture
def tiny() -> UNetSharp:
    torch.manual_seed(0)
    return UNetSharp("resnet18", 8)


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def tissue_like(n: int, side: int, seed: int = 0) -> Tensor:
    """Pink ground with soft violet blobs and grain, [n, 3, side, side] in 0..1: smooth like tissue, not white noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, side // 8, side // 8, generator=generator)
    nuclei = torch.sigmoid(25 * (F.interpolate(coarse, size=(side, side), mode="bicubic") - 0.65))
    pink, violet = torch.tensor([0.9, 0.7, 0.8]).view(1, 3, 1, 1), torch.tensor([0.4, 0.25, 0.55]).view(1, 3, 1, 1)
    grain = 0.03 * torch.randn(n, 3, side, side, generator=generator)
    return (pink + nuclei * (violet - pink) + grain).clamp(0, 1)


# The pooled branch, silenced


def test_silenced_pooling_is_zero_and_stays_so_in_training(tiny):
    tiny.silence_pooling()
    seen = []
    tiny.aspp.pooled.register_forward_hook(lambda module, given, made: seen.append(made.detach()))
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=0.1)
    for _ in range(2):
        tiny.train()(tissue_like(2, 64)).square().mean().backward()
        optimizer.step()
    tiny.eval()(tissue_like(1, 64))
    assert len(seen) == 3
    assert not any(made.any() for made in seen)


def test_silenced_classes_are_never_said_nor_learned(tiny):
    """Trained towards a silenced class alone, by an optimizer that decays, the network still does not say it."""
    tiny.silence_classes([3, 4])
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        logits = tiny.train()(tissue_like(2, 64))
        F.cross_entropy(logits, torch.full((2, 64, 64), 3)).backward()
        optimizer.step()
    logits = tiny.eval()(tissue_like(2, 64))
    assert logits[:, 3:5].max() <= SILENT * (1 - 0.1 * 0.1)  # one step's decay, not three steps'
    assert not set(logits.argmax(1).unique().tolist()) & {3, 4}
    assert logits[:, [0, 1, 2, 5]].std() > 0


# Parameter sums


def test_paper_configuration_has_the_papers_parameters(paper):
    assert trainable(paper.encoder) == 42_128_704
    assert trainable(paper.aspp) == 3_822_336
    paper.freeze_encoder_norm_affine()
    try:
        assert trainable(paper) == 52_486_116
    finally:
        paper.requires_grad_(True)


def test_never_called_convolutions_make_up_the_papers_57_2_million(paper):
    never_called = 4 * sum(p.numel() for p in nn.Conv2d(2048, 64, 3).parameters())
    assert never_called == 4_718_848
    paper.freeze_encoder_norm_affine()
    try:
        assert trainable(paper) + never_called == 57_204_964
    finally:
        paper.requires_grad_(True)


def test_edge_configuration_is_edge_sized():
    assert 1_000_000 < trainable(UNetSharp("regnetx_002", 16)) < 3_000_000


def test_freezing_the_encoder_and_then_its_norm_affine(tiny):
    everything = trainable(tiny)
    encoder = trainable(tiny.encoder)
    tiny.freeze_encoder()
    assert trainable(tiny) == everything - encoder
    tiny.freeze_encoder_norm_affine()
    affine = sum(m.weight.numel() + m.bias.numel() for m in tiny.encoder.modules() if isinstance(m, nn.BatchNorm2d))
    assert trainable(tiny) == everything - affine
    assert tiny.aspp.point[2].weight.requires_grad


# Shapes


@pytest.mark.parametrize("side", [224, 256, 384])
def test_output_has_the_inputs_size(side, tiny):
    with torch.no_grad():
        assert tiny.eval()(torch.rand(1, 3, side, side)).shape == (1, 6, side, side)


def test_sides_need_not_be_equal(tiny):
    with torch.no_grad():
        assert tiny.eval()(torch.rand(2, 3, 64, 96)).shape == (2, 6, 64, 96)


def test_paper_configuration_shapes_at_every_node(paper):
    shapes: dict[str, tuple[int, ...]] = {}
    parts = {"aspp": paper.aspp, **paper.decoder.nodes, "head": paper.head}
    hooks = [
        part.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape)}))
        for name, part in parts.items()
    ]
    encoder_hook = paper.encoder.register_forward_hook(
        lambda _m, _i, out: shapes.update({f"e{k}": tuple(e.shape) for k, e in enumerate(out, start=1)})
    )
    with torch.no_grad():
        paper(torch.rand(1, 3, 256, 256))
    for hook in (*hooks, encoder_hook):
        hook.remove()
    assert shapes == {
        "e1": (1, 64, 128, 128),
        "e2": (1, 256, 64, 64),
        "e3": (1, 512, 32, 32),
        "e4": (1, 1024, 16, 16),
        "e5": (1, 2048, 8, 8),
        "aspp": (1, 64, 8, 8),
        "d4": (1, 320, 16, 16),
        "d3": (1, 320, 32, 32),
        "d2": (1, 320, 64, 64),
        "d1": (1, 320, 128, 128),
        "head": (1, 6, 256, 256),
    }


@pytest.mark.parametrize(("given", "padded"), [((250, 300), "256×320"), ((31, 17), "32×32"), ((256, 257), "256×288")])
def test_sides_that_are_no_multiple_of_32_are_told_where_to_go(given, padded, tiny):
    with pytest.raises(InputError, match=f"{given[0]}×{given[1]} .* pad it to {padded}"):
        tiny(torch.rand(1, 3, *given))


# The wiring, restated from the state dict


class Restated:
    """U-Net# (eval mode) written a second time, flat, straight from the paper: no module of the package is called."""

    def __init__(self, model: UNetSharp) -> None:
        self.p = model.state_dict()

    def conv(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        w = self.p[f"{name}.weight"]
        return F.conv2d(x, w, self.p.get(f"{name}.bias"), padding=dilation * (w.shape[-1] // 2), dilation=dilation)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            self.p[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift

    def block(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        x = self.conv(x, f"{name}.0", dilation)
        return self.norm(x * torch.tanh(torch.log1p(torch.exp(x))), f"{name}.2")

    @staticmethod
    def up(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)

    @staticmethod
    def down(x: Tensor, k: int) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c, h // k, k, w // k, k).amax(dim=(3, 5))

    def aspp(self, e5: Tensor) -> Tensor:
        pooled = self.block(e5.mean(dim=(2, 3), keepdim=True), "aspp.pooled.1").repeat(1, 1, *e5.shape[2:])
        dilated = [self.block(e5, f"aspp.dilated.{i}", d) for i, d in enumerate((6, 12, 18))]
        return self.block(torch.cat([self.block(e5, "aspp.point"), *dilated, pooled], 1), "aspp.project")

    def gate(self, x: Tensor, signal: Tensor, name: str) -> Tensor:
        g = self.norm(self.conv(signal, f"{name}.signal.0"), f"{name}.signal.1")
        b = self.norm(self.conv(x, f"{name}.branch.0"), f"{name}.branch.1")
        a = self.norm(self.conv((g + b).clamp(min=0), f"{name}.attention.0"), f"{name}.attention.1")
        return x / (1 + torch.exp(-a))

    def bridge(self, context: Tensor, like: Tensor, node: str) -> Tensor:
        x = self.up(context, like)
        return self.norm(x * torch.tanh(torch.log1p(torch.exp(x))), f"{node}.bridge.1")

    def decode(self, e: list[Tensor], context: Tensor) -> dict[str, Tensor]:
        """e1..e4 → d1..d4, one node after the other, each line as the paper's figure draws it."""
        e1, e2, e3, e4 = e
        n4, n3, n2, n1 = (f"decoder.nodes.d{k}" for k in (4, 3, 2, 1))

        b4 = self.bridge(context, e4, n4)
        from_e = [
            self.gate(self.block(self.down(x, k), f"{n4}.shallow.{i}"), b4, f"{n4}.gates.{i}")
            for i, (x, k) in enumerate([(e1, 8), (e2, 4), (e3, 2), (e4, 1)])
        ]
        d4 = self.block(torch.cat([*from_e, b4], 1), f"{n4}.fuse")

        d4_at_3 = self.block(self.up(d4, e3), f"{n3}.deep.0")
        from_e = [
            self.gate(self.block(self.down(x, k), f"{n3}.shallow.{i}"), d4_at_3, f"{n3}.gates.{i}")
            for i, (x, k) in enumerate([(e1, 4), (e2, 2), (e3, 1)])
        ]
        d3 = self.block(torch.cat([*from_e, d4_at_3, self.bridge(context, e3, n3)], 1), f"{n3}.fuse")

        d3_at_2 = self.block(self.up(d3, e2), f"{n2}.deep.0")
        d4_at_2 = self.block(self.up(d4, e2), f"{n2}.deep.1")
        from_e = [
            self.gate(self.block(self.down(x, k), f"{n2}.shallow.{i}"), d3_at_2, f"{n2}.gates.{i}")
            for i, (x, k) in enumerate([(e1, 2), (e2, 1)])
        ]
        d2 = self.block(torch.cat([*from_e, d3_at_2, d4_at_2, self.bridge(context, e2, n2)], 1), f"{n2}.fuse")

        d2_at_1 = self.block(self.up(d2, e1), f"{n1}.deep.0")
        d3_at_1 = self.block(self.up(d3, e1), f"{n1}.deep.1")
        d4_at_1 = self.block(self.up(d4, e1), f"{n1}.deep.2")
        from_e1 = self.gate(self.block(e1, f"{n1}.shallow.0"), d2_at_1, f"{n1}.gates.0")
        d1 = self.block(torch.cat([from_e1, d2_at_1, d3_at_1, d4_at_1, self.bridge(context, e1, n1)], 1), f"{n1}.fuse")
        return {"d4": d4, "d3": d3, "d2": d2, "d1": d1}


def with_lived_in_norms(model: UNetSharp) -> UNetSharp:
    """Float64, with every norm's statistics and affine away from their initial 0 and 1, so that none can be skipped."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                tensor.data.normal_(0, 0.3)
            for tensor in (module.running_var, module.weight):
                tensor.data.uniform_(0.5, 1.5)
    return model.double().eval()


def test_every_node_computes_what_the_paper_says(tiny):
    model = with_lived_in_norms(tiny)
    seen: dict[str, Tensor] = {}
    for name, part in {"aspp": model.aspp, **model.decoder.nodes}.items():
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        image = tissue_like(2, 224).double()  # stride 32 gives 7×7: the d=6 taps reach, most others do not
        logits = model(image)
        e1, e2, e3, e4, e5 = model.encoder(image)
        plain = Restated(model)
        context = plain.aspp(e5)
        nodes = plain.decode([e1, e2, e3, e4], context)
        head = plain.conv(plain.up(nodes["d1"], image), "head")
    for name, expected in {"aspp": context, **nodes}.items():
        torch.testing.assert_close(seen[name], expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(logits, head, rtol=1e-10, atol=1e-10)


def test_every_statistic_moves_the_output(tiny, monkeypatch):
    """The check above would miss a tensor that neither version reads. Parameters show by their gradients, below."""
    model = with_lived_in_norms(tiny)
    with torch.no_grad():
        image = tissue_like(1, 32).double()
        levels = model.encoder(image)
        monkeypatch.setattr(model.encoder, "forward", lambda _: levels)
        reference = model(image)
        for name, tensor in model.state_dict().items():
            if name.startswith("encoder.") or not name.endswith(("running_mean", "running_var", *CANCELLED)):
                continue
            kept = tensor.clone()
            tensor.mul_(1.5).add_(0.1)
            assert not torch.equal(model(image), reference), name
            tensor.copy_(kept)


def test_first_level_is_taken_before_the_max_pool(paper):
    with torch.no_grad():
        image = torch.rand(1, 3, 64, 64)
        stem = torch.relu(paper.encoder.bn1(paper.encoder.conv1(image)))
        torch.testing.assert_close(paper.encoder(image)[0], stem)


# Initialization and gradients


@pytest.mark.parametrize(("encoder", "width"), [("resnext101_32x4d", 64), ("regnetx_002", 16)])
def test_random_initialization_has_no_dead_channel(encoder, width):
    torch.manual_seed(0)
    model = UNetSharp(encoder, width).train()
    deviations: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda _m, args, name=name: deviations.update({name: args[0].std(dim=(0, 2, 3))})
            )
    with torch.no_grad():
        model(tissue_like(4, 128))
    dead = {name: int((d < 1e-6).sum()) for name, d in deviations.items() if (d < 1e-6).any()}
    assert deviations
    assert not dead


def test_residual_blocks_start_alive():
    model = UNetSharp("resnet18", 4)
    assert all((m.weight == 1).all() for m in model.encoder.modules() if isinstance(m, nn.BatchNorm2d))


def test_gradients_reach_every_parameter_that_can_have_one(tiny):
    model = tiny.double().train()
    target = torch.randint(0, 6, (2, 128, 128), generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(tissue_like(2, 128).double()), target).backward()
    largest = {name: p.grad.abs().max().item() for name, p in model.named_parameters() if p.grad is not None}
    assert largest.keys() == dict(model.named_parameters()).keys()
    unreached = {name for name, g in largest.items() if g < 1e-12}
    assert unreached == {name for name in largest if name.endswith(CANCELLED)}


def test_off_centre_taps_of_the_wide_dilations_get_no_gradient_up_to_384(tiny):
    deepest = torch.randn(2, 512, 384 // 32, 384 // 32, generator=torch.Generator().manual_seed(0))
    tiny.aspp(deepest).square().mean().backward()
    for branch, off_centre_reached in zip(tiny.aspp.dilated, (True, False, False), strict=True):
        gradient = branch[0].weight.grad.clone()
        assert gradient[:, :, 1, 1].abs().max() > 0
        gradient[:, :, 1, 1] = 0
        assert bool(gradient.abs().max() > 0) is off_centre_reached


# Wrong configurations


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("resnext101_32x4", "did you mean resnext101_32x4d"),
        ("zzzzqq", "the paper's is resnext101_32x4d"),
        ("convnext_atto", r"\[4, 8, 16, 32\]; U-Net# needs \[2, 4, 8, 16, 32\]"),
        ("maxvit_tiny_rw_224", "takes only inputs of"),
    ],
)
def test_unfit_encoders_are_refused_with_the_reason(encoder, message):
    with pytest.raises(InputError, match=message):
        UNetSharp(encoder)


def test_width_must_be_positive():
    with pytest.raises(InputError, match="width is 0"):
        UNetSharp("resnet18", 0)
