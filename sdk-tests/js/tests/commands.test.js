// Commands and terminals.

import { AuthenticationError, CommandExitError, InvalidArgumentError, NotFoundError, TimeoutError } from 'e2b'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { sharedSandbox, Transcript } from '../journeys.js'

const NOBODY = 999_999

let sandbox
beforeAll(async () => {
  sandbox = await sharedSandbox()
})
afterAll(() => sandbox?.kill())

function run(command, options) {
  return sandbox.commands.run(command, options)
}

/** The error that a command ended with. */
async function failureOf(command, options) {
  const error = await run(command, options).catch((error) => error)
  expect(error).toBeInstanceOf(CommandExitError)
  return error
}

describe('output and exit', () => {
  test.each(['plain', '  spaces  ', 'quotes \' " ` $HOME \\ ! * ; & |', 'first\nsecond\n\nlast', 'ümläut 漢字 🦀'])('%j comes back as it is', async (text) => {
    const result = await run('printf "%s\\n" "$TEXT"', { envs: { TEXT: text } })
    expect(result).toMatchObject({ stdout: `${text}\n`, stderr: '', exitCode: 0 })
  })

  test('both outputs and a bad exit', async () => {
    expect(await failureOf('echo out; echo err >&2; exit 3')).toMatchObject({ stdout: 'out\n', stderr: 'err\n', exitCode: 3 })
    expect((await failureOf('no-such-command-here')).exitCode).toBe(127)
    expect(await failureOf('kill -9 $$')).toMatchObject({ exitCode: -1, error: 'signal: killed' })
  })

  test('large output is complete, letters survive being cut', async () => {
    const numbers = Array.from({ length: 100_000 }, (_, index) => `${index + 1}\n`).join('')
    expect((await run('seq 1 100000')).stdout).toBe(numbers)
    expect((await run('for i in $(seq 10000); do printf 漢; done')).stdout).toBe('漢'.repeat(10_000))
  })

  test('output arrives while the command runs', async () => {
    const said = new Transcript()
    const handle = await run('echo one; read line; echo two $line', { background: true, stdin: true, onStdout: said.add })
    await said.until('one')
    await handle.sendStdin('go\n')
    expect((await handle.wait()).stdout).toBe('one\ntwo go\n')
  })

  test('a command has its time', async () => {
    await expect(run('sleep 31.7', { timeoutMs: 1000 })).rejects.toThrow(TimeoutError)
  })
})

describe('surroundings', () => {
  test('environment, folder and user', async () => {
    expect((await run('echo "$A|$B"', { envs: { A: '1', B: 'b c' } })).stdout).toBe('1|b c\n')
    expect((await run('pwd')).stdout).toBe('/home/user\n')
    expect((await run('pwd', { cwd: '/tmp' })).stdout).toBe('/tmp\n')
    await expect(run('pwd', { cwd: '/missing' })).rejects.toThrow(InvalidArgumentError)
    expect((await run('whoami')).stdout).toBe('user\n')
    expect((await run('whoami', { user: 'root' })).stdout).toBe('root\n')
    await expect(run('whoami', { user: 'nobody-here' })).rejects.toThrow(AuthenticationError)
  })
})

describe('input', () => {
  test.each(['line\n', 'open end', '', 'x'.repeat(200_000)])('input %# comes back as it is', async (text) => {
    const handle = await run('cat', { background: true, stdin: true })
    await handle.sendStdin(text)
    await handle.closeStdin()
    expect((await handle.wait()).stdout).toBe(text)
  })

  test('bytes', async () => {
    const handle = await run('od -An -tx1', { background: true, stdin: true })
    await sandbox.commands.sendStdin(handle.pid, new Uint8Array([0, 255, 128]))
    await sandbox.commands.closeStdin(handle.pid)
    expect((await handle.wait()).stdout.trim()).toBe('00 ff 80')
  })
})

describe('background', () => {
  test('listed, left, joined again and killed', async () => {
    const handle = await run('read line; echo got $line; sleep 300', { background: true, stdin: true, timeoutMs: 0 })
    expect((await sandbox.commands.list()).map(({ pid }) => pid)).toContain(handle.pid)
    await handle.disconnect()
    const said = new Transcript()
    const again = await sandbox.commands.connect(handle.pid, { onStdout: said.add, timeoutMs: 0 })
    expect(again.pid).toBe(handle.pid)
    await sandbox.commands.sendStdin(handle.pid, 'it\n')
    await said.until('got it')
    const ended = again.wait().catch((error) => error)
    expect(await sandbox.commands.kill(handle.pid)).toBe(true)
    expect(await ended).toMatchObject({ exitCode: -1 })
    await failureOf(`kill -0 ${handle.pid}`, { user: 'root' })
    expect(await sandbox.commands.kill(handle.pid)).toBe(false)
  })

  test('nobody is not found', async () => {
    expect(await sandbox.commands.kill(NOBODY)).toBe(false)
    await expect(sandbox.commands.connect(NOBODY)).rejects.toThrow(NotFoundError)
    await expect(sandbox.commands.sendStdin(NOBODY, 'x')).rejects.toThrow(NotFoundError)
  })
})

describe('terminals', () => {
  const bytes = (text) => new TextEncoder().encode(text)

  test('input, size and end', async () => {
    const said = new Transcript()
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, cwd: '/', envs: { ABC: '123' }, onData: said.add })
    await sandbox.pty.sendInput(terminal.pid, bytes('echo "[$ABC $(pwd) $(stty size)]"\n'))
    await said.until('[123 / 24 80]')
    await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 40 })
    await sandbox.pty.sendInput(terminal.pid, bytes('echo "[$(stty size)]"\n'))
    await said.until('[40 100]')
    await sandbox.pty.sendInput(terminal.pid, bytes('exit\n'))
    expect((await terminal.wait()).exitCode).toBe(0)
  })

  test('left, joined again and killed', async () => {
    const first = new Transcript()
    const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: first.add, timeoutMs: 0 })
    await sandbox.pty.sendInput(terminal.pid, bytes('echo first-$((40+2))\n'))
    await first.until('first-42')
    await terminal.disconnect()
    const second = new Transcript()
    const again = await sandbox.pty.connect(terminal.pid, { onData: second.add, timeoutMs: 0 })
    await sandbox.pty.sendInput(terminal.pid, bytes('echo second-$((40+3))\n'))
    await second.until('second-43')
    const ended = again.wait().catch((error) => error)
    expect(await sandbox.pty.kill(terminal.pid)).toBe(true)
    expect(await ended).toBeInstanceOf(CommandExitError)
    expect(await sandbox.pty.kill(terminal.pid)).toBe(false)
  })
})
