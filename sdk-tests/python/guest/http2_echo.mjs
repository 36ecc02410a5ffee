// Server for HTTP/2 only, in plain text and over TLS. It echoes the messages of gRPC calls as they arrive, and sends their total
// number of bytes in a trailer; it replies to other requests immediately.

import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createSecureServer, createServer } from 'node:http2'

function reply(stream, headers) {
  // Ignore errors: clients cancel calls.
  stream.on('error', () => {})
  if (headers['content-type'] !== 'application/grpc') {
    stream.respond({ ':status': 200, 'content-type': 'text/plain' })
    stream.end(`${headers[':method']} in HTTP/2`)
    return
  }
  let bytes = 0
  stream.on('data', (chunk) => (bytes += chunk.length))
  stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true })
  stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0', 'x-bytes': String(bytes) }))
  stream.pipe(stream)
}

const [clear, encrypted] = process.argv.slice(2).map(Number)
execFileSync('openssl', [
  'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', '/tmp/key', '-out', '/tmp/cert',
  '-subj', '/CN=nobody',
], { stdio: 'ignore' })
createSecureServer({ key: readFileSync('/tmp/key'), cert: readFileSync('/tmp/cert') }).on('stream', reply).listen(encrypted, () => {
  createServer().on('stream', reply).listen(clear, () => console.log('listening'))
})
