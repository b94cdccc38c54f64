"""Ask a gateway about one grey image with Triton's client, which sends binary tensors: triton.py URL NAME."""

import sys

import numpy as np
import tritonclient.http as http

url, name = sys.argv[1:]
client = http.InferenceServerClient(url.removeprefix("http://"))
(model_input,) = client.get_model_metadata(name)["inputs"]
image = np.full([1, *model_input["shape"][1:]], 0.5, np.float32)
tensor = http.InferInput(model_input["name"], list(image.shape), "FP32").set_data_from_numpy(image)
answer = client.infer(name, [tensor], parameters={"max_queries": 500})
label, radius, queries = (answer.as_numpy(output)[0] for output in ("label", "radius", "queries"))
print(f"label {label}, radius {radius:.4f}, {queries} queries")
