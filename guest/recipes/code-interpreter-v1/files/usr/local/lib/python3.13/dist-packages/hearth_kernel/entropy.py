"""Fresh random state for a kernel that was restored from a snapshot."""

import os
import random
import sys
import tempfile


def reseed():
    """Replaces the random state that other sandboxes of the same snapshot share.

    The server calls it, silently, before the first execution after a restore. Generators that the user created are
    not changed.
    """
    random.seed()
    # Names of temporary files come from a generator of their own.
    tempfile._name_sequence = None
    for module, renew in (("numpy.random", _numpy), ("ssl", _ssl), ("uuid", _uuid), ("torch", _torch)):
        if module in sys.modules:
            renew(sys.modules[module])


def _numpy(module):
    module.seed()


def _ssl(module):
    # OpenSSL reads new entropy only after an hour.
    module.RAND_add(os.urandom(32), 32.0)


def _uuid(module):
    # libuuid derives version 1 from the network address and its own state, both of which are in the snapshot.
    module._generate_time_safe = None
    module._node = module._random_getnode()
    module._last_timestamp = None


def _torch(module):
    module.seed()
