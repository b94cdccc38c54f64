"""A model that KServe serves: `kserve_model.py PORT GRPC_PORT json|binary`, at http://127.0.0.1:PORT/v2/models/sums."""

import sys

import numpy as np
from kserve import InferOutput, InferResponse, Model, ModelServer  # pyright: ignore[reportMissingImports]


class Sums(Model):
    def __init__(self):
        super().__init__("sums")
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        images = payload.inputs[0].as_numpy().astype(np.float32)
        flat = images.reshape(len(images), -1)
        scores = np.stack([flat[:, i::3].sum(1) for i in range(3)], 1).astype(np.float32)
        output = InferOutput("scores", list(scores.shape), "FP32")
        output.set_data_from_numpy(scores, binary_data=sys.argv[3] == "binary")
        return InferResponse(payload.id, "sums", [output])


ModelServer(http_port=int(sys.argv[1]), grpc_port=int(sys.argv[2]), workers=1).start([Sums()])
