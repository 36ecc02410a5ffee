// Uses the SDK as a web application does. `tests/browser.test.js` bundles it and runs it in a browser.

import { AuthenticationError, CommandExitError, FileNotFoundError, Sandbox } from 'e2b'

/** Runs one journey, and returns its results for comparison in the test. */
globalThis.journey = async ({ sandboxId, ...connection }) => {
  const sandbox = await Sandbox.connect(sandboxId, connection)
  const seen = { events: [], pushed: '' }

  seen.command = (({ stdout, stderr, exitCode }) => ({ stdout, stderr, exitCode }))(
    await sandbox.commands.run('echo "from the page: $NAME"; echo oops >&2', { envs: { NAME: 'Ada' } }),
  )
  seen.exitCode = await sandbox.commands.run('exit 7').catch((error) => error instanceof CommandExitError && error.exitCode)
  const cat = await sandbox.commands.run('cat', { background: true, stdin: true, onStdout: (text) => (seen.pushed += text) })
  await cat.sendStdin('streamed')
  await cat.closeStdin()
  await cat.wait()

  await sandbox.files.makeDir('page')
  let written
  const write = new Promise((resolve) => (written = resolve))
  const watch = await sandbox.files.watchDir('page', ({ type, name }) => {
    seen.events.push([type, name])
    if (type === 'write') written()
  })
  await sandbox.files.write('page/note.txt', 'written in a browser', { metadata: { author: 'page' } })
  await write
  await watch.stop()
  seen.text = await sandbox.files.read('page/note.txt')
  await sandbox.files.write('page/bytes', new Blob([new Uint8Array([0, 255, 128])]), { gzip: true })
  seen.bytes = [...(await sandbox.files.read('page/bytes', { format: 'bytes' }))]
  seen.listed = (await sandbox.files.list('page')).map(({ name, metadata }) => [name, metadata?.author])
  seen.missing = await sandbox.files.read('page/missing').catch((error) => error instanceof FileNotFoundError)
  // The signed URL contains a domain that may not exist here, so use only its query.
  const { search } = new URL(await sandbox.downloadUrl('page/note.txt'))
  seen.signed = await (await fetch(`${connection.sandboxUrl}/files${search}`)).text()

  const headers = { 'E2b-Sandbox-Id': sandboxId, 'E2b-Sandbox-Port': '49983', 'X-Custom-Header': 'x' }
  seen.health = (await fetch(`${connection.sandboxUrl}/health`, { headers })).status
  const stranger = await fetch(`${connection.sandboxUrl}/envs`, { headers: { ...headers, 'X-Access-Token': 'wrong' } })
  seen.stranger = [stranger.status, (await stranger.json()).code]
  seen.keyless = await Sandbox.connect(sandboxId, { ...connection, apiKey: `e2b_${'0'.repeat(40)}` }).catch(
    (error) => error instanceof AuthenticationError,
  )
  seen.running = await sandbox.isRunning()
  seen.killed = await sandbox.kill()
  return seen
}
