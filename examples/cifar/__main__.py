"""The command line: `python -m examples.cifar ARCHIVE --network resnet18 --transform wat --output runs/wat`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from watnn.bench.networks import NETWORKS
from watnn.transforms import WAT, DropConnect, MultiplicativeNoise, RandomAffine, RandomResizedCrop

from .archive import SOURCE, Cifar, Images, read_archive
from .batches import Normalization
from .evaluation import draw_keys, evaluate
from .logs import TensorBoard, results_table, write_epochs, write_results
from .recipes import RECIPES
from .training import Training

TRANSFORMS = {
    "none": None,
    "wat": WAT(),
    "translate": RandomAffine(degrees=0, translate=(0.3, 0.3)),
    "crop": RandomResizedCrop(scale=(0.8, 1.0)),
    "damp": MultiplicativeNoise(0.1),
    "dropconnect": DropConnect(0.1),
}
_DECISIVE = ("network", "width", "recipe", "transform", "gain", "epochs", "batch", "seed")  # of a training's course
_CHECKPOINT = "checkpoint.pt"
_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, tests and writes; returns the exit status: 0 done, 2 bad arguments or data, 130 stopped by Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        job = _prepare(arguments)
    except (ValueError, ImportError) as error:
        print(f"cifar: {error}", file=sys.stderr)
        return 2
    console = Console(highlight=False)
    precision = "bf16" if RECIPES[arguments.recipe].autocasts(job.device) else "fp32"
    console.print(
        f"{NETWORKS[arguments.network].title} on {job.data.name}, {len(job.data.train.labels)} images; recipe "
        f"{arguments.recipe}, transform {arguments.transform}, {job.device}, {precision}"
    )
    training, output = job.training, arguments.output
    _train(job, output, console)
    if not training.finished:
        console.print(
            f"stopped after {training.steps_done} of {training.steps} steps; --resume goes on", soft_wrap=True
        )
        return _INTERRUPTED
    keys = draw_keys(arguments.draws, arguments.seed)
    scores = evaluate(training.model, job.data, job.normalization, keys)
    write_results(output / "results.json", job.settings, scores)
    console.print(results_table(scores))
    console.print(f"written to {output}: epochs.csv, results.json, checkpoint.pt", soft_wrap=True)
    return 0


class _Job(NamedTuple):
    """What the arguments ask for, ready to run. settings: what decides the course of the training"""

    device: torch.device
    data: Cifar
    normalization: Normalization
    settings: dict[str, object]
    training: Training
    board: TensorBoard | None


def _prepare(arguments: argparse.Namespace) -> _Job:
    """Everything that can be refused is refused here, with ValueError or ImportError of one line."""
    checkpoint = arguments.output / _CHECKPOINT
    if arguments.resume and not checkpoint.is_file():
        raise ValueError(f"--resume: there is no {checkpoint}")
    if checkpoint.is_file() and not arguments.resume:
        raise ValueError(f"{checkpoint} exists; --resume continues it, another --output starts again")
    if arguments.transform == "none" and arguments.gain != "none":
        raise ValueError(f"--gain {arguments.gain} has no layer to scale with --transform none")
    device = _device(arguments.device)
    data = _on(read_archive(arguments.archive, arguments.checksum), device)
    settings = {"data": data.name, "images": len(data.train.labels)}
    settings |= {name: getattr(arguments, name) for name in _DECISIVE}
    torch.manual_seed(arguments.seed)
    model = _model(arguments, len(data.classes)).to(device).to(memory_format=torch.channels_last)
    normalization = Normalization(data.train)
    training = Training(
        model,
        RECIPES[arguments.recipe],
        data.train,
        data.test,
        normalization,
        batch=arguments.batch,
        epochs=arguments.epochs,
        seed=arguments.seed,
    )
    if arguments.resume:
        training.load(checkpoint, settings)
    board = TensorBoard(arguments.output / "tensorboard", len(training.history)) if arguments.tensorboard else None
    return _Job(device, data, normalization, settings, training, board)


def _device(name: str | None) -> torch.device:
    try:
        return torch.empty(0, device=name or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch built without CUDA
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from None


def _model(arguments: argparse.Namespace, classes: int) -> nn.Module:
    """The network, converted where the paper applies WAT."""
    network, transform = NETWORKS[arguments.network], TRANSFORMS[arguments.transform]
    model = network.build(num_classes=classes, width_multiplier=arguments.width)
    if transform is None:
        return model
    return network.convert(model, transform, gain=None if arguments.gain == "none" else arguments.gain)


def _train(job: _Job, output: Path, console: Console) -> None:
    """Until the end or Ctrl-C, which lets the step under way finish; a checkpoint after each epoch and at the stop."""
    output.mkdir(parents=True, exist_ok=True)
    training = job.training
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    progress = Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)
    with _ctrl_c() as stopped, progress:
        task = progress.add_task(
            "", total=training.steps, completed=training.steps_done, epoch=len(training.history) + 1
        )
        while not training.finished and not stopped():
            if training.step():
                record = training.history[-1]
                training.save(output / _CHECKPOINT, job.settings)
                write_epochs(output / "epochs.csv", training.history)
                if job.board:
                    job.board.add(record)
                progress.console.print(
                    f"epoch {record['epoch']}: loss {record['train_loss']:.4f}, train {record['train_accuracy']:.2f} %, "
                    f"test {record['test_accuracy']:.2f} % (AOM), {record['seconds']:.1f} s"
                )
            progress.update(task, completed=training.steps_done, epoch=min(len(training.history) + 1, training.epochs))
        if not training.finished:
            training.save(output / _CHECKPOINT, job.settings)
    if job.board:
        job.board.close()


@contextmanager
def _ctrl_c() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed in the block, in place of the exception; a second time it is the exception again."""
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _on(data: Cifar, device: torch.device) -> Cifar:
    train, test = (Images(*(tensor.to(device) for tensor in images)) for images in (data.train, data.test))
    return data._replace(train=train, test=test)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}; accepted is a number above 0")
    return value


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}; accepted is a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.cifar", description="Trains one of the six networks of the "
        "WAT paper on CIFAR-10 or CIFAR-100, and tests it in AOM and DOM.")  # fmt: skip
    parser.add_argument("archive", type=Path, help=f"cifar-10-python.tar.gz or cifar-100-python.tar.gz, from {SOURCE}")
    parser.add_argument("--network", choices=NETWORKS, default="resnet18")
    parser.add_argument("--recipe", choices=RECIPES, default="modern", help="default modern; official: as released, "
        "SGD of rate 0.01 without augmentation")  # fmt: skip
    parser.add_argument("--transform", choices=TRANSFORMS, default="wat", help="what is drawn (default wat)")
    parser.add_argument("--gain", choices=("none", "layer", "channel"), default="none", help="a learnable scale")
    parser.add_argument("--epochs", type=_positive_int, default=200)
    parser.add_argument("--batch", type=_positive_int, default=128)
    parser.add_argument("--width", type=_positive, default=1.0, help="multiplies the networks' channel counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=_positive_int, default=4, help="draws of DOM to test (default 4)")
    parser.add_argument("--device", help="default cuda where there is one, else cpu")
    parser.add_argument("--output", type=Path, default=Path("cifar-results"), help="folder (default cifar-results)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --output")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files too")
    parser.add_argument("--no-checksum", dest="checksum", action="store_false", help="read an archive of your own")
    return parser


if __name__ == "__main__":
    sys.exit(main())
