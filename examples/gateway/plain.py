"""Ask a gateway about one grey image, with nothing but Python: plain.py URL NAME."""

import json
import math
import sys
import urllib.request

url, name = sys.argv[1:]


def got(path, asked=None):
    body = None if asked is None else json.dumps(asked).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, body)) as reply:
        return json.load(reply)


(model_input,) = got(f"/v2/models/{name}")["inputs"]
shape = [1, *model_input["shape"][1:]]
image = {**model_input, "shape": shape, "data": [0.5] * math.prod(shape)}
answer = got(f"/v2/models/{name}/infer", {"inputs": [image], "parameters": {"max_queries": 500}})
outputs = {output["name"]: output["data"][0] for output in answer["outputs"]}
print(f"label {outputs['label']}, radius {outputs['radius']:.4f}, {outputs['queries']} queries")
