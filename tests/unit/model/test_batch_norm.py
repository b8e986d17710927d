"""Batch norms over ranks: nothing of the network is lost when they are converted."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from dino_path.model.batch_norm import share_batch_norms

# ResNets have a plain norm and an activation after it, RegNets timm's norm with the activation inside.
BACKBONES = ("resnet10t", "regnetx_002")


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_converted_network_infers_what_it_did_and_keeps_its_names(name: str, device: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(timm.create_model(name, num_classes=0))
    images = torch.randn(2, 3, 64, 64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
    network.eval()
    before, names = network(images), [*network.state_dict()]
    share_batch_norms(network, torch.device(device))  # on a GPU the network itself is moved later
    torch.testing.assert_close(network(images), before, rtol=1e-5, atol=1e-5)
    assert [*network.state_dict()] == names
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 5
    assert all(isinstance(norm, nn.SyncBatchNorm) == (device == "cuda") for norm in norms)
    assert all(type(norm) not in (nn.BatchNorm2d, BatchNormAct2d) for norm in norms)
