"""Ask a gateway about one grey image with the REST client of KServe: kserve_rest.py URL NAME."""

import asyncio
import json
import sys
import urllib.request

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

url, name = sys.argv[1:]


async def main():
    with urllib.request.urlopen(f"{url}/v2/models/{name}") as reply:
        (model_input,) = json.load(reply)["inputs"]
    image = np.full([1, *model_input["shape"][1:]], 0.5, np.float32)
    tensor = InferInput(model_input["name"], list(image.shape), "FP32")
    tensor.set_data_from_numpy(image, binary_data=False)
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        answer = await client.infer(url, InferRequest(name, [tensor], parameters={"max_queries": 500}), model_name=name)
    label, radius, queries = (
        answer.get_output_by_name(output).as_numpy()[0] for output in ("label", "radius", "queries")
    )
    print(f"label {label}, radius {radius:.4f}, {queries} queries")


asyncio.run(main())
