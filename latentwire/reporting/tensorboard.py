"""Training logs for TensorBoard, of a run that is done or still going on."""

import shutil

from latentwire.errors import UserError
from latentwire.layout import Layout
from latentwire.reporting.training_log import read_training_log
from latentwire.training.loop import METRICS


def write_events(layout: Layout, wire: str, seed: int) -> None:
    """Writes every value of a wire's log as a scalar, in the place of an earlier copy.

    Raises:
        UserError: if TensorBoard is not installed, or the wire has no log yet.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "TensorBoard is not installed; run: pip install 'latentwire[tensorboard]'"
        ) from None
    run = f"{wire}-seed{seed}"
    going_on = layout.state(run) / METRICS
    rows = read_training_log(going_on if going_on.is_file() else layout.wire(wire, seed) / METRICS)
    folder = layout.events(run)
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for key, value in row.items():
                if key != "step":
                    writer.add_scalar(key, value, int(row["step"]))
