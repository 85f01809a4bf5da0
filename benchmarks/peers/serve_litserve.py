"""LitServe with ONNX Runtime: one process for each core, pictures decoded by Pillow.

Serves `/v1/verify` (files `a`, `b`) and `/v1/identify` (file `picture`) as JSON; nearest templates
by one product of matrices. Prints its address.
"""

import argparse
import os
import socket
from pathlib import Path

import litserve as ls
import numpy as np
import onnxruntime as ort
from fastapi import Request
from PIL import Image


class Embedder(ls.LitAPI):
    def __init__(self, api_path: str, fields: list[str], model: str, templates: str) -> None:
        super().__init__(api_path=api_path)
        self.fields, self.model, self.templates_file = fields, model, templates

    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            Path(self.model) / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.templates = np.load(self.templates_file, mmap_mode="r")

    # LitServe looks at this annotation, which must be no text.
    def decode_request(self, request: Request) -> np.ndarray:
        return np.stack([_pixels(request[field].file) for field in self.fields])

    def predict(self, pixels_NHWC: np.ndarray) -> dict[str, float]:
        emb_ND = self.session.run(None, {"pixels": pixels_NHWC})[0]
        emb_ND = emb_ND / np.linalg.norm(emb_ND, axis=1, keepdims=True)
        if len(emb_ND) == 2:
            return {"distance": float(1 - emb_ND[0] @ emb_ND[1])}
        similarity = self.templates @ emb_ND[0]
        nearest = int(similarity.argmax())
        return {"template": nearest, "distance": float(1 - similarity[nearest])}

    def encode_response(self, output: dict[str, float]) -> dict[str, float]:
        return output


def _pixels(file: object) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--templates", "--port"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(args.port)))
        port = free.getsockname()[1]
    paths = {"/v1/verify": ["a", "b"], "/v1/identify": ["picture"]}
    apis = [Embedder(path, fields, args.model, args.templates) for path, fields in paths.items()]
    server = ls.LitServer(
        apis, accelerator="cpu", workers_per_device=len(os.sched_getaffinity(0)), timeout=60
    )
    print(f"serving at http://127.0.0.1:{port}", flush=True)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


if __name__ == "__main__":
    main()
