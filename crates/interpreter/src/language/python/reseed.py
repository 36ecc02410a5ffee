def _hearth_reseed():
    import os
    import random
    import sys

    # The template's own extension knows more libraries.
    extension = sys.modules.get("hearth_kernel")
    if extension is not None:
        extension.reseed()
        return
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(int.from_bytes(os.urandom(4), "little"))
    if "tempfile" in sys.modules:
        sys.modules["tempfile"]._name_sequence = None


try:
    _hearth_reseed()
finally:
    del _hearth_reseed
