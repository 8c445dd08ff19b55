"""The faster forms on a CPU compute what the plain layers do, and nothing that is stored or trained differs."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.models import cpu_forms
from trainables.models.cpu_forms import FoldedEncoder, Pointwise, folded, with_pointwise
from trainables.models.decoder import join
from trainables.models.depth_model import DepthModel, build_model, parameter_counts
from trainables.settings.config import SCALES
from trainables.settings.recipe import load_recipe

SMALL = "timm/mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def frozen(encoder: str, **overrides: Any) -> DepthModel:
    """A frozen model whose BatchNorm does something."""
    settings = {
        "model.weights": None, "model.encoder": encoder, "model.width": 0.02, "model.frozen": ["*"],
        "model.batch_norm": "frozen",
    }  # fmt: skip
    torch.manual_seed(0)
    model = build_model(load_recipe("densedepth", settings | overrides)[0].model, "inverse")
    for norm in batch_norms(model.encoder):
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.1, 0.1)
    return model.to(memory_format=torch.channels_last)


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def pictures(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 64, 96).to(memory_format=torch.channels_last)


def close(maps: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert maps.keys() == expected.keys()
    for scale, value in expected.items():
        tolerance = 2e-5 * float(value.abs().max())  # float32 through up to 120 layers
        torch.testing.assert_close(maps[scale], value, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    (
        "encoder",
        "taps",
        "left",
    ),  # DenseNets normalise what many layers wrote, too; of a tapped convolution both are kept
    [
        ("densenet121", "post_pool", 62),
        ("resnet50", "post_pool", 0),
        ("resnet50", "pre_pool", 1),
        ("timm/efficientnet_lite0", "post_pool", 0),
        (SMALL, "pre_pool", 0),
    ],
)
def test_a_folded_encoder_gives_the_same_maps(encoder: str, taps: str, left: int) -> None:
    kinds = dict.fromkeys(SCALES, "none") | dict.fromkeys(("s2", "s4", "s8", "s16"), taps)
    model, images = frozen(encoder, **{"model.skips": kinds}), pictures()
    with torch.no_grad():
        expected = model.encoder(images)
    assert len(batch_norms(folded(model.encoder))) == left
    assert model.folded is not None
    close(model.folded(images), expected)


def test_a_layer_that_is_used_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(self.norm(self.conv(x)))
            return y

    module, x = Twice().eval(), torch.rand(1, 3, 4, 4)
    nn.init.uniform_(module.norm.running_var, 0.5, 2.0)
    torch.testing.assert_close(folded(module)(x), module(x))


def test_an_encoder_that_cannot_be_followed_is_taken_as_it_is() -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if float(x.sum()) > 0 else x

    module = Looks()
    assert folded(module) is module


def test_nothing_that_is_stored_or_trained_differs() -> None:
    plain = load_recipe("densedepth", {"model.weights": None, "model.encoder": SMALL, "model.width": 0.02})[0]
    model, other = frozen(SMALL), build_model(plain.model, "inverse")
    before = copy.deepcopy(model.state_dict())
    model(pictures()).mean().backward()
    after = model.state_dict()
    assert after.keys() == before.keys() == other.state_dict().keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert parameter_counts(model)["total"] == parameter_counts(other)["total"]
    assert all((p.grad is not None) == name.startswith("decoder.") for name, p in model.named_parameters())


def test_training_and_evaluation_take_the_same_copy() -> None:
    model, images = frozen(SMALL), pictures()
    with torch.no_grad():
        assert torch.equal(model.train()(images), model.eval()(images))


@pytest.mark.parametrize("whole", [True, False])
def test_loaded_weights_are_folded_anew(whole: bool) -> None:
    model, images = frozen(SMALL), pictures()
    with torch.no_grad():
        before = model(images)
        state = model.state_dict()
        state = {name: value * 1.1 if value.is_floating_point() else value for name, value in state.items()}
        if whole:
            model.load_state_dict(state)
        else:
            prefix = "encoder."
            part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            model.encoder.load_state_dict(part)
        assert model.folded is not None
        expected = model.encoder(images)
        close(model.folded(images), expected)
        assert not torch.allclose(model(images), before, rtol=1e-3)


def test_a_copied_model_folds_its_own_weights() -> None:
    model, images = frozen(SMALL), pictures()
    with torch.no_grad():
        before = model(images)
        other = copy.deepcopy(model)
        other.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
        assert torch.equal(model(images), before) and not other.folded(images)["bottleneck"].any()


def test_another_type_or_device_is_followed() -> None:
    model, images = frozen(SMALL), pictures()
    assert model.folded is not None
    with torch.no_grad():
        model(images)
        assert model.double()(images.double()).dtype == torch.float64
    assert not model.folded.serves(images.to("meta")) and model.folded.serves(images)
    assert not model.folded.serves(images.clone().requires_grad_())


@pytest.mark.parametrize(
    "overrides",
    [{"model.frozen": ["conv_stem"]}, {"model.batch_norm": "train"}, {"model.frozen": [], "model.width": 0.01}],
)
def test_an_encoder_that_changes_is_not_folded(overrides: dict[str, Any]) -> None:
    assert frozen(SMALL, **overrides).folded is None


def test_the_gradient_of_what_was_upsampled_is_packed() -> None:
    x, skip = torch.rand(2, 3, 4, 6).requires_grad_(), torch.rand(2, 5, 4, 6)
    wide, seen = x * 2, list[bool]()
    weights = torch.rand(2, 8, 4, 6).to(memory_format=torch.channels_last)
    joined = join(wide, skip)
    wide.register_hook(lambda gradient: seen.append(gradient.is_contiguous(memory_format=torch.channels_last)))
    (joined * weights).sum().backward()
    assert seen == [True] and torch.equal(x.grad, 2 * weights[:, :3])


@pytest.mark.parametrize("batch", [2, cpu_forms.SLOW_BATCH])
@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_is_a_convolution(batch: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(5, 7, 1, bias=bias), nn.Conv2d(7, 7, 1, groups=7), nn.Conv2d(7, 2, 1, stride=2))
    ours = copy.deepcopy(plain)
    state = torch.get_rng_state()
    with_pointwise(ours)
    assert torch.equal(torch.get_rng_state(), state), "random numbers were drawn"
    assert [type(part) for part in ours] == [Pointwise, nn.Conv2d, nn.Conv2d]
    assert ours.state_dict().keys() == plain.state_dict().keys()
    x = torch.rand(batch, 5, 6, 4).to(memory_format=torch.channels_last).requires_grad_()
    y = x.detach().clone().requires_grad_()
    answer, expected = ours(x), plain(y)
    torch.testing.assert_close(answer, expected)
    assert answer.stride() == expected.stride()
    answer.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_only_what_torch_would_unfold_is_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[Tensor] = []
    real = cpu_forms.F.linear
    monkeypatch.setattr(cpu_forms.F, "linear", lambda *given: products.append(given[0]) or real(*given))
    layer, small, large = Pointwise(3, 2, 1), torch.rand(2, 3, 4, 4), torch.rand(cpu_forms.SLOW_BATCH, 3, 4, 4)
    layer(large)
    with torch.autocast("cpu", torch.bfloat16):
        layer(small)
    torch.set_num_threads(2)
    layer(small)
    assert not products
    torch.set_num_threads(1)
    layer(small)
    assert len(products) == 1


def test_the_copy_is_no_part_of_the_model() -> None:
    model = frozen(SMALL)
    assert isinstance(model.folded, FoldedEncoder)
    parts = {name for name, _ in model.named_modules()}
    model(pictures())
    assert {name for name, _ in model.named_modules()} == parts


def test_models_in_threads_beside_each_other_answer_as_one_alone() -> None:
    """Following a module changes nn.Module for the whole process: no thread does it while another one runs a model."""
    models = [frozen(SMALL).eval() for _ in range(4)]
    images = pictures(1)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda model: model(images), models * 3))
    assert all(model.folded is not None and not model.folded.is_made for model in models)
    for model, answer in zip(models * 3, answers, strict=True):
        close({"y": model(images)}, {"y": answer})  # the first call of the main thread folds
    assert all(model.folded is not None and model.folded.is_made for model in models)
