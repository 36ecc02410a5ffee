// Files, watches, and a server in a sandbox.

import { createHash, randomBytes, randomUUID } from 'node:crypto'

import { FileNotFoundError, FilesystemEventType, FileType } from 'e2b'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'

import { byHeaders, SANDBOX_URL, sharedSandbox, Transcript } from '../journeys.js'

const MIB = 1024 * 1024

let sandbox
let folder
beforeAll(async () => {
  sandbox = await sharedSandbox()
})
afterAll(() => sandbox?.kill())
beforeEach(async () => {
  folder = `/home/user/${randomUUID()}`
  expect(await sandbox.files.makeDir(folder)).toBe(true)
})

describe('contents', () => {
  test('text', async () => {
    const info = await sandbox.files.write(`${folder}/new/nested/note.txt`, 'ünï')
    expect(info).toMatchObject({ name: 'note.txt', path: `${folder}/new/nested/note.txt`, type: FileType.FILE })
    expect(await sandbox.files.read(info.path)).toBe('ünï')
    await sandbox.files.write(info.path, '')
    expect(await sandbox.files.read(info.path)).toBe('')
  })

  test.each([{}, { gzip: true }, { useOctetStream: true }])('bytes of all kinds with %j', async (options) => {
    const content = randomBytes(230_000)
    const path = `${folder}/binary`
    const forms = [content.buffer.slice(content.byteOffset, content.byteOffset + content.length), new Blob([content]), new Blob([content]).stream()]
    for (const data of forms) {
      await sandbox.files.write(path, data, options)
      expect(Buffer.from(await sandbox.files.read(path, { format: 'bytes', gzip: options.gzip })).equals(content)).toBe(true)
    }
    const blob = await sandbox.files.read(path, { format: 'blob' })
    expect(Buffer.from(await blob.arrayBuffer()).equals(content)).toBe(true)
  })

  test('sixteen mebibytes as a stream both ways', async () => {
    const block = randomBytes(MIB)
    const sent = createHash('sha256')
    let number = 0
    const blocks = new ReadableStream({
      pull(controller) {
        if (number === 16) return controller.close()
        const part = Buffer.from(block)
        part.writeUInt32BE(number++)
        sent.update(part)
        controller.enqueue(new Uint8Array(part))
      },
    })
    await sandbox.files.write(`${folder}/big`, blocks)
    expect((await sandbox.files.getInfo(`${folder}/big`)).size).toBe(16 * MIB)
    const received = createHash('sha256')
    for await (const part of await sandbox.files.read(`${folder}/big`, { format: 'stream' })) received.update(part)
    expect(received.digest('hex')).toBe(sent.digest('hex'))
  })

  test('many in one request, in order', async () => {
    const entries = Array.from({ length: 10 }, (_, number) => ({ path: `${folder}/many/${number}`, data: `content ${number}` }))
    const infos = await sandbox.files.write(entries)
    expect(infos.map(({ path }) => path)).toEqual(entries.map(({ path }) => path))
    expect(await sandbox.files.read(`${folder}/many/7`)).toBe('content 7')
  })

  test('metadata', async () => {
    const info = await sandbox.files.write(`${folder}/tagged`, 'x', { metadata: { Author: 'Ada' } })
    expect(info.metadata).toEqual({ author: 'Ada' })
    expect((await sandbox.files.getInfo(`${folder}/tagged`)).metadata).toEqual({ author: 'Ada' })
  })
})

describe('entries', () => {
  test('listed in order and to a depth', async () => {
    for (const path of ['file1.txt', 'subdir2/x', 'subdir1/deep/y']) await sandbox.files.write(`${folder}/${path}`, path)
    const listed = async (depth) => (await sandbox.files.list(folder, { depth })).map(({ path }) => path.slice(folder.length + 1))
    expect(await listed(1)).toEqual(['file1.txt', 'subdir1', 'subdir2'])
    expect(await listed(3)).toEqual(['file1.txt', 'subdir1', 'subdir1/deep', 'subdir1/deep/y', 'subdir2', 'subdir2/x'])
  })

  test('described, moved and removed', async () => {
    await sandbox.files.write(`${folder}/file`, '12345')
    expect(await sandbox.files.getInfo(`${folder}/file`)).toMatchObject({
      name: 'file', type: FileType.FILE, size: 5, mode: 0o644, permissions: '-rw-r--r--', owner: 'user', group: 'user',
    })
    expect(await sandbox.files.makeDir(folder)).toBe(false)
    expect(await sandbox.files.rename(`${folder}/file`, `${folder}/a/b`)).toMatchObject({ name: 'b', path: `${folder}/a/b` })
    expect(await sandbox.files.exists(`${folder}/file`)).toBe(false)
    await sandbox.files.remove(`${folder}/a`)
    await sandbox.files.remove(`${folder}/a`)
    expect(await sandbox.files.exists(`${folder}/a/b`)).toBe(false)
  })

  test('missing ones are told', async () => {
    const path = `${folder}/missing`
    for (const format of ['text', 'bytes', 'blob', 'stream']) {
      await expect(sandbox.files.read(path, { format })).rejects.toThrow(FileNotFoundError)
    }
    await expect(sandbox.files.getInfo(path)).rejects.toThrow(FileNotFoundError)
    await expect(sandbox.files.list(path)).rejects.toThrow(FileNotFoundError)
    await expect(sandbox.files.rename(path, `${path}2`)).rejects.toThrow(FileNotFoundError)
    await expect(sandbox.files.watchDir(path, () => {})).rejects.toThrow(FileNotFoundError)
  })
})

test('watching below a folder is pushed', async () => {
  const said = new Transcript()
  const handle = await sandbox.files.watchDir(folder, (event) => said.add(`${event.type}:${event.name}:${event.entry?.path ?? ''}\n`), {
    recursive: true,
    includeEntry: true,
  })
  await sandbox.files.write(`${folder}/nested/file`, 'x')
  await said.until(`${FilesystemEventType.CREATE}:nested/file:${folder}/nested/file\n`)
  await sandbox.files.write(`${folder}/nested/file`, 'again')
  await said.until(`${FilesystemEventType.WRITE}:nested/file:${folder}/nested/file\n`)
  await sandbox.files.remove(`${folder}/nested/file`)
  await said.until(`${FilesystemEventType.REMOVE}:nested/file:\n`)
  await handle.stop()
})

test('a server in a sandbox is reached through the edge', async () => {
  await sandbox.files.write(`${folder}/index.html`, '<h1>from inside</h1>')
  const said = new Transcript()
  const server = await sandbox.commands.run('python3 -u -m http.server 8080', {
    background: true, timeoutMs: 0, cwd: folder, onStdout: said.add,
  })
  await said.until('Serving')
  const headers = byHeaders(sandbox.sandboxId, 8080)
  const answer = await fetch(SANDBOX_URL, { headers })
  expect([answer.status, await answer.text()]).toEqual([200, '<h1>from inside</h1>'])
  await server.kill()
  const closed = await fetch(SANDBOX_URL, { headers })
  expect([closed.status, await closed.json()]).toEqual([
    502,
    { sandboxId: sandbox.sandboxId, message: 'The sandbox is running but port is not open', port: 8080, code: 502 },
  ])
})
