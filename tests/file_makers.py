"""Small model files: the linear map of the tests of boxes as ONNX and as TensorFlow Lite, whole and spoiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

SHAPE = (2, 3, 4)
PIXELS, CLASSES = 24, 5


def linear_map(classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(classes, PIXELS, generator=generator), torch.randn(classes, generator=generator)


def info(name: str, dtype: int, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def write_onnx(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    opset: int = 13,
    ir_version: int = 8,
    domains: Sequence[str] = (),
) -> Path:
    """A graph as a file. Opset and IR of 2021, which every supported onnxruntime reads, unless others are given."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version), path)
    return path


def linear_onnx(
    path: Path,
    outputs: tuple[str, ...] = ("logits",),
    batch: int | str | None = "n",
    shape: tuple[int | str | None, ...] = SHAPE,
    dtype: int = TensorProto.FLOAT,
    classes: int = CLASSES,
) -> Path:
    """The linear map as an ONNX file whose outputs are named by their kinds."""
    weight, bias = linear_map(classes)
    initializers = [
        helper.make_tensor("weight", TensorProto.FLOAT, [PIXELS, classes], weight.T.flatten().tolist()),
        helper.make_tensor("bias", TensorProto.FLOAT, [classes], bias.tolist()),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["logits"], ["labels"], axis=1, keepdims=0),
        helper.make_node("Identity", ["logits"], ["values"]),
        helper.make_node("Sigmoid", ["logits"], ["sigmoid"]),
    ]
    if classes == 1:  # one score an image, without an axis of its own
        initializers.append(helper.make_tensor("-1", TensorProto.INT64, [1], [-1]))
        nodes += [helper.make_node("Reshape", [name, "-1"], [f"flat {name}"]) for name in ("logits", "sigmoid")]
    infos = [
        info(name, TensorProto.INT64, [batch])
        if name == "labels"
        else info(name, TensorProto.FLOAT, [batch] if name.startswith("flat ") else [batch, classes])
        for name in outputs
    ]
    path = write_onnx(path, nodes, [info("x", dtype, [batch, *shape])], infos, initializers)
    onnx.checker.check_model(onnx.load(path))
    return path


def onnx_with_weights_elsewhere(path: Path, location: str, weight: np.ndarray | None = None) -> Path:
    """A product (n, d) x (d, K) whose weights lie in the file `location`, which is written where `weight` is given."""
    shape = (PIXELS, CLASSES) if weight is None else weight.shape
    tensor = onnx.TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(4 * shape[0] * shape[1])}.items():
        tensor.external_data.add(key=key, value=value)
    if weight is not None:
        (path.parent / location).write_bytes(weight.astype("<f4").tobytes())
    ends = [info("x", TensorProto.FLOAT, ["n", shape[0]]), info("y", TensorProto.FLOAT, ["n", shape[1]])]
    return write_onnx(path, [helper.make_node("MatMul", ["x", "weight"], ["y"])], ends[:1], ends[1:], [tensor])


Quantised = tuple[str, float, int]  # type, scale and zero point
FLOAT: Quantised = ("float32", 0.0, 0)


def linear_tflite(
    path: Path,
    weight: np.ndarray,
    shape: tuple[int, ...],
    takes: Quantised = FLOAT,
    answers: Quantised = FLOAT,
    batch: int = 1,
    signature: tuple[int, ...] | None = None,
    bias: np.ndarray | None = None,
    then: Sequence[str] = (),
) -> Path:
    """The product of an image, flattened as it comes, with a matrix (K, d), as a TensorFlow Lite file.

    Where it takes whole numbers the entries of the matrix are whole, from -127 to 127. Without a scale the numbers are
    no grid, and the answer is the flat image itself, whose numbers become floats. `then` names what the file answers
    with instead: "y", the product, and "SOFTMAX", "LOGISTIC" or "ARG_MAX" of it, each in an output of its own.
    """
    builder = pytest.importorskip("flatbuffers").Builder(1024)
    schema: Any = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model: Any = schema.ModelT()
    model.version, model.description, model.buffers = 3, b"linear", [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs = [], [0], [2]

    def add(name: str, sizes: Sequence[int], kind: Quantised, content: np.ndarray | None = None) -> None:
        tensor, buffer = schema.TensorT(), schema.BufferT()
        tensor.name, tensor.shape = name.encode(), list(sizes)
        tensor.type = getattr(schema.TensorType, kind[0].upper())
        if kind[1]:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [kind[1]], [kind[2]]
        if content is not None:
            buffer.data = np.frombuffer(content.tobytes(), dtype=np.uint8)
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
        graph.tensors.append(tensor)

    whole = takes[0] != "float32"
    add("x", (batch, *shape), takes)
    if signature is not None:
        graph.tensors[0].shapeSignature = list(signature)
    add("weight", weight.shape, ("int8", 1.0, 0) if whole else FLOAT, weight.astype("i1" if whole else "<f4"))
    add("y", (batch, len(weight)), answers)
    operator, code = schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4 if whole else 1
    operator.inputs, operator.outputs = [0, 1, -1], [2]
    if whole and not takes[1]:
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CAST
        code.version, operator.inputs = 1, [0]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators, model.operatorCodes, model.subgraphs = [operator], [code], [graph]
    if bias is not None:
        operator.inputs = [0, 1, len(graph.tensors)]
        add("bias", bias.shape, FLOAT, bias.astype("<f4"))
    if then:
        graph.outputs = [_then(name, batch, len(weight), schema, model, add) for name in then]
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _then(name: str, batch: int, classes: int, schema: Any, model: Any, add: Callable[..., None]) -> int:
    """The place of what an operator makes of the product; of "y", the product itself."""
    (graph,) = model.subgraphs
    if name == "y":
        return 2
    operator, code = schema.OperatorT(), schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    code.version, operator.opcodeIndex, operator.inputs = 1, len(model.operatorCodes), [2]
    kinds = schema.BuiltinOptions
    if name == "SOFTMAX":
        operator.builtinOptionsType, operator.builtinOptions = kinds.SoftmaxOptions, schema.SoftmaxOptionsT()
        operator.builtinOptions.beta = 1.0
    if name == "ARG_MAX":
        operator.builtinOptionsType, operator.builtinOptions = kinds.ArgMaxOptions, schema.ArgMaxOptionsT()
        operator.builtinOptions.outputType = schema.TensorType.INT64
        operator.inputs = [2, len(graph.tensors)]
        add("axis", (1,), ("int32", 0.0, 0), np.array([1], "<i4"))
    operator.outputs = [len(graph.tensors)]
    add(name, (batch,) if name == "ARG_MAX" else (batch, classes), ("int64", 0.0, 0) if name == "ARG_MAX" else FLOAT)
    graph.operators.append(operator)
    model.operatorCodes.append(code)
    return operator.outputs[0]
