"""What Python runs first in processes that tests start under `--mask-features`."""

import feature_mask

found = feature_mask.installed()
if found is not None:
    feature_mask.install(found)
