"""IPython extension of the code interpreter's Python kernel.

`formatters` adds JSON, tables and charts to displayed objects, `images` displays Pillow's images, `entropy` replaces
random state that restored sandboxes would share, and `warming` loads what most users need before the snapshot is taken.
Nothing imports a large package when the kernel starts.
"""

from . import formatters, images, outputs
from .entropy import reseed
from .warming import warm_up

__all__ = ["load_ipython_extension", "reseed", "warm_up"]


def load_ipython_extension(shell):
    """Registers the formatters and hooks; IPython calls it when the kernel starts."""
    formatters.register(shell)
    images.install()
    outputs.keep_all(shell)
