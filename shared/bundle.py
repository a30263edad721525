"""The bundle: everything trained or tuned, as one directory with a manifest (`bundle.json`) and safetensors files.

Made by services.training; read by every service that needs a network or a threshold. No pickle anywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.validation import first_mistake

MANIFEST = "bundle.json"
FORMAT = 1

DETECTORS = ("tmsp", "prada", "similarity", "likelihood")

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class BundleError(ValueError):
    """A bundle cannot be used; the message names the file and the field."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(_Section):
    """Identity of the served model and of its tensors."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    version: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    architecture: str = Field("convnet", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """A name of `services.inference.network`."""
    classes: tuple[str, ...] = Field(min_length=2)
    input_name: str = "image"
    input_shape: tuple[Count, ...] = Field(min_length=1)
    """Of one query, without the batch; values are uint8, or FP32 in [0, 1] on the wire."""
    output_name: str = "probabilities"
    test_accuracy: Probability


class TmspSection(_Section):
    """AMAO, section 4.3."""

    temperature: Positive
    lambda_: Probability = Field(alias="lambda")
    suspicion: Probability
    """S above which the paper's rule condemns."""
    warm_up: Count = 50


class PradaSection(_Section):
    """PRADA (Juuti et al. 2019), as AMAO eq. 13 uses it."""

    delta: Probability
    """Shapiro-Wilk W below which the paper's rule condemns."""
    warm_up: Count = 100
    """Distances before the first test."""
    window: Count = 1000
    """Latest distances that are tested."""
    test_every: Count = 10
    capacity: Count = 10_000
    """Most elements of the growing set of one account."""


class SimilaritySection(_Section):
    """TR 2021-126, section VI-A; steepness and reference distance beside it."""

    delta: Positive
    pairs: Count = 50
    capacity: Count = 20_000
    """Most feature vectors of one account."""
    window: Count = 4096
    """Latest inputs among which the nearest is sought. Who hides one crafted query among seven honest ones has sent
    its origin thousands of queries ago."""
    window_bytes: Count = 8 * 2**20
    """Most that these inputs may take; of large ones there are fewer."""
    close: Positive = 3 / 28
    """Root mean square difference of pixels in [0, 1] under which two inputs are close: variants of one photograph,
    seldom two."""
    reference_neighbour: Count = 10


class LikelihoodSection(_Section):
    """TR 2021-126, section VI-B."""

    benign_mean: float
    """alpha: mean log-likelihood of honest queries."""
    beta: Positive
    """Half width of the credibility interval, in standard deviations of the running mean."""
    data_variance: Positive
    warm_up: Count = 50


class EvidenceSection(_Section):
    """The threshold of the evidence, set on whole honest accounts that nothing else has seen."""

    log_threshold: Positive
    """Natural logarithm of R."""
    accounts: Count
    """Honest accounts that the threshold was tried on."""
    alarmed: Annotated[int, Field(ge=0)]
    alarm_rate_upper: Probability
    """Upper 95% confidence limit (Clopper-Pearson) of the share of honest accounts that ever alarm."""
    queries_an_account: Count
    """Longest account tried, in queries."""


class CalibrationSection(_Section):
    """The honest accounts that thresholds come from; with the data they can be drawn again."""

    accounts: Count
    queries: Count
    """Of each."""
    seed: int
    holdout_accounts: Count
    holdout_queries: Count
    holdout_seed: int


class Rate(_Section):
    """A share that was counted."""

    share: Probability
    lower: Probability
    upper: Probability
    """Limits, each held with one-sided confidence 95%: Clopper-Pearson for accounts, a bootstrap for queries."""


class Manifest(_Section):
    """`bundle.json`."""

    format: Literal[1]
    model: ModelSection
    profiles: Count
    tmsp: TmspSection
    prada: PradaSection
    similarity: SimilaritySection
    likelihood: LikelihoodSection
    evidence: EvidenceSection
    calibration: CalibrationSection
    data: dict[str, str]
    """What each split was, for people."""
    false_positive_rates: dict[str, Rate]
    """Reached on held-out honest streams, by rule."""
    seed: int
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.safetensors$")], str]
    """SHA-256 of each file beside the manifest."""


class Bundle:
    """A bundle on disk, checked whole before anything uses it."""

    def __init__(self, folder: Path, manifest: Manifest, fingerprint: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.fingerprint = fingerprint
        """Of the manifest, and so of every file."""

    @classmethod
    def load(cls, folder: Path | str) -> Bundle:
        """Read the manifest and check every file against its hash.

        Raises:
            BundleError: a file is missing, altered or malformed; the message names the file and the field.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        try:
            text = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}); `make train` makes a bundle") from error
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path}: not JSON: {error}") from error
        try:
            manifest = Manifest.model_validate(raw)
        except ValidationError as error:
            raise BundleError(f"{path}: {first_mistake(error)}") from error
        for name, expected in manifest.files.items():
            try:
                actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            except OSError as error:
                raise BundleError(f"{folder / name}: cannot be read ({error.strerror})") from error
            if actual != expected:
                raise BundleError(f"{folder / name}: its SHA-256 is {actual}, field files.{name} says {expected}")
        return cls(folder, manifest, hashlib.sha256(text).hexdigest()[:16])

    def holds(self, name: str) -> bool:
        """Whether there is a file `name` (without .safetensors)."""
        return f"{name}.safetensors" in self.manifest.files

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of the file `name` (without .safetensors).

        Raises:
            BundleError: the manifest does not list the file, or it cannot be read.
        """
        file = f"{name}.safetensors"
        if not self.holds(name):
            raise BundleError(f"{self.folder / MANIFEST}: field files has no {file}")
        try:
            return load((self.folder / file).read_bytes())
        except SafetensorError as error:
            raise BundleError(f"{self.folder / file}: {error}") from error


def write_bundle(folder: Path, manifest: Mapping[str, Any], files: Mapping[str, Mapping[str, NDArray[Any]]]) -> Bundle:
    """Write tensors and manifest; hashes are filled in. The manifest goes last, so that a cut leaves no valid bundle.

    Args:
        folder: made where it is missing.
        manifest: all fields of `Manifest` but `format` and `files`.
        files: arrays by tensor name, by file name without .safetensors.

    Raises:
        BundleError: the manifest is malformed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes: dict[str, str] = {}
    for name, tensors in sorted(files.items()):
        data = save({key: np.ascontiguousarray(array) for key, array in tensors.items()})
        (folder / f"{name}.safetensors").write_bytes(data)
        hashes[f"{name}.safetensors"] = hashlib.sha256(data).hexdigest()
    document = {"format": FORMAT, **manifest, "files": hashes}
    # Defaults are written out: a later build's must not change what this bundle was calibrated with.
    with contextlib.suppress(ValidationError):  # reading it back says what is wrong, with the file's name
        document = Manifest.model_validate(document).model_dump(mode="json", by_alias=True)
    (folder / MANIFEST).write_text(json.dumps(document, indent=2) + "\n")
    return Bundle.load(folder)


def with_files(bundle: Bundle, folder: Path, files: Mapping[str, Mapping[str, NDArray[Any]]]) -> Bundle:
    """Write a bundle again with some files in the place of its own, or beside them.

    Args:
        bundle: to begin with.
        folder: of the new one; may be the same.
        files: as for `write_bundle`.
    """
    names = [name.removesuffix(".safetensors") for name in bundle.manifest.files]
    kept = {name: bundle.tensors(name) for name in names if name not in files}
    manifest = bundle.manifest.model_dump(mode="json", by_alias=True, exclude={"format", "files"})
    return write_bundle(folder, manifest, {**kept, **files})
