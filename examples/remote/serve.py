"""Train a random forest on scikit-learn's digits and serve it with MLServer, at http://127.0.0.1:8080/v2/models/digits.

    python -m venv server && server/bin/pip install mlserver mlserver-sklearn
    server/bin/python examples/remote/serve.py [FOLDER]

Images are flat, pixels on [0, 1]. The model and the two settings files are put into FOLDER, by default `remote-digits`.
"""

import os
import shutil
import sys
from pathlib import Path

import joblib
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "remote-digits")
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    model = RandomForestClassifier(100, random_state=0).fit(images[:1000] / 16, labels[:1000])
    joblib.dump(model, folder / "model.joblib")
    for name in ("settings.json", "model-settings.json"):
        if not (folder / name).exists():
            shutil.copy(Path(__file__).with_name(name), folder)
    server = str(Path(sys.executable).with_name("mlserver"))
    os.execv(server, [server, "start", str(folder)])  # takes this process's place, so that stopping it stops the server


if __name__ == "__main__":
    main()
