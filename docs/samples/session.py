from e2b import Sandbox
sandbox = Sandbox.create()
print(sandbox.commands.run("uname -sr; nproc; df -h / | tail -1").stdout)
sandbox.files.write("sum.py", "print(sum(range(101)))")
print(sandbox.commands.run("python3 sum.py").stdout)
print(sandbox.get_info().end_at)
sandbox.kill()
