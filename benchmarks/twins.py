"""The benchmark networks in PyTorch, with the weights of the Flax ones; needs the `bench` extra."""

import math
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as nf  # pyright: ignore[reportMissingImports]


def tensor(a: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(a))


def linear(layer: Any) -> nn.Linear:
    made = nn.Linear(*layer.kernel[...].shape, bias=layer.bias is not None)
    made.weight.data = tensor(layer.kernel[...]).T.contiguous()
    if layer.bias is not None:
        made.bias.data = tensor(layer.bias[...])
    return made


def conv(layer: Any, stride: int = 1) -> nn.Module:
    """`SAME` padding; a stride of two pads below and to the right only, as XLA does on even sizes."""
    kernel = tensor(layer.kernel[...]).permute(3, 2, 0, 1).contiguous()
    made = nn.Conv2d(*kernel.shape[1::-1], 3, stride=stride, padding=1 if stride == 1 else 0, bias=False)  # type: ignore[arg-type]
    made.weight.data = kernel
    return made if stride == 1 else nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), made)


def batch_norm(layer: Any) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(layer.scale[...].size, eps=1e-5)
    made.weight.data, made.bias.data = tensor(layer.scale[...]), tensor(layer.bias[...])
    return made.eval()


def layer_norm(layer: Any) -> nn.LayerNorm:
    made = nn.LayerNorm(layer.scale[...].size, eps=1e-6)
    made.weight.data, made.bias.data = tensor(layer.scale[...]), tensor(layer.bias[...])
    return made


def mlp(model: Any) -> nn.Module:
    *hidden, last = (linear(layer) for layer in model.layers)
    return nn.Sequential(*[m for layer in hidden for m in (layer, nn.ReLU())], last)


class ResidualBlock(nn.Module):
    def __init__(self, block: Any):
        super().__init__()
        self.norms = nn.ModuleList([batch_norm(norm) for norm in block.norms])
        self.convs = nn.ModuleList([conv(layer) for layer in block.convs])

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        branch = h
        for norm, layer in zip(self.norms, self.convs, strict=True):
            branch = layer(nf.relu(norm(branch)))
        return h + branch


class ResNet(nn.Module):
    """Takes images with channels last, as the Flax one."""

    def __init__(self, model: Any):
        super().__init__()
        self.stem, self.readout = conv(model.stem), linear(model.readout)
        self.blocks = nn.Sequential(*[ResidualBlock(block) for block in model.blocks])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(nf.relu(self.blocks(self.stem(x.permute(0, 3, 1, 2)))).mean((2, 3)))


class Unit(nn.Module):
    def __init__(self, unit: Any):
        super().__init__()
        self.stride = unit.stride
        self.first, self.second = conv(unit.first, unit.stride), conv(unit.second)
        self.norms = nn.ModuleList([batch_norm(norm) for norm in unit.norms])

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        branch = self.norms[1](self.second(nf.relu(self.norms[0](self.first(h)))))
        h = h[:, :, :: self.stride, :: self.stride]
        extra = branch.shape[1] - h.shape[1]
        return nf.relu(nf.pad(h, (0, 0, 0, 0, extra // 2, extra - extra // 2)) + branch)


class ResNet20(nn.Module):
    """Takes images with channels last, as the Flax one."""

    def __init__(self, model: Any):
        super().__init__()
        self.stem, self.norm = conv(model.stem), batch_norm(model.norm)
        self.units = nn.Sequential(*[Unit(unit) for unit in model.units])
        self.readout = linear(model.readout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nf.relu(self.norm(self.stem(x.permute(0, 3, 1, 2))))
        return self.readout(self.units(h).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, block: Any):
        super().__init__()
        self.heads = block.heads
        self.norms = nn.ModuleList([layer_norm(norm) for norm in block.norms])
        self.qkv = nn.ModuleList([linear(layer) for layer in block.qkv])
        self.out, self.up, self.down = linear(block.out), linear(block.up), linear(block.down)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        normed = self.norms[0](h)
        q, k, v = (f(normed).reshape(*h.shape[:2], self.heads, -1).transpose(1, 2) for f in self.qkv)
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1)
        h = h + self.out((weights @ v).transpose(1, 2).reshape(h.shape))
        return h + self.down(nf.gelu(self.up(self.norms[1](h)), approximate="tanh"))


class Transformer(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.tokens = nn.Embedding(*model.tokens.embedding[...].shape)
        self.tokens.weight.data = tensor(model.tokens.embedding[...])
        self.positions = nn.Parameter(tensor(model.positions[...]))
        self.blocks = nn.Sequential(*[Block(block) for block in model.blocks])
        self.norm, self.readout = layer_norm(model.norm), linear(model.readout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.norm(self.blocks(self.tokens(x) + self.positions)).mean(1))


TWINS = {"MLP": mlp, "ResNet": ResNet, "ResNet20": ResNet20, "Transformer": Transformer}


def jacobian_product(model: Any, x: np.ndarray, chunk: int) -> np.ndarray:
    """`torch.func.jacrev` of one sample under `vmap`, chunk by chunk, and one product."""
    network = TWINS[type(model).__name__](model)
    params = {k: v.detach() for k, v in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def one(p: Any, row: Any) -> Any:
        return torch.func.functional_call(network, (p, buffers), (row[None],))[0]

    jacobian = torch.func.vmap(torch.func.jacrev(one), (None, 0))
    A = torch.empty((10 * len(x), sum(p.numel() for p in params.values())))
    for start in range(0, len(x), chunk):
        part = tensor(x[start : start + chunk])
        J = jacobian(params, part)
        A[10 * start : 10 * (start + len(part))] = torch.cat([v.reshape(10 * len(part), -1) for v in J.values()], dim=1)
    return (A @ A.T / len(x)).numpy()


def nngeometry_gram(model: Any, x: np.ndarray, chunk: int) -> np.ndarray:
    """NNGeometry's Gram matrix: outer products of layer inputs and cotangents, for one pair of outputs at a time."""
    from nngeometry.gram import GramMatrix  # type: ignore
    from nngeometry.layercollection import LayerCollection  # type: ignore

    network = TWINS[type(model).__name__](model)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tensor(x)), batch_size=chunk)
    K = GramMatrix(network, loader, layer_collection=LayerCollection.from_model(network)).data
    # (output, sample, output, sample) -> rows ordered by sample.
    n = len(x) * 10
    return (K.permute(1, 0, 3, 2).reshape(n, n) / len(x)).detach().numpy()


def vivit_gram(model: Any, x: np.ndarray) -> np.ndarray:
    """ViViT's Gram matrices of the layers, added up; for sequential networks, all samples at once."""
    from backpack import backpack, extend  # type: ignore
    from vivit.extensions.secondorder.vivit import ViViTGGNExact  # type: ignore

    network = extend(TWINS[type(model).__name__](model))
    # The Hessian of this loss in the outputs is 2.
    loss = extend(nn.MSELoss(reduction="sum"))(network(tensor(x)), torch.zeros(len(x), 10))
    extension = ViViTGGNExact()
    with backpack(extension):
        loss.backward()
    K = sum(getattr(p, extension.savefield)["gram_mat"]() for p in network.parameters())
    n = len(x) * 10
    return (K.permute(1, 0, 3, 2).reshape(n, n) / (2 * len(x))).detach().numpy()  # type: ignore[union-attr]


# --- products ---------------------------------------------------------------------------------------------------------


def gauss_newton(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """curvlinops' Gauss–Newton operator of the mean cross-entropy, equal to F, which counts its products."""
    from curvlinops import GGNLinearOperator  # type: ignore

    class Counting(GGNLinearOperator):
        products = 0

        def _matmat(self, M: list[torch.Tensor]) -> list[torch.Tensor]:
            self.products += M[0].shape[-1]
            return super()._matmat(M)

    network = TWINS[type(model).__name__](model)
    data = [(tensor(x), tensor(y).long())]
    return Counting(network, nn.CrossEntropyLoss(), list(network.parameters()), data)


def pyhessian(model: Any, G: Any) -> Any:
    """PyHessian's algorithms, which know the Hessian alone, with the product of G in its place."""
    from pyhessian import hessian  # type: ignore

    class GaussNewton(hessian):
        def dataloader_hv_product(self, v: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
            image = G @ v
            return sum(float((a * b).sum()) for a, b in zip(image, v, strict=True)), image

    return GaussNewton(TWINS[type(model).__name__](model), None, dataloader=(), cuda=False)


def eig(T: torch.Tensor, eigenvectors: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch.eig` of a symmetric matrix, which PyTorch no longer has and PyHessian's density calls."""
    values, vectors = torch.linalg.eigh(T)
    return torch.stack([values, torch.zeros_like(values)], dim=1), vectors
