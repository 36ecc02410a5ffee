"""Display of Pillow's images when they are shown or saved."""

import functools
import importlib.util
import os
import sys

MODULE = "PIL.Image"


def install():
    """Patches Pillow, now if it is loaded, otherwise right after its import."""
    if MODULE in sys.modules:
        _patch(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Import hook for one module; removes itself when the module is loaded."""

    def __init__(self):
        self.is_searching = False

    def find_spec(self, name, path=None, target=None):
        if name != MODULE or self.is_searching:
            return None
        self.is_searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.is_searching = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _patch(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = exec_module
        return spec


def _patch(module):
    image = module.Image
    if getattr(image.show, "of_hearth", False):
        return
    save = image.save
    # Forked children inherit the patch, but must not write to the kernel's sockets.
    kernel = os.getpid()

    def show(self, *arguments, **options):
        _display(self, kernel)

    @functools.wraps(save)
    def save_and_display(self, fp, *arguments, **options):
        result = save(self, fp, *arguments, **options)
        if isinstance(fp, str):
            _display(self, kernel)
        return result

    show.of_hearth = True
    image.show = functools.wraps(image.show)(show)
    image.save = save_and_display


def _display(image, kernel):
    if os.getpid() != kernel:
        return
    from IPython.display import display

    display(image)
