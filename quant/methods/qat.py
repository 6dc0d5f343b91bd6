"""qat: quantization-aware training of weights, biases and scales on the exported quantizer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from quant.errors import UserError, unknown_name
from quant.methods import int4
from quant.methods.base import Method, Quantized
from quant.methods.int8 import check_activation_bits
from quant.pipeline import Pipeline, run
from quant.task import Task
from quant.train import missing, require
from quant.train.fit import Training, fit

HEXAGON = "hexagon"


@dataclass(frozen=True)
class QatOptions:
    """Options of the method, also on the command line."""

    train_dataset: str = field(
        default="task",
        metadata={"help": "task (its calibration samples), .npz, .parquet, folder or hub name."},
    )
    epochs: int = field(default=8, metadata={"help": "Passes over the training data."})
    learning_rate: float = field(
        default=3e-4, metadata={"help": "Per step, relative to the size of what is trained."}
    )
    batch_size: int = field(default=16, metadata={"help": "Samples per step."})
    weight_bits: int = field(default=8, metadata={"help": "4 or 8, where no step made a plan."})
    activation_bits: int = field(default=8, metadata={"help": "8 or 16, likewise."})
    target_hardware: str = field(
        default=HEXAGON, metadata={"help": "hexagon or a SoC id: the quantizer to simulate."}
    )
    fold_bn: bool = field(
        default=True, metadata={"help": "Train with BatchNormalization folded, as HTP runs it."}
    )
    loss: str = field(
        default="auto",
        metadata={"help": "labels, distill (from the float model), auto: both where labelled."},
    )
    seed: int = field(default=0, metadata={"help": "Of the order of samples."})

    def __post_init__(self) -> None:
        check_activation_bits(self.activation_bits)
        if self.weight_bits not in (4, 8):
            raise UserError(f"weight-bits {self.weight_bits} is not 4 or 8.")
        if not self.fold_bn:
            raise UserError(
                "fold-bn off would train a graph that HTP does not run: it folds every "
                "BatchNormalization.",
                "Leave fold-bn on.",
            )
        if self.target_hardware != HEXAGON:
            _check_soc(self.target_hardware)
        self.training()

    def training(self) -> Training:
        return Training(self.epochs, self.learning_rate, self.batch_size, self.loss, self.seed)


def _check_soc(name: str) -> None:
    from quant.htp.soc import SOCS, get_soc

    if name not in SOCS and not name.startswith("s"):
        raise unknown_name("target hardware", name, [HEXAGON, *SOCS])
    get_soc(name)


def apply(state: Quantized, task: Task, options: QatOptions) -> Quantized:
    from quant.datasets import load_dataset

    require("qat")
    data = load_dataset(options.train_dataset, state.model, task)
    original = state.teacher or state.model
    if not state.plan.tensors:
        bits = options.activation_bits
        if options.weight_bits == 4:
            # Every weight in 4 bits, as asked: what that loses is what training is for.
            plain = int4.Int4Options(activation_bits=bits, keep_8bit_share=0.0)
            state = int4.apply(state, task, plain)
        else:
            # Range search and bias correction: training starts nearer to where it ends.
            state = run(state, task, Pipeline(activation_bits=bits, level=1))
    fitted = fit(state, original, task, data, options.training())
    return replace(fitted.state, notes=(*state.notes, fitted.note("qat")))


QAT = Method(
    "qat", "quantization-aware training of weights and scales", QatOptions, apply, True, missing
)
