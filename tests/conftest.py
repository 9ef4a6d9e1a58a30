"""Settings for every test: one thread (small tensors run 20 times faster with it), no request to any Hub."""

import os

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
# autograd counts the devices at its first backward pass: after torch.export it would count one that is only
# imagined, start a thread for it, and no process forked from this one could go backward any more
torch.ones(1, requires_grad=True).sum().backward()


# files that take longest come first, so that no process is left with one of them in the end
LONGEST = (
    "test_browser", "test_browser_journey", "test_faults", "test_workshop", "test_table", "test_state",
    "test_together", "test_baselines", "test_journey", "test_stream", "test_export", "test_run",
    "test_scaling", "test_search", "test_fast", "test_publish", "test_finetune", "test_segment_dataset",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    def place(item):
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)  # stable: all else stays in order
