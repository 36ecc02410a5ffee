// ComputeSDK with its E2B provider: sandboxes one after another, as in its benchmark, and all operations on one sandbox.

import assert from 'node:assert/strict'
import { test } from 'node:test'

import { e2b } from '@computesdk/e2b'
import { compute } from 'computesdk'

const SANDBOXES = 4
const PORT = 8000

compute.setConfig({ provider: e2b({ apiKey: process.env.E2B_API_KEY, timeout: 300_000 }) })

/** Fetches a URL of a service that may not listen yet, and returns the body. */
async function served(url) {
  for (let tries = 0; tries < 300; tries++) {
    const response = await fetch(url)
    if (response.status === 200) return await response.text()
    await response.arrayBuffer()
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error(`${url} does not reply`)
}

test('one sandbox after another', { timeout: 240_000 }, async () => {
  for (let made = 0; made < SANDBOXES; made++) {
    const sandbox = await compute.sandbox.create()
    try {
      assert.equal((await sandbox.runCommand('echo "hello"')).stdout, 'hello\n')
    } finally {
      await sandbox.destroy()
    }
    assert.equal(await compute.sandbox.getById(sandbox.sandboxId), null)
  }
})

test('commands, files and addresses', { timeout: 240_000 }, async () => {
  const sandbox = await compute.sandbox.create({ envs: { TOLD: 'everywhere' } })
  try {
    const failed = await sandbox.runCommand('echo $TOLD; echo aside >&2; exit 3')
    assert.deepEqual([failed.exitCode, failed.stdout, failed.stderr], [3, 'everywhere\n', 'aside\n'])
    const placed = await sandbox.runCommand('printenv NAME && pwd', { cwd: '/tmp', env: { NAME: 'own' } })
    assert.equal(placed.stdout, 'own\n/tmp\n')

    await sandbox.filesystem.mkdir('/home/user/site')
    await sandbox.filesystem.writeFile('/home/user/site/index.html', 'served')
    assert.equal(await sandbox.filesystem.readFile('/home/user/site/index.html'), 'served')
    assert.deepEqual((await sandbox.filesystem.readdir('/home/user/site')).map((entry) => entry.name), ['index.html'])
    assert.equal(await sandbox.filesystem.exists('/home/user/nobody'), false)

    // Without `cwd`: with it, the provider runs `nohup cd ... && ...`, which starts nothing.
    await sandbox.runCommand(`python3 -m http.server ${PORT} --directory /home/user/site`, { background: true })
    assert.equal(await served(await sandbox.getUrl({ port: PORT })), 'served')

    const again = await compute.sandbox.getById(sandbox.sandboxId)
    assert.equal((await again.runCommand('cat site/index.html')).stdout, 'served')
    assert.ok((await compute.sandbox.list()).some((other) => other.sandboxId === sandbox.sandboxId))
    await sandbox.filesystem.remove('/home/user/site/index.html')
    assert.equal(await sandbox.filesystem.exists('/home/user/site/index.html'), false)
  } finally {
    await sandbox.destroy()
  }
})
