import { Sandbox } from 'e2b'
const sandbox = await Sandbox.create()
console.log((await sandbox.commands.run('uname -a')).stdout)
await sandbox.kill()
