import pytest
import torch

from csst_dask.errors import ConfigError
from csst_dask.models import build_classifier, build_regressor


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("channels", "classes"), [(2, 6), (13, 4)])
def test_classifier_shapes(channels, classes):
    module = build_classifier("resnet18", channels, classes).eval()
    assert module(torch.zeros(3, channels, 32, 32)).shape == (3, classes)


def test_resnet34_has_the_published_size():
    """21.80 M for 3 channels and 1000 classes (torchvision's table): less one 7x7x64 and 994 outputs."""
    assert parameters(build_classifier("resnet34", 2)) == 21_797_672 - 49 * 64 - 513 * 994


@pytest.mark.parametrize(
    ("arch", "millions"), [("vgg16", 134.3), ("densenet121", 6.95), ("alexnet", 57.0), ("baseline", 0.42)]
)
def test_the_other_classifiers_of_the_paper_learn_through_the_same_door(arch, millions):
    """Sizes by hand: torchvision's less one input channel and 994 outputs; the baseline's is the published one."""
    torch.manual_seed(0)
    module = build_classifier(arch, 2)
    assert parameters(module) == pytest.approx(1e6 * millions, rel=0.01)
    answer = module(torch.randn(2, 2, 64, 64))
    assert answer.shape == (2, 6)
    torch.nn.functional.cross_entropy(answer, torch.tensor([0, 5])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_regressor_is_a_resnet50_with_the_head_of_the_paper():
    module = build_regressor("resnet50", 2)
    linear = [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, torch.nn.Linear)]
    assert linear == [(2048, 512), (512, 256), (256, 128), (128, 1)]
    kinds = [type(layer).__name__ for layer in module.fc]
    assert [kinds.count(kind) for kind in ("BatchNorm1d", "ReLU", "Dropout")] == [3, 3, 3]


def test_regressor_gives_one_value_a_chip():
    module = build_regressor("resnet18", 5).eval()
    assert module(torch.zeros(3, 5, 32, 32)).shape == (3,)
    assert module(torch.zeros(1, 5, 32, 32)).shape == (1,)


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="resnet34"):
        build_classifier("transformer", 2)
    with pytest.raises(ConfigError, match="resnet50"):
        build_regressor("resnet34x", 2)
    with pytest.raises(ConfigError, match="at least 1"):
        build_classifier("resnet18", 0)
