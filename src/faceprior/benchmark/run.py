"""Running a benchmark: every face under every condition by every method, each once, however often it is started."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import faceprior
from faceprior.benchmark.config import BenchmarkConfig, Condition, references_for
from faceprior.benchmark.datasets import Face, FaceSet, pixels_sha256
from faceprior.benchmark.memory import PeakMemory
from faceprior.benchmark.metrics import METRICS, Measured, MeterOptions, Meters
from faceprior.benchmark.results import Results, Row, identify
from faceprior.degradations import make_input
from faceprior.errors import FacePriorError, ImageError, OptionError, OutputError
from faceprior.images import MIN_SIDE, read_image, resize, to_pil, to_tensor, to_uint8, write_png
from faceprior.methods import Preset, find_method
from faceprior.photographs.restore import halved, is_out_of_memory
from faceprior.pipeline.conversions import low_resolution
from faceprior.pipeline.face_prior import FacePriorPipeline

IMAGES = "images"


@dataclass(frozen=True)
class Case:
    """One method under one condition.

    Attributes:
        condition: how inputs are made.
        method: label of the method.
        preset: the method and all its options.
    """

    condition: Condition
    method: str
    preset: Preset


@dataclass(frozen=True)
class _Job:
    """One face in one case, ready to be restored."""

    name: str
    labels: dict[str, str]
    truth: torch.Tensor | None  # (3, R, R)
    low_resolution: torch.Tensor  # (3, n, n)
    face_sha256: str  # of the sharp face, or of the bad one where it is not known
    noise_seed: int


@dataclass(frozen=True)
class _Failure:
    """A face that cannot be made ready, and why."""

    name: str
    error: str


class Benchmark:
    """A benchmark in a folder.

    Args:
        pipeline: prior and corrector.
        config: what to run.
        faces: the faces, chosen already.
        output: folder of the results.
        meter_options: what the metrics depend on.

    Attributes:
        results: the table.
        meters: what is measured, and what is missing.
        methods: with all their options, by label; those of `REFERENCES` that there are come first.

    Raises:
        OptionError: a method's options do not fit the prior, or a scale leaves too few pixels.
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        pipeline: FacePriorPipeline,
        config: BenchmarkConfig,
        faces: FaceSet,
        output: Path,
        meter_options: MeterOptions,
    ) -> None:
        self.pipeline, self.config, self.faces, self.output = pipeline, config, faces, output
        self.methods = config.chosen_methods(references_for(has_corrector=pipeline.crt is not None))
        for preset in self.methods.values():
            pipeline.check(preset)
        for condition in config.conditions():
            low_resolution(torch.zeros(3, MIN_SIDE, MIN_SIDE), condition.scale, pipeline.resolution)
        self.results = Results(output)
        self.meters = Meters(config.metrics, meter_options)
        for folder in (IMAGES, f"{IMAGES}/inputs", f"{IMAGES}/truth"):
            try:
                (output / folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{output}: cannot be written to ({error.strerror})") from error
        self._true_embeddings: dict[str, torch.Tensor | None] = {}
        self._together = config.batch_size
        self._on_notice: Callable[[str], object] = lambda _: None

    @property
    def total(self) -> int:
        """Number of faces to restore, over all conditions and methods."""
        return len(self.config.conditions()) * len(self.methods) * len(self.faces.faces)

    @property
    def labels(self) -> list[str]:
        """What rows call methods, in the order of tables: each label, and that of the mean of its samples."""
        return [
            name
            for label, preset in self.methods.items()
            for name in (label, *([self._mean_label(label)] if self._has_mean(preset) else ()))
        ]

    @property
    def baseline(self) -> str:
        """Label of the method that the others are compared with."""
        wanted = self.config.baseline or ("corrector" if "corrector" in self.methods else self.labels[0])
        if wanted not in self.labels:
            raise OptionError(f"baseline {wanted!r} is not among the methods {', '.join(self.labels)}")
        return wanted

    def _has_mean(self, preset: Preset) -> bool:
        return self.config.samples > 1 and find_method(preset.method).uses_prior

    def _mean_label(self, label: str) -> str:
        return f"{label}, mean of {self.config.samples}"

    def _numbers(self, case: Case) -> range:
        """Numbers of the samples that rows are about, from 1; 0 is their mean."""
        return range(0 if self._has_mean(case.preset) else 1, self.config.samples + 1)

    def _label(self, case: Case, sample: int) -> str:
        return case.method if sample else self._mean_label(case.method)

    def run(
        self, on_faces: Callable[[int], object] = lambda _: None, on_notice: Callable[[str], object] = lambda _: None
    ) -> list[Row]:
        """Do what is not done yet, and return the rows of this benchmark.

        A batch of faces is a part: a run that is killed loses no more than the one it was at. A row that failed is
        tried again, and a row that lacks a figure which can be measured now is measured again, from its picture.

        Args:
            on_faces: called with the number of faces that are done, whether now or before.
            on_notice: called with a sentence when a batch does not fit into the device's memory and is halved.

        Returns:
            A row for each image, and for each face that failed, in the order of the run.

        Raises:
            OutputError: a result cannot be written.
            DeviceError: one face does not fit into the device's memory.
        """
        self._on_notice = on_notice
        rows: list[Row] = []
        at_once = max(1, self.config.batch_size // self.config.samples)
        for condition in self.config.conditions():
            for first in range(0, len(self.faces.faces), at_once):
                chunk = [self._job(face, condition) for face in self.faces.faces[first : first + at_once]]
                for label, preset in self.methods.items():
                    rows += self._chunk(Case(condition, label, preset), chunk)
                    on_faces(len(chunk))
        self.results.merge(rows)
        return rows

    def _chunk(self, case: Case, chunk: Sequence[_Job | _Failure]) -> list[Row]:
        found: dict[int, list[Row]] = {}
        new: list[Row] = []
        jobs: dict[int, _Job] = {}
        for position, job in enumerate(chunk):
            if isinstance(job, _Failure):
                found[position] = [self._failed(case, job.name, job.error)]
                new += found[position]
                continue
            numbers = self._numbers(case)
            earlier = [self.results.rows.get(self._id(case, job, sample)) for sample in numbers]
            kept = [row for row in earlier if row is not None and self._kept(row)]
            if len(kept) < len(numbers):
                jobs[position] = job
                continue
            # what a method and a set are called decides no result
            found[position] = [
                {**row, "method": self._label(case, row["sample"]), "dataset": self.faces.name} for row in kept
            ]
            if any(self._lacks(row) for row in found[position]):
                found[position] = self._measured(job, found[position])
                new += found[position]
        for position, rows in zip(jobs, self._restore(case, list(jobs.values())), strict=True):
            found[position] = rows
            new += rows
        self.results.add(new)
        return [row for position in range(len(chunk)) for row in found[position]]

    def _kept(self, row: Row) -> bool:
        return (self.output / row["image"]).is_file()

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

    def _job(self, face: Face, condition: Condition) -> _Job | _Failure:
        resolution, template = self.pipeline.resolution, self.pipeline.prior.card.template
        try:
            picture = face.picture(template, resolution)
            if condition.has_truth:
                truth = _eight_bits(resize(picture[None], resolution)[0])
                sha256 = pixels_sha256(truth)
                seed = noise_seed(sha256, condition.seed)
                side = round(resolution / condition.scale)
                damage = torch.Generator().manual_seed(seed)
                small = make_input(truth, condition.degradation, side, damage, template)
                return _Job(face.name, face.labels, truth, small, sha256, seed)
            small = _eight_bits(low_resolution(picture, condition.scale, resolution))
            sha256 = pixels_sha256(small)
            return _Job(face.name, face.labels, None, small, sha256, noise_seed(sha256, condition.seed))
        except ImageError as error:
            return _Failure(face.name, str(error))

    def _weights(self, preset: Preset) -> Row:
        method = find_method(preset.method)
        prior = self.pipeline.prior.card if method.uses_prior else None
        used = method.uses_corrector and preset.as_dict().get("crt") != "never"
        corrector = self.pipeline.corrector_card if used else None
        return {
            "prior": prior and prior.name,
            "prior_sha256": prior and prior.sha256,
            "corrector": corrector and corrector.name,
            "corrector_sha256": corrector and corrector.sha256,
        }

    def _how(self, case: Case) -> Row:
        """What decides a result, besides the face."""
        condition, config, pipeline = case.condition, self.config, self.pipeline
        return {
            "method": case.method,
            "method_name": case.preset.method,
            "options": json.dumps(case.preset.as_dict(), sort_keys=True),
            "degradation": condition.degradation,
            "scale": condition.scale,
            "seed": condition.seed,
            "samples": config.samples,
            "resolution": pipeline.resolution,
            "device": pipeline.prior.device.type,
            "dtype": str(pipeline.prior.dtype).removeprefix("torch."),
            "whole_batches": config.whole_batches,
            **self._weights(case.preset),
        }

    def _id(self, case: Case, job: _Job, sample: int) -> str:
        how = {name: value for name, value in self._how(case).items() if name != "method"}  # a label decides nothing
        how["faceprior"] = faceprior.__version__
        batch = self.config.batch_size if self.config.whole_batches else None
        template = self.pipeline.prior.card.template if case.condition.degradation.startswith("occlusion") else None
        return identify(
            {**how, "face": job.face_sha256, "sample": sample, "batch": batch, "template": template, "name": job.name}
        )

    def _described(self, case: Case) -> Row:
        return {
            **self._how(case),
            "dataset": self.faces.name,
            "batch_size": self.config.batch_size,
            "faceprior": faceprior.__version__,
            "torch": str(torch.__version__),
            "nfe": float(self.pipeline.evaluations(case.preset)),
        }

    def _failed(self, case: Case, name: str, error: str) -> Row:
        identifier = identify({**self._how(case), "name": name, "failed": True})
        return _row({**self._described(case), "id": identifier, "face": name, "error": error})

    # --- restoring and measuring

    def _restore(self, case: Case, jobs: Sequence[_Job]) -> Iterator[list[Row]]:
        if not jobs:
            return
        config, memory = self.config, PeakMemory(self.pipeline.prior.device)
        started = time.perf_counter()
        try:
            images = self._images(case, jobs)
        except FacePriorError as error:
            yield from ([self._failed(case, job.name, str(error))] for job in jobs)
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._together = halved(self._together, self.pipeline.prior.device, self._on_notice)
            yield from self._restore(case, jobs)
            return
        seconds, peak = (time.perf_counter() - started) / (len(jobs) * config.samples), memory.megabytes()
        for job, own in zip(jobs, images, strict=True):
            if not bool(torch.isfinite(own).all()):
                yield [self._failed(case, job.name, "the networks overflowed; choose --dtype float32")]
                continue
            yield self._measured(job, self._written(case, job, own, seconds, peak))

    def _images(self, case: Case, jobs: Sequence[_Job]) -> torch.Tensor:
        return self.pipeline.restore(
            [job.low_resolution for job in jobs],
            [torch.Generator().manual_seed(job.noise_seed) for job in jobs],
            self.config.samples,
            case.preset,
            self._together,
            whole_batches=self.config.whole_batches,
        )

    def _written(self, case: Case, job: _Job, images: torch.Tensor, seconds: float, peak: float | None) -> list[Row]:
        input_id = identify({"pixels": pixels_sha256(job.low_resolution)})
        kept = {"input": f"{IMAGES}/inputs/{input_id}.png", "truth": None}
        self._keep(kept["input"], job.low_resolution)
        if job.truth is not None:
            kept["truth"] = f"{IMAGES}/truth/{job.face_sha256[:20]}.png"
            self._keep(kept["truth"], job.truth)
        rows = []
        for sample in self._numbers(case):
            identifier = self._id(case, job, sample)
            calls = 1 if sample else len(images)
            described = self._described(case)
            row = _row(
                {
                    **described,
                    **kept,
                    "method": self._label(case, sample),
                    "nfe": calls * described["nfe"],
                    "seconds": calls * seconds,
                    "peak_memory_mb": peak,
                    "id": identifier,
                    "face": job.name,
                    "face_sha256": job.face_sha256,
                    "labels": json.dumps(job.labels, ensure_ascii=False, sort_keys=True),
                    "noise_seed": job.noise_seed,
                    "sample": sample,
                    "image": f"{IMAGES}/{identifier}.png",
                }
            )
            about = {name: value for name, value in row.items() if value is not None}
            write_png(self.output / row["image"], to_pil(images[sample - 1] if sample else images.mean(0)), about)
            rows.append(row)
        return rows

    def _keep(self, name: str | None, image: torch.Tensor) -> None:
        if name is not None and not (self.output / name).exists():
            write_png(self.output / name, to_pil(image))

    def _measured(self, job: _Job, rows: Sequence[Row]) -> list[Row]:
        """Rows with all figures that can be measured, from the kept pictures; a mean is no sample."""
        mean = [row for row in rows if not row["sample"]]
        return [
            row for own in (mean, [row for row in rows if row["sample"]]) if own for row in self._figures(job, own)
        ]

    def _figures(self, job: _Job, rows: Sequence[Row]) -> list[Row]:
        images = torch.stack([to_tensor(read_image(self.output / row["image"])) for row in rows])
        missing = dict(self.meters.missing)
        embeddings = self.meters.embed(images)
        face = Measured(images, job.truth, job.low_resolution, embeddings, self._true_embedding(job))
        found = self.meters(face)
        identity = self._identity_columns() if embeddings is not None else {}
        vectors = embeddings.tolist() if embeddings is not None else [row["embedding"] for row in rows]
        return [
            {**row, **figures, **identity, "embedding": vector, "missing": json.dumps(missing) if missing else None}
            for row, figures, vector in zip(rows, found, vectors, strict=True)
        ]

    def _true_embedding(self, job: _Job) -> torch.Tensor | None:
        if job.truth is None:
            return None
        if job.face_sha256 not in self._true_embeddings:
            self._true_embeddings[job.face_sha256] = self.meters.embed(job.truth[None])
        return self._true_embeddings[job.face_sha256]


def noise_seed(face_sha256: str, seed: int) -> int:
    """Seed of a face's damage and noise: another for every face and seed, whatever the set and the order."""
    return int(hashlib.sha256(f"{face_sha256}:{seed}".encode()).hexdigest()[:15], 16)


def _eight_bits(face: torch.Tensor) -> torch.Tensor:
    return to_uint8(face).float() / 127.5 - 1.0


def _row(values: Row) -> Row:
    from faceprior.benchmark.results import NUMBERS, TEXTS, WHOLE

    names = (*TEXTS, *WHOLE, "whole_batches", *NUMBERS, "missing", "embedding")
    return {name: values.get(name) for name in names}
