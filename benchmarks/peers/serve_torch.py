"""FastAPI with torch and timm, as one writes it first: handlers on threads, Pillow, no limits.

Serves `/v1/verify` (files `a`, `b`) and `/v1/identify` (file `picture`) as JSON; nearest templates
by one product of matrices. Prints its address.
"""

from __future__ import annotations

import argparse
import os
import socket
from typing import BinaryIO

import numpy as np
import timm
import torch
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image


def _pixels(file: BinaryIO) -> torch.Tensor:
    picture = Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def application(templates_file: str) -> FastAPI:
    torch.set_num_threads(os.cpu_count() or 1)
    templates = np.load(templates_file)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=templates.shape[1]).eval()
    app = FastAPI()

    def embed(*files: UploadFile) -> np.ndarray:
        pixels = torch.stack([_pixels(file.file) for file in files])
        with torch.inference_mode():
            emb_ND = network((pixels.float() / 255 - 0.5) / 0.5)
        return torch.nn.functional.normalize(emb_ND, dim=1).numpy()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/v1/verify")
    def verify(a: UploadFile, b: UploadFile) -> dict[str, float]:
        emb_ND = embed(a, b)
        return {"distance": float(1 - emb_ND[0] @ emb_ND[1])}

    @app.post("/v1/identify")
    def identify(picture: UploadFile) -> dict[str, float]:
        similarity = templates @ embed(picture)[0]
        nearest = int(similarity.argmax())
        return {"template": nearest, "distance": float(1 - similarity[nearest])}

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--templates", "--port"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", int(args.port)))
    app = application(args.templates)
    print("serving at http://{}:{}".format(*listener.getsockname()), flush=True)
    uvicorn.Server(uvicorn.Config(app, access_log=False)).run([listener])


if __name__ == "__main__":
    main()
