from __future__ import annotations

import subprocess
import sys

import lightning_taylor

PUBLIC = {
    "TaylorPruning", "Target", "Gradual", "Iterative", "OneShot",
    "Guard", "load_pruned", "PrunedCheckpointMixin", "PrunedModelCheckpoint",
    "Criterion", "Taylor", "TaylorBatch", "WeightMagnitude", "Random",
    "ActivationMean", "ActivationStd", "APoZ", "MutualInformation", "OBD", "Combined",
    "inspect_model", "Inspection", "export_onnx", "export_program", "export_state_dict", "register_attributes",
    "trace_channels", "prune_channels", "ChannelGraph", "ChannelGroup",
    "PruningError", "NothingToPruneError", "OptimizerStateError", "TargetUnreachableError",
    "UncoupledChannelsError", "UnsupportedModelError",
}  # fmt: skip


def test_the_public_names_are_one_page() -> None:
    assert set(lightning_taylor.__all__) == PUBLIC
    assert all(getattr(lightning_taylor, name).__doc__ for name in PUBLIC)


def test_importing_the_package_loads_no_extra_and_changes_nothing() -> None:
    code = (
        # torchmetrics loads matplotlib by itself where it is installed.
        "import sys, torch, lightning.pytorch, torchmetrics; loaded = set(sys.modules); "
        "before = torch.get_default_dtype(), torch.get_num_threads(); "
        "import lightning_taylor; "
        "assert before == (torch.get_default_dtype(), torch.get_num_threads()); "
        "extras = {'sklearn', 'matplotlib', 'jsonargparse', 'onnx', 'pytorch_lightning', 'wandb'}; "
        "assert not {*extras, 'lightning_taylor.cli'} & (set(sys.modules) - loaded)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
