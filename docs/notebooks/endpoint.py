# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A model behind an endpoint
#
# A small HTTP server on this machine stands for a model that somebody rents out. It takes JSON, answers with probabilities, and
# sometimes says that it is busy (429). The function around it is ours: certibox asks the function, and counts.

# %%
import json
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from sklearn.linear_model import LogisticRegression

import certibox as cb
from certibox.errors import BudgetExceeded, NotAnswered

images = cb.load_images("digits", "train").select(range(300))
hosted = LogisticRegression(max_iter=1000).fit(images.floats().flatten(1), images.labels)
served = {"images": 0, "calls": 0, "refused": 0}


class Endpoint(BaseHTTPRequestHandler):
    """Every seventh call is refused; a refused call computes nothing."""

    def do_POST(self):
        served["calls"] += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if served["calls"] % 7 == 0:
            served["refused"] += 1
            self.send_response(429)
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        batch = np.array(json.loads(body)["images"])
        served["images"] += len(batch)
        answer = json.dumps({"probabilities": hosted.predict_proba(batch.reshape(len(batch), -1)).tolist()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        """Nothing."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}/"

# %% [markdown]
# ## The function
# It tries again when the endpoint says 429, as long as the endpoint asks for. Such a call was not answered and is not billed, so it
# never reaches the meter. When patience ends, `NotAnswered` says that nothing was billed; any other exception counts the batch as lost.


# %%
def predict(batch: np.ndarray) -> np.ndarray:
    body = json.dumps({"images": batch.tolist()}).encode()
    for _ in range(5):
        try:
            with urllib.request.urlopen(urllib.request.Request(address, body), timeout=10) as answer:
                return np.array(json.loads(answer.read())["probabilities"])
        except urllib.error.HTTPError as error:
            wait = float(error.headers.get("Retry-After", "1"))
            error.close()
            if error.code != 429:
                raise
            time.sleep(wait)
    raise NotAnswered("the endpoint is busy")


box = cb.as_blackbox(predict, outputs="probabilities", name="digits-endpoint-1", max_batch=64)
client = cb.QueryClient(box, budget=20_000)

# %% [markdown]
# ## Ask, and compare the books

# %%
smoothed = cb.SmoothedClassifier(client, 10, 0.25)
test = cb.load_images("digits", "test").select(range(5))
rows = cb.certify_dataset(smoothed, test, n0=25, n=2_000, alpha=0.001, seed=0, rule=cb.EProcess(radii=(0.125,)))
print("meter:", client.spent, "endpoint:", served)
assert client.queries == served["images"]

# %% [markdown]
# Two queries under "batch check" ask whether an image's answer depends on the others of its batch. The rest are votes: each row
# says how many.

# %%
assert client.spent["certify"] == sum(row.queries for row in rows)
rows.to_pandas()[["label", "predict", "radius", "queries"]]

# %% [markdown]
# ## The budget is hard
# The query that would overspend is not sent. In a script of yours, give the client a `ledger`: then the same call goes on where it
# stopped once the budget is raised.

# %%
poor = cb.QueryClient(box, budget=60)
try:
    cb.SmoothedClassifier(poor, 10, 0.25).certify(test.floats([0])[0], n0=25, n=2_000, alpha=0.001, seed=0)
except BudgetExceeded as error:
    print(error)
assert poor.queries <= 60

# %%
server.shutdown()
server.server_close()
