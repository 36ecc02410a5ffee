# IPython configuration of the kernel `python3`; its kernelspec names this file.
c = get_config()  # noqa: F821

c.InteractiveShellApp.extensions = ["hearth_kernel"]
# Tracebacks are read by programs.
c.InteractiveShell.colors = "nocolor"
# Long lists, sets and dictionaries are printed completely.
c.PlainTextFormatter.max_seq_length = 0
# The history would be a database file and a thread per kernel, which nobody reads.
c.HistoryManager.enabled = False
