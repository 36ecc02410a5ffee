// Files, watches, and an HTTP server in a sandbox.

import { createHash, randomBytes, randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'

import { FileNotFoundError, FilesystemEventType, FileType, InvalidArgumentError } from 'e2b'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'

import { byHeaders, ENVD_PORT, eventually, SANDBOX_URL, sharedSandbox, Transcript } from '../journeys.js'

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
  // envd: F1, F2
  test('text', async () => {
    const info = await sandbox.files.write(`${folder}/new/nested/note.txt`, 'ünï')
    expect(info).toMatchObject({ name: 'note.txt', path: `${folder}/new/nested/note.txt`, type: FileType.FILE })
    expect(await sandbox.files.read(info.path)).toBe('ünï')
    await sandbox.files.write(info.path, 'over')
    expect(await sandbox.files.read(info.path)).toBe('over')
  })

  // envd: F2
  test('concurrent writes to one new tree', async () => {
    const numbers = Array.from({ length: 16 }, (_, number) => String(number))
    await Promise.all(numbers.map((number) => sandbox.files.write(`${folder}/a/b/c/${number}`, number)))
    expect(await Promise.all(numbers.map((number) => sandbox.files.read(`${folder}/a/b/c/${number}`)))).toEqual(numbers)
  })

  // envd: F5
  test('an empty file in all formats', async () => {
    const path = `${folder}/empty`
    for (const data of ['', new ArrayBuffer(0), new Blob([]), new Blob([]).stream()]) {
      await sandbox.files.write(path, data)
      expect(await sandbox.files.read(path)).toBe('')
      expect((await sandbox.files.read(path, { format: 'bytes' })).length).toBe(0)
      expect((await sandbox.files.read(path, { format: 'blob' })).size).toBe(0)
      for await (const part of await sandbox.files.read(path, { format: 'stream' })) expect(part.length).toBe(0)
    }
  })

  // envd: F4
  test.each([{}, { gzip: true }, { useOctetStream: true }])('binary content in all formats with %j', async (options) => {
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

  // envd: F4
  test('streaming 16 MiB in both directions', async () => {
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

  // envd: F3
  test('many files in one request, in order', async () => {
    const entries = Array.from({ length: 10 }, (_, number) => ({ path: `${folder}/many/${number}`, data: `content ${number}` }))
    const relative = `${folder.slice('/home/user/'.length)}/relative`
    const infos = await sandbox.files.write([...entries, { path: relative, data: 'near' }])
    expect(infos.map(({ path }) => path)).toEqual([...entries.map(({ path }) => path), `/home/user/${relative}`])
    expect(await sandbox.files.read(`${folder}/relative`)).toBe('near')
    expect(await sandbox.files.read(`${folder}/many/7`)).toBe('content 7')
  })

  // envd: F16
  test.each([{}, { useOctetStream: true }])('metadata with %j', async (options) => {
    const path = `${folder}/tagged`
    const info = await sandbox.files.write(path, 'x', { metadata: { Author: 'Ada' }, ...options })
    expect(info.metadata).toEqual({ author: 'Ada' })
    expect((await sandbox.files.getInfo(path)).metadata).toEqual({ author: 'Ada' })
    expect((await sandbox.files.list(folder)).map(({ metadata }) => metadata)).toEqual([{ author: 'Ada' }])
    expect((await sandbox.files.rename(path, `${path}2`)).metadata).toEqual({ author: 'Ada' })
    await sandbox.files.write(`${path}2`, 'y', options)
    expect((await sandbox.files.getInfo(`${path}2`)).metadata).toBeUndefined()
    await sandbox.commands.run(`python3 -c "import os; os.setxattr('${path}2', 'user.e2b.author', b'inside')"`)
    expect((await sandbox.files.getInfo(`${path}2`)).metadata).toEqual({ author: 'inside' })
    const entries = [1, 2].map((number) => ({ path: `${folder}/several/${number}`, data: 'x' }))
    const infos = await sandbox.files.write(entries, { metadata: { batch: '7' }, ...options })
    expect(infos.map(({ metadata }) => metadata)).toEqual([{ batch: '7' }, { batch: '7' }])
    for (const metadata of [{ 'a b': 'x' }, { key: 'ü' }]) {
      await expect(sandbox.files.write(path, 'x', { metadata, ...options })).rejects.toThrow(InvalidArgumentError)
    }
    expect(await sandbox.files.exists(path)).toBe(false)
  })
})

describe('entries', () => {
  // envd: F7, F10
  test('list in order, with a depth', async () => {
    for (const path of ['file1.txt', 'subdir2/x', 'subdir1/deep/y']) await sandbox.files.write(`${folder}/${path}`, path)
    const listed = async (depth) => (await sandbox.files.list(folder, { depth })).map(({ path }) => path.slice(folder.length + 1))
    expect(await listed()).toEqual(['file1.txt', 'subdir1', 'subdir2'])
    expect(await listed(1)).toEqual(await listed())
    expect(await listed(2)).toEqual(['file1.txt', 'subdir1', 'subdir1/deep', 'subdir2', 'subdir2/x'])
    expect(await listed(3)).toEqual(['file1.txt', 'subdir1', 'subdir1/deep', 'subdir1/deep/y', 'subdir2', 'subdir2/x'])
    await expect(listed(0)).rejects.toThrow(InvalidArgumentError)
    const near = await sandbox.files.list(folder.slice('/home/user/'.length))
    expect(near.map(({ path }) => path)).toEqual(['file1.txt', 'subdir1', 'subdir2'].map((name) => `${folder}/${name}`))
  })

  // envd: F8, F12, F13, F14, F15
  test('info, rename and remove', async () => {
    await sandbox.files.write(`${folder}/file`, '12345')
    expect(await sandbox.files.getInfo(`${folder}/file`)).toMatchObject({
      name: 'file', type: FileType.FILE, size: 5, mode: 0o644, permissions: '-rw-r--r--', owner: 'user', group: 'user',
    })
    const { modifiedTime, symlinkTarget } = await sandbox.files.getInfo(`${folder}/file`)
    expect(Math.abs(modifiedTime - Date.now())).toBeLessThan(60_000)
    expect(symlinkTarget).toBeUndefined()
    expect(await sandbox.files.makeDir(folder)).toBe(false)
    expect(await sandbox.files.makeDir(`${folder}/nested/deeper`)).toBe(true)
    expect(await sandbox.files.getInfo(`${folder}/nested`)).toMatchObject({
      type: FileType.DIR, mode: 0o755, permissions: 'drwxr-xr-x', owner: 'user', group: 'user',
    })
    expect(await sandbox.files.exists(`${folder}/nested/deeper`)).toBe(true)
    expect(await sandbox.files.rename(`${folder}/file`, `${folder}/a/b`)).toMatchObject({ name: 'b', path: `${folder}/a/b` })
    expect(await sandbox.files.exists(`${folder}/file`)).toBe(false)
    await sandbox.files.remove(`${folder}/a/b`)
    expect(await sandbox.files.exists(`${folder}/a/b`)).toBe(false)
    await sandbox.files.remove(`${folder}/nested`)
    // Removing a missing folder is no error.
    await sandbox.files.remove(`${folder}/nested`)
    expect(await sandbox.files.exists(`${folder}/nested`)).toBe(false)
  })

  // envd: F9, F11
  test('links, and files in a new home folder', async () => {
    await sandbox.files.write(`${folder}/file`, 'x')
    await sandbox.commands.run('ln -s file link && mkdir dir && ln -s dir dirlink', { cwd: folder })
    const info = (name) => sandbox.files.getInfo(`${folder}/${name}`)
    expect(await info('file')).toMatchObject({ name: 'file', type: FileType.FILE })
    expect(await info('dir')).toMatchObject({ name: 'dir', type: FileType.DIR })
    expect(await info('link')).toMatchObject({ name: 'link', path: `${folder}/link`, symlinkTarget: `${folder}/file` })
    expect(await info('dirlink')).toMatchObject({ name: 'dirlink', symlinkTarget: `${folder}/dir` })
    for (const name of ['.bashrc', '.profile']) {
      expect(await sandbox.files.getInfo(name)).toMatchObject({ path: `/home/user/${name}`, owner: 'user', group: 'user' })
    }
  })

  // envd: F6, F14, W5
  test('errors for missing files', async () => {
    const path = `${folder}/missing`
    for (const format of ['text', 'bytes', 'blob', 'stream']) {
      await expect(sandbox.files.read(path, { format })).rejects.toThrow(FileNotFoundError)
    }
    await expect(sandbox.files.getInfo(path)).rejects.toThrow(FileNotFoundError)
    await expect(sandbox.files.list(path)).rejects.toThrow(FileNotFoundError)
    await expect(sandbox.files.rename(path, `${path}2`)).rejects.toThrow(FileNotFoundError)
    await expect(sandbox.files.watchDir(path, () => {})).rejects.toThrow(FileNotFoundError)
    await sandbox.files.write(path, 'x')
    await expect(sandbox.files.watchDir(path, () => {})).rejects.toThrow(InvalidArgumentError)
  })
})

test('abandoned reads of a pipe block nothing', async () => {
  await sandbox.commands.run(`mkfifo ${folder}/pipe`)
  const headers = { ...byHeaders(sandbox.sandboxId, ENVD_PORT), 'X-Access-Token': sandbox.envdAccessToken }
  const url = `${SANDBOX_URL}/files?path=${encodeURIComponent(`${folder}/pipe`)}`
  for (let round = 0; round < 6; round += 1) {
    const read = async () => (await fetch(url, { headers, signal: AbortSignal.timeout(1000) })).text()
    const given = await Promise.allSettled(Array.from({ length: 50 }, read))
    expect(given.map(({ status }) => status)).not.toContain('fulfilled')
  }
  expect((await sandbox.commands.run('echo works', { timeoutMs: 20_000 })).stdout).toBe('works\n')
  await sandbox.files.write(`${folder}/file`, 'works')
  expect(await sandbox.files.read(`${folder}/file`)).toBe('works')
})

test('renames across file systems', async () => {
  await sandbox.files.write(`${folder}/tree/file`, 'text')
  const moved = `/dev/shm/${randomUUID()}`
  expect(await sandbox.files.rename(`${folder}/tree`, moved)).toMatchObject({ path: moved, type: FileType.DIR })
  expect(await sandbox.files.exists(`${folder}/tree`)).toBe(false)
  expect(await sandbox.files.read(`${moved}/file`)).toBe('text')
  await sandbox.files.remove(moved)
})

// envd: W1, W2, W3, W8
test('events of a recursive watch are pushed', async () => {
  const printed = new Transcript()
  const ends = []
  const handle = await sandbox.files.watchDir(folder, (event) => printed.add(`${event.type}:${event.name}:${event.entry?.path ?? ''}\n`), {
    recursive: true,
    includeEntry: true,
    onExit: (error) => ends.push(error),
  })
  await sandbox.files.write(`${folder}/nested/file`, 'x')
  await printed.until(`${FilesystemEventType.CREATE}:nested/file:${folder}/nested/file\n`)
  await sandbox.files.write(`${folder}/nested/file`, 'again')
  await printed.until(`${FilesystemEventType.WRITE}:nested/file:${folder}/nested/file\n`)
  await sandbox.files.remove(`${folder}/nested/file`)
  await printed.until(`${FilesystemEventType.REMOVE}:nested/file:\n`)
  await handle.stop()
  expect(ends.filter(Boolean)).toEqual([])
})

// envd: W3, W4
test('events contain entries, and network mounts are watched, on request only', async () => {
  const events = []
  const plain = await sandbox.files.watchDir(folder, (event) => events.push(event))
  const full = new Transcript()
  const asking = await sandbox.files.watchDir(folder, ({ type, name, entry }) => full.add(`${type} ${name} ${entry?.type}\n`), {
    includeEntry: true,
    allowNetworkMounts: true,
  })
  await sandbox.files.write(`${folder}/file`, 'x')
  await full.until(`${FilesystemEventType.WRITE} file ${FileType.FILE}\n`)
  const written = await eventually(() => events.find(({ type }) => type === FilesystemEventType.WRITE), 20_000)
  expect(written).toEqual({ type: FilesystemEventType.WRITE, name: 'file' })
  await plain.stop()
  await asking.stop()

  const program = await readFile(new URL('../../python/guest/fuse_mount.py', import.meta.url), 'utf8')
  await sandbox.files.write('/root/fuse_mount.py', program, { user: 'root' })
  const printed = new Transcript()
  const mount = await sandbox.commands.run('mkdir -p /mnt/remote && exec python3 fuse_mount.py /mnt/remote', {
    background: true, timeoutMs: 0, user: 'root', onStdout: printed.add,
  })
  await printed.until('mounted')
  await expect(sandbox.files.watchDir('/mnt/remote', () => {})).rejects.toThrow(InvalidArgumentError)
  await (await sandbox.files.watchDir('/mnt/remote', () => {}, { allowNetworkMounts: true })).stop()
  await sandbox.commands.run('umount -l /mnt/remote', { user: 'root' })
  await mount.kill()
})

// envd: X4
test('a server in a sandbox is reachable through the edge', async () => {
  await sandbox.files.write(`${folder}/index.html`, '<h1>from inside</h1>')
  const printed = new Transcript()
  const server = await sandbox.commands.run('python3 -u -m http.server 8080', {
    background: true, timeoutMs: 0, cwd: folder, onStdout: printed.add,
  })
  await printed.until('Serving')
  const headers = byHeaders(sandbox.sandboxId, 8080)
  const response = await fetch(SANDBOX_URL, { headers })
  expect([response.status, await response.text()]).toEqual([200, '<h1>from inside</h1>'])
  await server.kill()
  const closed = await fetch(SANDBOX_URL, { headers })
  expect([closed.status, await closed.json()]).toEqual([
    502,
    { sandboxId: sandbox.sandboxId, message: 'The sandbox is running but port is not open', port: 8080, code: 502 },
  ])
})
