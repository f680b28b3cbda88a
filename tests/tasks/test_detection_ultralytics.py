"""The optional head: nothing but computing, and it learns."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import pytest
import torch
from torchvision.ops import box_iou

from medvlp.errors import ConfigError
from medvlp.tasks.detection import ultralytics_head
from medvlp.tasks.detection.decode import detect
from medvlp.tasks.detection.loss import truth_of
from medvlp.tasks.detection.pyramid import plan_levels
from medvlp.tasks.detection.ultralytics_head import UltralyticsYOLOv3

needs_package = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="the detection extra (ultralytics, AGPL-3.0) is not installed"
)


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ultralytics_head, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'medvlp\[detection\]'"):
        UltralyticsYOLOv3(plan_levels([8, 16, 32]), [8, 8, 8], (64, 64))


def test_the_package_is_not_imported_before_such_a_head_is_built():
    code = "import sys, medvlp.tasks.detection.ultralytics_head; assert 'ultralytics' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_package
def test_importing_it_changes_nothing_and_calls_nobody(tmp_path):
    code = """
        import os, socket, sys, warnings
        import numpy as np, torch
        from medvlp.tasks.detection.ultralytics_head import import_ultralytics

        def refused(*args, **kwargs):
            raise AssertionError(f"network: {args}")

        class Socket(socket.socket):
            connect = connect_ex = sendto = refused

        socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refused
        socket.socket = Socket
        del os.environ["OMP_NUM_THREADS"]
        def state():
            return torch.save, str(torch.tensor([1.23456, 2e5])), np.get_printoptions(), warnings.filters[:]

        environment, before = dict(os.environ), state()
        package, tasks, utils, events = import_ultralytics("", "nn.tasks", "utils", "utils.events")
        changed = {k for k in {**os.environ, **environment} if os.environ.get(k) != environment.get(k)}
        assert changed == {"YOLO_OFFLINE", "YOLO_AUTOINSTALL", "YOLO_VERBOSE"}, changed
        assert state() == before, (state(), before)
        assert not package.settings["sync"] and not utils.ONLINE and not events.events.enabled
        assert not utils.AUTOINSTALL
        import_ultralytics("utils.loss")
        print(package.settings.file)
    """
    home = tmp_path / "home"
    home.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO", "XDG", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**clean, "HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ltralytics" not in done.stderr
    assert [p for p in home.rglob("*") if p.is_file()] == []
    assert not os.path.exists(done.stdout.strip())


def small(size=64, width=0.0625, channels=(16, 16, 16), classes=1):
    torch.manual_seed(0)
    return UltralyticsYOLOv3(plan_levels([8, 16, 32]), channels, (size, size), classes, width)


def pyramid(grids, channels=(16, 16, 16), batch=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, c, g, g, generator=generator) for c, g in zip(channels, grids, strict=True)]


@needs_package
@pytest.mark.parametrize(("size", "grids"), [(64, (8, 4, 2)), (75, (10, 5, 3)), (112, (14, 7, 4))])
def test_any_widths_and_sizes(size, grids):
    channels = (8, 24, 40)
    head = small(size, channels=channels, classes=2)
    features = pyramid(grids, channels)
    truth = truth_of(
        [torch.tensor([[5.0, 8.0, 40.0, 60.0]]), torch.zeros(0, 4)],
        [torch.tensor([1]), torch.zeros(0, dtype=torch.long)],
        (size, size),
    )
    terms = head.loss(head(features), truth)
    assert set(terms) == {"box", "classes", "dfl"}
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.requires_grad)
    with pytest.raises(ConfigError, match="evaluation mode"):
        head.decode(head(features))
    head.eval()
    outputs = head(features)
    found = head.decode(outputs)
    coarse = grids[2]
    assert found.boxes.shape == (2, 21 * coarse * coarse, 4)
    assert found.classes.shape == (2, 21 * coarse * coarse, 2)
    # every cell's centre lies in the image, whatever its size
    centre = (found.boxes[..., :2] + found.boxes[..., 2:]) / 2
    assert (centre.mean((0, 1)) - size / 2).abs().max() < size / 4
    # the loss is to be had in evaluation mode too
    assert sum(head.loss(outputs, truth).values()).isfinite()


@needs_package
def test_a_batch_without_boxes():
    head = small()
    terms = head.loss(head(pyramid((8, 4, 2))), truth_of([torch.zeros(0, 4)] * 2, None, (64, 64)))
    sum(terms.values()).backward()
    assert terms["classes"].isfinite()
    assert terms["box"] == terms["dfl"] == 0


@needs_package
def test_boxes_keep_their_digits_under_autocast():
    head = small().eval()
    features = pyramid((8, 4, 2))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = head.decode(head(features))
    with torch.no_grad():
        want = head.decode(head(features))
    assert found.boxes.dtype == torch.float32
    assert (found.boxes - want.boxes).abs().max() < 0.5
    assert head.loss(head(features), truth_of([torch.zeros(0, 4)] * 2, None, (64, 64)))["classes"].isfinite()


@needs_package
def test_squares_only():
    with pytest.raises(ConfigError, match="square"):
        UltralyticsYOLOv3(plan_levels([8, 16, 32]), [8, 8, 8], (64, 96))


@needs_package
def test_it_learns_three_images_by_heart():
    size = 64
    boxes = [torch.tensor([[8.0, 10.0, 30.0, 40.0], [36.0, 36.0, 60.0, 52.0]]), torch.tensor([[20.0, 4.0, 44.0, 50.0]])]
    boxes.append(torch.zeros(0, 4))
    head = small(size, width=0.125)
    features = pyramid((8, 4, 2), batch=3)
    truth = truth_of(boxes, None, (size, size))
    optimiser = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        sum(head.loss(head(features), truth).values()).backward()
        optimiser.step()
    head.eval()
    with torch.no_grad():
        found = detect(head.decode(head(features)), min_score=0.05)
    for box, score, wanted in zip(found.per_image(found.boxes), found.per_image(found.scores), boxes, strict=True):
        assert len(wanted) == 0 or box_iou(wanted, box[: len(wanted)]).amax(1).min() > 0.75
        assert (score[: len(wanted)] > 0.5).all()
        assert (score[len(wanted) :] < 0.5).all()
