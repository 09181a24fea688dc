"""The sections of the settings. One field, one line, one reason."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from cai_helpers.errors import CaiError

USUAL_REWARD = "OpenAssistant/reward-model-deberta-v3-large-v2"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class RewardSource(Section):
    """A reward model and how it is read. Where nothing but its name is to say, the name alone is enough."""

    model: str  # a sequence classifier: Hub id or folder
    input: Literal["pair", "chat"] = "pair"  # "pair": tokenizer(question, answer); "chat": its chat template
    max_length: int = Field(512, ge=32)  # tokens; the default model was trained at 512
    # One logit is the score. With named labels it is Σ weight · P(label): {"harmful": -1} for a safety classifier.
    labels: dict[str, float] = {}

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_enough(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class Models(Section):
    base: str = "google/gemma-2b-it"  # Hub id, folder, or "embedded:chat"
    adapter: str | None = None  # your Stage-2 LoRA; without one the base itself is the starting policy
    reward: RewardSource = RewardSource(model=USUAL_REWARD)  # its name, or models.reward.input=… and the like
    reward_ensemble: list[RewardSource] = []  # more of them: the score is then the mean of all members' z-scores
    dtype: Literal["auto", "fp16", "bf16", "fp32"] = (
        "auto"  # auto: bf16 from compute capability 8.0, fp16 below, fp32 on CPU
    )

    @field_validator("reward", mode="before")
    @classmethod
    def _the_usual_one_where_none_is_named(cls, value: Any) -> Any:
        return {"model": USUAL_REWARD, **value} if isinstance(value, dict) else value

    @property
    def rewards(self) -> list[RewardSource]:
        """The reward model and the others of its ensemble."""
        return [self.reward, *self.reward_ensemble]


class Prompts(Section):
    source: str = (
        "Anthropic/hh-rlhf"  # file (.jsonl, .jsonl.gz, .parquet, .txt), Hub dataset, or a folder laid out like one
    )
    subsets: list[str] = ["harmless-base", "helpful-base"]  # sub-folders of hh-rlhf, mixed in equal parts
    split: str = "train"  # of a dataset, in its own notation: "test[:1000]+train[:1500]"; applied to each subset
    column: str | None = None  # where the conversation stands; found by itself for the usual names
    category_column: str = "category"  # rows without one take it from the name of the file or subset
    eval_source: str | None = None  # held-out prompts; without one, eval_count are split off the source
    eval_count: int = Field(200, ge=0)  # prompts held out, taken before anything is generated
    limit: int | None = Field(1500, ge=1)  # training prompts
    max_tokens: int = Field(512, ge=16)  # of one prompt under the chat template; oldest turns are dropped first


class Generate(Section):
    protocol: str = (
        "auto"  # see assets/protocols.yaml; "single/short+2" shows 2 demonstrations; auto: what a bake-off recommends
    )
    drafter: Literal["local", "api"] = "local"  # api: drafts from `endpoint`, which should serve your Stage-2 model
    critic: Literal["local", "api"] = "local"  # api: critique and revision from `endpoint`
    constitution: str | None = None  # your own YAML; default assets/constitution.yaml
    protocols_file: str | None = None  # your own wording; default assets/protocols.yaml
    most_principles: int = Field(3, ge=1, le=4)  # shown to the critic for one pair
    draft_tokens: int = Field(256, ge=8)  # new tokens at most
    critic_tokens: int = Field(320, ge=8)
    temperature: float = Field(0.7, ge=0)  # 0 is greedy
    top_p: ClassVar[float] = 0.95
    batch_size: int = Field(32, ge=1)  # halved on out-of-memory


class Endpoint(Section):
    """A file can name an endpoint, but not have a key sent there: a workspace may come from somebody else.

    Whether the person named `base_url` in this call is no field: it is neither written nor read.
    """

    base_url: str | None = None  # OpenAI-compatible, e.g. http://localhost:8000/v1
    model: str | None = None  # the name the endpoint knows it by
    key_variable: str = "OPENAI_API_KEY"  # environment variable that holds the key; the key itself is never stored
    concurrency: int = Field(8, ge=1)  # requests at once
    retries: int = Field(3, ge=0)  # after a failed request, with growing pauses
    timeout: float = Field(60, gt=0)  # seconds a request
    input_price: float = Field(0, ge=0)  # currency units a million tokens, for the cost that is reported
    output_price: float = Field(0, ge=0)

    _named_by_person: bool = PrivateAttr(False)

    @property
    def named_by_person(self) -> bool:
        """True when options, a form or code of this call gave `base_url`; False when a file did."""
        return self._named_by_person

    def by_person(self) -> Endpoint:
        """The same endpoint, as named by the person at the keyboard: keys may be sent there."""
        named = self.model_copy()
        named._named_by_person = True
        return named


class Score(Section):
    by: Literal["reward_model", "ai_feedback"] = "reward_model"  # ai_feedback: a language model weighs both sides
    feedback_model: Literal["local", "api"] = "local"  # local: the starting policy itself; api: `endpoint`
    feedback_principles: int = Field(4, ge=1)  # a pair is weighed by so many, each in both orders
    batch_size: int = Field(
        16, ge=1
    )  # texts of the greatest length at once, of shorter ones more; halved on out-of-memory


class Calibrate(Section):
    gold: str | None = (
        "Anthropic/hh-rlhf"  # pairs judged by people: a file or a Hub dataset (its test split); None: never
    )
    limit: int | None = Field(500, ge=1)  # pairs, sampled by seed; 500 give an interval of about ±4 points
    target: float = Field(0.7, gt=0.5, lt=1)  # share of right labels from which on the scorer is believed


class Curate(Section):
    # |score difference| below which the scorer's label is noise; auto: from where on `cai calibrate` found it right
    min_delta: Annotated[float, Field(ge=0)] | Literal["auto"] = 0.0
    revised_wins_only: bool = False  # False: the pair's direction is what the reward model says
    drop_degenerate: bool = True  # pairs of which a side goes round in circles
    max_length_ratio: float | None = Field(None, gt=1)  # words of the longer side over those of the shorter one
    drop_both_refuse: bool = False  # pairs that teach one refusal over another
    near_duplicates: float | None = Field(0.8, gt=0, le=1)  # similarity of two prompts from which only one pair is kept
    # Most pairs in which a refusal beats an answer. Trained on those alone, a model refuses benign requests too: the
    # embedded one refused 59 % of them at a share of 0.8; at 0.75 it did not.
    max_refusal_share: float | None = Field(0.75, gt=0, le=1)
    eval_fraction: float = Field(0.1, gt=0, lt=0.5)  # of the pairs, held out by prompt for the DPO eval loss
    min_pairs: int = Field(100, ge=2)  # fewer, and training refuses
    strict: bool = False  # True: training also refuses when another line of the gate falls short

    @property
    def least_delta(self) -> float:
        """min_delta as a number; infinite where no difference is trusted. "auto" must have become one before."""
        if self.min_delta == "auto":
            raise ValueError("curate.min_delta=auto is a number only once calibration.threshold has looked it up")
        return self.min_delta

    def with_least_delta(self, value: float) -> Curate:
        return self.model_copy(update={"min_delta": value})


# Which DPO loss, when:
#   sigmoid       DPO itself; begin here
#   sigmoid, sft  with loss_weights [1, 0.1 … 1]: when the log-probability of the chosen answers falls far in training
#   ipo           when DPO pushes the margin without end on few, clear pairs; beta is its tau, gradients are larger
#   robust        when labels are noisy: label_smoothing is the share of wrong ones (0.1; a reward model at 70 %: 0.3)
#   exo_pair      as sigmoid, with soft labels: label_smoothing 0.001
#   hinge         stops pushing a pair once its margin is 1 (SLiC)
#   sigmoid_norm  when chosen answers are longer and the length is learned: log-ratios a token
#   nca_pair, bco_pair, apo_zero   hold the chosen side up in absolute terms; apo_zero for chosen better than Stage 2
#   apo_down      when even the chosen side is worse than what Stage 2 writes
#   sppo_hard     pushes each side to a fixed log-ratio, ±1/(2 beta)
#   aot, aot_unpaired   compare sorted batches instead of pairs; need a batch_size of 8 or more
#   discopop      found by search over losses; logistic and exponential, blended
Loss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft",
]  # fmt: skip
_SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}  # the losses that read label_smoothing


class Train(Section):
    # sft: supervised, on the winning revisions; sft+dpo: that first, and it is DPO's start and reference; kto: each side
    # of a pair by itself, good or bad, and answers of dropped pairs that can be trusted alone (batch_size: answers)
    method: Literal["dpo", "sft", "sft+dpo", "kto"] = "dpo"
    fresh_adapter: bool = False  # True: a new LoRA (lora_r) on the merged Stage 2; begin with a third of learning_rate
    epochs: float = Field(3, gt=0)
    beta: float = Field(0.1, gt=0)  # DPO's (and KTO's) temperature; higher stays nearer the reference
    loss_type: list[Loss] = Field(["sigmoid"], min_length=1)  # one or a list, see above
    loss_weights: list[float] | None = None  # one for each loss; None: 1 each
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # share of labels taken to be wrong; robust, exo_pair, aot
    ld_alpha: float | None = Field(
        None, ge=0, le=1
    )  # weight of the tokens by which one side is longer (LD-DPO, arXiv 2409.06411); None: 1, as in DPO
    sft_epochs: float = Field(1, gt=0)
    sft_learning_rate: float = Field(2e-5, gt=0)
    weight_by_delta: bool = False  # True: a pair counts by its score difference, from 1/4 of the median to twice that
    person_weight: float = Field(1.0, ge=0, le=10)  # how many average pairs a pair labelled by a person counts for
    learning_rate: float = Field(5e-6, gt=0)  # of DPO and KTO; KTO takes more steps: begin with a third
    warmup: float = Field(0.1, ge=0, lt=1)  # share of all steps
    batch_size: int = Field(8, ge=1)  # pairs (DPO cuts them to what fits), answers of sft and kto on the device at once
    accumulation: int = Field(1, ge=1)
    max_length: int = Field(1024, ge=32)  # tokens of prompt + answer
    every_steps: int = Field(50, ge=1)  # save and evaluate
    every_minutes: float = Field(10, gt=0)  # save as well when that long has passed since the last save
    log_steps: int = Field(5, ge=1)
    stop_early: bool = False  # True: stop when the alarm `overfitting` is raised; the best checkpoint is kept anyhow
    copy_to: str | None = None  # checkpoints are copied there: a folder (on Drive, say), or "hub:user/repo" (private)
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"  # the package must be installed
    gradient_checkpointing: bool | None = (
        None  # a third slower, several GiB smaller; None: only what else would not fit
    )
    lora_r: int = Field(16, ge=1)  # of a fresh LoRA; a Stage-2 adapter keeps its own shape
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    sweep_epochs: float = Field(1, gt=0)  # length of each run that `cai train --sweep` compares

    @property
    def effective_batch(self) -> int:
        return self.batch_size * self.accumulation

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_loss_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _losses_go_together(self) -> Train:
        """What TRL would refuse in its own words, or take and ignore."""
        losses, weights = self.loss_type, self.loss_weights
        if losses == ["sft"]:
            raise CaiError(
                "train.loss_type=sft alone is no DPO.",
                "Set train.loss_type=sigmoid and train.method=sft, or train.loss_type=[sigmoid, sft].",
            )
        if len(set(losses)) < len(losses):
            raise CaiError("train.loss_type names a loss twice.", "Name it once, with a weight in train.loss_weights.")
        if weights is not None and (len(weights) != len(losses) or min(weights) <= 0):
            raise CaiError(
                f"train.loss_weights={weights} for train.loss_type={losses}: one positive weight a loss is needed.",
                "Write, for example, train.loss_type=[sigmoid, sft] and train.loss_weights=[1, 0.5].",
            )
        if "exo_pair" in losses and not self.label_smoothing:
            raise CaiError(
                "train.loss_type=exo_pair needs soft labels.", "Set train.label_smoothing=0.001, its paper's value."
            )
        if self.label_smoothing and not _SMOOTHED & set(losses):
            raise CaiError(
                f"train.label_smoothing={self.label_smoothing:g} has no effect on {', '.join(losses)}.",
                "Set train.loss_type=robust, or train.label_smoothing=0.",
            )
        return self

    @model_validator(mode="after")
    def _kto_can_be_done(self) -> Train:
        if self.method != "kto":
            return self
        if self.batch_size < 2:
            raise CaiError(
                "train.method=kto with train.batch_size=1: KTO compares an answer with the others of its batch.",
                f"Set train.batch_size=2 or more, and train.accumulation={max(1, self.accumulation // 2)}.",
            )
        if self.loss_type != ["sigmoid"] or self.ld_alpha is not None:
            raise CaiError(
                "train.loss_type and train.ld_alpha are of DPO: they have no effect on train.method=kto.",
                "Set train.loss_type=sigmoid and train.ld_alpha=null, or train.method=dpo.",
            )
        return self


class Alarms(Section):
    """When training's alarms are raised. Rewards are β · log-ratio to Stage 2; a window is that many rows of the log.

    A run that is complete keeps the alarms it was trained with. What nobody had reason to change is no setting.
    """

    window: ClassVar[int] = 4  # logging rows whose mean counts, so that one batch raises nothing
    displacement: float = Field(0.25, gt=0)  # share of its log-probability that the chosen side may lose
    least_accuracy: ClassVar[float] = 0.6  # of the training pairs, once the first epoch is over
    chosen_share: ClassVar[float] = 0.0  # of the margin; at or below it the margin comes from the rejected side alone
    least_margin: float = Field(0.1, gt=0)  # a smaller margin is not asked where it comes from
    eval_rise: ClassVar[float] = 0.02  # held-out loss above its lowest
    patience: int = Field(2, ge=1)  # evaluations in a row that are so far above
    length_gap: ClassVar[float] = 0.3  # held-out accuracy lost where length points the other way
    kl: float = Field(50, gt=0)  # nats an answer
    gradient_spike: ClassVar[float] = 8  # times the median of the gradient norms before


class Evaluate(Section):
    limit: int | None = Field(None, ge=1)  # held-out prompts; None: all
    builtin: int | None = Field(None, ge=0)  # prompts of each built-in set (unsafe, scary, …); None: all; 0: none
    prompts: list[str] = []  # more prompts to report on, files or datasets (XSTest); the verdict rests on held-out ones
    two_options: list[
        str
    ] = []  # files of HHH's or HarmfulVsEthical's form: is the right answer still the likelier one?
    margin: float = Field(0.10, gt=0, lt=0.5)  # by so much the benign win rate may lie below a half; smaller needs more
    scorer: RewardSource | None = None  # who judges, in the form of models.reward; None: who labelled the pairs
    max_tokens: int = Field(256, ge=8)  # new tokens at most
    temperature: float = Field(0.0, ge=0)  # 0 is greedy
    top_p: ClassVar[float] = 0.95
    batch_size: int = Field(32, ge=1)


class Export(Section):
    merged: bool = False  # True: the policy as one model as well, in export/merged_model/; as large as the base
