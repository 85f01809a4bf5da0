"""CompreFace's routes that answer: recognition and verification.

A model of cropped faces answers for each face of a picture. Any other answers for the whole
picture, which then has one "face" whose box is the picture.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from twinlens.data.decode import read_header
from twinlens.errors import PictureError
from twinlens.face.faces_of import FacePlace
from twinlens.gallery.gallery import Gallery
from twinlens.match.matcher import Matcher, Picture
from twinlens.measure.error_rates import matches
from twinlens.service.compreface_schemas import Recognized, Verified, VerifiedFaces
from twinlens.service.errors import ServiceError
from twinlens.service.routes.compreface import GalleryName, hash_of, read_file
from twinlens.service.schemas import answer_of, picture_body
from twinlens.service.security import Read
from twinlens.service.state import Service
from twinlens.service.uploads import Upload, read_uploads, require_one

__all__ = ["router", "similarity"]

router = APIRouter(prefix="/api/v1", tags=["compreface"])

BELOW_HALF = math.nextafter(0.5, 0)


@dataclass
class Options:
    """Options of the routes that answer.

    Attributes:
        limit: ignored.
        det_prob_threshold: ignored.
        face_plugins: names of plugins, with commas between them.
        status: whether to add `plugins_versions` and `execution_time`.
    """

    limit: Annotated[int, Query(ge=0, description="Ignored: there is an answer for each face")] = 0
    det_prob_threshold: Annotated[
        str | None, Query(description="Ignored: the model's own is used")
    ] = None
    face_plugins: Annotated[str, Query(description="`calculator`, for the embedding")] = ""
    status: Annotated[bool, Query(description="Add versions and times")] = False

    def __post_init__(self) -> None:
        plugins = {name.strip() for name in self.face_plugins.split(",")} - {""}
        if unknown := sorted(plugins - {"calculator"}):
            raise ServiceError(
                422, f"face_plugins: '{unknown[0]}' is not supported, only 'calculator' is"
            )

    def face(
        self, matcher: Matcher, upload: Upload, start: float, place: FacePlace | None = None,
        picture: Picture | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Box, embedding and time of a picture, or of a face of it."""
        source = upload.content if picture is None else picture
        try:
            header = read_header(upload.content, max_pixels=matcher.max_pixels)
            more = {}
            if self.face_plugins:
                more["embedding"] = matcher.embed([source])[0].tolist()
        except PictureError as error:
            raise upload.named(error) from error
        if self.status:
            more["execution_time"] = {"calculator": round(1000 * (time.monotonic() - start), 1)}
        sides = [0, 0, header.width, header.height]
        if place is not None and place.box is not None:
            sides = [round(side) for side in place.box]
        score = 1.0 if place is None or place.score is None else min(1.0, place.score)
        box = {"probability": score} | dict(
            zip(("x_min", "y_min", "x_max", "y_max"), sides, strict=True)
        )
        return {"box": box} | more

    def versions(self, matcher: Matcher) -> dict[str, Any]:
        """The model, if `status` is set."""
        return {"plugins_versions": {"calculator": matcher.fingerprint}} if self.status else {}


Wanted = Annotated[Options, Depends()]


@router.post("/recognition/recognize", responses=answer_of(Recognized),
             openapi_extra=picture_body("file"))  # fmt: skip
async def recognize(
    request: Request,
    service: Service,
    caller: Read,
    options: Wanted,
    prediction_count: Annotated[int, Query(ge=1, le=1000, description="Subjects, at most")] = 1,
    gallery: GalleryName = None,
) -> JSONResponse:
    """Find the most similar subjects; those at 0.5 or more are within the threshold."""
    async with service.queue.admitted():
        upload = await read_file(request, service)

        def work(opened: Gallery) -> dict[str, Any]:
            start, matcher, results = time.monotonic(), opened.matcher, []
            try:
                for picture, place in matcher.faces_or_whole(upload.content):
                    answer = opened.identify(picture, k=prediction_count)
                    subjects = [
                        {"subject": row.identity,
                         "similarity": similarity(row.distance, answer.threshold)}
                        for row in answer.candidates
                    ]  # fmt: skip
                    face = options.face(matcher, upload, start, place, picture)
                    results.append(face | {"subjects": subjects})
            except PictureError as error:
                raise upload.named(error) from error
            return {"result": results} | options.versions(matcher)

        return JSONResponse(await service.queue.run(service.galleries.use, gallery, work))


@router.post("/recognition/faces/{image_id}/verify", responses=answer_of(VerifiedFaces),
             openapi_extra=picture_body("file"))  # fmt: skip
async def verify_face(
    image_id: str,
    request: Request,
    service: Service,
    caller: Read,
    options: Wanted,
    gallery: GalleryName = None,
) -> JSONResponse:
    """Compare a picture with an enrolled one, by the model's threshold for pairs."""
    async with service.queue.admitted():
        upload = await read_file(request, service)

        def work(opened: Gallery) -> dict[str, Any]:
            start, matcher = time.monotonic(), opened.matcher
            enrolled_D = opened.embedding(hash_of(image_id))
            try:
                emb_1D = opened.embed([upload.content])
            except PictureError as error:
                raise upload.named(error) from error
            answer = matcher.verify_embeddings(emb_1D[0], enrolled_D)
            face = options.face(matcher, upload, start)
            face["similarity"] = similarity(answer.distance, answer.threshold)
            return {"result": [face]} | options.versions(matcher)

        return JSONResponse(await service.queue.run(service.galleries.use, gallery, work))


@router.post("/verification/verify", responses=answer_of(Verified),
             openapi_extra=picture_body("source_image", "target_image"))  # fmt: skip
async def verify(
    request: Request,
    service: Service,
    caller: Read,
    options: Wanted,
    model: Annotated[
        str | None, Query(description="Name of a model; by default the one of the start")
    ] = None,
) -> JSONResponse:
    """Compare two pictures, by the model's threshold."""
    async with service.queue.admitted():
        fields = ("source_image", "target_image")
        uploads = await read_uploads(request, fields, service.settings.limits)
        source, target = (require_one(uploads, field) for field in fields)

        def work() -> dict[str, Any]:
            start, matcher = time.monotonic(), service.models.get(model)
            try:
                pictures = source.content, target.content
                first, second, compared = matcher.nearest_faces(*pictures)
            except PictureError as error:
                raise PictureError("a picture", error.reason) from error
            answer = matcher.verify(first, second)
            places = (None, None) if compared is None else (compared.first, compared.second)
            faces = [
                options.face(matcher, upload, start, place, picture)
                for upload, place, picture in zip(
                    (source, target), places, (first, second), strict=True
                )
            ]
            match = faces[1] | {"similarity": similarity(answer.distance, answer.threshold)}
            pair = {"source_image_face": faces[0], "face_matches": [match]}
            return {"result": [pair | options.versions(matcher)]}

        return JSONResponse(await service.queue.run(work))


def similarity(distance: float, threshold: float) -> float:
    """threshold / (threshold + distance): 1 for equal pictures, 0.5 at the threshold, 0 far away.

    At least 0.5 exactly if the distance matches; no probability.
    """
    if not matches(distance, threshold):
        return min(threshold / (threshold + distance), BELOW_HALF) if threshold > 0 else 0.0
    return threshold / (threshold + distance) if threshold > 0 else 1.0
