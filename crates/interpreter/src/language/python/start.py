def _hearth_start():
    kernel = get_ipython().kernel
    try:
        import zmq

        # A publisher discards messages for a slow subscriber unless it is told to wait. Its thread owns the socket.
        thread = kernel.iopub_thread
        thread.schedule(lambda: thread.socket.setsockopt(zmq.XPUB_NODROP, 1))
    except Exception:
        pass
    try:
        from ipykernel.iostream import OutStream

        whole = OutStream._flush_buffers
        size = 256 * 1024

        # Collected output of any size would be one message.
        def parts(self):
            for parent, text in whole(self):
                for start in range(0, len(text), size):
                    yield parent, text[start : start + size]

        OutStream._flush_buffers = parts
    except Exception:
        pass
    try:
        import json

        pack = kernel.session.pack

        # The kernel fails on text that is not valid Unicode, and the message is lost.
        def pack_all(content):
            try:
                return pack(content)
            except UnicodeEncodeError:
                return json.dumps(content, default=str).encode()

        kernel.session.pack = pack_all
    except Exception:
        pass


try:
    _hearth_start()
finally:
    del _hearth_start
