// The official command line, unchanged, with a home of its own: it keeps a configuration there, and nobody's own must matter.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { eventually, Transcript } from './journeys.js'

const PROGRAM = join(import.meta.dirname, 'node_modules/@e2b/cli/dist/index.js')

/** A command line; `environment` is added to this process's, and `undefined` takes away from it. */
export class CommandLine {
  #environment
  #home = mkdtempSync(join(tmpdir(), 'hearth-cli-'))
  #opened = join(this.#home, 'opened')

  constructor(environment = {}) {
    // What opens a page in a browser only notes which.
    const opener = join(this.#home, 'xdg-open')
    writeFileSync(opener, `#!/bin/sh\nprintf %s "$1" > '${this.#opened}.new' && mv '${this.#opened}.new' '${this.#opened}'\n`)
    chmodSync(opener, 0o755)
    const path = `${this.#home}:${process.env.PATH}`
    const own = { HOME: this.#home, PATH: path, NO_UPDATE_NOTIFIER: '1', NO_COLOR: '1' }
    this.#environment = { ...process.env, ...own, ...environment }
  }

  /** What it keeps about who is logged in. */
  get configFile() {
    return join(this.#home, '.e2b/config.json')
  }

  /** Starts a command. */
  start(...words) {
    const child = spawn(process.execPath, [PROGRAM, ...words], { env: this.#environment, timeout: 60_000 })
    const [stdout, stderr] = [new Transcript(), new Transcript()]
    child.stdout.on('data', stdout.add)
    child.stderr.on('data', stderr.add)
    const ended = once(child, 'close').then(([code, signal]) => {
      if (code === null) throw new Error(`e2b ${words.join(' ')} was ended by ${signal}: ${stdout.text}${stderr.text}`)
      return { stdout: stdout.text, stderr: stderr.text, code }
    })
    return { stdin: child.stdin, stdout, ended }
  }

  /** What a command printed and ended with, given something on its standard input, which it reads to the end. */
  async piped(input, ...words) {
    const { stdin, ended } = this.start(...words)
    stdin.end(input)
    return await ended
  }

  /** The same with nothing. */
  run = (...words) => this.piped('', ...words)

  /** Which page it opened, once. */
  async openedPage() {
    const url = await eventually(() => existsSync(this.#opened) && readFileSync(this.#opened, 'utf8'), 30_000)
    rmSync(this.#opened)
    return url
  }

  remove() {
    rmSync(this.#home, { recursive: true, force: true })
  }
}
