"""The parameters of some networks, as shapes."""

from collections.abc import Callable, Iterator

Shape = tuple[int, ...]


def mlp() -> Iterator[Shape]:
    """A small classifier with batch norm: 10 tensors, 0.03 M parameters."""
    for inputs, outputs in ((64, 128), (128, 128)):
        yield from ((outputs, inputs), (outputs,), (outputs,), (outputs,))
    yield from ((10, 128), (10,))


def small() -> Iterator[Shape]:
    """256 tensors of 1,024."""
    yield from [(1024,)] * 256


def lora() -> Iterator[Shape]:
    """128 pairs of rank 8 for layers of 1,024: 256 tensors, 2.1 M parameters."""
    yield from [(8, 1024), (1024, 8)] * 128


def mobilenet_v2() -> Iterator[Shape]:
    """Sandler et al. 2018, width 1: 158 tensors, 3.5 M parameters."""

    def conv(outputs: int, inputs: int, size: int) -> Iterator[Shape]:
        yield from ((outputs, inputs, size, size), (outputs,), (outputs,))

    yield from conv(32, 3, 3)
    channels = 32
    for expansion, outputs, repeats in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        for _ in range(repeats):
            hidden = channels * expansion
            if expansion > 1:
                yield from conv(hidden, channels, 1)
            yield from conv(hidden, 1, 3)
            yield from conv(outputs, hidden, 1)
            channels = outputs
    yield from conv(1280, channels, 1)
    yield from ((1000, 1280), (1000,))


def resnet50() -> Iterator[Shape]:
    """He et al. 2015: 161 tensors, 25.6 M parameters."""

    def conv(outputs: int, inputs: int, size: int) -> Iterator[Shape]:
        yield from ((outputs, inputs, size, size), (outputs,), (outputs,))

    yield from conv(64, 3, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from conv(width, channels, 1)
            yield from conv(width, width, 3)
            yield from conv(4 * width, width, 1)
            if block == 0:
                yield from conv(4 * width, channels, 1)
            channels = 4 * width
    yield from ((1000, channels), (1000,))


def gpt2() -> Iterator[Shape]:
    """Radford et al. 2019, small: 148 tensors, 124 M parameters."""
    width = 768
    yield from ((50257, width), (1024, width))
    for _ in range(12):
        yield from ((width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,))
        yield from ((width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,))
    yield from ((width,), (width,))


LISTS: dict[str, Callable[[], Iterator[Shape]]] = {
    "mlp": mlp,
    "256x1024": small,
    "lora": lora,
    "mobilenet-v2": mobilenet_v2,
    "resnet-50": resnet50,
    "gpt2": gpt2,
}
