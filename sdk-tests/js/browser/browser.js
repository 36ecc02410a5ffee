// A page of another origin than the server's, in a real browser: the SDK bundled as an application bundles it.

import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { fileURLToPath } from 'node:url'

import { chromium } from 'playwright-core'
import { build } from 'vite'

/** The machine's own: `scripts/packages.sh test` sees to it that there is one. */
function program() {
  return execFileSync('sh', ['-c', 'command -v chromium'], { encoding: 'utf8' }).trim()
}

/** A browser without a window. */
export function launch() {
  // Tests run as root, as whom the browser has no sandbox of its own.
  return chromium.launch({ executablePath: program(), args: ['--no-sandbox'] })
}

/** `page.js` with all that it imports, as one script. */
async function bundle() {
  const input = fileURLToPath(new URL('page.js', import.meta.url))
  const { output } = await build({
    configFile: false, root: fileURLToPath(new URL('.', import.meta.url)), logLevel: 'error',
    build: { write: false, minify: false, rolldownOptions: { input } },
  })
  return output[0].code
}

/** A page of its own origin. Give it back with `close`. */
export async function openPage() {
  const script = await bundle()
  const server = createServer(({ url }, answer) => {
    const isScript = url === '/page.js'
    answer.setHeader('Content-Type', isScript ? 'text/javascript' : 'text/html')
    answer.end(isScript ? script : '<!doctype html><meta charset="utf-8"><script type="module" src="/page.js"></script>')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const close = async () => {
    await browser?.close()
    server.closeAllConnections()
    server.close()
  }
  let browser
  try {
    browser = await launch()
    const page = await browser.newPage()
    const preflights = await record(page)
    await page.goto(`http://127.0.0.1:${server.address().port}/`)
    await page.waitForFunction(() => globalThis.journey)
    return { page, preflights, close }
  } catch (error) {
    await close()
    throw error
  }
}

/** The preflights that the browser sends, and how they were answered: `[path, status]`. Only its debugging protocol tells. */
async function record(page) {
  const protocol = await page.context().newCDPSession(page)
  const asked = new Map()
  const preflights = []
  protocol.on('Network.requestWillBeSent', ({ requestId, request }) => {
    if (request.method === 'OPTIONS') asked.set(requestId, new URL(request.url).pathname)
  })
  protocol.on('Network.responseReceived', ({ requestId, response }) => {
    if (asked.has(requestId)) preflights.push([asked.get(requestId), response.status])
  })
  await protocol.send('Network.enable')
  return preflights
}
