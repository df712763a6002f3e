"""The configuration of an experiment: frozen sections of scalars, nested once.

One `Config` maps one to one onto an experiment's TOML, onto `--set section.key=value` and onto
Flower's flat `run_config`. Settings that change results are hashed into the run's identity; those
of `[place]` (folders, torch device, threads) are not.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from fedsim.errors import WrongInput
from fedsim.names import suggestion

Scalar = str | int | float | bool
Count = Annotated[int, Field(ge=1, le=10**9)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e9)]
NonNegative = Annotated[float, Field(ge=0.0, le=1e9)]


def _counts(value: object) -> int | str:
    """Return a number from 1 on, or several with commas between."""
    texts = [text.strip() for text in str(value).split(",")]
    if isinstance(value, bool) or not all(
        re.fullmatch("0*[1-9][0-9]{0,8}", text) for text in texts
    ):
        raise PydanticCustomError("counts", "it wants whole numbers from 1 on, with commas between")
    numbers = list(dict.fromkeys(int(text) for text in texts))
    return numbers[0] if len(numbers) == 1 else ",".join(map(str, numbers))


Counts = Annotated[int | str, BeforeValidator(_counts)]
Instant = Annotated[
    str, BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value)
]
"""ISO 8601; TOML's own dates and date-times are accepted, too."""


class Section(BaseModel):
    """A frozen group of scalar settings that refuses keys it does not know.

    `{names}` in a description stands for the names of the table that the key chooses from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """Where the examples come from and how they become numbers."""

    source: str = Field("requests", description="{names} | package.module:function")
    task: Literal["intent_slots", "classification", "tagging", "language", "image"] = Field(
        "intent_slots", description="what is learned from an example"
    )
    path: str = Field("", description="folder below the data directory, or the hub's name")
    train: str = Field("", description="training files, comma-separated globs below path")
    dev: str = Field("", description="files for early stopping, globs; empty = by the split column")
    test: str = Field("", description="test files, globs; empty = by the split column")
    columns: str = Field(
        "text=text,tokens=tokens,label=intent,tags=tags,image=image,device=client,time=,deleted=,"
        "split=split",
        description="role=column pairs; a pair that is not given keeps its default",
    )
    test_share: float = Field(
        0.0,
        ge=0.0,
        le=0.9,
        description="share of each device's examples held out where there is no test split",
    )
    devices: Count = Field(200, description="devices that generator or partition makes")
    activity: Literal["zipf", "lognormal", "equal"] = Field(
        "zipf", description="law of the examples per device in the generator"
    )
    activity_shape: Positive = Field(
        1.2, description="Zipf exponent over the rank, or the lognormal's sigma"
    )
    examples: Count = Field(5000, description="training examples that the generator makes, in all")
    activity_public: Literal["exact", "power2"] = Field(
        "power2", description="activity as server and weights see it: exact | power2 (rounded down)"
    )
    vocabulary: Literal["training", "hashed"] = Field(
        "training", description="words from the training text (reveals them) | hashed buckets"
    )
    buckets: int = Field(10000, ge=1, le=10**7, description="hash buckets for words")
    ngrams: str = Field(
        "",
        pattern=r"^\s*([1-9]\s*(,\s*[1-9]\s*)*)?$",
        description="classification, hashed: lengths of character n-grams put behind the words; "
        "empty = none",
    )
    vocabulary_size: int = Field(
        0, ge=0, le=10**7, description="words kept, the most frequent in the training text; 0 = all"
    )
    max_length: int = Field(64, ge=1, le=10000, description="tokens; longer examples are cut")
    labels: str = Field(
        "", description="names of all labels, with commas; empty = those in training"
    )
    tags: str = Field("", description="names of all tags, with commas; empty = those in training")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of generator and partition")


class Partition(Section):
    """Who owns which training example, where the records do not say; `data.devices` devices."""

    name: str = Field(
        "natural",
        description="natural | {names} | package.module:function",
    )
    by: Literal["", "label", "tags", "device", "time", "length"] = Field(
        "",
        description="what the rule looks at; tags = the set of their types; empty = the rule's own",
    )
    alpha: Positive = Field(
        1.0, description="Dirichlet concentration over labels; smaller = more skewed"
    )
    beta: Positive = Field(1.0, description="quantity: Dirichlet concentration over sizes")
    min_size: int = Field(1, ge=0, le=10**9, description="fewest examples that a device may have")
    balance: bool = Field(
        False, description="dirichlet: full devices get no more (as its paper's code)"
    )
    classes: Count = Field(2, description="pathological, distribution: labels that each device has")
    choice: Literal["random", "deterministic", "first-deterministic"] = Field(
        "random", description="pathological: how devices come to their labels"
    )
    shards: Count = Field(2, description="shards: how many each device gets")
    shard_size: int = Field(
        0, ge=0, le=10**9, description="examples a shard; 0 = all examples are shared out"
    )
    sizes: str = Field(
        "",
        pattern=r"^\s*(\d+\s*(,\s*\d+\s*)*)?$",
        description="size, inner_dirichlet: examples of each device, with commas; empty = as "
        "equal as can be",
    )
    group: Count = Field(10, description="grouped_natural: natural ids that make one device")
    remainder: Literal["allow-smaller", "allow-bigger", "drop-reminder", "strict"] = Field(
        "allow-smaller", description="grouped_natural: what becomes of ids that fill no group"
    )
    strictness: Fraction = Field(
        0.5, description="continuous: 0 = at random, 1 = sorted by the value"
    )
    clusters: Count = Field(10, description="cluster: groups that k-means makes of the examples")
    dimensions: int = Field(32, ge=1, le=4096, description="cluster: width of the texts' embedding")
    tail: Literal["zipf", "lognormal", "power", "copy"] = Field(
        "zipf", description="heavy tails: law of the examples per device"
    )
    tail_shape: Positive = Field(
        1.2,
        description="Zipf exponent over the rank, or the lognormal's sigma (distribution's, too)",
    )
    gini: float = Field(
        0.6, ge=0.0, lt=1.0, description="power: Gini coefficient of the sizes, 0 = all alike"
    )
    copy_from: str = Field(
        "",
        description="copy: file of counts below the data directory (.txt, .json), or "
        "FILE.jsonl.gz#COLUMN",
    )


class Stream(Section):
    """When examples arrive, and how long a device keeps them."""

    mode: Literal["static", "continual"] = Field(
        "static", description="all examples at once | examples arrive by period"
    )
    periods: int = Field(1, ge=1, le=10000, description="periods that the rounds are divided into")
    rounds_per_period: int = Field(0, ge=0, le=10**6, description="0 = train.rounds / periods")
    arrivals: Literal["time", "poisson"] = Field(
        "time", description="by the time column | a seeded Poisson process per device"
    )
    cut: Literal["duration", "examples"] = Field(
        "duration", description="periods of equal length | with equally many training examples"
    )
    begin: Instant = Field(
        "",
        description="ISO 8601 (UTC without a zone): where periods begin; empty = the first record",
    )
    end: Instant = Field(
        "", description="where they end: later records never arrive; empty = the last record"
    )
    joining: Fraction = Field(0.0, description="share of devices that join later (poisson)")
    leaving: Fraction = Field(0.0, description="share of devices that leave early (poisson)")
    memory: Literal["all", "current", "window", "reservoir", "age"] = Field(
        "all", description="which arrived examples a device still holds"
    )
    window: Count = Field(
        2, description="periods that memory = window reaches back, this one included"
    )
    reservoir: Count = Field(50, description="examples that memory = reservoir keeps a device")
    max_age_days: Positive = Field(
        7.0, description="age at a period's end up to which memory = age keeps"
    )
    deletions: Fraction = Field(
        0.0,
        description="share of records whose owner asks for deletion, one period or more after "
        "arrival",
    )


class Availability(Section):
    """Which devices can be reached in a round, which answer, and how long a round takes."""

    rule: Literal["always", "day_cycle", "clock"] = Field(
        "always",
        description="always | seeded hours of the day | hours in which the device has records",
    )
    hours: float = Field(
        8.0, gt=0.0, le=24.0, description="hours a day that day_cycle keeps a device in reach"
    )
    round_minutes: Positive = Field(
        60.0, description="minutes of the day that pass from round to round"
    )
    dropout: Fraction = Field(
        0.0, description="chance that a selected device of median size does not answer"
    )
    dropout_size: float = Field(
        0.0,
        ge=-2.0,
        le=2.0,
        description="exponent of public activity over its median in that chance",
    )
    speed_sigma: float = Field(
        0.0, ge=0.0, le=5.0, description="lognormal spread of device speeds; 0 = alike"
    )
    step_seconds: Positive = Field(
        1.0, description="virtual seconds of a local step on a median device"
    )


class Model(Section):
    """The model that all devices share."""

    name: str = Field(
        "bag",
        description="{names} | package.module:function",
    )
    embedding: int = Field(
        64, ge=1, le=10000, description="width of the word embedding, or of the projection"
    )
    hidden: int = Field(128, ge=1, le=100000, description="width of a hidden layer, each direction")
    layers: int = Field(
        1, ge=1, le=100, description="recurrent, hidden or convolution layers, or blocks"
    )
    heads: int = Field(4, ge=1, le=1000, description="attention heads of the transformer")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of inputs dropped in training")
    characters: bool = Field(
        False, description="bilstm: also read a word's letters (character CNN)"
    )
    label_names: NonNegative = Field(
        0.0,
        description="projection: a label starts from the words of its name, times this; 0 = from "
        "zero",
    )


class Train(Section):
    """What a device does with the model that it gets."""

    rounds: Count = Field(20, description="rounds in all")
    lr: Positive = Field(0.1, description="learning rate of the device's optimiser")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="the device's optimiser")
    momentum: float = Field(0.0, ge=0.0, lt=1.0, description="momentum of sgd")
    weight_decay: NonNegative = Field(0.0, description="L2 penalty (sgd, adam), decay (adamw)")
    batch_size: Count = Field(10, description="examples a local step")
    local_epochs: Count = Field(1, description="passes over a device's examples a round")
    local_steps: int = Field(0, ge=0, le=10**6, description="steps a round; 0 = by local_epochs")
    proximal: NonNegative = Field(
        0.0, description="FedProx: pull towards the round's first parameters"
    )
    grad_clip: NonNegative = Field(
        0.0,
        description="L2 norm that a step's mean gradient is cut to; 0 = none (this is no privacy)",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="arithmetic of the forward pass")
    centralised: bool = Field(False, description="also train the same model on the pooled data")
    centralised_epochs: Count = Field(10, description="passes of the centralised reference")
    centralised_lr: Positive = Field(0.003, description="Adam's learning rate of that reference")
    centralised_batch: Count = Field(64, description="examples a step of that reference")
    patience: int = Field(
        0,
        ge=0,
        le=10**6,
        description="stop after so many evaluations on dev without gain; 0 = never",
    )
    patience_metric: str = Field("", description="metric that patience watches; empty = the task's")


class Evaluation(Section):
    """How often the model is measured on the server's test examples."""

    every: Count = Field(1, description="rounds between two evaluations; the last is always done")
    on: Literal["central", "devices", "both"] = Field(
        "central", description="the server's test examples | each device's held-out part | both"
    )
    holdout: float = Field(
        0.0, ge=0.0, le=0.9, description="share of a device's examples held out of training"
    )
    metrics: str = Field(
        "",
        description="more metrics on test examples, with commas: {names} | package.module:function",
    )


class Selection(Section):
    """Which devices train in a round."""

    rule: str = Field(
        "activity",
        description="{names} | package.module:function",
    )
    cohort: Count = Field(50, description="devices a round, expected (poisson) or exact (fixed)")
    sampling: Literal["poisson", "fixed"] = Field(
        "poisson", description="independent coins | exactly `cohort` devices"
    )
    power: float = Field(1.0, ge=0.0, le=10.0, description="exponent of the activity")
    mixture: Fraction = Field(0.1, description="share of the cohort that mixture draws uniformly")
    quantile: Fraction = Field(
        0.5, description="threshold: least active share that is never selected"
    )
    cap: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="largest inclusion probability; what it cuts off goes to nobody",
    )
    candidates: int = Field(
        0,
        ge=0,
        le=10**9,
        description="loss: devices drawn by activity to choose from; 0 = twice the cohort",
    )
    total_score: NonNegative = Field(
        0.0,
        description="public sum of scores that inclusion is normalised by; 0 = that of the real "
        "roster",
    )


class Aggregation(Section):
    """How the devices' updates become the next model."""

    rule: str = Field(
        "fedadam",
        description="{names} | package.module:function",
    )
    step: str = Field(
        "fedavg", description="{names}: moves the model by what a rule of single updates found"
    )
    lr: Positive = Field(0.01, description="server learning rate (1.0 is plain FedAvg)")
    weights: Literal["auto", "equal", "examples", "inverse_probability"] = Field(
        "auto",
        description="equal | examples (public activity) | inverse_probability (examples over the "
        "chance of being chosen); auto = examples without DP",
    )
    weight_cap: Positive = Field(
        10.0, description="inverse_probability: largest weight; 1 = that of proportional selection"
    )
    beta1: Fraction = Field(0.9, description="decay of the first moment (fedavgm: momentum)")
    beta2: Fraction = Field(0.99, description="decay of the second moment (fedadam, fedyogi)")
    tau: Positive = Field(0.001, description="what is added to the root of the second moment")
    trim: float = Field(
        0.2,
        ge=0.0,
        lt=0.5,
        description="trimmed_mean, multi_krum: share of devices that may be bad",
    )
    max_norm: NonNegative = Field(
        0.0, description="L2 norm that a device's update may have; 0 = any"
    )
    over_norm: Literal["reject", "clip"] = Field(
        "reject", description="an update over max_norm is left out | scaled down to it, on its node"
    )
    max_bytes: int = Field(
        0, ge=0, le=2**40, description="bytes that a node's answer may have; 0 = any"
    )
    min_updates: int = Field(
        0, ge=0, le=10**9, description="valid updates below which a round leaves the model as it is"
    )


class Dp(Section):
    """What differential privacy is promised, to whom, and by which mechanism."""

    unit: Literal["none", "example", "device"] = Field(
        "none", description="what is protected: nothing | one example | all that a device holds"
    )
    trust: Literal["central", "local", "secure_sum"] = Field(
        "central",
        description="who adds the noise: the trusted server | each device | shares in a simulated "
        "secure sum",
    )
    relation: Literal["auto", "add_or_remove", "zero_out"] = Field(
        "auto",
        description="neighbouring relation; auto = add_or_remove where it holds, else zero_out",
    )
    clip_norm: Positive = Field(1.0, description="L2 bound C of a unit's contribution")
    clipping: Literal["flat", "per_layer", "automatic", "adaptive"] = Field(
        "flat",
        description="one norm | one a layer | normalised gradients | quantile of devices' norms",
    )
    noise_multiplier: NonNegative = Field(1.0, description="noise stddev over sensitivity")
    noise_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="factor on the noise multiplier after each epoch (edp)"
    )
    correlation: Literal["none", "banded"] = Field(
        "none", description="fresh noise each round | banded matrix factorisation (DP-FTRL)"
    )
    noise_layout: Literal["dense", "summed"] = Field(
        "dense", description="noise a device | rows that no device reads get one draw for the sum"
    )
    noise_source: Literal["auto", "seeded", "os"] = Field(
        "auto", description="seeded in simulation, entropy of the operating system on real nodes"
    )
    delta: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="0 = 1/(10 x protected units), rounded down to a power of ten",
    )
    target_epsilon: NonNegative = Field(0.0, description="epsilon that no unit may pass; 0 = none")
    on_target: Literal["stop", "retire"] = Field(
        "stop", description="at the target the run stops | the devices that reached it retire"
    )
    method: Literal["exact", "edp", "loop", "opacus"] = Field(
        "exact",
        description="per-example clipping | micro-batches (after eDP-SGD) | slow references",
    )
    sampling_rate: Fraction = Field(
        0.0,
        description="Poisson rate of a device's batches; 0 = train.batch_size / public activity",
    )
    micro_batches: Count = Field(4, description="edp: slots that a batch's examples are drawn into")
    amplification: Literal["auto", "claim", "none"] = Field(
        "auto", description="by sampling: where its conditions hold | refuse to run without | never"
    )
    max_weight: Positive = Field(
        1.0, description="device: largest public weight that a device can have"
    )
    quantile: float = Field(
        0.5,
        gt=0.0,
        lt=1.0,
        description="adaptive clipping: share of devices that shall not be clipped",
    )
    clip_lr: Positive = Field(
        0.2, description="adaptive clipping: step of the logarithm of the clip norm"
    )
    count_noise: NonNegative = Field(
        0.0,
        description="adaptive clipping: noise stddev on the count of unclipped; 0 = cohort / 20",
    )
    min_survivors: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        description="secure sum: honest share of the invited without which none is released",
    )
    sum_bits: int = Field(40, ge=16, le=42, description="secure sum: bits of the modulus")
    sum_scale: float = Field(
        2.0**-16,
        gt=0.0,
        le=1.0,
        description="secure sum: width of the fixed-point cells over the clip norm",
    )
    max_participations: int = Field(
        0, ge=0, le=10**6, description="rounds in which a device may be selected at most; 0 = all"
    )
    min_separation: Count = Field(
        1, description="rounds from one selection of a device to its next at least; also the bands"
    )


class Audit(Section):
    """What is measured of a model's leakage, when, and against which attacker."""

    evaluators: str = Field(
        "",
        description="{names} | package.module:function (commas between); empty = none",
    )
    every: int = Field(
        0, ge=0, le=10**9, description="rounds between two audits; 0 = at the end only"
    )
    coins: Literal["none", "record", "device"] = Field(
        "none", description="half of the records | devices are held out of training, by fair coins"
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="seed of coins, random labels and canaries; 0 = that of the run",
    )
    shadow: int = Field(
        0,
        ge=0,
        le=10**6,
        description="number of a shadow model, with coins of its own; 0 = the run itself",
    )
    mislabelled: float = Field(
        0.0,
        ge=0.0,
        le=0.5,
        description="share of training records that get a random label, to be learned by heart",
    )
    attacks: str = Field(
        "auto",
        description="membership attacks (comma-separated), also package.module:function; auto = "
        "loss and the best that references carry",
    )
    references: int = Field(
        16,
        ge=0,
        le=1024,
        description="shadow models of the membership attacks, an even number; 0 = none",
    )
    shadows: Literal["federated", "centralised"] = Field(
        "federated",
        description="how references train: as the run itself | on pooled records (a weaker "
        "attacker)",
    )
    view: str = Field(
        "final",
        description="what the attacker sees: {names} (comma-separated)",
    )
    window: Count = Field(
        5, description="rounds, from the first, that attacks on updates and sums look at"
    )
    records: int = Field(
        0,
        ge=0,
        le=10**9,
        description="records that attacks on updates try on a device at most; 0 = all",
    )
    canary_devices: int = Field(
        0,
        ge=0,
        le=10**6,
        description="bounds: devices that send random directions (one-shot audit), added to the "
        "federation",
    )


class Canary(Section):
    """Sentences with a secret code that are planted in training and sought in the model."""

    pattern: str = Field(
        "", description="{names} | a template with {code} or {joined}; empty = none"
    )
    digits: int = Field(4, ge=4, le=10, description="tokens of the code")
    candidates: str = Field(
        "",
        description="words that may stand in the code (comma-separated); empty = the pattern's, "
        "or digits",
    )
    count: int = Field(0, ge=0, le=10**4, description="canaries planted; 0 = none")
    copies: Counts = Field(
        1,
        description="copies of a canary on each of its devices; several = the canaries take turns",
    )
    devices: Counts = Field(1, description="devices that hold each canary; several = in turns")
    holders: str = Field(
        "light",
        pattern=r"^(light|median|heavy)(,(light|median|heavy))*$",
        description="tenth of the devices, by activity, that holds canaries: light | median | "
        "heavy; several = in turns",
    )
    period: int = Field(0, ge=0, le=10000, description="period in which they arrive; 0 = the first")
    label: str = Field("", description="intent of a canary; empty = one of its own")
    tags: Literal["own", "outside"] = Field(
        "own", description="tags of the code's tokens: their own | O"
    )


class Place(Section):
    """Where and on what the experiment runs; changes no result and is never hashed."""

    data_dir: str = Field("", description="folder that holds data.path; else FEDSIM_DATA")
    out: str = Field("runs", description="folder of the run directories")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="torch device")
    threads: int = Field(0, ge=0, le=1024, description="torch threads; 0 = one a core")
    lanes: Literal["auto", "threads", "processes"] = Field(
        "auto", description="chunks side by side; processes pay in long runs, 0.3 GiB each"
    )
    memory_gib: NonNegative = Field(
        0.0, description="GiB for stacked devices; 0 = 1/16 a thread, 1/4 on CUDA"
    )
    keep: Literal["last", "all"] = Field("last", description="which checkpoints stay")
    nodes: int = Field(
        0, ge=0, le=10**6, description="nodes that must announce devices; 0 = all there are"
    )
    wait_s: float = Field(60.0, ge=0.0, le=1e7, description="seconds to wait for nodes to connect")
    deadline_s: float = Field(
        0.0,
        ge=0.0,
        le=1e7,
        description="seconds after which a round goes on without an answer; 0 = waits",
    )
    metrics: bool = Field(
        False, description="also write metrics.json and metrics.prom after each round"
    )
    trackers: str = Field(
        "", description="mirrors of the run, with commas: {names} | package.module:function"
    )


class Config(Section):
    """One experiment. Scalars only, one level of sections.

    >>> from fedsim import Config
    >>> config = Config(seed=3, train={"rounds": 5})
    >>> (config.seed, config.train.rounds, config.train.lr)
    (3, 5, 0.1)
    >>> config.hash == Config(seed=4, train={"rounds": 5}).hash  # each seed has its own folder
    True
    """

    schema_: int = Field(1, alias="schema", ge=1, le=1, description="raised when a meaning changes")
    name: str = Field(
        "", pattern=r"^(\.*[\w-][\w.-]*)?$", description="folder under runs/; empty = file's stem"
    )
    seed: int = Field(1, ge=0, lt=2**63, description="seed of init, selection, batches")
    data: Data = Data()
    partition: Partition = Partition()
    stream: Stream = Stream()
    availability: Availability = Availability()
    model: Model = Model()
    train: Train = Train()
    evaluation: Evaluation = Evaluation()
    selection: Selection = Selection()
    aggregation: Aggregation = Aggregation()
    dp: Dp = Dp()
    audit: Audit = Audit()
    canary: Canary = Canary()
    place: Place = Place()

    @property
    def hash(self) -> str:
        """Eight hex digits over `schema` and every value that differs from its default.

        `name`, `seed` and `[place]` stay outside. Defaults stay outside, too: a later version may
        add a key with a neutral default, and old hashes stay the same.
        """
        neutral = _defaults()
        changed = {
            key: value
            for key, value in to_flat(self).items()
            if value != neutral[key]
            and key not in ("name", "seed")
            and not key.startswith("place.")
        }
        text = json.dumps({"schema": self.schema_, **changed}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def load(path: str | Path, settings: Iterable[str] = ()) -> Config:
    """Read an experiment's TOML and apply `section.key=value` settings on top.

    Raises WrongInput for a missing or malformed file, an unknown key or a value out of bounds.

    >>> from pathlib import Path
    >>> from fedsim import load
    >>> _ = Path("small.toml").write_text("[train]\\nrounds = 5\\n")
    >>> config = load("small.toml", ["train.lr=0.2"])
    >>> (config.name, config.train.rounds, config.train.lr)
    ('small', 5, 0.2)
    """
    path = Path(path)
    try:
        nested = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise WrongInput(f"the experiment file {str(path)!r} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WrongInput(f"the experiment file {str(path)!r} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise WrongInput(f"{path} is not valid TOML: {error}") from error
    flat = _flatten(nested) | dict(parse_setting(setting) for setting in settings)
    if not flat.get("name"):
        flat["name"] = re.sub(r"[^\w.-]", "-", path.stem)
    return from_flat(flat)


def from_flat(flat: Mapping[str, Any]) -> Config:
    """Build the config from dotted keys, as Flower's `run_config` holds them. Raises WrongInput."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        _check_key(key)
        section, _, field = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[field] = value
    try:
        return Config.model_validate(nested)
    except ValidationError as error:
        raise _refused(error) from None


def to_flat(config: Config) -> dict[str, Scalar]:
    """Return every setting under its dotted key; `from_flat` turns it back."""
    return _flatten(config.model_dump(by_alias=True))


def to_toml(config: Config) -> str:
    """Return the fully resolved config as TOML."""
    return tomli_w.dumps(config.model_dump(by_alias=True))


def parse_setting(setting: str) -> tuple[str, Scalar]:
    """Split `section.key=value`; a value that is no TOML scalar is taken as a string."""
    key, equals, text = setting.partition("=")
    if not equals:
        raise WrongInput(f"--set wants section.key=value, got {setting!r}; try --set train.lr=0.05")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return key.strip(), value


def parse_pairs(key: str, text: str) -> dict[str, str]:
    """Parse `"a=b,c="` into `{"a": "b", "c": ""}`; `key` names the setting in errors."""
    pairs = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise WrongInput(f"{key} wants name=value pairs with commas between, got {part!r}")
        pairs[name.strip()] = value.strip()
    return pairs


def known_keys() -> list[str]:
    """Return every dotted key that a config has."""
    return list(_defaults())


@lru_cache(maxsize=1)
def _defaults() -> Mapping[str, Scalar]:
    """Return every default under its dotted key.

    It is made once, because each config looks up each of its keys here.
    """
    return MappingProxyType(to_flat(Config()))


def _flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{field}": inner for field, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _check_key(key: str) -> None:
    if key not in _defaults():
        raise WrongInput(f"unknown config key {key!r}{suggestion(key, known_keys())}", key)


def _refused(error: ValidationError) -> WrongInput:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    said = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    return WrongInput(f"{key} = {first['input']!r} is not allowed: {said}", key)
