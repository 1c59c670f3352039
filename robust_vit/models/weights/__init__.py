"""Weights to and from PyTorch state dicts and on disk: strict, with a report, and without running pickled code.

```python
from robust_vit.models import weights

module, variables, report = weights.load_torch("xcit_small_12_p16_224", "xcit_small_12_p16_224.pth")
print(report)
weights.save_timm("out.safetensors", module, variables)  # timm's names
weights.save_converted("converted/", "xcit_small_12_p16_224", module, variables, report=report)
module, variables, description = weights.load_converted("converted/")
```

Rooms: `state_dicts` what a file is and where its weights are (`pickle_tensors` reads PyTorch's), `dialects` other
spellings of the names, `timm_names` the one rule from names to our tree, `torch_weights` loading by it, `adapt` another
head or image size, `twins` which other models the shapes fit, `converted` our own folders.
"""

from robust_vit.models.weights.converted import load as load_converted
from robust_vit.models.weights.converted import save as save_converted
from robust_vit.models.weights.converted import verify
from robust_vit.models.weights.loading_report import LoadingReport
from robust_vit.models.weights.state_dicts import read as read_state_dict
from robust_vit.models.weights.torch_weights import from_timm, save_timm, to_timm
from robust_vit.models.weights.torch_weights import load as load_torch

__all__ = [
    "LoadingReport",
    "from_timm",
    "load_converted",
    "load_torch",
    "read_state_dict",
    "save_converted",
    "save_timm",
    "to_timm",
    "verify",
]
