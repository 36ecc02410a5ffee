from e2b import Sandbox
sandbox = Sandbox.create()
print(sandbox.commands.run("uname -a").stdout)
sandbox.kill()
