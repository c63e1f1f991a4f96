"""Takes out of MMEngine's configs what was half of the time of a short training."""
import functools

from mmengine.config import config, utils
from yapf.yapflib import yapf_api

# Newer versions import it from yapf when a config is written.
config.FormatCode = yapf_api.FormatCode = lambda code, **kwargs: (code, True)
# The hundred metafiles of a package are read again for each base of a config.
utils.load = functools.lru_cache(utils.load)
