"""Messages of the Open Inference Protocol v2 over gRPC, as far as certibox sends or reads them.

They are built when they are first needed, in a pool of their own, so that another library's messages of the same names
do not stand in their way. Fields that are not listed here are passed over when a message is read.
"""

from __future__ import annotations

import functools
from typing import Any

from certibox.blackbox.connection import required

_MESSAGES = {  # name -> fields: name, kind ("*" for repeated) and number
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string=1 version:string=2 extensions:string*=3",
    "ModelMetadataRequest": "name:string=1 version:string=2",
    "TensorMetadata": "name:string=1 datatype:string=2 shape:int64*=3",
    "ModelMetadataResponse": "name:string=1 versions:string*=2 platform:string=3 inputs:TensorMetadata*=4 "
    "outputs:TensorMetadata*=5",
    "Contents": "bool_contents:bool*=1 int_contents:int32*=2 int64_contents:int64*=3 uint_contents:uint32*=4 "
    "uint64_contents:uint64*=5 fp32_contents:float*=6 fp64_contents:double*=7",
    "Tensor": "name:string=1 datatype:string=2 shape:int64*=3 contents:Contents=5",
    "RequestedOutput": "name:string=1",
    "ModelInferRequest": "model_name:string=1 model_version:string=2 id:string=3 inputs:Tensor*=5 "
    "outputs:RequestedOutput*=6 raw_input_contents:bytes*=7",
    "ModelInferResponse": "model_name:string=1 model_version:string=2 id:string=3 outputs:Tensor*=5 "
    "raw_output_contents:bytes*=6",
}
TYPED = {  # datatype -> field of `Contents`
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
SERVICE = "/inference.GRPCInferenceService/"


@functools.cache
def messages() -> dict[str, Any]:
    """The classes of the messages by name.

    Raises:
        InvalidInput: protobuf is not installed.
    """
    described = required("google.protobuf.descriptor_pb2", "grpc")
    pools, factory = (required(f"google.protobuf.{name}", "grpc") for name in ("descriptor_pool", "message_factory"))
    file = described.FileDescriptorProto(name="certibox/inference.proto", package="certibox", syntax="proto3")
    kinds = described.FieldDescriptorProto
    for message, listed in _MESSAGES.items():
        entry = file.message_type.add(name=message)
        for field in listed.split():
            name, _, rest = field.partition(":")
            kind, _, number = rest.partition("=")
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            made = entry.field.add(name=name, number=int(number), label=label)
            if kind in _MESSAGES:
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".certibox.{kind}"
            else:
                made.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = pools.DescriptorPool()
    pool.Add(file)
    return {name: factory.GetMessageClass(pool.FindMessageTypeByName(f"certibox.{name}")) for name in _MESSAGES}
