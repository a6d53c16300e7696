"""Reading an ONNX file: its checks, its attributes, and its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX model as read; weights that lie in other files stay there.

    Attributes:
        opset: version of the operator set of the domain ai.onnx.
        initializers: the tensors that are stored, by name.
        missing: those whose file of weights is not there.
    """

    path: Path
    proto: Any
    opset: int
    initializers: Mapping[str, Any]
    missing: frozenset[str]

    @property
    def nodes(self) -> list[Any]:
        """The nodes in the order in which they are computed."""
        return list(self.proto.graph.node)

    @property
    def inputs(self) -> list[Any]:
        """What the model is called with; old files also list weights, which these are not."""
        return [x for x in self.proto.graph.input if x.name not in self.initializers]


def onnx_package() -> Any:
    """The package onnx.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import onnx
        import onnx.inliner
        import onnx.reference
    except ImportError:
        raise ValueError(
            "onnx: models need the package onnx; pip install 'apportion[onnx]'"
        ) from None
    return onnx


def read_onnx(path: Path) -> OnnxFile:
    """Read a file, its functions written out in place.

    Raises:
        ValueError: the package is missing, there is no such file, or it is not an ONNX model.
    """
    onnx = onnx_package()
    if not path.is_file():
        raise ValueError(f"onnx:{path}: no such file")
    proto, reason = _parsed(onnx, path)
    if reason:
        raise ValueError(
            f"onnx:{path}: not an ONNX model: {reason}; export one with torch.onnx.export, "
            "tf2onnx or jax2onnx"
        )
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    missing = {name for name, t in initializers.items() if not _is_there(path, t)}
    return OnnxFile(path, proto, opset, initializers, frozenset(missing))


def _parsed(onnx: Any, path: Path) -> tuple[Any, str]:
    """The model of a file with its functions inlined, and what is wrong with it, if anything."""
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        return None, " ".join(str(error).split()) or type(error).__name__
    if not proto.graph.node or not proto.opset_import:
        return None, "it has no nodes or names no operator set"
    if not proto.functions:
        return proto, ""
    try:
        return onnx.inliner.inline_local_functions(proto), ""
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        return None, " ".join(str(error).split())


def _is_there(path: Path, tensor: Any) -> bool:
    if tensor.data_location != tensor.EXTERNAL:
        return True
    where = {entry.key: entry.value for entry in tensor.external_data}
    return Path(path.parent, where.get("location", "")).is_file()


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node: texts as str, tensors as numpy arrays, graphs as they are."""
    helper, numpy_helper = onnx_package().helper, onnx_package().numpy_helper
    found = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif attribute.type == attribute.TENSOR:
            value = numpy_helper.to_array(value)
        elif attribute.type in (attribute.INTS, attribute.FLOATS):
            value = list(value)
        elif attribute.type == attribute.STRINGS:
            value = [text.decode() for text in value]
        found[attribute.name] = value
    return found


def array_of(file: OnnxFile, tensor: Any) -> np.ndarray[Any, Any]:
    """A stored tensor as a numpy array, from its own file where it lies in one."""
    array: np.ndarray[Any, Any] = onnx_package().numpy_helper.to_array(
        tensor, base_dir=str(file.path.parent)
    )
    return array


def dtype_of(elem_type: int) -> torch.dtype:
    """The torch type of an ONNX data type; types below 8 bits are held in 8, floats in 32.

    Raises:
        ValueError: it holds no numbers (text).
    """
    kind = onnx_package().helper.tensor_dtype_to_np_dtype(elem_type)
    if kind == np.dtype(object):
        raise ValueError("a tensor of text cannot be computed; export the model without it")
    return as_tensor(np.zeros(1, kind)).dtype


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A torch tensor of a numpy array, also of the types that numpy itself lacks."""
    name = array.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if name.startswith("float") and name not in ("float16", "float32", "float64"):
        array = array.astype(np.float32)
    elif name in ("int4", "int2"):
        array = array.astype(np.int8)
    elif name in ("uint4", "uint2"):
        array = array.astype(np.uint8)
    return torch.from_numpy(np.array(array))
