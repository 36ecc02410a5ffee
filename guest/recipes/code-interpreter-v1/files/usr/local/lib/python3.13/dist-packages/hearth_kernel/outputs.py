"""Delivery of every output, however slowly it is read."""

import zmq


def keep_all(shell):
    """Makes the kernel wait for a slow reader instead of dropping its outputs.

    A publisher drops what exceeds its limit, which would lose outputs of a loop, and also the end of an execution.
    """
    kernel = getattr(shell, "kernel", None)
    thread = getattr(kernel, "iopub_thread", None)
    if thread is None:
        return
    # Sockets belong to one thread.
    thread.schedule(lambda: thread.socket.setsockopt(zmq.XPUB_NODROP, 1))
