"""What a training run is asked for: tower, objective, views and schedule, as read from YAML."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from cryoscan.config import Config
from cryoscan.errors import ConfigError
from cryoscan.models.atom_tower import AtomTowerConfig
from cryoscan.models.cryosamu import CryoSamuConfig
from cryoscan.models.density_tower import TowerConfig
from cryoscan.models.secondary import SecondaryConfig
from cryoscan.models.shape_tower import ShapeTowerConfig
from cryoscan.train.atom_objectives import Corruption
from cryoscan.train.conditions import ViewConfig
from cryoscan.train.loop import FitSettings
from cryoscan.train.pairs import PairConfig

_COARSEST_A = 2.8


class TrainConfig(Config):
    """Settings of `cryoscan train`."""

    objective: Literal["reconstruct", "contrast", "classify", "align", "align_paper"]
    """What the tower is trained for."""
    kind: Literal["density", "shape"] = "density"
    """A `DensityTower`, or a `ShapeTower`, which does not reconstruct."""
    targets: Literal["prototypes", "invariant", "atoms"] = "prototypes"
    """What a tower is aligned to: vectors that begin as the invariant features of the clean domains and are
    learned with the tower, or these features as they are, or what an AtomTower says of the domains' structures.
    Only for ``align`` and ``align_paper``, which takes the features in place of prototypes."""
    atom_weights: Path | None = None
    """Weights (.safetensors) of the AtomTower whose vectors are the targets; of the same length as the tower's."""
    tower: dict[str, Any] = Field(default_factory=dict)
    """Sizes of the tower that differ from the defaults of `TowerConfig` or `ShapeTowerConfig`."""
    start_from: Path | None = None
    """Weights (.safetensors) of an earlier run to begin with; the sizes must be those of `tower`."""
    views: dict[str, Any] = Field(default_factory=dict)
    """What differs from the defaults of `ViewConfig`."""
    clean_until: int = Field(default=0, ge=0)
    """Step until which the share of views as in `views` rises from none to all; the others are clean."""
    batch: int = Field(default=16, ge=2)
    """Views in a step."""
    steps_seen: int = Field(default=1, ge=1)
    """Steps in which a view is used: one in so many views of a batch is new, others are from steps before. Drawing
    views costs more than a small tower."""
    per_type: int = Field(default=1, ge=1)
    """Views of one type in a row of a batch; ``contrast`` and ``classify`` need more than 1."""
    cap: int = Field(default=4, ge=1)
    """A type of n domains is drawn as often as the smaller of n and this many single domains."""
    hidden: float = Field(default=0.1, ge=0, lt=1)
    """Share of the blocks of 4³ voxels that are hidden from the tower."""
    reconstruction: float = Field(default=0.1, ge=0)
    """Weight of the reconstruction beside ``align``."""
    temperature: float = Field(default=0.07, gt=0)
    """Of the cosines in ``contrast`` and ``align``."""
    steps: int = Field(default=10000, ge=1)
    """Batches in all."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Largest step of AdamW."""
    validate_every: int = Field(default=1000, ge=1)
    """Steps between validations."""
    judged: bool = True
    """Whether the tower is compared with the untrained invariant, on the way and at the end. That takes minutes."""
    seed: int = 0
    """Of the first weights and of every step."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.objective in ("contrast", "classify") and self.per_type < 2:
            raise ValueError(f"{self.objective} needs per_type of 2 or more")
        if (self.targets == "atoms") != (self.atom_weights is not None):
            raise ValueError("targets of atoms need atom_weights, and no others do")
        if self.targets == "atoms" and self.objective not in ("align", "align_paper"):
            raise ValueError(f"{self.objective} has no targets: choose align or align_paper")
        if self.kind == "shape" and (self.objective == "reconstruct" or self.hidden or self.reconstruction):
            raise ValueError("a shape tower does not reconstruct: set hidden and reconstruction to 0")
        try:
            self.view_config()
            tower = self.tower_config()
        except (ConfigError, TypeError) as error:
            raise ValueError(str(error)) from error
        if tower.voxel_size_A > _COARSEST_A:
            raise ValueError(f"validation needs a grid that carries 4.5 Å: voxels of at most {_COARSEST_A} Å")
        return self

    def tower_config(self) -> TowerConfig | ShapeTowerConfig:
        """The sizes of the tower."""
        return (ShapeTowerConfig if self.kind == "shape" else TowerConfig).from_json(self.tower)

    def view_config(self) -> ViewConfig:
        """The views that are trained on."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in self.views.items()
        }
        return ViewConfig(**values)

    def fit_settings(self) -> FitSettings:
        """The schedule."""
        return FitSettings(
            steps=self.steps, learning_rate=self.learning_rate, validate_every=self.validate_every, seed=self.seed
        )


class AtomTrainConfig(Config):
    """Settings of `cryoscan train` for the AtomTower, which embeds structures."""

    kind: Literal["atom"]
    """An `AtomTower`."""
    objective: Literal["recover", "contrast", "contrast_paper", "classify"]
    """What the tower is trained for."""
    tower: dict[str, Any] = Field(default_factory=dict)
    """Sizes of the tower that differ from the defaults of `AtomTowerConfig`."""
    start_from: Path | None = None
    """Weights (.safetensors) of an earlier run to begin with; the sizes must be those of `tower`."""
    disturbed: dict[str, Any] = Field(default_factory=dict)
    """How structures are disturbed before the tower sees them: what differs from the defaults of `Corruption`."""
    batch: int = Field(default=24, ge=2)
    """Structures in a step."""
    side_by_side: int = Field(default=8, ge=1)
    """Structures of like length that pass the network together; the others come after."""
    per_type: int = Field(default=1, ge=1)
    """Structures of one type in a row of a batch; ``contrast`` and ``contrast_paper`` need more than 1."""
    cap: int = Field(default=4, ge=1)
    """A type of n domains is drawn as often as the smaller of n and this many single domains."""
    temperature: float = Field(default=0.0625, gt=0)
    """Of the cosines in ``contrast`` and ``classify``."""
    steps: int = Field(default=2000, ge=1)
    """Batches in all."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Largest step of AdamW."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations."""
    seed: int = 0
    """Of the first weights and of every step."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.objective in ("contrast", "contrast_paper") and self.per_type < 2:
            raise ValueError(f"{self.objective} needs per_type of 2 or more")
        try:
            self.tower_config()
            self.corruption()
        except (ConfigError, TypeError) as error:
            raise ValueError(str(error)) from error
        return self

    def tower_config(self) -> AtomTowerConfig:
        """The sizes of the tower."""
        return AtomTowerConfig.from_json(self.tower)

    def corruption(self) -> Corruption:
        """How structures are disturbed."""
        return Corruption(**self.disturbed)

    def fit_settings(self) -> FitSettings:
        """The schedule."""
        return FitSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warm_up=50,
            average=0.998,
            validate_every=self.validate_every,
            seed=self.seed,
        )


class EnhanceTrainConfig(Config):
    """Settings of `cryoscan train` for the network that sharpens maps."""

    objective: Literal["enhance"]
    """Sharp density from maps."""
    network: dict[str, Any] = Field(default_factory=dict)
    """Sizes that differ from the defaults of `CryoSamuConfig`."""
    pairs: dict[str, Any] = Field(default_factory=dict)
    """What differs from the defaults of `PairConfig`."""
    real_train: tuple[str, ...] = ()
    """Names of the experimental maps to learn from, beside the simulated ones."""
    real_validation: tuple[str, ...] = ()
    """Names of the experimental maps to watch; of other proteins."""
    window: int = Field(default=40, ge=16)
    """Edge of a window in voxels, a multiple of the network's period."""
    batch: int = Field(default=4, ge=1)
    """Windows in a step."""
    dropout: float = Field(default=0.3, ge=0, le=1)
    """Share of the windows whose structure is hidden."""
    weighting: Literal["column", "literal"] = "column"
    """Form of the weights of chains and residues, see `cryoscan.models.residue_weighting`."""
    steps: int = Field(default=2500, ge=1)
    """Batches in all."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Largest step of AdamW."""
    warm_up: int = Field(default=100, ge=1)
    """Steps over which the learning rate rises to its largest."""
    average: float = Field(default=0.998, ge=0, lt=1)
    """Memory of the running mean of the weights, which is what is kept of a run."""
    start_from: Path | None = None
    """Weights of a network to begin with, which is widened if it is narrower, or folder of an earlier run whose running
    mean it is."""
    blend: float = Field(default=1.0, gt=0, le=1)
    """Share of what was learned in the weights that are kept; the rest are those that were begun with."""
    validate_every: int = Field(default=100, ge=1)
    """Steps between validations."""
    seed: int = 0
    """Of the first weights and of every step."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            self.pair_config()
            network = self.network_config()
        except (ConfigError, TypeError) as error:
            raise ValueError(str(error)) from error
        if self.window % network.period:
            raise ValueError(f"a window must be a multiple of {network.period} voxels")
        if set(self.real_train) & set(self.real_validation):
            raise ValueError("a map to watch must not be learned from")
        if self.blend < 1 and self.start_from is None:
            raise ValueError("what is learned can only be blended with weights to begin with (start_from)")
        return self

    def network_config(self) -> CryoSamuConfig:
        """The sizes of the network."""
        return CryoSamuConfig.from_json(self.network)

    def pair_config(self) -> PairConfig:
        """The pairs that are trained on."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in self.pairs.items()
        }
        return PairConfig(**values)

    def fit_settings(self) -> FitSettings:
        """The schedule."""
        return FitSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warm_up=self.warm_up,
            average=self.average,
            validate_every=self.validate_every,
            save_every=25,
            seed=self.seed,
        )


class RecogniseTrainConfig(Config):
    """Settings of `cryoscan train` for the network that tells helices and strands apart."""

    objective: Literal["recognise"]
    """The kind of every voxel."""
    network: dict[str, Any] = Field(default_factory=dict)
    """Sizes that differ from the defaults of `SecondaryConfig`."""
    start_from: Path | None = None
    """Weights of a network to begin with; a narrower one is widened."""
    views: dict[str, Any] = Field(default_factory=dict)
    """What differs from the defaults of `ViewConfig`."""
    hold_out: bool = True
    """Whether to keep away from the domains that benchmarks ask for, and from all their relatives."""
    batch: int = Field(default=16, ge=1)
    """Views in a step."""
    cap: int = Field(default=8, ge=1)
    """A type of n domains is drawn as often as the smaller of n and this many single domains."""
    steps: int = Field(default=4500, ge=1)
    """Batches in all."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Largest step of AdamW."""
    average: float = Field(default=0.995, ge=0, lt=1)
    """Memory of the running mean of the weights, which is what is kept of a run."""
    bfloat16: bool = False
    """Whether convolutions compute with 16 bits: 1.7 times as fast with 32 channels, on processors made for it."""
    validate_every: int = Field(default=250, ge=1)
    """Steps between validations."""
    seed: int = 0
    """Of the first weights and of every step."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            self.view_config()
            self.network_config()
        except (ConfigError, TypeError) as error:
            raise ValueError(str(error)) from error
        return self

    def network_config(self) -> SecondaryConfig:
        """The sizes of the network."""
        return SecondaryConfig.from_json(self.network)

    def view_config(self) -> ViewConfig:
        """The views that are trained on."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in self.views.items()
        }
        return ViewConfig(**values)

    def fit_settings(self) -> FitSettings:
        """The schedule."""
        return FitSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            average=self.average,
            validate_every=self.validate_every,
            report_every=50,
            seed=self.seed,
        )


class CompareTrainConfig(Config):
    """Settings of `cryoscan train` for what counts where shapes are compared."""

    objective: Literal["compare"]
    """Relatives before strangers."""
    rounds: int = Field(default=2, ge=1)
    """How often the views ask, by what was learned before."""
    queries: int = Field(default=560, ge=10)
    """Views of a round, at most."""
    cap: int = Field(default=14, ge=1)
    """Most domains of a type that ask."""
    epochs: int = Field(default=7, ge=1)
    """How often everything is learned from."""
    learning_rate: float = Field(default=5e-3, gt=0)
    """Largest step of Adam; a fraction .85 of it an epoch later."""
    stiffness: float = Field(default=0.03, ge=0)
    """What the squares of the matrices' roots, less the identity, cost."""
    seed: int = 0
    """Of what is drawn."""


AnyTrainConfig = TrainConfig | AtomTrainConfig | EnhanceTrainConfig | RecogniseTrainConfig | CompareTrainConfig


def read_train_config(path: Path | str) -> AnyTrainConfig:
    """Settings of a tower, the enhancing or secondary-structure network or a comparison, as kind and objective say."""
    values = AnyObjective.read(path)
    match values.objective:
        case "enhance":
            return EnhanceTrainConfig.read(path)
        case "recognise":
            return RecogniseTrainConfig.read(path)
        case "compare":
            return CompareTrainConfig.read(path)
    return AtomTrainConfig.read(path) if values.kind == "atom" else TrainConfig.read(path)


class AnyObjective(Config):
    """The keys by which the kinds of settings differ."""

    model_config = ConfigDict(extra="ignore")

    kind: str = ""
    """What is trained."""

    objective: str = ""
    """What is trained for."""
