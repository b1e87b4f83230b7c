"""Running a benchmark: every face under every damage by every method, each once, however often it is started."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import faceprior
from faceprior.benchmark.config import REFERENCES, BenchmarkConfig, Damage
from faceprior.benchmark.datasets import FaceSet, SetFace
from faceprior.benchmark.memory import PeakMemory
from faceprior.benchmark.metrics import METRICS, FaceSamples, MeterOptions, Meters
from faceprior.benchmark.results import Results, Row, full_row, identify
from faceprior.benchmark.sets import SetMeters
from faceprior.degradations import make_input
from faceprior.devices import OutOfMemoryError
from faceprior.errors import FacePriorError, ImageError, OptionError
from faceprior.folders.outputs import make_folder
from faceprior.images import MIN_SIDE, read_image, resize, to_pil, to_tensor, to_uint8, write_png
from faceprior.methods import Preset, find_method
from faceprior.pipeline.conversions import low_resolution
from faceprior.pipeline.face_prior import FacePriorPipeline, Samples

IMAGES = "images"


@dataclass(frozen=True)
class _Case:
    """One method under one damage."""

    damage: Damage
    preset: Preset
    names: dict[int, str]  # what rows call the method, by the number of the sample


@dataclass(frozen=True)
class _Job:
    """One damaged face, ready to be restored."""

    name: str
    labels: dict[str, str]
    truth: torch.Tensor | None  # (3, R, R)
    low_resolution: torch.Tensor  # (3, n, n)
    face_sha256: str  # of the sharp face, or of the bad one where it is not known
    noise_seed: int


class _Failure(NamedTuple):
    """A face that cannot be made ready, and why."""

    name: str
    error: str


class Benchmark:
    """A benchmark of a configuration, on faces that are chosen already, in a folder.

    Attributes:
        results: the table.
        meters: what is measured of faces, and what is missing.
        set_meters: the same of sets.
        methods: with all their options, by label; those of `REFERENCES` that there are come first.
        baseline: label of the method that the others are compared with.

    Raises:
        OptionError: a method's options do not fit the prior, a scale leaves too few pixels, or there is no baseline.
        OutputError: the folder cannot be made.
    """

    def __init__(self, pipeline: FacePriorPipeline, config: BenchmarkConfig, faces: FaceSet, output: Path) -> None:
        self.pipeline, self.config, self.faces, self.output = pipeline, config, faces, output
        self.methods = config.chosen_methods(REFERENCES if pipeline.crt is not None else ("bicubic",))
        self.baseline = config.baseline or ("corrector" if "corrector" in self.methods else self.labels[0])
        if self.baseline not in self.labels:
            raise OptionError(f"baseline {self.baseline!r} is not among the methods {', '.join(self.labels)}")
        for preset in self.methods.values():
            pipeline.check(preset)
        for damage in config.damages():
            low_resolution(torch.zeros(3, MIN_SIDE, MIN_SIDE), damage.scale, pipeline.resolution)
        self.results = Results(output)
        for folder in ("inputs", "truth"):
            make_folder(output / IMAGES / folder)
        template, device = pipeline.prior.card.template, pipeline.prior.device
        options = MeterOptions(template, pipeline.resolution, device, config.arcface, config.identity_threshold)
        self.meters = Meters(config.metrics, options)
        self.set_meters = SetMeters(config, self.meters, output)
        self._on_notice: Callable[[str], object] = lambda _: None

    @property
    def total(self) -> int:
        """Number of faces to restore, over all damages and methods."""
        return len(self.config.damages()) * len(self.methods) * len(self.faces.faces)

    @property
    def missing(self) -> dict[str, str]:
        """Why each figure that was wanted and cannot be measured is missing."""
        return {**self.meters.missing, **self.set_meters.missing}

    @property
    def labels(self) -> list[str]:
        """What rows call methods, in the order of tables: each label, and that of the mean of its samples."""
        return [name for names in map(self._names, self.methods) for name in dict.fromkeys(names.values())]

    def _names(self, label: str) -> dict[int, str]:
        """What rows call a method, by the number of the sample, from 1; 0 is the mean of several."""
        samples = self.config.samples
        names = dict.fromkeys(range(1, samples + 1), label)
        if samples > 1 and find_method(self.methods[label].method).uses_prior:
            names[0] = f"{label}, mean of {samples}"
        return names

    def run(
        self, on_faces: Callable[[int], object] = lambda _: None, on_notice: Callable[[str], object] = lambda _: None
    ) -> list[Row]:
        """Do what is not done yet; returns a row for each image, and for each face that failed.

        A batch of faces is a part: a run that is killed loses no more than the one it was at. A row that failed is
        tried again, and a row that lacks a figure which can be measured now is measured again, from its picture.

        Args:
            on_faces: called with the number of faces that are done, whether now or before.
            on_notice: called with a sentence when a batch does not fit into the device's memory and is halved.

        Raises:
            OutputError: a result cannot be written.
            DeviceError: one face does not fit into the device's memory.
        """
        self._on_notice = on_notice
        rows: list[Row] = []
        at_once = max(1, self.config.batch_size // self.config.samples)
        for damage in self.config.damages():
            for first in range(0, len(self.faces.faces), at_once):
                chunk = [self._job(face, damage) for face in self.faces.faces[first : first + at_once]]
                for label, preset in self.methods.items():
                    done = self._chunk(_Case(damage, preset, self._names(label)), chunk)
                    self.results.add(done)
                    rows += done
                    on_faces(len(chunk))
        self.results.merge(rows)
        return rows

    def _chunk(self, case: _Case, chunk: Sequence[_Job | _Failure]) -> list[Row]:
        earlier = [self._earlier(case, job) for job in chunk]
        todo = [job for job, rows in zip(chunk, earlier, strict=True) if isinstance(job, _Job) and not rows]
        restored = iter(self._restore(case, todo))
        return [row for rows in earlier for row in rows or next(restored)]

    def _earlier(self, case: _Case, job: _Job | _Failure) -> list[Row]:
        """The rows of a face that need no networks: its failure, or what is kept; none where it must be restored."""
        if isinstance(job, _Failure):
            return [self._failed(case, job.name, job.error)]
        found = (self.results.rows.get(self._id(case, job, sample)) for sample in case.names)
        files = ("image", "input", "truth")
        kept = [row for row in found if row and all((self.output / row[own]).is_file() for own in files if row[own])]
        if len(kept) < len(case.names):
            return []
        # what a method and a set are called decides no result
        rows = [{**row, "method": case.names[row["sample"]], "dataset": self.faces.name} for row in kept]
        return self._measured(rows) if any(self._lacks(row) for row in rows) else rows

    def _lacks(self, row: Row) -> bool:
        """Whether a figure that can be measured now is not there, or was measured with another network."""
        for name in self.meters.names:
            metric = METRICS[name]
            one_of_several = row["samples"] > 1 and row["sample"] > 0
            allowed = (not metric.needs_truth or row["truth"]) and (metric.kind != "samples" or one_of_several)
            if allowed and row[name] is None:
                return True
        if not self.meters.embeds:
            return False
        return row["embedding"] is None or any(row[name] != value for name, value in self._identity_columns().items())

    def _identity_columns(self) -> Row:
        options = self.meters.options
        return {"identity_network": options.identity_network, "same_person_threshold": options.same_person}

    # --- one face

    def _job(self, face: SetFace, damage: Damage) -> _Job | _Failure:
        resolution, template = self.pipeline.resolution, self.pipeline.prior.card.template
        try:
            picture = face.picture(template, resolution)
        except ImageError as error:
            return _Failure(face.name, str(error))
        if damage.has_truth:
            known = _eight_bits(resize(picture[None], resolution)[0])
        else:
            known = _eight_bits(low_resolution(picture, damage.scale, resolution))
        sha256 = pixels_sha256(known)
        seed = noise_seed(sha256, damage.seed)
        if not damage.has_truth:
            return _Job(face.name, face.labels, None, known, sha256, seed)
        side, generator = round(resolution / damage.scale), torch.Generator().manual_seed(seed)
        small = make_input(known, damage.degradation, side, generator, template)
        return _Job(face.name, face.labels, known, small, sha256, seed)

    def _how(self, case: _Case) -> Row:
        """What decides a result, besides the face."""
        damage, config, pipeline = case.damage, self.config, self.pipeline
        method = find_method(case.preset.method)
        prior = pipeline.prior.card if method.uses_prior else None
        corrected = method.uses_corrector and case.preset.as_dict().get("crt") != "never"
        corrector = pipeline.corrector_card if corrected else None
        return {
            "method": case.names[1],
            "method_name": case.preset.method,
            "options": json.dumps(case.preset.as_dict(), sort_keys=True),
            "degradation": damage.degradation,
            "scale": damage.scale,
            "seed": damage.seed,
            "samples": config.samples,
            "resolution": pipeline.resolution,
            "device": pipeline.prior.device.type,
            "dtype": str(pipeline.prior.dtype).removeprefix("torch."),
            "whole_batches": config.whole_batches,
            "prior": prior and prior.name,
            "prior_sha256": prior and prior.sha256,
            "corrector": corrector and corrector.name,
            "corrector_sha256": corrector and corrector.sha256,
        }

    def _id(self, case: _Case, job: _Job, sample: int) -> str:
        how = {name: value for name, value in self._how(case).items() if name != "method"}  # a label decides nothing
        how["faceprior"] = faceprior.__version__
        how |= {"face": job.face_sha256, "sample": sample, "name": job.name}
        how["batch"] = self.config.batch_size if self.config.whole_batches else None
        card = self.pipeline.prior.card  # what may be changed in it without changing the weights
        how["texture"] = card.texture
        how["template"] = card.template if case.damage.degradation.startswith("occlusion") else None
        return identify(how)

    def _described(self, case: _Case) -> Row:
        return {
            **self._how(case),
            "dataset": self.faces.name,
            "batch_size": self.config.batch_size,
            "faceprior": faceprior.__version__,
            "torch": str(torch.__version__),
            "nfe": float(self.pipeline.evaluations(case.preset)),
        }

    def _failed(self, case: _Case, name: str, error: str) -> Row:
        identifier = identify({**self._how(case), "name": name, "failed": True})
        return full_row({**self._described(case), "id": identifier, "face": name, "error": error})

    # --- restoring and measuring

    def _restore(self, case: _Case, jobs: Sequence[_Job]) -> list[list[Row]]:
        """The rows of each face."""
        if not jobs:
            return []
        memory, started = PeakMemory(self.pipeline.prior.device), time.perf_counter()
        try:
            restored = self.pipeline.restore(
                [job.low_resolution for job in jobs],
                [torch.Generator().manual_seed(job.noise_seed) for job in jobs],
                self.config.samples,
                case.preset,
                self.config.batch_size,
                on_notice=self._on_notice,
                whole_batches=self.config.whole_batches,
            )
        except OutOfMemoryError:  # the next face would not fit either
            raise
        except FacePriorError as error:
            return [[self._failed(case, job.name, str(error))] for job in jobs]
        seconds = (time.perf_counter() - started) / (len(jobs) * self.config.samples)
        cost = {"seconds": seconds, "peak_memory_mb": memory.megabytes()}
        return [
            self._measured(self._written(case, job, own, cost))
            if bool(torch.isfinite(own.images).all())
            else [self._failed(case, job.name, "the networks overflowed; choose --dtype float32")]
            for job, own in zip(jobs, restored, strict=True)
        ]

    def _written(self, case: _Case, job: _Job, samples: Samples, cost: Row) -> list[Row]:
        """Write a face's pictures; returns their rows, without what is measured."""
        input_id = identify({"pixels": pixels_sha256(job.low_resolution)})
        described = {
            **self._described(case),
            **cost,
            "face": job.name,
            "face_sha256": job.face_sha256,
            "labels": json.dumps(job.labels, ensure_ascii=False, sort_keys=True),
            "noise_seed": job.noise_seed,
            "input": self._keep(f"inputs/{input_id}", job.low_resolution),
            "truth": None if job.truth is None else self._keep(f"truth/{job.face_sha256[:20]}", job.truth),
        }
        rows = []
        for sample, name in case.names.items():
            identifier = self._id(case, job, sample)
            own = {"id": identifier, "method": name, "sample": sample, "image": f"{IMAGES}/{identifier}.png"}
            if not sample:
                own |= {name: len(samples.images) * described[name] for name in ("nfe", "seconds")}
            row = full_row({**described, **own})
            picture = to_pil(samples.images[sample - 1] if sample else samples.mean)
            about = {name: value for name, value in row.items() if value is not None}
            write_png(self.output / row["image"], picture, about)
            rows.append(row)
        return rows

    def _keep(self, name: str, image: torch.Tensor) -> str:
        path = f"{IMAGES}/{name}.png"
        if not (self.output / path).exists():
            write_png(self.output / path, to_pil(image))
        return path

    def _measured(self, rows: Sequence[Row]) -> list[Row]:
        """Rows with all figures that can be measured, from the kept pictures; a mean is no sample."""
        groups = ([row for row in rows if bool(row["sample"]) is samples] for samples in (True, False))
        return [row for own in groups if own for row in self._figures(own)]

    def _figures(self, rows: Sequence[Row]) -> list[Row]:
        images = torch.stack([self._picture(row["image"]) for row in rows])
        first, missing, embeddings = rows[0], self.meters.missing, self.meters.embed(images)
        truth = self._picture(first["truth"]) if first["truth"] else None
        true_embedding = self.meters.embed_file(self.output / first["truth"]) if first["truth"] else None
        found = self.meters(FaceSamples(images, truth, self._picture(first["input"]), embeddings, true_embedding))
        identity = self._identity_columns() if embeddings is not None else {}
        vectors = embeddings.tolist() if embeddings is not None else [row["embedding"] for row in rows]
        return [
            {**row, **figures, **identity, "embedding": vector, "missing": json.dumps(missing) if missing else None}
            for row, figures, vector in zip(rows, found, vectors, strict=True)
        ]

    def _picture(self, name: str) -> torch.Tensor:
        return to_tensor(read_image(self.output / name))


def pixels_sha256(face: torch.Tensor) -> str:
    """Hex SHA-256 of the pixels of a face, (3, n, n) in [-1, 1], as 8-bit RGB."""
    pixels = np.asarray(to_pil(face))
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def noise_seed(face_sha256: str, seed: int) -> int:
    """Seed of a face's damage and noise: another for every face and seed, whatever the set and the order."""
    return int(hashlib.sha256(f"{face_sha256}:{seed}".encode()).hexdigest()[:15], 16)


def _eight_bits(face: torch.Tensor) -> torch.Tensor:
    return to_uint8(face).float() / 127.5 - 1.0
