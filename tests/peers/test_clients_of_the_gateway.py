"""Clients that others wrote, each in an environment of its own, get of a gateway to the digit what plain JSON gets."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coloured import CLASSES, SHAPE, SIGMA, gateway
from places import PEERS, ROOT

OUTPUTS = {"shares": "f4", "label": "i8", "abstained": "?", "radius": "f8", "p_lower": "f8", "queries": "i8"}
COLOURS = [(0.75, 0.25, 0.25), (0.25, 0.75, 0.25), (0.25, 0.25, 0.75), (0.125, 0.125, 0.125), (0.625, 0.625, 0.25)]
LABELS = [0, 1, 2, 3, -1]
BAD_SHAPE = "input 'input' has shape [5, 8, 8, 3]; wanted [n, 3, 8, 8] with n of at least 1"
NO_OUTPUT = "there is no output 'labels'; the model has shares, label, abstained, radius, p_lower, queries"


def images() -> np.ndarray:
    """An image of each class, and one between two; all of them are the same in half precision."""
    steps = np.random.default_rng(0).integers(-8, 9, (len(COLOURS), *SHAPE)) / 256
    steps[-1, 1] = steps[-1, 0]
    return (np.array(COLOURS)[:, :, None, None] + steps).astype(np.float32)


def got(url: str, body: Any = None) -> Any:
    """The JSON that an address answers."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as reply:
        return json.load(reply)


def plain(address: str, **parameters: Any) -> dict[str, list[Any]]:
    """The outputs that plain JSON gets, by name."""
    x = images()
    tensor = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    answer = got(f"http://{address}/v2/models/defended/infer", {"inputs": [tensor], "parameters": parameters})
    return {output["name"]: output["data"] for output in answer["outputs"]}


def asked(peer: str, program: Callable[[Any, Any, Any], Any], address: str, folder: Path) -> Any:
    """What a program returns in the environment of a peer."""
    python = PEERS / peer / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{peer} is not installed: tools/peers.sh makes an environment for it")
    np.save(folder / "images.npy", images())
    source = inspect.getsource(program)
    told = f"import json\nfrom typing import Any\n\nimport numpy as np\n\n\n{source}\n\n"
    told += f"print(json.dumps({program.__name__}({address!r}, np.load('images.npy'), {list(OUTPUTS)!r})))\n"
    (folder / "program.py").write_text(told)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "program.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def triton(address: Any, images: Any, names: Any) -> Any:
    import tritonclient.http as http  # pyright: ignore[reportMissingImports]

    found = {}

    def values(result, wanted=names):
        arrays = {name: result.as_numpy(name) for name in wanted}
        return {
            name: [array.dtype.str[1:], list(array.shape), array.ravel().tolist()] for name, array in arrays.items()
        }

    def tensors(datatype="FP32", binary=True, shape=images.shape):
        one = http.InferInput("input", list(shape), datatype)
        kind = {"FP16": "float16", "FP32": "float32", "FP64": "float64"}[datatype]
        return [one.set_data_from_numpy(images.reshape(shape).astype(kind), binary_data=binary)]

    def outputs(binary, wanted=names):
        return [http.InferRequestedOutput(name, binary_data=binary) for name in wanted]

    with http.InferenceServerClient(address) as client:

        def infer(inputs, **more):
            return client.infer("defended", inputs, **more)

        found["health"] = [client.is_server_live(), client.is_server_ready(), client.is_model_ready("defended")]
        found["missing"] = client.is_model_ready("other")
        found["server"] = client.get_server_metadata()
        found["model"] = client.get_model_metadata("defended")
        version = found["model"]["versions"][0]
        found["version"] = [client.get_model_metadata("defended", version), client.is_model_ready("defended", version)]
        result = infer(tensors(), request_id="42", model_version=version)
        found["response"] = {key: result.get_response().get(key) for key in ("id", "model_name", "model_version")}
        packed = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
        turned = {"request_compression_algorithm": "deflate", "response_compression_algorithm": "gzip"}
        mixed = [*outputs(True, names[:3]), *outputs(False, names[3:])]
        found["same"] = {
            "binary": values(result),
            "FP16": values(infer(tensors("FP16"))),
            "FP64": values(infer(tensors("FP64"))),
            "JSON in": values(infer(tensors(binary=False))),
            "JSON out": values(infer(tensors(), outputs=outputs(False))),
            "JSON": values(infer(tensors("FP64", binary=False), outputs=outputs(False))),
            "binary outputs": values(infer(tensors(), outputs=outputs(True))),
            "mixed outputs": values(infer(tensors(), outputs=mixed)),
            "gzip and deflate": values(infer(tensors(), **packed)),
            "deflate and gzip": values(infer(tensors(), **turned)),
            "compressed JSON": values(infer(tensors("FP32", binary=False), outputs=outputs(False), **packed)),
            "gzip of JSON": values(infer(tensors(), outputs=outputs(False), response_compression_algorithm="gzip")),
        }
        found["some"] = values(infer(tensors(), outputs=outputs(True, ["label"])), ["label", "abstained"])
        found["prediction"] = values(infer(tensors(), parameters={"certify": False, "alpha": 0.01}))
        found["narrow"] = values(infer(tensors(), parameters={"radius": 0.1, "alpha": 0.01, "max_queries": 400}))
        found["timeout"] = values(infer(tensors(), timeout=50_000_000))
        found["many"] = values(client.async_infer("defended", tensors()).get_result())
        errors = {
            "shape": lambda: infer(tensors(shape=(len(images), 8, 8, 3))),
            "packed shape": lambda: infer(tensors(shape=(len(images), 8, 8, 3)), **packed),
            "output": lambda: infer(tensors(), outputs=outputs(True, ["labels"])),
            "parameter": lambda: infer(tensors(), parameters={"max_querys": 5}),
            "model": lambda: client.get_model_metadata("other"),
        }
        found["errors"] = {}
        for kind, call in errors.items():
            try:
                found["errors"][kind] = [str(call())]
            except http.InferenceServerException as error:
                found["errors"][kind] = [error.status(), error.message()]
    return found


def kserve(address: Any, images: Any, names: Any) -> Any:
    import asyncio

    import httpx  # pyright: ignore[reportMissingImports]
    from kserve import (  # pyright: ignore[reportMissingImports]
        InferenceRESTClient,
        InferInput,
        InferRequest,
        RESTConfig,
    )
    from kserve.protocol.infer_type import RequestedOutput  # pyright: ignore[reportMissingImports]

    url, found = f"http://{address}", {}

    def values(response, wanted=names):
        arrays = {output.name: output.as_numpy() for output in response.outputs if output.name in wanted}
        return {
            name: [array.dtype.str[1:], list(array.shape), array.ravel().tolist()] for name, array in arrays.items()
        }

    def request(datatype="FP32", binary=False, outputs=None, shape=images.shape, ident=None, **parameters):
        one = InferInput("input", list(shape), datatype)
        kind = {"FP16": "float16", "FP32": "float32", "FP64": "float64"}[datatype]
        one.set_data_from_numpy(images.reshape(shape).astype(kind), binary_data=binary)
        wanted = None if outputs is None else [RequestedOutput(name, how) for name, how in outputs.items()]
        return InferRequest("defended", [one], ident, parameters=parameters or None, request_outputs=wanted)

    async def all_of_it():
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:

            async def infer(**more):
                return await client.infer(url, request(**more), model_name="defended")

            found["health"] = [await client.is_server_live(url), await client.is_server_ready(url)]
            found["health"].append(await client.is_model_ready(url, "defended"))
            found["missing"] = await client.is_model_ready(url, "other")
            response = await infer(ident="seven")
            found["response"] = [response.id, response.model_name, response.parameters]  # it drops the version
            raw, text = {"binary_data": True}, {"binary_data": False}
            mixed = {name: raw if i % 2 else text for i, name in enumerate(names)}
            found["same"] = {
                "JSON": values(response),
                "JSON of FP64": values(await infer(datatype="FP64")),
                "binary in": values(await infer(binary=True)),
                "binary": values(await infer(binary=True, binary_data_output=True)),
                "binary out": values(await infer(binary_data_output=True)),
                "FP16": values(await infer(datatype="FP16", binary=True)),
                "mixed outputs": values(await infer(binary=True, outputs=mixed)),
                "outputs without a form": values(await infer(outputs=dict.fromkeys(names))),
            }
            found["prediction"] = values(await infer(binary=True, certify=False, alpha=0.01))
            found["narrow"] = values(await infer(radius=0.1, alpha=0.01, max_queries=400))
            errors = {
                "shape": {"shape": (len(images), 8, 8, 3)},
                "output": {"outputs": {"labels": raw}},
                "parameter": {"max_querys": 5},
            }
            found["errors"] = {}
            for kind, wrong in errors.items():
                try:
                    found["errors"][kind] = [str(await infer(**wrong))]
                except httpx.HTTPStatusError as error:
                    found["errors"][kind] = [error.response.status_code, str(error)]

    asyncio.run(all_of_it())
    return found


def typed(outputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Type, shape and values of outputs, as the programs above return those that they get."""
    found = {}
    for name, values in outputs.items():
        kind = np.dtype(OUTPUTS[name]).str[1:]
        shape = [len(COLOURS), CLASSES] if name == "shares" else [len(COLOURS)]
        found[name] = [kind, shape, np.array(values, OUTPUTS[name]).tolist()]
    return found


def test_the_gateway_knows_the_images(tmp_path: Path) -> None:
    with gateway(tmp_path / "gateway") as address:
        first, again = plain(address), plain(address)
        prediction = plain(address, certify=False, alpha=0.01)
    assert first == again  # the noise is seeded by the image
    assert first["label"] == prediction["label"] == LABELS
    assert [radius > 0 for radius in first["radius"]] == [label >= 0 for label in LABELS]
    assert prediction["queries"] != first["queries"]


def test_the_client_of_triton(tmp_path: Path) -> None:
    with gateway(tmp_path / "gateway") as address:
        found = asked("clients", triton, address, tmp_path)
        url = f"http://{address}/v2"
        metadata = got(f"{url}/models/defended")
        assert found["health"] == [True] * 3
        assert found["missing"] is False
        assert found["server"] == got(url)
        assert found["model"] == metadata
        assert found["version"] == [metadata, True]
        assert {output["name"]: output["datatype"] for output in metadata["outputs"]}.keys() == OUTPUTS.keys()
        (version,) = metadata["versions"]
        assert found["response"] == {"id": "42", "model_name": "defended", "model_version": version}
        wanted = typed(plain(address))
        for kind, outputs in found["same"].items():
            assert outputs == wanted, kind
        assert found["some"] == {name: wanted[name] for name in ("label", "abstained")}
        assert found["timeout"] == found["many"] == wanted
        assert found["prediction"] == typed(plain(address, certify=False, alpha=0.01))
        assert found["narrow"] == typed(plain(address, radius=0.1, alpha=0.01, max_queries=400))
    assert found["errors"] == {
        "shape": ["400", BAD_SHAPE],
        "packed shape": ["400", BAD_SHAPE],
        "output": ["400", NO_OUTPUT],
        "parameter": ["400", "the parameter 'max_querys' is not known; did you mean max_queries?"],
        "model": ["404", f"there is no /v2/models/other here; the model is defended, version {version}"],
    }


def test_the_client_of_kserve(tmp_path: Path) -> None:
    with gateway(tmp_path / "gateway") as address:
        found = asked("kserve", kserve, address, tmp_path)
        assert found["health"] == [True] * 3
        assert found["missing"] is False
        assert found["response"] == ["seven", "defended", {"sigma": SIGMA, "alpha": 0.001}]
        wanted = typed(plain(address))
        for kind, outputs in found["same"].items():
            assert outputs == wanted, kind
        assert found["prediction"] == typed(plain(address, certify=False, alpha=0.01))
        assert found["narrow"] == typed(plain(address, radius=0.1, alpha=0.01, max_queries=400))
    told = {"shape": BAD_SHAPE, "output": NO_OUTPUT, "parameter": "did you mean max_queries?"}
    for kind, text in told.items():
        status, came = found["errors"][kind]
        assert (status, text in came) == (400, True), came


@pytest.mark.parametrize(
    ("peer", "program"), [(None, "plain.py"), ("clients", "triton.py"), ("kserve", "kserve_rest.py")]
)
def test_the_examples_get_the_same_answer(tmp_path: Path, peer: str | None, program: str) -> None:
    python = Path(sys.executable) if peer is None else PEERS / peer / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{peer} is not installed: tools/peers.sh makes an environment for it")
    with gateway(tmp_path / "gateway") as address:
        command = [python, ROOT / "examples" / "gateway" / program, f"http://{address}", "defended"]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        grey = {"name": "input", "shape": [1, *SHAPE], "datatype": "FP32", "data": [0.5] * 192}
        asked = {"inputs": [grey], "parameters": {"max_queries": 500}}
        answer = got(f"http://{address}/v2/models/defended/infer", asked)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {output["name"]: output["data"][0] for output in answer["outputs"]}
    assert done.stdout == f"label {found['label']}, radius {found['radius']:.4f}, {found['queries']} queries\n"
