"""Checks and times what a GPU worker does with chips: reduction of raw frames, and the networks.

    python benchmarks/gpu_infer.py                                     # a GPU, full-size frames
    python benchmarks/gpu_infer.py --frame 512 640 --images 3 --batches 2 --repeats 1    # a processor, to try it

Needs torch, torchvision, numpy and numba alone. Frames come from the host's memory, so no disk is timed. Prints tables,
and one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from csst_dask.inference.device import choose_device, choose_precision, is_out_of_memory
from csst_dask.instrument.flags import mask_table
from csst_dask.models.classifiers import CLASSIFIERS, build_classifier
from csst_dask.models.density import PERCEPTRON, build_density_network
from csst_dask.models.regressor import build_regressor
from csst_dask.preprocess import measure_image, standardised
from csst_dask.preprocess.frames_torch import Frame, FrameMeasurer
from csst_dask.preprocess.inputs import SCALARS, context_length, histogram_length, make_context
from csst_dask.preprocess.kernels import decode_rows
from csst_dask.schema import BLOCK_SHAPE, FRAME_SHAPE, Mask

FLAG_BITS = {0: "bad", 1: "hot", 2: "hot", 3: "saturated", 4: "cosmic_ray", 5: "trail", 6: "ghost", 7: "ghost"}
INVALID = 0xFF & ~int(Mask.GHOST)
PAPER = {"resnet34 classifier": 2.77, "densenet121 classifier": 6.56, "alexnet classifier": 7.92}
"""Latencies of the paper's table of classifiers, ms an image; it names no batch."""
PAPER_REGRESSOR = 0.1
"""What the paper states for its regressor, ms an image."""
CHANNELS = {"classifier": 2, "regressor": 2}


def raw_frame(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Big-endian pixels, flags and weights, as files hold them."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal(shape, np.float32) * np.float32(0.05) + np.float32(0.2)
    stars = shape[0] * shape[1] // 2000
    image[rng.integers(0, shape[0], stars), rng.integers(0, shape[1], stars)] += 20
    image[rng.integers(0, shape[0], 999), rng.integers(0, shape[1], 999)] = np.nan
    flags, weights = np.zeros(shape, np.uint16), np.ones(shape, np.float32)
    for bit in range(8):
        flags[rng.integers(0, shape[0], 999), rng.integers(0, shape[1], 999)] |= np.uint16(1 << bit)
    weights[rng.integers(0, shape[0], 999), rng.integers(0, shape[1], 999)] = 0
    return image.astype(">f4"), flags.astype(">u2"), weights.astype(">f4")


def rows_of(parts: tuple) -> Callable:
    """As a file gives them."""
    return lambda y0, y1: tuple(None if part is None else part[y0:y1] for part in parts)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall time after a first call, the device's work included."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def check(measurer: FrameMeasurer, frame: Frame, parts: tuple) -> dict:
    """The device's mask and maps against those of the compiled loops."""
    image, flags, weights = (np.ascontiguousarray(part, part.dtype.newbyteorder("=")) for part in parts)
    native, mask = np.empty_like(image), np.empty(image.shape, np.uint8)
    bits = np.uint8(Mask.NONFINITE), np.uint8(Mask.BAD)
    decode_rows(image, flags, weights, mask_table(FLAG_BITS), *bits, native, mask)
    expected = measure_image(native, mask, invalid=INVALID)
    frame.fill(rows_of(parts))
    pixels, found_mask = measurer.decode(frame, kept=True)
    found = measurer.measure(pixels, found_mask)
    assert found_mask is not None
    return {
        "largest error of the standardised maps": float(np.abs(standardised(found) - standardised(expected)).max()),
        "mask bits equal": bool(np.array_equal(found_mask.cpu().numpy(), mask)),
        "valid pixels equal": found.n_valid == expected.n_valid,
    }


def bandwidth(shape: tuple[int, int], device: torch.device, repeats: int) -> dict:
    """Plain copies of one image: from pinned memory to the device, and on it, bytes/s."""
    host = torch.zeros(shape, pin_memory=device.type == "cuda")
    there, other = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    size = host.numel() * host.element_size()
    sent = seconds(lambda: there.copy_(host, non_blocking=True), device, max(repeats, 3))
    moved = seconds(lambda: other.copy_(there), device, max(repeats, 3))
    return {"to the device": size / sent, "on the device": 2 * size / moved}


def reduction(measurer: FrameMeasurer, frames: list[Frame], parts: tuple, images: int, repeats: int) -> dict:
    """Images per second with reading ahead, and of the device alone."""
    device = measurer.device

    def stream() -> None:
        left = iter(range(images))
        with ThreadPoolExecutor(1) as pool:
            waiting = deque(
                (frame, pool.submit(frame.fill, rows_of(parts))) for frame, _ in zip(frames, left, strict=False)
            )
            while waiting:
                frame, filled = waiting.popleft()
                filled.result()
                measurer.measure(*measurer.decode(frame))
                waiting.extend((frame, pool.submit(frame.fill, rows_of(parts))) for _ in [None][: next(left, -1) >= 0])

    def alone() -> None:  # every second time of pixels in the wrong byte order, which takes as long
        measurer.measure(*measurer.decode(frames[0]))

    whole = seconds(stream, device, repeats) / images
    frames[0].fill(rows_of(parts))
    alone_s = seconds(alone, device, repeats)
    return {"seconds an image": whole, "seconds on the device": alone_s}


def networks(names: list[str]) -> dict[str, tuple[str, nn.Module]]:
    """What to time: maps or context, and the network."""
    known: dict[str, Callable[[], tuple[str, nn.Module]]] = {
        f"{arch} classifier": lambda arch=arch: ("maps", build_classifier(arch, CHANNELS["classifier"]))
        for arch in CLASSIFIERS
        if arch != "resnet18"
    }
    known["resnet50 regressor"] = lambda: ("maps", build_regressor("resnet50", CHANNELS["regressor"]))
    length, bins = context_length("context"), histogram_length("context")
    known["default perceptron"] = lambda: ("context", build_density_network(PERCEPTRON, 0, length, bins))
    return {name: known[name]() for name in known if not names or name.split()[0] in names}


def inference(
    kind: str, network: nn.Module, batches: list[int], device: torch.device, precision: torch.dtype, repeats: int
) -> dict:
    """ms per image at the best batch."""
    network = network.eval().to(device, memory_format=torch.channels_last)
    best = {"ms an image": float("inf"), "batch": 0}
    for batch in batches:
        shape = (batch, CHANNELS["classifier"], *BLOCK_SHAPE) if kind == "maps" else (batch, context_length(kind))
        inputs = torch.zeros(shape, device=device)
        if kind == "maps":
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        arguments = (inputs,) if kind == "maps" else (None, inputs)

        @torch.inference_mode()
        def work(arguments: tuple = arguments) -> None:
            with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
                network(*arguments)

        try:
            found = 1e3 * seconds(work, device, repeats) / batch
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if found < best["ms an image"]:
            best = {"ms an image": found, "batch": batch}
    return best


def context_ms(maps: np.ndarray, repeats: int) -> float:
    """ms of one processor thread for the context of a chip."""
    scalars = dict(zip(SCALARS, ([0.2], [0.06], [0.2], [0.05]), strict=True))
    block = maps[None].astype(np.float32)
    return 1e3 * seconds(lambda: make_context("context", block, scalars, ["g"]), torch.device("cpu"), max(repeats, 3))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--frame", type=int, nargs=2, default=FRAME_SHAPE)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256, 512])
    parser.add_argument("--networks", nargs="*", default=[], help="names such as resnet34; by default all")
    parser.add_argument("--amp", choices=["auto", "bf16", "fp16", "off"], default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device, shape = torch.device(choose_device(options.device)), (options.frame[0], options.frame[1])
    precision = choose_precision(options.amp, device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision is not torch.float32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}, {str(precision).removeprefix('torch.')}, frames of {shape}")
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    frames = [Frame(shape, device, stream) for _ in range(2)]
    measurer = FrameMeasurer(shape, device, mask_table(FLAG_BITS), INVALID, int(Mask.NONFINITE), int(Mask.BAD))
    parts, out = raw_frame(shape, 0), {"device": name, "precision": str(precision), "frame": shape}
    out["check"] = check(measurer, frames[0], parts)
    for what, value in out["check"].items():
        print(f"{what}: {value}")
    out["bandwidth"] = speed = bandwidth(shape, device, options.repeats)
    print("copies, GB/s: " + ", ".join(f"{what} {value / 1e9:.1f}" for what, value in speed.items()))
    out["reduction"] = {}
    print(f"\n{'reduction of':26}{'images/s':>10}{'share of':>10}{'images/s of':>13}{'share of its':>14}")
    print(f"{'':26}{'':>10}{'the link':>10}{'device alone':>13}{'memory':>14}")
    for what, sent in (("image", parts[:1]), ("image, flags and weights", parts)):
        bytes_sent = sum(part.nbytes for part in sent)
        padded = (*sent, *[None] * (3 - len(sent)))
        found = reduction(measurer, frames, padded, options.images, options.repeats)
        found["share of the link"] = bytes_sent / found["seconds an image"] / speed["to the device"]
        found["share of the memory"] = bytes_sent / found["seconds on the device"] / speed["on the device"]
        out["reduction"][what] = found
        print(
            f"{what:26}{1 / found['seconds an image']:10.2f}{found['share of the link']:10.1%}"
            f"{1 / found['seconds on the device']:13.2f}{found['share of the memory']:14.1%}"
        )
    out["context, ms a chip and thread"] = context_ms(measure_image(parts[0]).maps, options.repeats)
    print(f"\ncontext on the processor: {out['context, ms a chip and thread']:.2f} ms a chip and thread")
    out["networks"] = {}
    print(f"\n{'network':26}{'ms an image':>12}{'batch':>7}{'paper':>8}")
    for what, (kind, network) in networks(options.networks).items():
        found = inference(kind, network, options.batches, device, precision, options.repeats)
        paper = PAPER_REGRESSOR if "regressor" in what else PAPER.get(what)
        out["networks"][what] = found | {"paper": paper}
        print(f"{what:26}{found['ms an image']:12.3f}{found['batch']:7}{paper or '':>8}")
        del network
    print("\n" + json.dumps(out))


if __name__ == "__main__":
    main()
